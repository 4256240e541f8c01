from __future__ import annotations

import dataclasses

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
from tellapart.training.losses import build_loss, class_weights, focal

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
    """The formula written out in float64."""
    p = logits.double().softmax(1)
    t = (1 - smoothing) * soft.double() + smoothing / soft.shape[1]
    return (t * torch.from_numpy(weight) * (1 - p) ** gamma * -p.log()).sum(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["none", "inverse", "effective"])
def test_cross_entropy_is_torchs_for_labels_and_soft_targets(smoothing: float, weights: str) -> None:
    logits, labels, soft = batch()
    loss = build_loss(TrainingSpec(label_smoothing=smoothing, class_weights=weights), COUNTS)
    values = np.ones(4) if weights == "none" else class_weights(COUNTS, weights)
    weight = torch.tensor(values, dtype=torch.float32)
    for targets in (labels, soft):
        expected = F.cross_entropy(
            logits, targets, weight=weight, reduction="none", label_smoothing=smoothing
        )
        torch.testing.assert_close(loss(logits, targets), expected)
    formula = reference(logits, soft, values, 0.0, smoothing)
    torch.testing.assert_close(loss(logits, soft).double(), formula, rtol=1e-5, atol=1e-6)


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
