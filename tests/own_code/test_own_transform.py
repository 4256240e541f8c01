"""An augmentation of one's own: which kinds are taken, on what, and that chance in it is a function of the seed."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tellapart
from tellapart import artifact, packages, references
from tellapart.augment import Augment, resolve
from tellapart.errors import RunError, SpecError
from tellapart.preprocess import Preprocessing, normalise
from tellapart.spec import AugmentSpec

v2 = packages.require("torchvision.transforms.v2", "models", "This test")
CONTRACT = Preprocessing(
    size=8,
    channels=3,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    resize="squash",
    interpolation="bilinear",
    crop_fraction=1.0,
)
IMAGES = torch.arange(6 * 8 * 8 * 3, dtype=torch.int64).reshape(6, 8, 8, 3).remainder(251).to(torch.uint8)


def augment(own: Any, **changes: Any) -> Augment:
    """Return an Augment with one's own transform."""
    spec = resolve(AugmentSpec(**{"preset": "none", "transform": "object:T", **changes}), CONTRACT.size)
    with references.providing({("transform", "object:T"): own}):
        return Augment(spec, CONTRACT, 3)


def applied(own: Augment, images: torch.Tensor = IMAGES, seed: int = 0) -> torch.Tensor:
    """Return a batch with the seed's chance."""
    return own.apply(images, None, own.draw(len(images), None, torch.Generator().manual_seed(seed)))


class Batched(nn.Module):
    """A module of whole batches."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Turn each upside down, and add noise of its own."""
        assert images.ndim == 4
        return (images.flip(2).float() / 255 + 0.1 * torch.rand(images.shape)).clamp(0, 1)


class Albumentation:
    """As albumentations is called: with generators of its own."""

    def set_random_seed(self, seed: int) -> None:
        """As its Compose has it."""
        self.rng = np.random.default_rng(seed)

    def __call__(self, *, image: np.ndarray) -> dict[str, Any]:
        """Flip at random."""
        assert image.shape == (8, 8, 3)
        return {"image": image[:, ::-1] if self.rng.random() < 0.5 else image}


def noisy(image: torch.Tensor) -> torch.Tensor:
    """Draw from all three generators."""
    assert image.shape == (3, 8, 8)
    shift = random.randrange(8) + np.random.randint(8) + int(torch.randint(8, ()))  # noqa: NPY002
    return image.roll(shift, 2)


KINDS: list[Any] = [
    v2.RandomHorizontalFlip(),
    v2.Compose([v2.RandomCrop(8, padding=2), v2.ToDtype(torch.float32, scale=True)]),
    nn.Sequential(v2.RandomVerticalFlip(), v2.ColorJitter(0.4)),
    Albumentation(),
    noisy,
    Batched(),
]


@pytest.mark.parametrize("transform", KINDS, ids=lambda one: type(one).__name__)
def test_chance_is_a_function_of_the_seed(transform: Any) -> None:
    """Whatever the program drew before; and the program's own generators stay as they are."""
    own = augment(transform)
    first = applied(own)
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert torch.equal(applied(own), first)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert not torch.equal(applied(own, seed=1), first)


@pytest.mark.parametrize("transform", KINDS[:-1], ids=lambda one: type(one).__name__)
def test_a_slice_of_a_batch_is_what_it_is_in_the_whole(transform: Any) -> None:
    """Micro-batches and processes change no image."""
    own = augment(transform)
    drawn = own.draw(6, None, torch.Generator().manual_seed(3))
    whole = own.apply(IMAGES, None, drawn)
    parts = [own.apply(IMAGES[rows], None, drawn[rows]) for rows in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat(parts), whole)


def test_it_sees_whole_numbers_after_our_own_changes() -> None:
    """A fixed change is what it is: flipped by ours, then by theirs, is as before."""
    own = augment(v2.RandomHorizontalFlip(1.0), hflip=1.0)
    assert torch.equal(applied(own), normalise(IMAGES, CONTRACT))
    assert torch.equal(applied(augment(v2.RandomHorizontalFlip(1.0))), normalise(IMAGES.flip(2), CONTRACT))
    coloured = augment(lambda image: image, brightness=0.5)
    ours = augment(None, transform="", brightness=0.5)
    difference = (applied(coloured) - applied(ours)).abs().max()
    assert difference <= 0.5 / 255 / 0.25 + 1e-6  # rounded to levels


@pytest.mark.parametrize(
    ("transform", "said"),
    [
        (v2.Resize(4), r"shape \[3, 4, 4\]"),
        (lambda image: image.float(), "values from 0 to"),
        (
            v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.1] * 3)]),
            "Normalize",
        ),
        (lambda image: image.numpy(), "ndarray"),
        (lambda image: image.long(), "int64"),
    ],
)
def test_what_is_no_image_is_refused(transform: Any, said: str) -> None:
    """With the reason."""
    with pytest.raises(SpecError, match=said):
        applied(augment(transform))


def test_a_run_continues_exactly(data: Path, tmp_path: Path) -> None:
    """With the same object, which is asked for."""
    changes: dict[str, Any] = {
        "quiet": True,
        "model": {"name": "simple-cnn"},
        "training": {"epochs": 2, "batch_size": 8},
    }

    class Cut(tellapart.Callback):
        def on_epoch_start(self, epoch: int) -> None:
            if epoch == 1:
                raise RuntimeError("the power is cut")

    def folder(name: str) -> dict[str, Any]:
        return {"dir": str(tmp_path / name), "tensorboard": False, "report": False}

    own = {"augment": {"transform": v2.RandomResizedCrop(16)}}
    whole = tellapart.train(data, **own, run=folder("whole"), **changes).run
    with pytest.raises(RuntimeError, match="power"):
        tellapart.train(data, callbacks=[Cut()], **own, run=folder("cut"), **changes)
    with pytest.raises(RunError, match="transform"):
        tellapart.resume(tmp_path / "cut", quiet=True)
    tellapart.resume(tmp_path / "cut", quiet=True, **own)
    one, other = artifact.read_state(whole), artifact.read_state(tmp_path / "cut")
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(SpecError, match="shape"):
        tellapart.train(data, augment={"transform": v2.Resize(4)}, run=folder("bad"), **changes)
    assert not (tmp_path / "bad").exists()
