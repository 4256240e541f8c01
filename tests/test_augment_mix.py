"""MixUp and CutMix against torchvision's; alternating flips and Cutout, which torchvision does not have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tellapart import packages
from tellapart.augment import describe, mix, params
from tellapart.errors import SpecError
from tellapart.preprocess import normalise

from .augmenting import augment, contract, generator, pictures, same_distribution, torchvision_draws

packages.prepare_torchvision()

from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as tv  # noqa: E402


@pytest.mark.parametrize(
    "drawn", [mix.Mix(0.3), mix.Mix(1 - 8 * 16 / 1024, (4, 8, 12, 24)), mix.Mix(1.0, (3, 3, 3, 9))]
)
def test_mixing_is_torchvisions(monkeypatch, drawn):
    images, labels = torch.randn(5, 3, 32, 32), torch.tensor([0, 3, 3, 9, 1])
    kept = images.clone()
    transform = v2.MixUp(num_classes=10) if drawn.box is None else v2.CutMix(num_classes=10)
    values = {"lam": drawn.weight, "lam_adjusted": drawn.weight, "box": drawn.box}
    monkeypatch.setattr(transform, "make_params", lambda _: values)
    expected, soft = transform(images, labels)
    ours, targets = mix.apply(images, labels, 10, drawn)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(targets, soft)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    assert torch.equal(images, kept)


def test_mixup_weights_are_beta():
    made = augment(mixup=0.2)
    state = generator()
    weights = [made.draw_mix(state).weight for _ in range(2000)]
    assert stats.kstest(weights, stats.beta(0.2, 0.2).cdf).pvalue > 1e-3


def test_cutmix_boxes_are_distributed_as_torchvisions():
    made = augment(cutmix=1.0)
    state = generator()
    ours = [made.draw_mix(state) for _ in range(3000)]
    transform = v2.CutMix(num_classes=10)
    theirs = torchvision_draws(transform, torch.zeros(2, 3, 32, 32), 2000)
    same_distribution([m.weight for m in ours], [draw["lam_adjusted"] for draw in theirs])
    for side in range(4):
        same_distribution([m.box[side] for m in ours], [draw["box"][side] for draw in theirs])


def test_mix_takes_one_of_the_two_and_none_when_off():
    both = augment(mixup=0.2, cutmix=1.0)
    state = generator()
    cut = sum(both.draw_mix(state).box is not None for _ in range(1000))
    assert stats.binomtest(cut, 1000).pvalue > 1e-3
    images, labels = torch.randn(3, 3, 32, 32), torch.tensor([1, 2, 3])
    same = augment().mix(images, labels, generator())
    assert same[0] is images
    assert same[1] is labels
    mixed, soft = both.mix(images, labels, generator(3))
    again, soft_again = both.mix(images, labels, generator(3))
    assert torch.equal(mixed, again)
    assert torch.equal(soft, soft_again)
    assert soft.shape == (3, 10)
    assert soft.dtype == torch.float32
    assert math.isclose(float(soft.sum()), 3, abs_tol=1e-5)


# Alternating flips and cutout, which torchvision does not have


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 50), st.floats(0, 1))
def test_two_epochs_in_a_row_hold_every_image_both_ways(seed: int, epoch: int, probability: float) -> None:
    places = np.arange(200)
    now, then, later = (params.alternating_flip(places, probability, seed, epoch + k) for k in range(3))
    assert torch.equal(now, ~then)
    assert torch.equal(now, later)
    shuffled = np.random.default_rng(seed).permutation(200)
    assert torch.equal(params.alternating_flip(shuffled, probability, seed, epoch), now[shuffled])


def test_the_first_epochs_flips_are_drawn_by_seed_and_image() -> None:
    places = np.arange(20_000)
    first = {seed: params.alternating_flip(places, 0.5, seed, 0) for seed in range(3)}
    for flags in first.values():
        assert stats.binomtest(int(flags.sum()), len(places), 0.5).pvalue > 1e-4
        runs = int((flags[1:] == flags[:-1]).sum())  # neighbours agree half of the times
        assert stats.binomtest(runs, len(places) - 1, 0.5).pvalue > 1e-4
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert stats.binomtest(int((first[a] == first[b]).sum()), len(places), 0.5).pvalue > 1e-4
    assert params.alternating_flip(places, 0.2, 0, 0).float().mean() == pytest.approx(0.2, abs=0.02)


def test_alternating_flips_take_nothing_from_the_generator_and_are_applied() -> None:
    images = pictures(6)
    alternating = augment(hflip=0.5, hflip_mode="alternating")
    places = np.array([5, 17, 3, 900, 4, 8])
    drawn = alternating.draw(6, None, generator(0), 1, places)
    assert torch.equal(drawn.hflip, alternating.draw(6, None, generator(7), 3, places).hflip)
    assert drawn.hflip.any()
    assert not drawn.hflip.all()
    result = alternating.apply(images, None, drawn)
    plain = normalise(images, contract())
    expected = torch.where(drawn.hflip[:, None, None, None], tv.horizontal_flip(plain), plain)
    torch.testing.assert_close(result, expected)
    assert "hflip 0.5, then alternating" in describe(alternating.spec)


def test_cutout_erases_a_square_wholly_inside() -> None:
    images = pictures(300)
    cut = augment(cutout=12)
    drawn = cut.draw(300, None, generator(1))
    result, plain = cut.apply(images, None, drawn), normalise(images, contract())
    erased = (result != plain).any(1)
    assert (result[erased[:, None].expand_as(result)] == 0).all()
    for mask, (top, left, height, width) in zip(erased, drawn.erase.tolist(), strict=True):
        assert (height, width) == (12, 12)
        assert mask[top : top + 12, left : left + 12].float().mean() > 0.97  # a pixel may be the mean colour
        assert mask.sum() == mask[top : top + 12, left : left + 12].sum()
    corners = drawn.erase[:, :2]
    assert corners.min() == 0
    assert corners.max() == 20
    with pytest.raises(SpecError, match="33"):
        augment(cutout=33)
    with pytest.raises(SpecError, match="choose one"):
        augment(cutout=3, erasing=0.5)
