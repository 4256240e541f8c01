"""Several teachers: the mean of their probabilities, whose files they are, and what they must have in common."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.special import expit, softmax

from tellapart import artifact, runs
from tellapart.contract import Card, Preprocessing
from tellapart.errors import ArtifactError, ModelError, RunError
from tellapart.models import zoo
from tellapart.spec import DistillSpec, Spec, update
from tellapart.training import losses
from tellapart.training.methods import distillation, multilabel
from tellapart.training.resolution import facts, rules
from tellapart.training.task import Batch

CLASSES = ("class 0", "class 1", "class 2")
OURS = Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.2,) * 3)


def write(
    folder: Path,
    seed: int,
    name: str = "fast-cnn",
    classes: tuple[str, ...] = CLASSES,
    size: int = 8,
    mean: float = 0.4,
    **card: Any,
) -> None:
    torch.manual_seed(seed)
    architecture = zoo.Architecture(name, len(classes), 3, size=size)
    contract = Preprocessing(size, 3, "squash", "bilinear", 1.0, (mean,) * 3, (0.25,) * 3)
    folder.mkdir(parents=True)
    state = {key: 2 * value for key, value in zoo.build(architecture).state_dict().items()}
    artifact.save(folder / artifact.FILE_NAME, state, Card(architecture, classes, contract, **card))


def list_runs(folder: Path, names: list[str], finished: list[str] | None = None) -> Path:
    done = [{"run": name} for name in (names if finished is None else finished)]
    runs.write_json(folder / runs.FOLDS_FILE, {"count": len(names), "runs": names, "finished": done})
    return folder


@pytest.fixture
def committee(tmp_path: Path) -> Path:
    """Three models, of two architectures, each with its own normalisation and order of classes."""
    write(tmp_path / "all/fold-1", 1)
    write(tmp_path / "all/fold-2", 2, name="simple-cnn", mean=0.6)
    write(tmp_path / "all/fold-3", 3, classes=CLASSES[::-1], mean=0.3)
    return list_runs(tmp_path / "all", ["fold-1", "fold-2", "fold-3"])


def opened(folder: Path, **spec: Any) -> Any:
    wanted = DistillSpec(teacher=str(folder), **spec)
    return distillation.open_teacher(wanted, OURS, CLASSES, torch.device("cpu"))


def test_the_mean_of_softened_probabilities() -> None:
    """Against float64 formulas; extreme logits stay finite."""
    logits = 30 * torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    taught = losses.average(logits, 3.0)
    wanted = softmax(logits.double().numpy() / 3, axis=2).mean(0)
    np.testing.assert_allclose(softmax(taught.double().numpy() / 3, axis=1), wanted, rtol=1e-4, atol=1e-9)
    several = multilabel.average(logits, 3.0)
    wanted = expit(logits.double().numpy() / 3).mean(0)
    np.testing.assert_allclose(expit(several.double().numpy() / 3), wanted, rtol=1e-4, atol=1e-9)
    assert bool(torch.isfinite(multilabel.average(1e4 * logits, 1.0)).all())
    alone = losses.average(logits[:1], 2.0).softmax(1)
    torch.testing.assert_close(alone, logits[0].softmax(1), rtol=1e-4, atol=1e-6)


def test_it_answers_as_its_models_do_alone(committee: Path) -> None:
    """Each is given the pixels that it was trained on, and its answers are put into the student's order."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (5, 8, 8, 3), dtype=torch.uint8, generator=generator)
    inputs = (pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    found = opened(committee, temperature=2.0)(inputs)
    alone = []
    for name in ("fold-1", "fold-2", "fold-3"):
        predictor = artifact.open_model(committee / name)
        order = [predictor.classes.index(one) for one in CLASSES]
        alone.append(softmax(predictor(pixels).double().numpy()[:, order] / 2, axis=1))
    np.testing.assert_allclose(
        softmax(found.double().numpy() / 2, axis=1), np.mean(alone, axis=0), rtol=1e-3, atol=1e-5
    )
    assert np.ptp(alone, axis=0).max() > 0.05, "the models disagree, or the test shows nothing"


def test_a_run_follows_them_and_keeps_none_of_their_weights(
    committee: Path, build: Callable[..., Any], pictures: Callable[..., Any]
) -> None:
    bench = build(pictures(), **{"distill.teacher": str(committee), "distill.weight": 1.0})
    images, labels = bench.inputs()
    task = bench.plan.task
    found, _ = task.loss(bench.model.eval(), Batch(images, labels, labels))
    with torch.no_grad():
        ours, taught = bench.model(images), task.teacher(images)
    np.testing.assert_allclose(
        found.detach().numpy(), losses.soft_labels(ours, taught, 4.0).numpy(), rtol=1e-4, atol=1e-5
    )
    assert not task.own_parameters()
    assert not task.own_state()
    assert not any(module.training for module in task.train().teacher.modules())
    assert bench.trainer.run().finished


def test_one_fingerprint_over_all_files(committee: Path) -> None:
    found = facts.of_teacher(str(committee))
    assert found is not None
    assert found.count == 3
    (choice,) = rules.of_teacher(DistillSpec(teacher=str(committee)), found)
    again = update(Spec(), {"distill.teacher": str(committee), "distill.fingerprint": choice.value}).distill
    assert rules.of_teacher(again, facts.of_teacher(str(committee)))
    file = committee / "fold-2" / artifact.FILE_NAME
    state = {name: value + 1 for name, value in artifact.read_state(file).items()}
    card = artifact.read_card(file)
    artifact.save(file, state, card)
    with pytest.raises(RunError, match="has changed since"):
        rules.of_teacher(again, facts.of_teacher(str(committee)))
    safetensors.torch.load_file(file)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classes": ("class 0", "class 1", "other")}, r"fold-4 has other classes \(class 2, other\)"),
        ({"size": 16}, r"fold-4 has another size of its images \(16, not 8\), unlike fold-1"),
        ({"kind": "multi-label", "thresholds": (0.5,) * 3}, "several labels for an image"),
        ({"ordered": True}, "grades"),
    ],
)
def test_models_that_cannot_answer_together_are_refused(
    committee: Path, changes: dict[str, Any], words: str
) -> None:
    write(committee / "fold-4", 4, **changes)
    list_runs(committee, ["fold-1", "fold-2", "fold-3", "fold-4"])
    with pytest.raises(ModelError, match=words):
        opened(committee)


def test_what_is_unfinished_missing_or_compared_by_features_is_refused(committee: Path) -> None:
    with pytest.raises(ModelError, match=r"distill\.features compares two networks"):
        opened(committee, features=1.0)
    list_runs(committee, ["fold-1", "fold-2", "fold-3"], ["fold-1"])
    with pytest.raises(ArtifactError, match=r"3 runs .* 1 are finished.*tellapart resume"):
        facts.of_teacher(str(committee))
    list_runs(committee, ["fold-1", "fold-2", "fold-3"])
    shutil.rmtree(committee / "fold-3")
    with pytest.raises(ArtifactError, match="fold-3"):
        facts.of_teacher(str(committee))
    content = json.loads((committee / runs.FOLDS_FILE).read_text())
    runs.write_json(committee / runs.FOLDS_FILE, {**content, "runs": []})
    with pytest.raises(ArtifactError, match="0 runs"):
        facts.of_teacher(str(committee))
