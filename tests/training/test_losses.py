from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.utils.class_weight import compute_class_weight

from tellapart.errors import DataError
from tellapart.spec import TrainingSpec
from tellapart.training.losses import build_loss, class_weights, focal, ordinal

COUNTS = np.array([500, 30, 7, 90], dtype=np.int64)


def batch(seed: int = 0, size: int = 16, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator) * 3
    labels = torch.randint(classes, (size,), generator=generator)
    soft = torch.rand(size, classes, generator=generator).softmax(1)
    return logits, labels, soft


def reference(
    logits: torch.Tensor, soft: torch.Tensor, weight: np.ndarray, gamma: float, smoothing: float
) -> torch.Tensor:
    """The formula written out in float64: an image's loss, times the weight of its own class (or mix of classes)."""
    p = logits.double().softmax(1)
    t = (1 - smoothing) * soft.double() + smoothing / soft.shape[1]
    own = (soft.double() * torch.from_numpy(weight)).sum(1)
    return own * (t * (1 - p) ** gamma * -p.log()).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "inverse", "effective"])
def test_cross_entropy_is_torchs_for_labels_and_soft_targets(smoothing: float, weights: str) -> None:
    logits, labels, soft = batch()
    loss = build_loss(TrainingSpec(label_smoothing=smoothing, class_weights=weights), COUNTS)
    values = np.ones(4) if weights == "none" else class_weights(COUNTS, weights)
    for targets, dense in ((labels, F.one_hot(labels, 4)), (soft, soft)):
        plain = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        own = torch.tensor(dense.numpy() @ values, dtype=torch.float32)
        torch.testing.assert_close(loss(logits, targets), own * plain)
    formula = reference(logits, soft, values, 0.0, smoothing)
    torch.testing.assert_close(loss(logits, soft).double(), formula, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["inverse", "effective"])
def test_weighted_labels_are_torchs_where_nothing_is_smoothed(weights: str) -> None:
    logits, labels, _ = batch()
    weight = torch.tensor(class_weights(COUNTS, weights), dtype=torch.float32)
    expected = torch.nn.CrossEntropyLoss(weight, reduction="none")(logits, labels)
    torch.testing.assert_close(
        build_loss(TrainingSpec(class_weights=weights), COUNTS)(logits, labels), expected
    )


def minimum(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """The probabilities [B, K] at the loss's minimum over the logits, found by L-BFGS."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        lr=0.5,
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(1)


RARE = np.array([300, 100, 10], dtype=np.int64)


def _targets(mixed: bool) -> torch.Tensor:
    """One image of each class [3, 3]; ``mixed``: as MixUp leaves it, with a share of a rarer or commoner class."""
    ones = torch.eye(3)
    return 0.8 * ones + 0.2 * ones.roll(1, 1) if mixed else ones


@pytest.mark.parametrize("weights", ["none", "inverse", "effective"])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_optimum_of_each_image_is_its_own_smoothed_target(weights: str, mixed: bool) -> None:
    """Cross-entropy against t is least at p = t, whatever the image counts (Gibbs' inequality)."""
    targets = _targets(mixed)
    loss = build_loss(TrainingSpec(class_weights=weights, label_smoothing=0.1), RARE)
    found = minimum(lambda logits: loss(logits, targets).sum(), torch.zeros(3, 3))
    torch.testing.assert_close(found, 0.9 * targets + 0.1 / 3, rtol=0, atol=2e-3)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("mixed", [False, True])
def test_weights_do_not_move_the_optimum_of_the_focal_loss(
    gamma: float, smoothing: float, mixed: bool
) -> None:
    targets = _targets(mixed)
    found = []
    for weights in ("none", "inverse"):
        spec = TrainingSpec(loss="focal", focal_gamma=gamma, class_weights=weights, label_smoothing=smoothing)
        loss = build_loss(spec, RARE)
        found.append(minimum(lambda logits, loss=loss: loss(logits, targets).sum(), torch.zeros(3, 3)))
    assert found[1].argmax(1).tolist() == [0, 1, 2]
    if smoothing:  # else it lies at infinity
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=5e-3)


def test_torchs_weights_with_smoothing_would_make_the_rarest_class_the_best_answer() -> None:
    """Why torch's own combination is not used: its minimum is p[c] in proportion to w[c] * t[c]."""
    weight = torch.tensor(class_weights(RARE, "inverse"))
    torchs = torch.nn.CrossEntropyLoss(weight, label_smoothing=0.1, reduction="sum")
    found = minimum(lambda logits: torchs(logits, torch.arange(3)), torch.zeros(3, 3, dtype=torch.float64))
    expected = weight * (0.9 * torch.eye(3, dtype=torch.float64) + 0.1 / 3)
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True), rtol=0, atol=1e-4)
    assert found.argmax(1)[0] == 2


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", "inverse"])
def test_focal_is_the_formula_for_labels_and_soft_targets(
    gamma: float, smoothing: float, weights: str
) -> None:
    logits, labels, soft = batch()
    spec = TrainingSpec(loss="focal", focal_gamma=gamma, label_smoothing=smoothing, class_weights=weights)
    loss = build_loss(spec, COUNTS)
    weight = np.ones(4) if weights == "none" else class_weights(COUNTS, weights)
    for targets, dense in ((labels, F.one_hot(labels, 4)), (soft, soft)):
        expected = reference(logits, dense, weight, gamma, smoothing)
        torch.testing.assert_close(loss(logits, targets).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft_targets", [False, True])
def test_focal_gradient_is_that_of_the_formula(smoothing: float, soft_targets: bool) -> None:
    logits, labels, soft = batch(3)
    dense = soft if soft_targets else F.one_hot(labels, 4)
    ours, theirs = logits.clone().requires_grad_(), logits.double().requires_grad_()
    focal(ours, soft if soft_targets else labels, 2.0, smoothing).sum().backward()
    reference(theirs, dense, np.ones(4), 2.0, smoothing).sum().backward()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-5)


