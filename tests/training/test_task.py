"""The task of classification: what it prepares, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tellapart import augment
from tellapart.augment import Augment
from tellapart.data.loader import ImageSet, RawBatch
from tellapart.data.stores.images import augmentation_sources, evaluation_images
from tellapart.preprocess import Preprocessing
from tellapart.spec import AugmentSpec, DataSpec
from tellapart.training.task import Batch, Classification

CONTRACT = Preprocessing(
    size=8, channels=3, resize="squash", interpolation="bilinear", crop_fraction=1.0,
    mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3),
)  # fmt: skip


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def _task(preset: str, **values: Any) -> Classification:
    spec = augment.resolve(AugmentSpec(preset=preset, **values), CONTRACT.size)  # type: ignore[arg-type]
    return Classification(Augment(spec, CONTRACT, 3), _loss)


@pytest.fixture
def images(pictures: Callable[..., Any]) -> ImageSet:
    return evaluation_images(pictures((7, 6, 6)), CONTRACT, DataSpec())[0]


def _generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_augmentation_images_are_normalised(images: ImageSet) -> None:
    batch = images.batch(np.array([3, 0, 18]))
    prepared = _task("none").inputs(batch, _generator(), 8)
    pixels = np.stack([images.samples.read(row) for row in (3, 0, 18)]) / 255
    expected = (pixels - np.array(CONTRACT.mean)) / np.array(CONTRACT.std)
    assert prepared.images.dtype == torch.float32
    assert np.abs(prepared.images.numpy() - expected.transpose(0, 3, 1, 2)).max() < 1e-5
    assert prepared.targets.tolist() == prepared.labels.tolist() == [0, 0, 2]


@pytest.mark.parametrize("preset", ["none", "cifar", "strong"])
@pytest.mark.parametrize("micro", [1, 4, 5, 19, 100])
def test_what_is_prepared_does_not_depend_on_the_micro_batch(
    preset: str, micro: int, images: ImageSet
) -> None:
    task, batch = _task(preset), images.batch(np.arange(19))
    whole = task.inputs(batch, _generator(), 1000)
    parts = task.inputs(batch, _generator(), micro)
    assert torch.equal(whole.images, parts.images)
    assert torch.equal(whole.targets, parts.targets)
    other = task.inputs(batch, _generator(4), micro)
    assert torch.equal(whole.images, other.images) == (preset == "none")


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 7, 19])
def test_processes_prepare_parts_of_the_same_batch(world: int, count: int, images: ImageSet) -> None:
    """Together they have every image once, changed as one process changes it."""
    task, order = _task("cifar", erasing=0.5), np.random.default_rng(1).permutation(19)[:count]
    whole = task.inputs(images.batch(order), _generator(), 8)
    raw = [images.batch(order, rank, world) for rank in range(world)]
    parts = [task.inputs(batch, _generator(), 8) for batch in raw]
    counted = [part for part, batch in zip(parts, raw, strict=True) if not batch.filler]
    assert all(len(part) >= 1 for part in parts)  # a process without an image still takes part
    assert torch.equal(torch.cat([part.images for part in counted]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in counted]), whole.labels)
    sizes = [len(part) for part in counted]
    assert max(sizes) <= -(-count // world)


def test_large_sources_are_cropped_by_their_own_sizes(tmp_path: Any, make_folder: Any) -> None:
    """Images of several sizes lie on one canvas; slices and processes do not change what is cut out."""
    from tellapart.data.sources.opening import open_source

    root = make_folder(tmp_path / "small", ("a", "b", "c"), 3, ("train",), size=20)
    make_folder(root, ("a", "b", "c"), 2, ("train",), size=33)
    samples = open_source(DataSpec(source=str(root), cache_dir=str(tmp_path)), lambda text: None)
    sources, _ = augmentation_sources(samples, CONTRACT, DataSpec(cache_dir=str(tmp_path)))
    spec = augment.resolve(AugmentSpec(preset="photo", crop="resized"), CONTRACT.size)
    task = Classification(Augment(spec, CONTRACT, 3), _loss)
    rows = np.arange(len(sources))
    whole = task.inputs(sources.batch(rows), _generator(), 100)
    sliced = task.inputs(sources.batch(rows), _generator(), 2)
    assert whole.images.shape == (9, 3, 8, 8)
    assert torch.allclose(whole.images, sliced.images, atol=1e-5)
    halves = [task.inputs(sources.batch(rows, rank, 2), _generator(), 100) for rank in (0, 1)]
    assert torch.allclose(torch.cat([half.images for half in halves]), whole.images, atol=1e-5)


def test_mixed_targets_are_the_shares_of_the_images(images: ImageSet) -> None:
    batch = images.batch(np.arange(19))
    plain = _task("none").inputs(batch, _generator(), 8)
    mixed = _task("none", mixup=1.0).inputs(batch, _generator(), 8)
    assert mixed.targets.shape == (19, 3)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(19))
    assert torch.equal(mixed.labels, batch.labels)
    # One share for the whole batch, and a partner for each image: both can be read off image and target.
    one_hot = F.one_hot(batch.labels, 3).float()
    between = mixed.targets[(mixed.targets > 0).sum(1) == 2]
    share = float(between.max())
    fits = []
    for place in range(19):
        for lam in (share, 1 - share):
            images_fit = (lam * plain.images[place] + (1 - lam) * plain.images - mixed.images[place]).abs()
            targets_fit = (lam * one_hot[place] + (1 - lam) * one_hot - mixed.targets[place]).abs()
            both = images_fit.amax((1, 2, 3)) < 1e-4
            fits.append(bool((both & (targets_fit.amax(1) < 1e-4)).any()))
    assert np.array(fits).reshape(19, 2).any(1).all()


class _Fixed(torch.nn.Module):
    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


def test_returns_each_samples_loss_and_the_right_answers() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 5.0], [1.0, 1.5, 0.0], [0.0, 0.0, 9.0]])
    labels = torch.tensor([0, 1, 1, 2])
    losses, sums = _task("none").loss(_Fixed(logits), Batch(torch.zeros(4, 3, 8, 8), labels, labels))
    expected = -(logits.double() - logits.double().logsumexp(1, keepdim=True))[range(4), labels]
    assert losses.shape == (4,)
    assert torch.allclose(losses.double(), expected, atol=1e-6)
    assert sums["accuracy"].item() == 3
    assert sums["accuracy"].ndim == 0


def test_with_soft_targets_right_is_by_the_images_own_label() -> None:
    logits = torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 5.0]])
    soft = torch.tensor([[0.4, 0.6, 0.0], [0.0, 0.5, 0.5]])
    batch = Batch(torch.zeros(2, 3, 8, 8), soft, torch.tensor([0, 2]))
    losses, sums = _task("none").loss(_Fixed(logits), batch)
    log_p = logits.double() - logits.double().logsumexp(1, keepdim=True)
    assert torch.allclose(losses.double(), -(soft.double() * log_p).sum(1), atol=1e-6)
    assert sums["accuracy"].item() == 2


def test_parts_are_slices() -> None:
    batch = Batch(torch.arange(10.0).reshape(5, 2), torch.arange(5), torch.arange(5) + 10)
    assert batch.part(0, 5) is batch
    assert batch.part(0, 99) is batch
    part = batch.part(3, 9)
    assert len(part) == 2
    assert part.images.tolist() == [[6.0, 7.0], [8.0, 9.0]]
    assert part.targets.tolist() == [3, 4]
    assert part.labels.tolist() == [13, 14]


def test_a_batch_on_the_cpu_is_not_copied(images: ImageSet) -> None:
    batch: RawBatch = images.batch(np.arange(3))
    assert batch.to(torch.device("cpu")) is batch
