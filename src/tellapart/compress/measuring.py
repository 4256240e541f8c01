"""Measuring candidates side by side: accuracy with its interval, size, latency, energy if it can be read.

Where an image can have several labels, mAP takes the place of accuracy.
Works on backends (`runtime.Backend`), so that formats make no difference. Latencies are taken in rounds in which every
candidate has its turn, since other work on the machine disturbs whatever is running; a ratio is the median of the
rounds' ratios. Knows nothing of how a candidate was made.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract.answers import Answers
from tellapart.data.loader import ImageSet
from tellapart.evaluation import infer, metrics, multilabel
from tellapart.runtime import Backend, timing

BATCHES = (1, 32)
_ROUNDS, _SECONDS = 7, 0.12  # for each candidate and batch size: rounds, and the shortest time of one
_RAPL = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Candidate:
    """Something to measure: a model's file and where it comes from.

    ``against``: the name of the candidate in the same runtime with which sizes and latencies are compared.
    ``parameters`` and ``flops`` (of one image) are given if known.
    """

    name: str
    method: str
    file: Path
    against: str
    precision: str = "fp32"
    parameters: int | None = None
    flops: int | None = None
    note: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A candidate's figures. Latencies in milliseconds for a batch, by batch size; energy in millijoules an image.

    ``value``: of the ``metric`` by which models of this kind are judged, accuracy or map. ``change``: by class, the
    share of right answers (with several labels: the average precision) minus that of the first candidate.
    ``agreement``: share of images with the first candidate's answer. ``ratios``: latency divided by that of
    ``against``, by batch size.
    """

    candidate: Candidate
    format: str
    bytes: int
    size_ratio: float
    n: int
    value: float
    interval: tuple[float, float]
    change: Mapping[str, float]
    agreement: float
    p50: Mapping[int, float]
    p95: Mapping[int, float]
    ratios: Mapping[int, float]
    energy: float | None
    macro_f1: float | None = None
    metric: str = "accuracy"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dataclasses.asdict(self)
        values[self.metric] = values.pop("value")
        candidate = values.pop("candidate")
        candidate["file"] = str(candidate["file"])
        by_batch = {
            name: {str(key): value for key, value in values[name].items()}
            for name in ("p50", "p95", "ratios")
        }
        return {**candidate, **values, **by_batch, "interval": list(self.interval)}


def files_of(path: Path) -> tuple[Path, ...]:
    """Return a model's files: its own, and the weights beside an OpenVINO .xml."""
    return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)


def file_size(path: Path) -> int:
    """Return the bytes of all files of a model."""
    return sum(file.stat().st_size for file in files_of(path))


def measure(
    candidates: Sequence[tuple[Candidate, Backend]],
    images: ImageSet,
    advance: Callable[[int], None] = lambda n: None,
) -> list[Row]:
    """Return the figures of every candidate on labelled images, resized by the contract that all share.

    The first is the model that the others come from. ``advance`` is called after every image and every round.
    """
    stored = infer.Stored(images)
    given = [infer.run(backend, stored, advance=advance, latency=False).answers for _, backend in candidates]
    found = [metrics.measured(answers, truth_of(images), "") for answers in given]
    told = [[sorted(labels) for labels in answers.told] for answers in given]
    times, energy = _timed([backend for _, backend in candidates], images, advance)
    places = {candidate.name: place for place, (candidate, _) in enumerate(candidates)}
    first = found[0].by_class()
    rows = []
    for place, (candidate, backend) in enumerate(candidates):
        headline = found[place].headline
        other = places[candidate.against]
        medians = {batch: [statistics.median(turn) for turn in times[batch][place]] for batch in BATCHES}
        base = {batch: [statistics.median(turn) for turn in times[batch][other]] for batch in BATCHES}
        points = {
            batch: timing.percentiles(np.concatenate(times[batch][place]).tolist(), (50, 95)) or {}
            for batch in BATCHES
        }
        rows.append(
            Row(
                candidate,
                backend.format,
                file_size(candidate.file),
                file_size(candidate.file) / file_size(candidates[other][0].file),
                found[place].n,
                headline.value,
                headline.interval,
                {name: value - first[name] for name, value in found[place].by_class().items()},
                statistics.fmean(ours == theirs for ours, theirs in zip(told[place], told[0], strict=True)),
                {batch: points[batch]["p50"] for batch in BATCHES},
                {batch: points[batch]["p95"] for batch in BATCHES},
                {
                    batch: statistics.median(a / b for a, b in zip(medians[batch], base[batch], strict=True))
                    for batch in BATCHES
                },
                energy[place],
                found[place].figures().get("macro_f1"),
                headline.key,
            )
        )
    return rows


def truth_of(images: ImageSet) -> npt.NDArray[Any]:
    """Return the images' labels int64 [N], or targets uint8 [N, K] where an image can have several."""
    samples = images.samples
    return samples.labels if samples.targets is None else samples.targets


def judged(answers: Answers, truth: npt.NDArray[Any]) -> float:
    """Return the figure that answers are judged by, without all else: accuracy, of several labels mAP."""
    if truth.ndim == 2:
        return multilabel.mean_average_precision(answers.scaled, truth)
    return float((answers.best == truth).mean())


def _timed(
    backends: Sequence[Backend], images: ImageSet, advance: Callable[[int], None]
) -> tuple[dict[int, list[list[list[float]]]], list[float | None]]:
    """Return milliseconds by batch size, backend and round, and each backend's energy in millijoules an image."""
    times: dict[int, list[list[list[float]]]] = {}
    joules, counted = [0.0] * len(backends), [0] * len(backends)
    readable = energy_counters()
    for batch in BATCHES:
        pixels = _batch(images, batch)
        for backend in backends:
            backend.logits(pixels)  # prepares kernels
        turns = timing.in_turns(
            [functools.partial(backend.logits, pixels) for backend in backends],
            _ROUNDS,
            _SECONDS,
            meter=lambda: read_energy(readable),
            advance=lambda: advance(1),
        )
        times[batch] = [[turn.milliseconds for turn in own] for own in turns]
        for place, own in enumerate(turns):
            joules[place] += sum(max(turn.used, 0.0) for turn in own)  # the counter wrapped around: no figure
            counted[place] += sum(len(turn.milliseconds) for turn in own) * batch
    known = [1000 * j / n if readable and j else None for j, n in zip(joules, counted, strict=True)]
    return times, known


def rounds(candidates: int) -> int:
    """Return how many rounds `measure` needs with this many candidates."""
    return _ROUNDS * len(BATCHES) * candidates


def _batch(images: ImageSet, count: int) -> npt.NDArray[np.uint8]:
    rows = np.arange(count) % len(images)
    pixels: npt.NDArray[np.uint8] = images.batch(rows).pixels.numpy()
    return pixels


def energy_counters(folder: Path = _RAPL) -> list[Path]:
    """Return the processor packages' energy counters (RAPL) that can be read; most systems let only root do so."""
    found = []
    for path in sorted(folder.glob("intel-rapl:?/energy_uj")):
        try:
            path.read_text()
        except OSError:
            continue
        found.append(path)
    return found


def read_energy(counters: Sequence[Path]) -> float:
    """Return the counters' sum in joules."""
    return sum(int(path.read_text()) for path in counters) / 1e6
