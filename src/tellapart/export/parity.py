"""Whether an exported file gives the artifact's answers: both run over the same images, from the files' bytes.

A file that is one graph is also run as a program without tellapart would run it, with its own decoding (`outside`).
Works on two backends and a list of images; knows no format, and nothing of where images come from.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart import numerals
from tellapart.contract import BadImage, Pixels, answers
from tellapart.contract.resizing import open_pixels
from tellapart.errors import DataError, ExportError
from tellapart.evaluation.metrics import wilson_interval
from tellapart.export import outside
from tellapart.export.base import Tolerance
from tellapart.runtime import Backend, timing

Floats = npt.NDArray[np.float64]
_BATCH = 32
_TURNS, _TURN_SECONDS = 4, 0.2  # for each side, at one batch size
_LATENCY_SECONDS = 12.0  # for both sides together, at one batch size
_SHOWN = 5  # images with the largest differences


@dataclass(frozen=True)
class Case:
    """One image: its name, a function that returns its bytes or pixels, and its class if it is known."""

    name: str
    read: Callable[[], bytes | Pixels]
    label: int | None = None


@dataclass(frozen=True)
class Cases:
    """Images to compare on. ``origin`` says in words where they are from; ``real``: whether they are real images."""

    images: Sequence[Case]
    origin: str
    real: bool = True


@dataclass(frozen=True)
class Side:
    """The measurements of one of the two. Latencies in milliseconds by batch size: p50 and p95 of one call."""

    accuracy: float | None
    interval: tuple[float, float] | None
    bytes: int
    latency_ms: Mapping[int, Mapping[str, float]]


@dataclass(frozen=True)
class Difference:
    """One image on which both differ: name, both answers' classes and probabilities, largest difference."""

    name: str
    artifact: str
    export: str
    difference: float


@dataclass(frozen=True)
class Parity:
    """The comparison of one exported file with its artifact.

    Fractions in [0, 1]. ``agreement``: images with the same most probable class, of all. ``ties``: those that differ
    but whose two classes are within the tolerance of each other in the artifact; they do not count against it.
    ``whole_difference``: the largest difference when the file ran as one graph on images decoded by plain Pillow (None:
    the file is not one graph). ``full_difference``: the same with JPEG files decoded at full size although the contract
    reduces them (None: it does not). ``pixels``: the share of values of the network's input that differ, and by how
    many levels at most. ``features_difference``: the largest norm of the difference of an image's features, relative to
    that of the artifact's (None: the file has none). ``where``: where a difference begins; only after a failed
    comparison. ``several``: images can have several labels; ``agreement`` is then the share of images with the same
    labels, and ties are at a threshold.
    """

    format: str
    precision: str
    file: str
    n: int
    origin: str
    real: bool
    unreadable: int
    agreement: float
    ties: int
    max_difference: float
    mean_difference: float
    whole_difference: float | None
    pixels: Mapping[str, float]
    tolerance: Tolerance
    reasons: tuple[str, ...]
    artifact: Side
    export: Side
    threads: int
    largest: tuple[Difference, ...]
    where: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    full_difference: float | None = None
    several: bool = False
    features_difference: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the file may be used."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = dataclasses.asdict(self)
        for side in ("artifact", "export"):
            latencies = values[side]["latency_ms"].items()
            values[side]["latency_ms"] = {str(batch): times for batch, times in latencies}
        return {"passed": self.passed, **values}


@dataclass(frozen=True)
class Uncompared:
    """A file without a comparison, or a format without a file, and the reason.

    ``written``: whether there is a file.
    """

    format: str
    precision: str
    file: str
    reasons: tuple[str, ...]
    written: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    passed = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"passed": False, **dataclasses.asdict(self)}


@dataclass
class Measured:
    """What both backends answered for the images that both could read: probabilities [N, K], and more."""

    artifact: Floats
    export: Floats
    whole: Floats | None
    names: list[str]
    labels: list[int | None]
    pixels: dict[str, float]
    worst: Pixels
    unreadable: int
    found: str = ""
    full: Floats | None = None
    features: float | None = None
    inside: int = 0  # images that only tellapart's decoder reads, so that even the graph got its pixels


