from __future__ import annotations

import pytest
import torch

from tellapart.preprocess import Views, averaged


class Network:
    """Logits that depend on where things are, and a memory of the images that it was shown."""

    def __init__(self, size: int = 6) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 3 * size * size, generator=generator)
        self.seen: list[torch.Tensor] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        return (images.flatten(1) @ self.weight.T).tanh() * 3


def _images(count: int = 9, size: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1)) / 4


def _moved(images: torch.Tensor, by: int) -> torch.Tensor:
    """By hand, pixel for pixel: out[y, x] = in[y + by, x + by], reflected at the border without repeating it."""
    size = images.shape[2]

    def source(place: int) -> int:
        place = abs(place + by)
        return 2 * (size - 1) - place if place >= size else place

    rows = [source(place) for place in range(size)]
    return images[:, :, rows][:, :, :, rows]


def _mirrored(network: Network, images: torch.Tensor) -> torch.Tensor:
    turned = torch.stack([images[..., x] for x in reversed(range(images.shape[3]))], 3)
    return 0.5 * network(images) + 0.5 * network(turned)


def _by_hand(name: str, images: torch.Tensor) -> torch.Tensor:
    network = Network()
    if name == "one":
        return network(images)
    plain = _mirrored(network, images)
    if name == "mirror":
        return plain
    moved = (_mirrored(network, _moved(images, -1)) + _mirrored(network, _moved(images, 1))) / 2
    return 0.5 * plain + 0.5 * moved


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("name", "count"), [("one", 1), ("mirror", 2), ("mirror-shift", 6)])
def test_the_average_is_that_of_the_views_made_by_hand(name: str, count: int, channels_last: bool) -> None:
    images, network = _images(), Network()
    order = torch.channels_last if channels_last else torch.contiguous_format
    result = averaged(network, images.contiguous(memory_format=order), Views(name))
    torch.testing.assert_close(result, _by_hand(name, images), atol=1e-5, rtol=1e-5)
    assert len(network.seen) == count == Views(name).count
    assert all(shown.is_contiguous(memory_format=order) for shown in network.seen)


@pytest.mark.parametrize("name", ["mirror", "mirror-shift"])
def test_only_doubtful_images_get_more_views(name: str) -> None:
    images, network = _images(40), Network()
    first, full = _by_hand("one", images), _by_hand(name, images)
    best = first.softmax(1).sort(1, descending=True).values
    lead = best[:, 0] - best[:, 1]
    below = float(lead.median()) + 1e-4
    doubtful = lead < below
    assert 0 < doubtful.sum() < 40
    result = averaged(network, images, Views(name, below))
    torch.testing.assert_close(result, torch.where(doubtful[:, None], full, first), atol=1e-5, rtol=1e-5)
    assert {len(shown) for shown in network.seen[1:]} == {int(doubtful.sum())}
    alone = torch.cat([averaged(network, image[None], Views(name, below)) for image in images])
    torch.testing.assert_close(result, alone, atol=1e-5, rtol=1e-5)


def test_the_bounds_of_doubt() -> None:
    images = _images()
    certain = Network()
    certain.weight *= 1e4  # a lead of exactly 1 in float32 still gets all views where below is 1
    assert torch.equal(averaged(certain, images, Views("mirror")), _by_scale(images))
    network = Network()
    assert torch.equal(averaged(network, images, Views("mirror", 0.0)), _by_hand("one", images))
    assert len(network.seen) == 1


def _by_scale(images: torch.Tensor) -> torch.Tensor:
    network = Network()
    network.weight *= 1e4
    return (network(images) + network(images.flip(3))) / 2


def test_an_empty_batch_and_one_class() -> None:
    assert averaged(Network(), _images(0), Views("mirror-shift")).shape == (0, 4)
    assert averaged(lambda x: x.flatten(1)[:, :1], _images(2), Views("mirror", 0.5)).shape == (2, 1)


def test_views_are_data() -> None:
    assert Views.from_dict(Views("mirror", 0.25).to_dict()) == Views("mirror", 0.25)
    assert Views.from_dict({}) == Views()
    assert Views().describe() == ""
    assert "6 views" in Views("mirror-shift").describe()
    assert "less than 0.25" in Views("mirror", 0.25).describe()
    with pytest.raises(ValueError, match="mirror-shift"):
        Views("twice")
    with pytest.raises(ValueError, match="from 0 to 1"):
        Views("mirror", 1.5)
