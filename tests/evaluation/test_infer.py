"""Batches of evaluation: as large as pays, and the logits are the same however they are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tellapart.data.loader import ImageSet
from tellapart.data.samples import Samples
from tellapart.data.stores.cache import ImageStore
from tellapart.evaluation.infer import batch_that_pays, collect_logits


@pytest.mark.parametrize(
    ("size", "device", "expected"),
    [
        (224, "cpu", 64),
        (288, "cpu", 38),
        (448, "cpu", 32),
        (96, "cpu", 348),
        (32, "cpu", 512),
        (8, "cpu", 512),
        (224, "cuda", 512),
        (32, "cuda", 4096),
        (2048, "cuda", 64),
    ],
)
def test_batch(size: int, device: str, expected: int) -> None:
    assert batch_that_pays(size, torch.device(device)) == expected


@pytest.mark.parametrize("batch_size", [1, 7, 64, 512])
def test_logits_do_not_depend_on_the_batch(batch_size: int) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (33, 4, 4, 3), dtype=np.uint8))
    sides = np.full(33, 4, np.int32)
    store = ImageStore(sides, sides, 3, np.array([""] * 33), np.array([""] * 33), pixels)
    labels = np.zeros(33, np.int64)
    names = np.array([str(row) for row in range(33)], dtype=object)
    samples = Samples(paths=names, labels=labels, splits=names, classes=("a", "b"), name="pixels")
    seen: list[int] = []

    def predict(images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return images.double().sum(dim=(1, 2))

    logits = collect_logits(predict, ImageSet(samples, store, np.arange(33)), batch_size=batch_size)
    assert torch.equal(logits, pixels.double().sum(dim=(1, 2)).float())
    assert max(seen) == min(batch_size, 33)