def measure(
    artifact: Backend,
    export: Backend,
    cases: Cases,
    advance: Callable[[int], None],
    watch: Callable[[Pixels], str] | None = None,
    features: bool = False,
) -> Measured:
    """Run both over the images, a batch at a time. Raises DataError if no image can be read.

    An image that one of the two can read and the other cannot is an error of the export, and raised as ExportError.
    ``watch`` looks at the same pixels, and says what is wrong inside the file; the first problem is kept as ``found``.
    ``features``: these are compared too.
    """
    found, apart = "", 0.0
    parts: list[tuple[Floats, Floats]] = []
    whole, full = list[Floats](), list[Floats]()
    inside = 0
    names: list[str] = []
    labels: list[int | None] = []
    pixels = {"share": 0.0, "levels": 0.0}
    worst: list[tuple[float, Pixels]] = []
    unreadable = values = 0
    for start in range(0, len(cases.images), _BATCH):
        chunk = cases.images[start : start + _BATCH]
        inputs: list[tuple[Pixels, Pixels]] = []
        for case in chunk:
            try:
                content = case.read()
                expected = artifact.prepare(content)
            except (BadImage, OSError):
                unreadable += 1
                continue
            try:
                inputs.append((expected, export.prepare(content)))
            except BadImage as error:
                raise ExportError(f"it cannot take the image {case.name}: {error}") from error
            if hasattr(export, "whole"):
                own = _outside(content, artifact)
                inside += own is None
                whole.append(_whole(export, _ours(content, artifact) if own is None else own))
                if artifact.card.preprocessing.decode == "scaled":
                    other = _outside(content, artifact, decode_whole=True)
                    full.append(whole[-1] if other is None else _whole(export, other))
            names.append(case.name)
            labels.append(case.label)
        if inputs:
            ours, theirs = (np.stack(side) for side in zip(*inputs, strict=True))
            found = found or (watch(theirs) if watch else "")
            distance = np.abs(ours.astype(np.int16) - theirs)
            pixels["share"] += float((distance > 0).sum())
            pixels["levels"] = max(pixels["levels"], float(distance.max()))
            values += distance.size
            pair = _probabilities(artifact, ours), _probabilities(export, theirs)
            parts.append(pair)
            if features:
                apart = max(apart, _features_apart(artifact.features(ours), export.features(theirs)))
            furthest = _distance(*pair)
            worst += [(float(furthest[row]), ours[row]) for row in np.argsort(-furthest)[:8]]
            worst = sorted(worst, key=lambda entry: -entry[0])[:8]
        advance(len(chunk))
    if not parts:
        raise DataError("None of the images can be read.")
    pixels["share"] /= values
    first, second = (np.concatenate(side) for side in zip(*parts, strict=True))
    chosen = np.stack([image for _, image in worst])
    graph, unreduced = (np.concatenate(given) if given else None for given in (whole, full))
    return Measured(
        first, second, graph, names, labels, pixels, chosen, unreadable, found, unreduced,
        apart if features else None, inside,
    )  # fmt: skip


def _probabilities(side: Backend, pixels: Pixels) -> Floats:
    """Return probabilities [B, K], even if they are not numbers."""
    return answers.unchecked(side.logits(pixels), side.card).probabilities