def test_focal_without_gamma_is_cross_entropy() -> None:
    logits, labels, soft = batch(1)
    for targets in (labels, soft):
        for smoothing in (0.0, 0.1):
            expected = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
            torch.testing.assert_close(focal(logits, targets, 0.0, smoothing), expected)


@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_stays_finite_for_certain_and_for_hopeless_images(gamma: float, smoothing: float) -> None:
    logits = torch.tensor([[200.0, -200.0], [1e4, -1e4], [18.0, 0.0], [0.0, 0.0]], requires_grad=True)
    for labels in (torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64)):
        value = focal(logits, labels, gamma, smoothing)
        (gradient,) = torch.autograd.grad(value.sum(), logits)
        assert value.isfinite().all()
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ["cross-entropy", "focal"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_are_float32_inside_autocast(name: str, smoothing: float) -> None:
    logits, labels, soft = batch()
    loss = build_loss(TrainingSpec(loss=name, label_smoothing=smoothing, class_weights="inverse"), COUNTS)
    rounded = logits.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = [loss(rounded, labels), loss(rounded, soft)]
    for value, targets in zip(inside, (labels, soft), strict=True):
        assert value.dtype == torch.float32
        assert value.shape == (16,)
        assert torch.equal(value, loss(rounded.float(), targets))


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    logits, labels, _ = batch()
    spec = TrainingSpec(class_weights="effective", label_smoothing=0.1)
    loss = build_loss(spec, COUNTS)
    parts = torch.cat([loss(logits[i : i + 5], labels[i : i + 5]) for i in range(0, 16, 5)])
    torch.testing.assert_close(parts, loss(logits, labels), rtol=1e-6, atol=0)
    assert build_loss(dataclasses.replace(spec, class_weights="none"), COUNTS)(logits, labels).shape == (16,)


def test_inverse_weights_are_scikit_learns_balanced() -> None:
    labels = np.repeat(np.arange(4), COUNTS)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(class_weights(COUNTS, "inverse"), expected, rtol=1e-12)


def test_effective_weights_follow_the_papers_formula() -> None:
    beta = 0.99
    weights = class_weights(COUNTS, "effective", beta)
    effective_number = np.array([sum(beta**i for i in range(n)) for n in COUNTS])
    ratio = weights * effective_number
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)
    np.testing.assert_allclose(class_weights(COUNTS, "effective", 0.0), 1.0)
    inverse = class_weights(COUNTS, "inverse")
    np.testing.assert_allclose(class_weights(COUNTS, "effective", 0.999999), inverse, rtol=1e-3)


