from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart import artifact
from tellapart.contract import Card, Preprocessing
from tellapart.errors import ModelError, RunError, SpecError
from tellapart.models import zoo
from tellapart.spec import Spec, update
from tellapart.training.losses import soft_labels
from tellapart.training.methods import distillation, multilabel
from tellapart.training.task import Batch

CLASSES = ("class 0", "class 1", "class 2")


def write_teacher(
    folder: Path,
    name: str = "fast-cnn",
    classes: tuple[str, ...] = CLASSES,
    size: int = 8,
    mean: float = 0.4,
    channels: int = 3,
    several: bool = False,
) -> Path:
    torch.manual_seed(3)
    architecture = zoo.Architecture(name, len(classes), channels, size=size)
    contract = Preprocessing(
        size, channels, "squash", "bilinear", 1.0, (mean,) * channels, (0.25,) * channels
    )
    model = zoo.build(architecture)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.2)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / artifact.FILE_NAME
    kind: dict[str, Any] = {"kind": "multi-label", "thresholds": (0.5,) * len(classes)} if several else {}
    artifact.save(file, model.state_dict(), Card(architecture, classes, contract, **kind))
    return file


def test_soft_labels_are_hintons() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(2, 6, 4, generator=generator).double().unbind()
    p, q = np.exp(theirs.numpy() / 3), np.exp(ours.numpy() / 3)
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    wanted = 9 * (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(soft_labels(ours, theirs, 3.0).numpy(), wanted, rtol=1e-5)
    assert float(soft_labels(ours, ours, 3.0).abs().max()) < 1e-6


def test_the_loss_has_the_three_parts(
    build: Callable[..., Any], pictures: Callable[..., Any], tmp_path: Path
) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    spec = {"distill.teacher": str(teacher), "distill.weight": 0.7, "distill.temperature": 2.0}
    bench = build(pictures((5, 5, 5)), **spec, **{"distill.features": 3.0, "model.name": "simple-cnn"})
    images, labels = bench.inputs()
    task, model = bench.plan.task, bench.model.eval()
    losses, sums = task.loss(model, Batch(images, labels, labels))
    pixels = (images * torch.tensor(bench.prepared.contract.std).view(3, 1, 1)) + torch.tensor(
        bench.prepared.contract.mean
    ).view(3, 1, 1)
    network = artifact.open_model(teacher).model
    with torch.no_grad():
        taught, logits = network((pixels - 0.4) / 0.25), model(images)
        theirs = network.stage1(network.stem((pixels - 0.4) / 0.25))  # 8 pixels are not halved before stage 1
        ours = model.block1.norm if hasattr(model.block1, "norm") else None
    assert ours is None
    hard = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    soft = soft_labels(logits, taught, 2.0)
    without = dataclasses.replace(task.spec, features=0.0)
    plain = distillation.Distillation(task, without, model, bench.prepared.contract, CLASSES)
    got, _ = plain.loss(model, Batch(images, labels, labels))
    torch.testing.assert_close(got, 0.7 * soft + 0.3 * hard, rtol=1e-4, atol=1e-5)
    assert int(sums["accuracy"]) == int((logits.argmax(1) == labels).sum())
    # Features: at 8 pixels the student's convolution before its pooling, and so on; by the definition.
    assert task.attention.pairs[0] == ("block1.conv", "stage1", 8)
    found = {}
    pairs = task.attention.pairs
    handles = [
        net.get_submodule(path).register_forward_hook(
            lambda m, i, o, key=(who, place): found.update({key: o})
        )
        for place, pair in enumerate(pairs)
        for who, net, path in (("ours", model, pair[0]), ("theirs", network, pair[1]))
    ]
    with torch.no_grad():
        model(images)
        network((pixels - 0.4) / 0.25)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(found["theirs", 0], theirs)
    distance = torch.zeros(len(labels))
    for place in range(len(pairs)):
        q = [found[who, place].pow(2).mean(1).flatten(1) for who in ("ours", "theirs")]
        q = [value / value.norm(dim=1, keepdim=True) for value in q]
        distance += (q[0] - q[1]).pow(2).sum(1)
    torch.testing.assert_close(losses, 0.7 * soft + 0.3 * hard + 3 * distance, rtol=1e-4, atol=1e-4)
    losses.sum().backward()
    assert all(parameter.grad is None for parameter in task.teacher.model.parameters())
    assert model.block1.conv.weight.grad is not None


def test_a_student_alone_with_its_teacher_becomes_like_it(
    build: Callable[..., Any], pictures: Callable[..., Any], tmp_path: Path
) -> None:
    teacher = write_teacher(tmp_path / "teacher")
    changes = {"distill.teacher": str(teacher), "distill.weight": 1.0, "distill.temperature": 1.0}
    bench = build(
        pictures((30, 30, 30)),
        **changes,
        **{"model.name": "fast-cnn", "training.epochs": 12, "training.lr": 0.02},
    )
    images, _ = bench.inputs()

    def agreement(model: torch.nn.Module) -> float:
        with torch.no_grad():
            return float(
                (bench.plan.task.teacher(images).argmax(1) == model.eval()(images).argmax(1)).float().mean()
            )

    before = agreement(bench.start)
    bench.trainer.run()
    assert agreement(bench.model) > max(0.85, before + 0.1)


def test_soft_labels_of_several_are_the_divergence_of_each_class() -> None:
    """In float64, by scipy's relative entropy of yes and of no."""
    from scipy.special import expit, rel_entr

    generator = torch.Generator().manual_seed(5)
    ours, theirs = (4 * torch.randn(6, 5, generator=generator) for _ in range(2))
    student, teacher = (expit(x.double().numpy() / 3) for x in (ours, theirs))
    wanted = 9 * (rel_entr(teacher, student) + rel_entr(1 - teacher, 1 - student)).mean(1)
    found = multilabel.soft_several(ours, theirs, 3.0)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)
    assert float(multilabel.soft_several(theirs, theirs, 3.0).abs().max()) < 1e-6
    ours.requires_grad_(True)
    multilabel.soft_several(ours, theirs, 3.0).sum().backward()
    slope = 3 * (student - teacher) / 5  # of T² times the binary cross-entropy, by hand
    assert ours.grad is not None
    np.testing.assert_allclose(ours.grad.numpy(), slope, rtol=1e-4, atol=1e-6)