def _features_apart(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """Return the largest norm of a difference of [B, F], relative to that of ours; infinite if it is not a number."""
    if ours.shape != theirs.shape:
        raise ExportError(f"its features are {list(theirs.shape[1:])}, the artifact's {list(ours.shape[1:])}")
    lengths = np.linalg.norm(ours.astype(np.float64), axis=1)
    apart = np.linalg.norm(ours.astype(np.float64) - theirs, axis=1) / np.where(lengths > 0, lengths, 1.0)
    return float(np.nan_to_num(apart, nan=np.inf).max())


def _whole(export: Any, pixels: Pixels) -> Floats:
    """Return the file's own probabilities for one decoded image, [1, K]."""
    return np.asarray(export.whole(pixels[None])[0], np.float64)


def _ours(content: bytes | Pixels, artifact: Backend) -> Pixels:
    return open_pixels(content, artifact.card.preprocessing)


def _outside(content: bytes | Pixels, artifact: Backend, decode_whole: bool = False) -> Pixels | None:
    """Return an image as a program without tellapart decodes it; None if that program cannot read it."""
    if not isinstance(content, bytes):
        return _ours(content, artifact)
    return outside.pixels(content, artifact.card.preprocessing, decode_whole)


def _distance(first: Floats, second: Floats) -> Floats:
    """Return each image's largest difference of a probability: [N]; infinite where a value is not a number."""
    distance: Floats = np.nan_to_num(np.abs(first - second), nan=np.inf).max(axis=1)
    return distance


def latencies(sides: Sequence[Backend], pixels: Pixels, batch: int) -> list[dict[str, float]]:
    """Return p50 and p95 of calls in milliseconds for each side; they take turns, so a busy machine affects both."""
    images = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))
    calls = [functools.partial(side.logits, images) for side in sides]
    found = []
    for turns in timing.in_turns(calls, _TURNS, _TURN_SECONDS, longest=_LATENCY_SECONDS):
        points = timing.percentiles([value for turn in turns for value in turn.milliseconds], (50, 95)) or {}
        found.append({name: round(value, 4) for name, value in points.items()})
    return found


def judge(
    measured: Measured, tolerance: Tolerance, thresholds: Sequence[float] = ()
) -> tuple[float, int, list[str]]:
    """Return agreement, ties, and the reasons for which the file is not accepted.

    ``thresholds``: of the classes, if images can have several labels; then the labels above them are compared.
    """
    first, second = measured.artifact, measured.export
    if thresholds:
        limits = np.asarray(thresholds)
        unlike = (first >= limits) != (second >= limits)
        differ = unlike.any(1)
        ties = differ & ~(unlike & (np.abs(first - limits) > tolerance.probability)).any(1)
    else:
        ours, theirs = answers.best(first), answers.best(second)
        rows = np.arange(len(first))
        differ = ours != theirs
        lead = first[rows, ours] - first[rows, theirs]
        ties = differ & (lead <= tolerance.probability)
    agreement = float((~differ).mean())
    furthest = float(_distance(first, second).max())
    reasons = []
    if not furthest <= tolerance.probability:
        reasons.append(
            f"a probability differs by {furthest:.2g}; at most {tolerance.probability:g} is allowed"
        )
    counted = float((~differ | ties).mean())
    other = "different labels" if thresholds else "a different class"
    if counted < tolerance.agreement:
        reasons.append(
            f"{int((differ & ~ties).sum())} of {len(first)} images get {other} "
            f"({numerals.percent(counted)} agree; {numerals.percent(tolerance.agreement)} are needed)"
        )
    if measured.whole is not None:
        furthest = float(_distance(first, measured.whole).max())
        if not furthest <= tolerance.probability:
            reasons.append(f"run as one graph, the file differs by {furthest:.2g} in a probability")
    if measured.features is not None and not measured.features <= tolerance.features:
        reasons.append(
            f"features differ by {measured.features:.2g} of their length; at most {tolerance.features:g} is allowed"
        )
    if measured.found:
        reasons.append(measured.found)
    return agreement, int(ties.sum()), reasons


def side(given: Floats, labels: Sequence[int | None], size: int, latency: Mapping[int, Any]) -> Side:
    """Return the figures of one of the two; accuracy only if labels are known."""
    rows = [row for row, label in enumerate(labels) if label is not None]
    if not rows:
        return Side(None, None, size, latency)
    truth = np.array([labels[row] for row in rows])
    correct = int((answers.best(given[rows]) == truth).sum())
    return Side(correct / len(rows), wilson_interval(correct, len(rows)), size, latency)


