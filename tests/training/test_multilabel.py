"""The losses of several labels against their formulas, and the task that trains by them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tellapart.augment import Augment, mix, resolve
from tellapart.contract import Preprocessing
from tellapart.spec import AugmentSpec, TrainingSpec
from tellapart.training.methods import multilabel
from tellapart.training.task import Batch


def drawn(seed: int = 0, n: int = 12, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(n, classes, generator=generator)
    return logits, (torch.rand(n, classes, generator=generator) < 0.4).float()


def spec(**fields: object) -> TrainingSpec:
    return dataclasses.replace(TrainingSpec(), **{"loss": "bce", **fields})  # type: ignore[arg-type]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_bce_is_the_mean_over_the_classes(smoothing: float, weighted: bool) -> None:
    logits, targets = drawn()
    counts, images = np.array([50, 10, 1, 0, 100]), 100
    fields = {"label_smoothing": smoothing, "class_weights": "inverse" if weighted else "none"}
    losses = multilabel.build_loss(spec(**fields), counts, images)(logits, targets)
    p, t = sigmoid(logits.double().numpy()), targets.double().numpy() * (1 - smoothing) + smoothing / 2
    weights = np.array([1, 9, 20, 1, 1]) if weighted else np.ones(5)  # 99 no for a yes is cut at 20
    wanted = -(weights * t * np.log(p) + (1 - t) * np.log(1 - p)).mean(1)
    assert losses.dtype == torch.float32
    np.testing.assert_allclose(losses.numpy(), wanted, rtol=2e-5)


@pytest.mark.parametrize(
    ("negative", "positive", "margin"), [(4, 0, 0.05), (4, 1, 0.05), (2, 2, 0.0), (0, 0, 0.0), (1, 0.5, 0.3)]
)
def test_the_asymmetric_loss_is_the_papers(negative: float, positive: float, margin: float) -> None:
    logits, targets = drawn(1)
    p = sigmoid(logits.double().numpy())
    q = np.maximum(p - margin, 0)
    t = targets.double().numpy()
    wanted = -(t * (1 - p) ** positive * np.log(p) + (1 - t) * q**negative * np.log(1 - q))
    given = multilabel.asymmetric(logits, targets, negative, positive, margin)
    np.testing.assert_allclose(given.numpy(), wanted, rtol=5e-5, atol=1e-7)
    fields = {"loss": "asymmetric", "gamma_negative": negative, "gamma_positive": positive, "margin": margin}
    losses = multilabel.build_loss(spec(**fields), np.ones(5, np.int64), 10)(logits, targets)
    np.testing.assert_allclose(losses.numpy(), wanted.mean(1), rtol=5e-5, atol=1e-7)


@pytest.mark.parametrize("loss", ["bce", "asymmetric"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_extreme_logits_have_finite_gradients(loss: str, gamma: float) -> None:
    logits = torch.tensor([[-200.0, -20.0, 0.0, 20.0, 200.0]] * 2, requires_grad=True)
    targets = torch.tensor([[0.0] * 5, [1.0] * 5])
    made = multilabel.build_loss(
        spec(loss=loss, gamma_positive=gamma, gamma_negative=gamma), np.ones(5, np.int64), 9
    )
    made(logits, targets).sum().backward()
    assert torch.isfinite(made(logits, targets)).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_parts_of_a_batch_add_up() -> None:
    logits, targets = drawn(2)
    loss = multilabel.build_loss(spec(loss="asymmetric"), np.ones(5, np.int64), 9)
    whole, parts = (
        loss(logits, targets),
        [loss(logits[rows], targets[rows]) for rows in torch.arange(12).split(5)],
    )
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("cutmix", [False, True])
def test_mixing_mixes_targets(cutmix: bool) -> None:
    _, targets = drawn(3)
    images = torch.rand(12, 3, 8, 8)
    mixed, soft = mix.apply(images, targets, 5, mix.Mix(0.75, (0, 0, 4, 4) if cutmix else None))
    torch.testing.assert_close(soft, 0.75 * targets + 0.25 * targets.roll(1, 0))
    assert not torch.equal(mixed, images)
    single = torch.arange(12) % 5
    hot = torch.nn.functional.one_hot(single, 5).float()
    assert torch.equal(
        mix.apply(images, single, 5, mix.Mix(0.75))[1], mix.apply(images, hot, 5, mix.Mix(0.75))[1]
    )


def test_the_task_reports_f1_of_its_images() -> None:
    contract = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    task = multilabel.MultiLabel(
        Augment(resolve(AugmentSpec(preset="none"), 8), contract, 3),
        multilabel.build_loss(spec(), np.ones(3, np.int64), 9),
    )
    logits = torch.tensor([[1.0, -1, -1], [-1.0, -1, -1], [1.0, 1, -1], [-1.0, -1, 1]])
    labels = torch.tensor([[1.0, 0, 0], [0.0, 0, 0], [1.0, 0, 1], [1.0, 0, 0]])
    losses, sums = task.loss(lambda images: logits, Batch(torch.zeros(4, 3, 8, 8), labels, labels))  # type: ignore[arg-type]
    assert losses.shape == (4,)
    assert float(sums["samples-f1"]) == pytest.approx(1 + 1 + 0.5 + 0)
    assert set(task.scores(logits, labels)) == set(task.score_names)
