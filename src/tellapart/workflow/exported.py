"""Measuring an exported file: decoded, resized and answered by the file's own runtime, from the images' bytes."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tellapart.contract import BadImage, Pixels, Preprocessing, decode
from tellapart.contract.decoding import crop_box
from tellapart.data.samples import Samples
from tellapart.data.sources.listing import many
from tellapart.errors import DataError
from tellapart.evaluation import metrics
from tellapart.runtime import Backend, checked, timing
from tellapart.spec import DataSpec
from tellapart.tracking import Console

Read = Callable[[Samples, int], bytes | Pixels]

_BATCH = 64
_LATENCY_SECONDS = 0.3


def evaluate_backend(
    backend: Backend, samples: Samples, split: str, spec: DataSpec, out: Path | None, console: Console
) -> metrics.Evaluation:
    """Measure a backend on the images of a table; write the evaluation's files below ``out`` where it is given.

    Images that cannot be read are left out, with a warning, unless ``spec.on_bad_image`` is ``error``.
    Raises DataError.
    """

    def read(table: Samples, row: int) -> bytes | Pixels:
        return content_of(table, row, backend.card.preprocessing, spec.max_pixels)

    logits, good, seconds, one = _answers(backend, samples, read, split, spec, console)
    kept = samples.select(good)
    scaled = torch.from_numpy(checked(logits, backend.card)) / backend.card.temperature
    labels = torch.from_numpy(kept.labels)
    timing.settle(backend, one[None])
    evaluation = metrics.evaluate(
        scaled,
        labels,
        backend.card.classes,
        split,
        seconds=seconds,
        latencies_ms=timing.milliseconds(backend, one[None], _LATENCY_SECONDS),
    )
    if out is not None:
        metrics.write_evaluation(
            out / "evaluation" / split,
            evaluation,
            list(kept.paths),
            scaled,
            labels,
            lambda row: backend.prepare(read(kept, row)),
            boxes=kept.boxes,
        )
    return evaluation


def _answers(
    backend: Backend, samples: Samples, read: Read, split: str, spec: DataSpec, console: Console
) -> tuple[Any, Any, float, Pixels]:
    """Return logits [n, K], the rows that could be read, the seconds that the network took, and one image."""
    parts, good, bad = [], [], []
    seconds, one = 0.0, None

    def prepare(row: int) -> tuple[int, Pixels | None, str]:
        try:
            return row, backend.prepare(read(samples, row)), ""
        except (BadImage, OSError) as error:
            return row, None, str(error)

    with (
        console.busy(f"Evaluating on {split}", len(samples)) as busy,
        concurrent.futures.ThreadPoolExecutor(spec.workers or os.cpu_count() or 1) as pool,
    ):
        for start in range(0, len(samples), _BATCH):
            chunk = list(pool.map(prepare, range(start, min(start + _BATCH, len(samples)))))
            bad += [(row, reason) for row, pixels, reason in chunk if pixels is None]
            images = [pixels for _, pixels, _ in chunk if pixels is not None]
            good += [row for row, pixels, _ in chunk if pixels is not None]
            if images:
                one = images[0]
                started = time.perf_counter()
                parts.append(backend.logits(np.stack(images)))
                seconds += time.perf_counter() - started
            busy.advance(len(chunk))
    if bad:
        _tell(bad, samples, spec, console)
    if one is None:
        raise DataError(f"None of the {split} images of {spec.source} can be read.")
    return np.concatenate(parts), np.array(good), seconds, one


def _tell(bad: list[tuple[int, str]], samples: Samples, spec: DataSpec, console: Console) -> None:
    first = f"{samples.file(bad[0][0])}: {bad[0][1]}"
    if spec.on_bad_image == "error":
        raise DataError(f"{len(bad)} images cannot be used, the first: {first}.")
    console.warn(f"{many(len(bad), 'image')} cannot be read, left out of the figures; the first: {first}")


def content_of(samples: Samples, row: int, contract: Preprocessing, max_pixels: int) -> bytes | Pixels:
    """Return an image's bytes, or its pixels where the source has pixels or a box. Raises OSError, BadImage."""
    content = samples.read(row)
    if samples.boxes is None or np.isnan(samples.boxes[row]).any():
        return content
    if isinstance(content, bytes):
        content = decode(content, contract.channels, max_pixels, levels=contract.range)
    return crop_box(content, samples.boxes[row])
