"""INT8 files of a model for each runtime, within an accuracy budget, and the exports that they are compared with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tellapart import artifact, files, numerals, runtime
from tellapart.compress import measuring, onnx_int8, openvino_int8
from tellapart.compress.measuring import Candidate
from tellapart.compress.subject import Subject
from tellapart.contract import answers
from tellapart.errors import ExportError
from tellapart.evaluation import infer
from tellapart.export import formats
from tellapart.export.base import Options
from tellapart.export.graph import graph_of

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
SHORT = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
_BATCH, _RANKED, _COMPARED = 16, 32, 64  # images: in a batch, to rank layers on, to compare an export on
_FLOAT_PART, _FLOAT_WEIGHTS = (
    4,
    50,
)  # at most one in this many layers, and in this many weights, is left in float
_ONE_AT_A_TIME = (
    "int8 dynamic ONNX Runtime: its ranges are those of a whole batch, so images are answered one at a time; "
    "other programs must call it with one image, too."
)
Say = Callable[[str], None]
Drop = Callable[[Path], float]


def exports(
    subject: Subject, folder: Path, runtimes: Sequence[str], precisions: Sequence[str], threads: int = 0
) -> list[Candidate]:
    """Write the model in float for the runtimes into ``folder``; return candidates.

    Each file's probabilities are compared with the model's on validation images. Raises ExportError where they differ.
    """
    folder.mkdir(parents=True)
    images = subject.parts["val"]
    pixels = images.batch(np.arange(min(_COMPARED, len(images)))).pixels.numpy()
    model = runtime.open_backend(subject.file, threads=threads)
    wanted = answers.probabilities(model.logits(pixels), model.card)
    found = []
    for name in runtimes:
        for precision in precisions:
            entry, options = formats.find(name), Options(precision=precision, examples=pixels)
            file = folder / entry.file_name(options)
            with files.workplace(folder, file) as place:
                written = entry.write(graph_of(subject.file), subject.card, place / file.name, options)
                files.move([(path, folder / path.name) for path in reversed(written.files)])
            backend = runtime.open_backend(file, threads=threads)
            given = answers.probabilities(backend.logits(pixels), backend.card)
            difference = float(np.abs(given - wanted).max())
            if difference > entry.tolerance[precision].probability:
                raise ExportError(
                    f"{file} differs from the model by {difference:.2g} in a probability; it is not used."
                )
            against = f"fp32 {SHORT[name]}"
            found.append(Candidate(f"{precision} {SHORT[name]}", "export", file, against, precision))
    return found


def quantise(
    subject: Subject,
    folder: Path,
    name: str,
    source: Path,
    first: Path,
    images: int,
    max_drop: float,
    say: Say,
    label: str = "int8",
    reduce_range: bool = False,
) -> list[Candidate]:
    """Return the INT8 candidates of a runtime, made from the float file ``source``.

    ``first``: the float file of the model that the drop is measured against. ``reduce_range``: ONNX Runtime's weights
    have seven bits.
    """
    if not subject.card.several:  # mAP has no such grain
        _tell_grain(len(subject.parts["val"]), max_drop, say)
    batches = calibration(subject, images)
    place = folder / f"{label}-{name}"
    place.mkdir()
    if is_transformer(artifact.open_model(subject.file).model):
        return _of_transformer(name, source, place, subject, batches, reduce_range)
    target = place / f"model-int8{SUFFIX[name]}"
    work = functools.partial(_onnx, reduce_range=reduce_range) if name == "onnx" else _openvino
    facts = work(subject, source, _drop(subject, first), target, batches, max_drop, say)
    note = _note(f"{label} {SHORT[name]}", facts, max_drop, "mAP" if subject.card.several else "accuracy")
    return [
        Candidate(
            f"{label} {SHORT[name]}", "int8", target, f"fp32 {SHORT[name]}", "int8", note=note, facts=facts
        )
    ]


def _tell_grain(count: int, max_drop: float, say: Say) -> None:
    """Warn if the allowed drop is smaller than one image of the validation split: then none may be lost."""
    grain = 100 / count
    if max_drop < grain:
        say(
            f"--max-drop {numerals.setting(max_drop)} is less than one image of the validation split ({count} images, "
            f"{numerals.number(grain, 2)} points each): not one more may be wrong."
        )


def calibration(subject: Subject, images: int) -> list[Any]:
    """Return training images preprocessed by the contract, in batches uint8 [b, height, width, C]."""
    rows = subject.training_rows(images)
    train = subject.parts["train"]
    return [train.batch(rows[k : k + _BATCH]).pixels.numpy() for k in range(0, len(rows), _BATCH)]


def is_transformer(model: torch.nn.Module) -> bool:
    """Return whether most weights are in linear layers between layer norms."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    whole = sum(p.numel() for p in model.parameters())
    return 2 * linear > whole and any(isinstance(m, torch.nn.LayerNorm) for m in model.modules())


def _drop(subject: Subject, source: Path) -> Drop:
    """Return a function: file -> points of accuracy, or of mAP, that it loses on validation against ``source``."""
    images = subject.parts["val"]

    def judged(file: Path) -> float:
        ran = infer.run(runtime.open_backend(file), infer.Stored(images), latency=False)
        return measuring.judged(ran.answers, measuring.truth_of(images))

    before = judged(source)
    return lambda file: 100 * (before - judged(file))


