"""INT8 files of a model for each runtime, within a budget of accuracy; the exports that they are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tellapart import artifact, runtime
from tellapart.compress import measuring, onnx_int8, openvino_int8
from tellapart.compress.measuring import Candidate
from tellapart.compress.subject import Subject
from tellapart.errors import ExportError
from tellapart.export import formats
from tellapart.export.base import Options
from tellapart.export.graph import graph_of

SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
SHORT = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
_BATCH, _RANKED, _COMPARED = 16, 16, 64  # images: of a batch, to rank layers by, to compare an export on
_FLOAT_PART = 4  # at most one layer of so many is left in float
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
    wanted = runtime.probabilities(model.logits(pixels), model.card)
    found = []
    for name in runtimes:
        for precision in precisions:
            entry, options = formats.find(name), Options(precision=precision)
            file = folder / entry.file_name(options)
            entry.write(graph_of(subject.file), subject.card, file, options)
            backend = runtime.open_backend(file, threads=threads)
            given = runtime.probabilities(backend.logits(pixels), backend.card)
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
) -> list[Candidate]:
    """Return the INT8 candidates of a runtime, made from the float file ``source``.

    ``first``: the float file of the model that the drop is measured against.
    """
    batches = calibration(subject, images)
    place = folder / f"{label}-{name}"
    place.mkdir()
    if is_transformer(artifact.open_model(subject.file).model):
        return _of_transformer(name, source, place, subject, batches)
    target = place / f"model-int8{SUFFIX[name]}"
    work = _onnx if name == "onnx" else _openvino
    facts = work(subject, source, _drop(subject, first), target, batches, max_drop, say)
    note = _note(f"{label} {SHORT[name]}", facts, max_drop)
    return [
        Candidate(
            f"{label} {SHORT[name]}", "int8", target, f"fp32 {SHORT[name]}", "int8", note=note, facts=facts
        )
    ]


def calibration(subject: Subject, images: int) -> list[Any]:
    """Return training images as the contract makes them, in batches uint8 [b, size, size, C]."""
    rows = subject.training_rows(images)
    train = subject.parts["train"]
    return [train.batch(rows[k : k + _BATCH]).pixels.numpy() for k in range(0, len(rows), _BATCH)]


def is_transformer(model: torch.nn.Module) -> bool:
    """Return whether most weights are in linear layers between layer norms."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    whole = sum(p.numel() for p in model.parameters())
    return 2 * linear > whole and any(isinstance(m, torch.nn.LayerNorm) for m in model.modules())


def _drop(subject: Subject, source: Path) -> Drop:
    """Return a function: file -> points of accuracy that it loses on validation against ``source``."""
    images = subject.parts["val"]

    def right(file: Path) -> float:
        return float((measuring.answers(runtime.open_backend(file), images) == images.samples.labels).mean())

    before = right(source)
    return lambda file: 100 * (before - right(file))


def _onnx(
    subject: Subject,
    source: Path,
    drop: Drop,
    target: Path,
    batches: Sequence[Any],
    max_drop: float,
    say: Say,
) -> dict[str, Any]:
    """Quantise; leave the most sensitive layers in float, twice as many each time, until the drop is small enough.

    Beyond a quarter of the layers little of the gain is left: then the attempt with the smallest drop counts, of equal
    ones that with the fewest layers in float.
    """
    quantizer = onnx_int8.Quantizer(source, batches)
    most = max(len(quantizer.layers) // _FLOAT_PART, 1)
    kept: list[str] = []
    ranking: list[tuple[str, float]] = []
    tried: list[tuple[float, int]] = []
    while True:
        quantizer.write(quantizer.quantised(keep=kept), target)
        tried.append((drop(target), len(kept)))
        if tried[-1][0] <= max_drop or len(kept) >= most:
            break
        if not ranking:
            say(f"{tried[0][0]:.2f} points lost: measuring what each of {len(quantizer.layers)} layers does.")
            ranking = quantizer.sensitivity(np.concatenate(batches)[:_RANKED])
        kept = [name for name, _ in ranking[: min(2 * len(kept) or 1, most)]]
    lost, count = tried[-1] if tried[-1][0] <= max_drop else min(tried)
    if count != len(kept):
        kept = kept[:count]
        quantizer.write(quantizer.quantised(keep=kept), target)
    return {
        "drop": lost,
        "met": lost <= max_drop,
        "float_layers": kept,
        "layers": len(quantizer.layers),
        "tried": [list(one) for one in tried],
        "sensitivity": dict(ranking[:10]),
    }


def _openvino(
    subject: Subject,
    source: Path,
    drop: Drop,
    target: Path,
    batches: Sequence[Any],
    max_drop: float,
    say: Say,
) -> dict[str, Any]:
    """Quantise; where it costs too much, by NNCF's accuracy-aware way."""
    quantizer = openvino_int8.Quantizer(source, subject.card, batches)
    network = quantizer.quantised()
    quantizer.write(network, target)
    lost = drop(target)
    kept = quantizer.float_layers(network)
    if lost > max_drop:
        say(f"{lost:.2f} points lost: NNCF takes back the layers that hurt.")
        val = subject.parts["val"]
        pixels = [val.batch(np.array([row])).pixels.numpy() for row in range(len(val))]
        better = quantizer.within(max_drop / 100, pixels, val.samples.labels)
        left = quantizer.float_layers(better)
        place = target.with_name(f"trial{target.suffix}")
        quantizer.write(better, place)
        now = drop(place)
        if now < lost:
            lost, kept = now, left
            place.with_suffix(".bin").replace(target.with_suffix(".bin"))
            place.replace(target)
        else:
            place.with_suffix(".bin").unlink()
            place.unlink()
    return {"drop": lost, "met": lost <= max_drop, "float_layers": kept}


def _of_transformer(
    name: str, source: Path, place: Path, subject: Subject, batches: Sequence[Any]
) -> list[Candidate]:
    """Weight-only, and for ONNX Runtime dynamic: fixed ranges do not suit a transformer's activations."""
    against = f"fp32 {SHORT[name]}"
    if name == "openvino":
        target = place / "model-int8-weights.xml"
        quantizer = openvino_int8.Quantizer(source, subject.card, batches)
        quantizer.write(quantizer.weights_only(), target, "int8-weights")
        return [Candidate("int8 weights OpenVINO", "int8", target, against, "int8-weights")]
    dynamic, weights = place / "model-int8-dynamic.onnx", place / "model-int8-weights.onnx"
    onnx_int8.dynamic(source, dynamic)
    onnx_int8.weight_only(source, weights)
    return [
        Candidate("int8 dynamic ONNX Runtime", "int8", dynamic, against, "int8-dynamic"),
        Candidate("int8 weights ONNX Runtime", "int8", weights, against, "int8-weights"),
    ]


def _note(name: str, facts: dict[str, Any], max_drop: float) -> str:
    kept = len(facts["float_layers"])
    text = f"{name}: {-facts['drop']:+.2f} points of accuracy on validation"
    text += f", {kept} of the layers left in float." if kept else "."
    if not facts["met"]:
        text += f" That is more than the {max_drop:g} allowed; --method qat trains with the rounding."
    return text
