"""The solver of a head: scikit-learn's solutions, a choice that generalises, and the memory of a chunk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tellapart.training.methods import fitted_head
from tellapart.training.methods.fitted_head import Examples, Problem, fit


def _examples(
    count: int, classes: int = 4, features: int = 12, seed: int = 0, spread: float = 2.0
) -> Examples:
    """Clouds of features that overlap, off centre and of no particular size, as those of a network are."""
    centres = np.random.default_rng(99).normal(0, spread, (classes, features))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    values = 0.2 * (centres[labels] + rng.normal(0, 3, (count, features))) + 1.5
    return Examples(torch.from_numpy(values).float(), torch.from_numpy(labels))


def _entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def _scaled(examples: Examples) -> np.ndarray[Any, Any]:
    values = examples.features.double().numpy()
    centred = values - values.mean(0)
    return np.asarray(centred / np.sqrt((centred**2).mean()))


@pytest.mark.parametrize("decay", [1.0, 0.1, 0.01, 0.001])
def test_has_the_solution_of_scikit_learn(decay: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    examples = _examples(300)
    theirs = linear_model.LogisticRegression(C=1 / (decay * len(examples)), tol=1e-8, max_iter=10_000)
    values = _scaled(examples)
    theirs.fit(values, examples.targets.numpy())
    ours = Problem(examples, 4, _entropy).solve(decay)
    found = ours.logits(examples.features).softmax(1).numpy()
    np.testing.assert_allclose(found, theirs.predict_proba(values), atol=2e-3)
    size = float((examples.features - examples.features.mean(0)).square().mean().sqrt())
    np.testing.assert_allclose(ours.weight.numpy() * size, theirs.coef_, atol=5e-3)


def test_warm_starts_end_where_cold_ones_do() -> None:
    examples = _examples(200)
    warm = Problem(examples, 4, _entropy)
    for decay in (1.0, 0.1):
        warm.solve(decay)
    cold = Problem(examples, 4, _entropy).solve(0.01)
    torch.testing.assert_close(warm.solve(0.01).weight, cold.weight, atol=5e-3, rtol=0.01)


@pytest.mark.parametrize("kind", ["smoothed", "weighted", "several labels"])
def test_minimises_any_loss_of_the_task(kind: str) -> None:
    """No direction leads further down: the gradient in float64 is next to nothing."""
    examples = _examples(150)
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0])
    if kind == "several labels":
        examples = Examples(examples.features, F.one_hot(examples.targets, 4).float())

    def losses(logits: Tensor, targets: Tensor) -> Tensor:
        if kind == "several labels":
            return F.binary_cross_entropy_with_logits(
                logits, targets.to(logits.dtype), reduction="none"
            ).mean(1)
        if kind == "weighted":
            return _entropy(logits, targets) * weights[targets].to(logits.dtype)
        return F.cross_entropy(logits, targets, reduction="none", label_smoothing=0.1)

    layer = Problem(examples, 4, losses).solve(0.05)
    values = torch.from_numpy(_scaled(examples))
    size = float((examples.features - examples.features.mean(0)).square().mean().sqrt())
    weight = (layer.weight.double() * size).requires_grad_()
    bias = (layer.bias.double() + layer.weight.double() @ examples.features.double().mean(0)).requires_grad_()
    total = losses(values @ weight.T + bias, examples.targets).mean() + 0.05 / 2 * weight.square().sum()
    for gradient in torch.autograd.grad(total, [weight, bias]):
        assert float(gradient.abs().max()) < 1e-4


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    examples = _examples(100)
    whole = Problem(examples, 4, _entropy).solve(0.1)
    monkeypatch.setattr(fitted_head, "CHUNK", 7)
    parts = Problem(examples, 4, _entropy).solve(0.1)
    torch.testing.assert_close(parts.weight, whole.weight, atol=2e-3, rtol=0.01)


def test_a_head_without_bias_stays_without() -> None:
    assert not Problem(_examples(50), 4, _entropy, bias=False).solve(0.1).bias.any()


@pytest.mark.parametrize(
    ("val", "chosen_on"),
    [(0, "5 folds of"), (40, "40 validation images and 5 folds"), (1200, "1,200 validation images")],
)
def test_the_weight_decay_is_the_one_that_generalises(val: int, chosen_on: str) -> None:
    """Next to the best on 4,000 further images, with and without a validation split."""
    train, fresh = _examples(80, spread=1.0), _examples(4000, seed=7, spread=1.0)
    fitted = fit(train, _examples(val, seed=3, spread=1.0) if val else None, 4, _entropy)
    assert fitted.chosen_on.startswith(chosen_on)
    problem = Problem(train, 4, _entropy)
    by_decay = {
        decay: fitted_head.mean_loss(problem.solve(decay), fresh, _entropy) for decay in fitted_head.DECAYS
    }
    assert fitted_head.mean_loss(fitted.layer, fresh, _entropy) < min(by_decay.values()) + 0.03
    assert max(by_decay.values()) > min(by_decay.values()) + 0.3  # it does matter


def test_is_a_function_of_its_seed() -> None:
    train = _examples(60)
    first, second = (fit(train, None, 4, _entropy, seed=5) for _ in range(2))
    assert torch.equal(first.layer.weight, second.layer.weight)


def test_many_images_are_all_used_though_few_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitted_head, "PATH_IMAGES", 100)
    monkeypatch.setattr(fitted_head, "FEW", 10)
    train, val, fresh = (
        _examples(2000, spread=1.0),
        _examples(300, seed=3, spread=1.0),
        _examples(4000, seed=7, spread=1.0),
    )
    fitted = fit(train, val, 4, _entropy)
    part = fit(Examples(train.features[:100], train.targets[:100]), val, 4, _entropy)
    found, of_part = (fitted_head.mean_loss(one.layer, fresh, _entropy) for one in (fitted, part))
    assert found < of_part - 0.05
    assert found < fitted_head.mean_loss(Problem(train, 4, _entropy).solve(0.001), fresh, _entropy) + 0.01


@pytest.mark.parametrize("count", [2, 9])
def test_next_to_no_images_are_no_error(count: int) -> None:
    examples = Examples(torch.randn(count, 5), torch.arange(count) % 2)
    for val in (None, Examples(torch.randn(1, 5), torch.tensor([0]))):
        assert torch.isfinite(fit(examples, val, 2, _entropy).layer.weight).all()


def test_features_that_are_all_the_same() -> None:
    """Then nothing can be learnt but how frequent the classes are."""
    examples = Examples(torch.full((30, 4), 2.0), torch.tensor([0] * 20 + [1] * 10))
    layer = fit(examples, None, 2, _entropy).layer
    shares = layer.logits(examples.features[:1]).softmax(1)[0]
    assert math.isclose(float(shares[0]), 2 / 3, abs_tol=0.02)