def _onnx(
    subject: Subject,
    source: Path,
    drop: Drop,
    target: Path,
    batches: Sequence[Any],
    max_drop: float,
    say: Say,
    reduce_range: bool = False,
) -> dict[str, Any]:
    """Quantise; leave the most sensitive layers in float, twice as many each time, until the drop is small enough."""
    quantizer = onnx_int8.Quantizer(source, batches, reduce_range)
    ranking: list[tuple[str, float]] = []

    def attempts() -> Iterator[tuple[Any, list[str]]]:
        yield quantizer.quantised(), []
        say(f"Measuring the effect of each of {len(quantizer.layers)} layers.")
        ranking.extend(quantizer.sensitivity(np.concatenate(batches)[:_RANKED]))
        light = _light([name for name, _ in ranking], quantizer.layers)
        count = 0
        while count < len(light):
            count = min(2 * count or 1, len(light))
            yield quantizer.quantised(keep=light[:count]), light[:count]

    facts = _least_drop(attempts(), quantizer.write, drop, target, max_drop, say)
    return {**facts, "layers": len(quantizer.layers), "sensitivity": dict(ranking[:10])}


def _light(ranked: Sequence[str], weights: Mapping[str, int]) -> list[str]:
    """Return the layers, in their order, that may stay in float: a quarter of them, with a fiftieth of all weights."""
    room = sum(weights.values()) // _FLOAT_WEIGHTS
    found: list[str] = []
    for name in ranked:
        if weights[name] <= room and len(found) < max(len(weights) // _FLOAT_PART, 1):
            found.append(name)
            room -= weights[name]
    return found


def _openvino(
    subject: Subject,
    source: Path,
    drop: Drop,
    target: Path,
    batches: Sequence[Any],
    max_drop: float,
    say: Say,
) -> dict[str, Any]:
    """Quantise; if that costs too much accuracy, by NNCF's accuracy-aware method."""
    quantizer = openvino_int8.Quantizer(source, subject.card, batches)

    def attempts() -> Iterator[tuple[Any, list[str]]]:
        network = quantizer.quantised()
        yield network, quantizer.float_layers(network)
        say("NNCF restores the layers that cost accuracy.")
        val = subject.parts["val"]
        pixels = [val.batch(np.array([row])).pixels.numpy() for row in range(len(val))]
        network = quantizer.within(max_drop / 100, pixels, measuring.truth_of(val))
        yield network, quantizer.float_layers(network)

    return _least_drop(attempts(), quantizer.write, drop, target, max_drop, say)


def _least_drop(
    attempts: Iterable[tuple[Any, list[str]]],
    write: Callable[[Any, Path], None],
    drop: Drop,
    target: Path,
    max_drop: float,
    say: Say,
) -> dict[str, Any]:
    """Write networks to ``target`` until one costs little enough; the one that costs least is kept, the first of
    equals.

    ``attempts``: each network with its layers left in float.
    """
    tried: list[tuple[float, int]] = []
    lost, float_layers = math.inf, list[str]()
    for network, kept in attempts:
        with files.workplace(target.parent, target) as place:
            trial = place / target.name
            write(network, trial)
            tried.append((drop(trial), len(kept)))
            if tried[-1][0] < lost:
                lost, float_layers = tried[-1][0], kept
                pairs = zip(measuring.files_of(trial), measuring.files_of(target), strict=True)
                files.move(list(pairs)[::-1])
        if lost <= max_drop:
            break
        say(f"{numerals.fixed(tried[-1][0], 2)} points lost with {len(kept)} layers kept in float.")
    return {
        "drop": lost,
        "met": lost <= max_drop,
        "float_layers": float_layers,
        "tried": [list(one) for one in tried],
    }


def _of_transformer(
    name: str,
    source: Path,
    place: Path,
    subject: Subject,
    batches: Sequence[Any],
    reduce_range: bool,
) -> list[Candidate]:
    """Weight-only, and for ONNX Runtime dynamic: fixed ranges do not suit a transformer's activations."""
    against = f"fp32 {SHORT[name]}"
    if name == "openvino":
        target = place / "model-int8-weights.xml"
        quantizer = openvino_int8.Quantizer(source, subject.card, batches)
        with files.workplace(place, target) as aside:
            quantizer.write(quantizer.weights_only(), aside / target.name, "int8-weights")
            files.move([(path, place / path.name) for path in measuring.files_of(aside / target.name)[::-1]])
        return [Candidate("int8 weights OpenVINO", "int8", target, against, "int8-weights")]
    dynamic, weights = place / "model-int8-dynamic.onnx", place / "model-int8-weights.onnx"
    onnx_int8.dynamic(source, dynamic, reduce_range)
    onnx_int8.weight_only(source, weights)
    return [
        Candidate("int8 dynamic ONNX Runtime", "int8", dynamic, against, "int8-dynamic", note=_ONE_AT_A_TIME),
        Candidate("int8 weights ONNX Runtime", "int8", weights, against, "int8-weights"),
    ]


def _note(name: str, facts: dict[str, Any], max_drop: float, metric: str) -> str:
    kept = len(facts["float_layers"])
    text = f"{name}: {numerals.signed(-facts['drop'], 2)} points of {metric} on validation"
    text += f", {kept} of the layers kept in float." if kept else "."
    if not facts["met"]:
        text += f" That is more than the {numerals.setting(max_drop)} allowed; --method qat trains with the rounding."
    return text