@settings(deadline=None, max_examples=60)
@given(
    counts=hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 10**6)),
    method=st.sampled_from(["inverse", "effective"]),
    beta=st.floats(0, 0.999999),
)
def test_weights_have_mean_one_over_the_images(counts: np.ndarray, method: str, beta: float) -> None:
    if not counts.any():
        with pytest.raises(DataError, match="no class has one"):
            class_weights(counts, method, beta)
        return
    weights = class_weights(counts, method, beta)
    assert np.isclose((weights * counts).sum() / counts.sum(), 1.0)
    assert (weights[counts == 0] == 0).all()
    assert (weights[counts > 0] > 0).all()
    present = np.flatnonzero(counts)
    order = present[np.argsort(counts[present])]
    assert (np.diff(weights[order]) <= 1e-9 * weights.max()).all()


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="inverse or effective"):
        class_weights(COUNTS, "balanced")


@pytest.mark.parametrize("name", ["cross-entropy", "focal"])
def test_class_weights_go_to_the_device_of_the_logits(name: str) -> None:
    logits, labels, soft = (tensor.to("meta") for tensor in batch())
    loss = build_loss(TrainingSpec(loss=name, class_weights="inverse"), COUNTS)
    assert loss(logits, labels).device.type == loss(logits, soft).device.type == "meta"


def squared_emd(p: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Equation 10 of arXiv:1611.05916, with the sums written out, in float64."""
    return np.array(
        [sum((sum(a[:k]) - sum(b[:k])) ** 2 for k in range(1, len(a) + 1)) for a, b in zip(p, t, strict=True)]
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "inverse"])
def test_ordinal_is_cross_entropy_and_the_papers_distance(smoothing: float, weights: str) -> None:
    logits, labels, soft = batch(classes=4)
    values = np.ones(4) if weights == "none" else class_weights(COUNTS, weights)
    loss = build_loss(TrainingSpec(loss="ordinal", label_smoothing=smoothing, class_weights=weights), COUNTS)
    p = logits.double().softmax(1).numpy()
    for targets, dense in ((labels, F.one_hot(labels, 4).double().numpy()), (soft, soft.double().numpy())):
        t = (1 - smoothing) * dense + smoothing / 4
        expected = dense @ values * (squared_emd(p, t) - (t * np.log(p)).sum(1))
        found = loss(logits, targets)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, rtol=2e-5, atol=1e-6)


def test_the_distance_is_that_of_moving_earth_and_the_ranked_probability_score() -> None:
    logits = torch.tensor([[0.0, 40.0, 0.0, 0.0, 0.0]]).repeat(5, 1)  # all of it at the second grade
    beyond = ordinal(logits, torch.arange(5)) - F.cross_entropy(logits, torch.arange(5), reduction="none")
    torch.testing.assert_close(beyond, torch.tensor([1.0, 0.0, 1.0, 2.0, 3.0]))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", ["none", "inverse"])
def test_the_best_answer_to_soft_grades_are_they(smoothing: float, weights: str) -> None:
    soft = torch.tensor(
        [[0.7, 0.1, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64
    )
    loss = build_loss(TrainingSpec(loss="ordinal", label_smoothing=smoothing, class_weights=weights), COUNTS)
    found = minimum(lambda logits: loss(logits, soft).sum(), torch.zeros(3, 4))
    np.testing.assert_allclose(found, (1 - smoothing) * soft + smoothing / 4, atol=2e-3)


def test_the_best_answer_to_uncertain_grades_is_how_often_each_is_right() -> None:
    """A proper score: over labels drawn from t the mean is lowest at t, so probabilities can be trusted."""
    t = torch.tensor([0.5, 0.05, 0.15, 0.3])
    labels = torch.arange(4)

    def mean(logits: torch.Tensor) -> torch.Tensor:
        return (t * ordinal(logits.expand(4, 4), labels)).sum()

    np.testing.assert_allclose(minimum(mean, torch.zeros(1, 4))[0], t, atol=2e-3)


def test_a_further_mistake_costs_more_and_gradients_are_finite() -> None:
    logits = torch.tensor([[8.0, 0.0, 0.0, 0.0, 0.0]]).repeat(5, 1)
    found = ordinal(logits, torch.arange(5))
    assert found.diff().min() > 0.9
    extreme = torch.tensor([[300.0, -300.0, 0.0], [-300.0, 300.0, 0.0]], requires_grad=True)
    ordinal(extreme, torch.tensor([1, 1])).sum().backward()
    assert extreme.grad is not None
    assert torch.isfinite(extreme.grad).all()
