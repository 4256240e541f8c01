from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from tellapart.training.methods.lr_finder import LrCurve, find_lr


class Quadratic:
    """Gradient descent on a/2 w² from w = 1 (plus a floor of the loss): stable while lr < 2/a."""

    def __init__(self, curvature: float, noise: float = 0.0) -> None:
        self.curvature, self.noise = curvature, noise
        self.weight, self.calls = 1.0, 0
        self.rng = np.random.default_rng(0)

    def __call__(self, lr: float) -> float:
        self.calls += 1
        loss = self.curvature / 2 * self.weight**2 + 0.01 * self.curvature
        self.weight -= lr * self.curvature * self.weight
        return loss * (1 + self.noise * self.rng.standard_normal())


def told(losses: Iterable[float]) -> Callable[[float], float]:
    left = iter(losses)
    return lambda lr: next(left)


@pytest.mark.parametrize("curvature", [0.5, 5.0, 50.0])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_suggestion_is_stable_and_fast(curvature: float, noise: float) -> None:
    curve = find_lr(Quadratic(curvature, noise), steps=200, high=100.0)
    limit = 2 / curvature
    assert curve.suggestion is not None
    assert limit / 200 < curve.suggestion < limit
    assert curve.lrs[-1] > limit


def test_the_suggestion_scales_with_the_curvature() -> None:
    suggestions = [find_lr(Quadratic(a), steps=300, high=100.0).suggestion for a in (1.0, 10.0)]
    assert suggestions[0] == pytest.approx(10 * suggestions[1], rel=0.1)


def test_the_test_stops_at_divergence() -> None:
    task = Quadratic(50.0)
    curve = find_lr(task, steps=200, high=1e6)
    assert task.calls == len(curve.lrs) == len(curve.losses) == len(curve.smoothed) < 200
    assert 2 / 50 < curve.lrs[-1] < 20 * 2 / 50
    assert curve.losses[-1] > 4 * min(curve.smoothed)


def test_all_steps_are_taken_where_nothing_diverges() -> None:
    curve = find_lr(lambda lr: 1.0, steps=50, low=1e-5, high=1.0)
    np.testing.assert_allclose(curve.lrs, np.geomspace(1e-5, 1.0, 50))
    assert curve.suggestion is None
    assert curve.smoothed == pytest.approx([1.0] * 50)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_test(bad: float) -> None:
    losses = [3.0, 2.9, 2.8, 2.5, 2.0, bad]
    curve = find_lr(told(losses), steps=20)
    assert curve.losses == (3.0, 2.9, 2.8, 2.5, 2.0)
    assert curve.suggestion == curve.lrs[-1]
    assert find_lr(lambda lr: bad) == LrCurve((), (), (), None, "the loss never fell")


def _curves(kind: str, count: int = 100) -> Iterable[LrCurve]:
    """Range tests of losses that only scatter (also up to where they diverge), or that fall under noise."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        seen = 0.0

        def loss(lr: float, rng: np.random.Generator = rng) -> float:
            nonlocal seen
            seen += min(lr / 1e-3, 3) * 0.05
            fall = 0.7 * math.exp(-seen) if kind == "falls" else 0.7
            diverges = 3 * max(0.0, math.log10(lr) + 1) ** 2 if kind != "noise" else 0.0
            return fall + 0.5 + 0.1 * float(rng.standard_normal()) + diverges

        yield find_lr(loss)


@pytest.mark.parametrize(("kind", "low", "high"), [("noise", 0, 5), ("diverges", 0, 5), ("falls", 95, 100)])
def test_a_loss_that_only_wanders_suggests_nothing(kind: str, low: int, high: int) -> None:
    curves = list(_curves(kind))
    assert low <= sum(curve.suggestion is not None for curve in curves) <= high
    for curve in curves:
        assert (curve.suggestion is None) == bool(curve.doubt)
        assert not curve.doubt or "mostly noise" in curve.doubt or "never fell" in curve.doubt


def test_smoothing_is_centred() -> None:
    rng = np.random.default_rng(0)
    losses = list(10 + rng.standard_normal(100))
    curve = find_lr(told(losses))
    expected = [np.mean(losses[max(i - r, 0) : i + r + 1]) for i in range(100) for r in [min(2, i, 99 - i)]]
    assert curve.smoothed == pytest.approx(expected)


def test_impossible_ranges_are_refused() -> None:
    for arguments in ({"steps": 9}, {"low": 0.0}, {"low": 1.0, "high": 0.5}):
        with pytest.raises(ValueError, match="range test"):
            find_lr(lambda lr: 1.0, **arguments)  # type: ignore[arg-type]
