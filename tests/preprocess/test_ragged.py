"""Images of several sizes: what stands for their canvas is like it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tellapart.augment import Augment, geometry, resolve
from tellapart.preprocess import Preprocessing, Ragged, as_tensor
from tellapart.spec import AugmentSpec

SIDES = [(30, 47), (61, 33), (33, 33), (45, 90), (34, 200)]


def pictures(channels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 256, (*side, channels), np.uint8) for side in SIDES]


def test_the_canvas_holds_each_image_and_zeros() -> None:
    images = pictures(3)
    ragged = Ragged(images, 3)
    canvas = as_tensor(ragged)
    assert canvas.shape == ragged.shape == (5, 61, 200, 3)
    assert (len(canvas), canvas.device) == (len(ragged), ragged.device)
    for picture, image in zip(canvas.numpy(), images, strict=True):
        height, width = image.shape[:2]
        assert np.array_equal(picture[:height, :width], image)
        assert picture.sum(dtype=np.int64) == image.sum(dtype=np.int64)
    assert torch.equal(as_tensor(ragged[1:4]), canvas[1:4, :61, :90])
    assert as_tensor(canvas) is canvas
    assert ragged.to(torch.device("cpu")) is ragged
    assert ragged.to(torch.device("meta")).shape == canvas.shape
    assert Ragged([], 1).shape == (0, 1, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("changes", [{"hflip": 0.5}, {"hflip": 1.0, "vflip": 0.5, "rotation": 20.0}])
def test_crops_are_those_of_the_canvas(channels: int, changes: dict[str, float]) -> None:
    contract = Preprocessing(24, channels, "crop", "bilinear", 1.0, (0.5,) * channels, (0.2,) * channels)
    spec = resolve(AugmentSpec(preset="none", crop="resized", **changes), 24)  # type: ignore[arg-type]
    augment, ragged = Augment(spec, contract, 2), Ragged(pictures(channels), channels)
    drawn = augment.draw(5, torch.tensor(SIDES), torch.Generator().manual_seed(3))
    assert torch.equal(augment.apply(ragged, None, drawn), augment.apply(ragged.canvas(), None, drawn))
    assert torch.equal(augment.apply(ragged[2:4], None, drawn[2:4]), augment.apply(ragged, None, drawn)[2:4])


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("own", [False, True])
def test_flipping_one_by_one_is_flipping_together(
    dim: int, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.randint(0, 256, (7, 9, 9, 3), dtype=torch.uint8)
    flags = torch.tensor([True, False, False, True, True, False, True])
    expected = torch.where(flags[:, None, None, None], images.flip(dim), images)
    for limit in (images[0].numel(), images[0].numel() + 1):
        monkeypatch.setattr(geometry, "LARGE", limit)
        given = images.clone()
        assert torch.equal(geometry.flip(given, flags, dim, own), expected)
        assert own or torch.equal(given, images)
