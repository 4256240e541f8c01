"""Whether an exported file gives the artifact's answers: both run over the same images, from the files' bytes.

Works on two backends and a list of images; knows no format, and nothing of where images come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tellapart import numerals
from tellapart.contract import Pixels, answers
from tellapart.evaluation.metrics import wilson_interval
from tellapart.export.base import Tolerance
from tellapart.export.both import Floats, Measured, distance, latencies, measure
from tellapart.export.outcome import Cases, Difference, Parity, Side
from tellapart.runtime import Backend

_SHOWN = 5  # images with the largest differences


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
    furthest = float(distance(first, second).max())
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
        furthest = float(distance(first, measured.whole).max())
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
    apart = distance(measured.artifact, measured.export)
    mean = float(np.abs(measured.artifact - measured.export).mean())
    whole = None if measured.whole is None else float(distance(measured.artifact, measured.whole).max())
    return Parity(
        **{
            **about,
            "notes": (*about.get("notes", ()), *_notes(measured, artifact.card.preprocessing.decode)),
        },
        n=len(apart),
        origin=cases.origin,
        real=cases.real,
        unreadable=measured.unreadable,
        agreement=agreement,
        several=artifact.card.several,
        ties=ties,
        max_difference=_finite(float(apart.max())),
        mean_difference=_finite(mean),
        whole_difference=None if whole is None else _finite(whole),
        pixels=measured.pixels,
        tolerance=tolerance,
        reasons=tuple(reasons),
        artifact=side(measured.artifact, measured.labels, sizes[0], {b: t[0] for b, t in timed.items()}),
        export=side(measured.export, measured.labels, sizes[1], {b: t[1] for b, t in timed.items()}),
        threads=threads,
        largest=_largest(measured, apart, artifact.card.classes),
        where=_where(measured, locate) if reasons else "",
        full_difference=_finite(float(distance(measured.artifact, measured.full).max()))
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
            furthest = float(distance(measured.artifact, measured.full).max())
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


def _largest(measured: Measured, apart: Floats, classes: Sequence[str]) -> tuple[Difference, ...]:
    def answer(values: Floats) -> str:
        (best,) = answers.best(values[None])
        return f"{classes[best]} {values[best]:.6f}"

    return tuple(
        Difference(
            measured.names[row],
            answer(measured.artifact[row]),
            answer(measured.export[row]),
            _finite(float(apart[row])),
        )
        for row in np.argsort(-apart)[:_SHOWN]
    )


def _where(measured: Measured, locate: Callable[[Pixels], str] | None) -> str:
    """Return in words where the difference begins: before the network, or in which of its layers."""
    pixels = measured.pixels
    if pixels["levels"] > 2 or pixels["share"] > 0.02:
        return (
            f"The difference starts before the network: {numerals.percent(pixels['share'])} of its input's values "
            f"differ, by up to {pixels['levels']:.3g} of 255 levels."
        )
    return (
        locate(measured.worst)
        if locate
        else "The network's input agrees; the difference starts in the network."
    )