def compare(
    artifact: Backend,
    export: Backend,
    cases: Cases,
    tolerance: Tolerance,
    *,
    about: Mapping[str, Any],
    sizes: tuple[int, int],
    threads: int,
    batches: Sequence[int] = (1, 32),
    locate: Callable[[Pixels], str] | None = None,
    watch: Callable[[Pixels], str] | None = None,
    advance: Callable[[int], None] = lambda count: None,
    features: bool = False,
) -> Parity:
    """Return the whole comparison.

    Args:
        artifact: what was measured, in float32.
        export: the file, opened.
        cases: the images.
        tolerance: how far the two may be from each other.
        about: format, precision, file, facts and notes, as the result has them.
        sizes: bytes of both.
        threads: the number of threads of both.
        batches: batch sizes whose latency is measured.
        locate: says where a difference begins, for the pixels of the worst images.
        watch: says what is wrong inside the file for a batch of pixels, which its answers here may hide; "" if nothing.
        advance: called with the number of images that were done.
        features: whether the file has features, which are compared too.
    """
    measured = measure(artifact, export, cases, advance, watch, features)
    agreement, ties, reasons = judge(measured, tolerance, artifact.card.thresholds)
    both = [artifact, export]
    timed = {batch: latencies(both, measured.worst, batch) for batch in batches}
    distance = _distance(measured.artifact, measured.export)
    mean = float(np.abs(measured.artifact - measured.export).mean())
    whole = None if measured.whole is None else float(_distance(measured.artifact, measured.whole).max())
    return Parity(
        **{
            **about,
            "notes": (*about.get("notes", ()), *_notes(measured, artifact.card.preprocessing.decode)),
        },
        n=len(distance),
        origin=cases.origin,
        real=cases.real,
        unreadable=measured.unreadable,
        agreement=agreement,
        several=artifact.card.several,
        ties=ties,
        max_difference=_finite(float(distance.max())),
        mean_difference=_finite(mean),
        whole_difference=None if whole is None else _finite(whole),
        pixels=measured.pixels,
        tolerance=tolerance,
        reasons=tuple(reasons),
        artifact=side(measured.artifact, measured.labels, sizes[0], {b: t[0] for b, t in timed.items()}),
        export=side(measured.export, measured.labels, sizes[1], {b: t[1] for b, t in timed.items()}),
        threads=threads,
        largest=_largest(measured, distance, artifact.card.classes),
        where=_where(measured, locate) if reasons else "",
        full_difference=_finite(float(_distance(measured.artifact, measured.full).max()))
        if measured.full is not None
        else None,
        features_difference=None if measured.features is None else _finite(measured.features),
    )


def _notes(measured: Measured, decode: str) -> list[str]:
    """Return in sentences what a program without tellapart must know about decoding."""
    notes = []
    if decode == "scaled":
        text = (
            "The contract decodes large JPEG files at 1/2, 1/4 or 1/8 of their size (--input.decode scaled), as the "
            "card says. A program that decodes them at full size gets other answers"
        )
        if measured.full is not None:
            furthest = float(_distance(measured.artifact, measured.full).max())
            flips = int((answers.best(measured.artifact) != answers.best(measured.full)).sum())
            text += (
                f": a probability differed by up to {furthest:.2g}, and {flips} of {len(measured.full)} images got "
                "a different class"
            )
        notes.append(text + ".")
    if measured.inside:
        notes.append(
            f"{measured.inside} images have more than 8 bits or a form that plain Pillow does not decode by the "
            "contract's rules; for the run as one graph, tellapart decoded them."
        )
    return notes


def _finite(value: float) -> float:
    """Return the value; 1, the largest difference of probabilities, if it is not a number."""
    return value if math.isfinite(value) else 1.0


def _largest(measured: Measured, distance: Floats, classes: Sequence[str]) -> tuple[Difference, ...]:
    def answer(values: Floats) -> str:
        (best,) = answers.best(values[None])
        return f"{classes[best]} {values[best]:.6f}"

    return tuple(
        Difference(
            measured.names[row],
            answer(measured.artifact[row]),
            answer(measured.export[row]),
            _finite(float(distance[row])),
        )
        for row in np.argsort(-distance)[:_SHOWN]
    )


def _where(measured: Measured, locate: Callable[[Pixels], str] | None) -> str:
    """Return in words where the difference begins: before the network, or in which of its layers."""
    pixels = measured.pixels
    if pixels["levels"] > 2 or pixels["share"] > 0.02:
        return (
            f"The difference starts before the network: {numerals.percent(pixels['share'])} of its input's values "
            f"differ, by up to {pixels['levels']:.0f} of 255 levels."
        )
    return (
        locate(measured.worst)
        if locate
        else "The network's input agrees; the difference starts in the network."
    )
