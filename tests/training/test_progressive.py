"""Progressive resizing: the sizes by hand, the network's inputs, what is refused, and an exact resume."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tellapart.errors import SpecError
from tellapart.spec import TrainingSpec
from tellapart.training import checkpoint
from tellapart.training.methods import progressive


class Watched(torch.nn.Module):
    """Any size of image; remembers those of the training's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 3)
        self.sizes: list[int] = []
        self.inputs: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.sizes.append(images.shape[-1])
            self.inputs.append(images.clone())
        return self.head(self.norm(self.conv(images)).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("start", "full", "part", "epochs", "expected"),
    [
        (128, 224, 0.5, 8, [128, 160, 192, 192, 224, 224, 224, 224]),
        (160, 224, 0.6, 5, [160, 192, 192, 224, 224]),
        (20, 32, 0.75, 4, [20, 24, 28, 32]),
        (18, 32, 1.0, 3, [18, 24, 28]),
        (0, 32, 0.6, 3, [32, 32, 32]),
        (16, 32, 0.0, 3, [32, 32, 32]),
    ],
)
def test_sizes_are_those_counted_by_hand(
    start: int, full: int, part: float, epochs: int, expected: list[int]
) -> None:
    spec = TrainingSpec(start_size=start, size_epochs=part, epochs=epochs)
    assert [progressive.size_at(epoch, spec, full) for epoch in range(epochs)] == expected


def test_images_grow_and_validation_does_not(pictures: Any, build: Any) -> None:
    changes = {"training.start_size": 8, "training.size_epochs": 0.5, "training.epochs": 4}
    samples = pictures(train=(8, 8, 8), val=(3, 3, 3), size=16)
    bench = build(samples, model=Watched(), **changes)
    seen: list[int] = []
    validate = bench.plan.validate
    bench.plan.validate = lambda model: (
        seen.append(bench.prepared.val.batch([0]).images.shape[1]) or validate(model)
    )
    bench.trainer.run()
    assert bench.model.sizes == [8] * 3 + [12] * 3 + [16] * 6
    assert seen == [16] * 4
    assert [text for text in bench.recorder.messages if "pixels" in text] == [
        f"Epoch {epoch}: training images of {size}x{size} pixels."
        for epoch, size in ((1, 8), (2, 12), (3, 16))
    ]
    assert bench.prepared.contract.size == 16


def test_smaller_images_are_the_anti_aliased_ones(pictures: Any, build: Any) -> None:
    samples = pictures(train=(4, 4), size=16)
    changes = {"training.start_size": 8, "training.epochs": 2, "training.size_epochs": 1.0}
    bench = build(samples, model=Watched(), **changes)
    pixels, _ = bench.inputs()
    bench.trainer.run()
    contract = bench.prepared.contract
    order_free = torch.cat(bench.model.inputs[:1]).sum(dim=(1, 2, 3)).sort().values
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (contract.mean, contract.std))
    levels = F.interpolate((pixels * std + mean) * 255, (8, 8), mode="bilinear", antialias=True).round()
    expected = ((levels / 255 - mean) / std).sum(dim=(1, 2, 3)).sort().values
    assert (order_free - expected).abs().max() < 0.05 * 3 * 64  # the 8-bit kernel is within one level


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_every_crop_goes_with_it(crop: str, pictures: Any, build: Any) -> None:
    changes = {"augment.crop": crop, "augment.hflip": 0.5, "training.start_size": 8, "training.epochs": 2}
    bench = build(pictures(train=(6, 6), size=16), model=Watched(), **changes)
    bench.trainer.run()
    assert bench.model.sizes[0] == 8


@pytest.mark.parametrize("name", ["tutorial-net", "simple-cnn"])
def test_networks_of_one_size_are_refused(name: str, pictures: Any, build: Any) -> None:
    with pytest.raises(SpecError, match=r"not of 24x24.*start_size at 0"):
        build(pictures(train=(6, 6), size=32), **{"model.name": name, "training.start_size": 24})


@pytest.mark.parametrize("start", [16, 20])
def test_a_start_that_is_not_smaller_is_refused(start: int, pictures: Any, build: Any) -> None:
    with pytest.raises(SpecError, match=r"below input\.size, which is 16"):
        build(pictures(train=(6, 6), size=16), model=Watched(), **{"training.start_size": start})


def test_checking_leaves_the_network_as_it_was(pictures: Any, build: Any) -> None:
    bench = build(pictures(train=(6, 6), size=16), model=Watched(), **{"training.start_size": 8})
    for name, tensor in bench.model.state_dict().items():
        assert torch.equal(tensor, bench.start.state_dict()[name]), name


def test_a_run_cut_in_the_middle_continues_exactly(pictures: Any, build: Any, interrupt_at: Any) -> None:
    samples = pictures(train=(9, 9, 9), val=(3, 3, 3), size=16)
    changes = {
        "training.start_size": 8, "training.size_epochs": 0.8, "training.epochs": 4, "augment.crop": "pad",
        "augment.crop_padding": 2, "training.batch_size": 4,
    }  # fmt: skip
    torch.manual_seed(3)
    uncut, cut, again = (build(samples, model=network, **changes) for network in copies(Watched(), 3))
    uncut.trainer.run()
    interrupt_at(cut, 11)
    assert not cut.trainer.run().finished
    again.trainer.restore(checkpoint.load_newest(cut.trainer.folder))
    assert again.trainer.progress.step_in_epoch
    again.trainer.run()
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, uncut.model.state_dict()[name]), name


def copies(model: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    return [copy.deepcopy(model) for _ in range(count)]