def test_distillation_of_several_labels_adds_both_losses(tmp_path: Path) -> None:
    from tellapart.spec import DistillSpec, TrainingSpec

    file = write_teacher(tmp_path, several=True)
    contract = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.4,) * 3, (0.25,) * 3)
    criterion = multilabel.build_loss(TrainingSpec(loss="bce"), np.array([1, 2, 3]), 6)
    augment: Any = None  # inputs are given
    labels = multilabel.MultiLabel(augment, criterion)
    student = zoo.build(zoo.Architecture("fast-cnn", 3, 3, size=8)).eval()
    spec = DistillSpec(teacher=str(file), weight=0.25, temperature=2.0, features=0.0)
    task = distillation.Distillation(labels, spec, student, contract, CLASSES).eval()
    assert (task.metrics, task.score_names) == (labels.metrics, labels.score_names)
    images, targets = torch.randn(4, 3, 8, 8), torch.randint(0, 2, (4, 3)).float()
    batch = Batch(images, targets, targets)
    with torch.no_grad():
        loss, counted = task.loss(student, batch)
        logits, taught = student(images), artifact.open_model(file).model(images)
    wanted = 0.25 * multilabel.soft_several(logits, taught, 2.0) + 0.75 * criterion(logits, targets)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert counted["samples-f1"] == labels.loss(student, batch)[1]["samples-f1"]
    assert set(task.scores(logits, targets.to(torch.uint8))) == set(multilabel.SCORES)
    assert not task.own_state()


@pytest.mark.parametrize("several", [False, True])
def test_a_teacher_of_the_other_kind_is_refused(tmp_path: Path, several: bool) -> None:
    file = write_teacher(tmp_path, several=several)
    contract = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.4,) * 3, (0.25,) * 3)
    with pytest.raises(ModelError, match="do not mean what the student's do"):
        distillation.Teacher(str(file), contract, CLASSES, torch.device("cpu"), not several)


