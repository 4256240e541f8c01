"""Both sides of a comparison over the same images: what an artifact and its exported file answer, and how fast.

A file that is one graph is also run as a program without tellapart would run it, with its own decoding (`outside`).
Judges nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract import BadImage, Pixels, answers
from tellapart.contract.resizing import open_pixels
from tellapart.errors import DataError, ExportError
from tellapart.export import outside
from tellapart.export.outcome import Cases
from tellapart.runtime import Backend, timing

Floats = npt.NDArray[np.float64]
_BATCH = 32
_TURNS, _TURN_SECONDS = 4, 0.2  # for each side, at one batch size
_LATENCY_SECONDS = 12.0  # for both sides together, at one batch size
AGREED = 1e-3
"""Levels by which float32 pixels may differ, which runtimes add up in other orders."""


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
            levels = _levels_apart(ours, theirs)
            pixels["share"] += float((levels > 0).sum())
            pixels["levels"] = max(pixels["levels"], float(levels.max()))
            values += levels.size
            pair = _probabilities(artifact, ours), _probabilities(export, theirs)
            parts.append(pair)
            if features:
                apart = max(apart, _features_apart(artifact.features(ours), export.features(theirs)))
            furthest = distance(*pair)
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


def _levels_apart(ours: Pixels, theirs: Pixels) -> npt.NDArray[Any]:
    """Return by how many levels pixels differ; of float32 ones, `AGREED` is no difference."""
    if ours.dtype == np.uint8:
        return np.abs(ours.astype(np.int16) - theirs)
    apart = np.nan_to_num(np.abs(ours.astype(np.float64) - theirs), nan=255.0)
    return np.where(apart > AGREED, apart, 0.0)


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


def distance(first: Floats, second: Floats) -> Floats:
    """Return each image's largest difference of a probability: [N]; infinite where a value is not a number."""
    furthest: Floats = np.nan_to_num(np.abs(first - second), nan=np.inf).max(axis=1)
    return furthest


def latencies(sides: Sequence[Backend], pixels: Pixels, batch: int) -> list[dict[str, float]]:
    """Return p50 and p95 of calls in milliseconds for each side; they take turns, so a busy machine affects both."""
    images = np.ascontiguousarray(np.resize(pixels, (batch, *pixels.shape[1:])))
    calls = [functools.partial(side.logits, images) for side in sides]
    found = []
    for turns in timing.in_turns(calls, _TURNS, _TURN_SECONDS, longest=_LATENCY_SECONDS):
        points = timing.percentiles([value for turn in turns for value in turn.milliseconds], (50, 95)) or {}
        found.append({name: round(value, 4) for name, value in points.items()})
    return found