def test_classes_are_matched_by_name_and_sizes_fitted(tmp_path: Path) -> None:
    file = write_teacher(tmp_path, classes=("b", "c", "a"), size=16)
    contract = Preprocessing(8, 1, "squash", "bilinear", 1.0, (0.3,), (0.2,))
    teacher = distillation.Teacher(str(file), contract, ("a", "b", "c"), torch.device("cpu"))
    grey = torch.rand(2, 1, 8, 8)
    shown = torch.nn.functional.interpolate(
        grey.expand(-1, 3, -1, -1), (16, 16), mode="bilinear", antialias=True
    )
    with torch.no_grad():
        wanted = artifact.open_model(file).model((shown - 0.4) / 0.25)[:, [2, 0, 1]]
    torch.testing.assert_close(teacher((grey - 0.3) / 0.2), wanted, rtol=1e-4, atol=1e-4)


def test_what_cannot_teach_is_refused(
    build: Callable[..., Any], pictures: Callable[..., Any], tmp_path: Path
) -> None:
    other = write_teacher(tmp_path / "other", classes=("x", "class 1", "class 2"))
    with pytest.raises(ModelError, match="class 0, x"):
        build(pictures(), **{"distill.teacher": str(other)})
    grey = write_teacher(tmp_path / "grey", channels=1)
    with pytest.raises(ModelError, match="grey"):
        build(pictures(), **{"distill.teacher": str(grey)})
    with pytest.raises(Exception, match="does not exist"):
        build(pictures(), **{"distill.teacher": str(tmp_path / "nothing")})
    good = write_teacher(tmp_path / "good")
    with pytest.raises(SpecError, match="features"):
        build(pictures(), **{"distill.teacher": str(good), "distill.features": 1.0, "speed.compile": "on"})
    with pytest.raises(RunError, match="has changed since"):
        build(pictures(), **{"distill.teacher": str(good), "distill.fingerprint": "0" * 64})


def test_the_teacher_is_noted_in_the_spec(
    build: Callable[..., Any], pictures: Callable[..., Any], tmp_path: Path
) -> None:
    import hashlib

    file = write_teacher(tmp_path / "teacher")
    bench = build(pictures(), **{"distill.teacher": str(file.parent)})
    assert bench.prepared.spec.distill.fingerprint == hashlib.sha256(file.read_bytes()).hexdigest()
    assert update(Spec(), {}).distill.fingerprint == ""


def test_a_resumed_run_is_the_uncut_one(
    cut_in_the_middle: Callable[..., Any],
    pictures: Callable[..., Any],
    difference: Callable[..., float],
    tmp_path: Path,
) -> None:
    spec = {
        "distill.teacher": str(write_teacher(tmp_path / "teacher")),
        "distill.features": 1.0,
        "augment.preset": "cifar",
        "augment.mixup": 0.2,
        "model.name": "simple-cnn",
        "model.dropout": 0.2,
        "training.epochs": 3,
        "training.accumulate": 2,
    }
    whole, again = cut_in_the_middle(pictures((9, 9, 9), (3, 3, 3)), 5, **spec)
    assert difference(again.model, whole.model) == 0


def test_a_frozen_backbone_runs_in_every_epoch(
    build: Callable[..., Any], pictures: Callable[..., Any], tmp_path: Path
) -> None:
    from tellapart.training.speed import features

    file = write_teacher(tmp_path / "teacher")
    spec = update(Spec(), {"model.finetune": "head", "distill.teacher": str(file)})
    assert not features.expected(spec)
    assert "teacher" in features._obstacle(spec)


def test_resolutions_are_matched_relative_to_the_image() -> None:
    ours, theirs = {31: "a", 15: "b", 7: "c"}, {64: "x", 32: "y", 4: "z"}
    assert distillation.pairs(ours, theirs, 32, 64) == [("a", "x", 31), ("b", "y", 15)]
    assert distillation.pairs(ours, {}, 32, 64) == []
