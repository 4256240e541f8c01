"""Effort best: members that leave out folds of the training split, and one model that learns from their mean."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.stats import binomtest

import tellapart
from tellapart import artifact, runs, workflow
from tellapart.data.stores import building
from tellapart.errors import RunError, SpecError
from tellapart.training import task
from tellapart.workflow import members, run, settling

from .several import changed, make

TINY: dict[str, Any] = {
    "model": {"name": "simple-cnn"},
    "training": {"epochs": 1, "batch_size": 8},
    "augment": {"preset": "none"},
    "run.tensorboard": False,
    "effort": "best",
    "distill.members": 2,
}
MEMBERS = ("member-1", "member-2")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def splits(run: Path) -> dict[str, str]:
    return {row["path"]: row["split"] for row in rows(run / "samples.csv")}


def same(one: Path, other: Path) -> bool:
    ours, theirs = (safetensors.torch.load_file(run / "model.safetensors") for run in (one, other))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@dataclass(frozen=True)
class Best:
    data: Path
    run: Path
    result: Any
    decoded: int


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Best:
    root = tmp_path_factory.mktemp("best")
    data = make_folder(root / "data", splits=("train", "val", "test"), count=10)
    count, build = 0, building.build

    def counted(samples: Any, *words: Any, **options: Any) -> Any:
        nonlocal count
        count += len(samples)
        return build(samples, *words, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        patch.setattr(building, "build", counted)
        result = tellapart.train(data, quiet=True, **TINY, **{"run.dir": str(root / "run")})
    return Best(data, result.run, result, count)


def test_each_image_is_decoded_once_for_all(best: Best) -> None:
    assert best.decoded == 90


def test_members_leave_out_what_they_answer_and_see_no_other_split(best: Best) -> None:
    """The union of what they leave out is the training split; validation and test are the student's."""
    whole = splits(best.run)
    answers = rows(best.run / "members/evaluation/out-of-fold/predictions.csv")
    assert sorted(row["path"] for row in answers) == sorted(path for path in whole if whole[path] == "train")
    seeds = set()
    for number, name in enumerate(MEMBERS, 1):
        member = best.run / "members" / name
        mine = splits(member)
        out = {row["path"] for row in answers if row["fold"] == str(number)}
        assert mine == {path: split for path, split in whole.items() if path not in out}
        spec = runs.read_spec(member / "spec.yaml")
        assert (spec.data.leave_out, spec.effort, spec.distill.teacher) == (f"{number}/2", "good", "")
        seeds.add(spec.seed)
    assert len(seeds) == 2
    right = sum(row["label"] == row["predicted"] for row in answers)
    content = json.loads((best.run / "members/members.json").read_text())
    assert content["out_of_fold"]["accuracy"] == pytest.approx(right / len(answers))


def test_the_run_is_a_run_like_any_other(best: Best, tmp_path: Path) -> None:
    spec = runs.read_spec(best.run / "spec.yaml")
    assert Path(spec.distill.teacher) == (best.run / "members").absolute()
    assert workflow.evaluate(best.run, quiet=True).accuracy == best.result.metrics["accuracy"]
    assert best.result.split == "test"
    assert list(workflow.predict(best.run, [str(best.data / "test/ant/000.png")]))
    assert workflow.report(best.run).is_file()
    page = workflow.report(best.run / "members").read_text()
    assert "member-2/report.html" in page
    assert "seed only" not in page
    (pair,) = workflow.compare([best.run, best.run / "members/member-1"]).pairs
    assert pair.shared == 30
    again = workflow.train(spec=spec, quiet=True, **{"run.dir": str(tmp_path / "again")})
    assert same(again.run, best.run), "its spec trains that model again, from the same members"
    choices = runs.read_choices(best.run)
    assert any(one["field"] == "distill.teacher" and "2 models" in one["reason"] for one in choices)


def test_members_can_teach_by_themselves_and_be_evaluated(best: Best, tmp_path: Path) -> None:
    changes = {**TINY, "effort": "good", "distill.members": 0, "distill.teacher": str(best.run / "members")}
    changes |= members.FOLLOW
    other = workflow.train(best.data, quiet=True, **changes, **{"run.dir": str(tmp_path / "run")})
    assert same(other.run, best.run)
    member = best.run / "members/member-2"
    assert workflow.evaluate(member, quiet=True).n == 30


@pytest.mark.parametrize("step", [1, 3, 6])
def test_cut_off_anywhere_it_continues_to_the_same(
    best: Best, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], step: int
) -> None:
    """In the first member (its steps are 1 and 2), in the second one (3 and 4), and in the student (5 to 8)."""
    steps, inputs = 0, task.Labelled.inputs

    def count(self: Any, *words: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == step:
            signal.raise_signal(signal.SIGINT)
        return inputs(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(task.Labelled, "inputs", count)
        cut = tellapart.train(best.data, **TINY, **{"run.dir": str(tmp_path / "run")})
    assert (cut.interrupted, cut.signal) == (True, signal.SIGINT)
    assert cut.run == tmp_path / "run"
    assert f"tellapart resume {tmp_path / 'run'}\n" in capfd.readouterr().err
    ended = tellapart.resume(cut.run, quiet=True)
    assert ended.metrics == best.result.metrics
    assert all(
        same(cut.run / name, best.run / name) for name in (".", "members/member-1", "members/member-2")
    )
    before = (cut.run / "members/members.json").read_bytes()
    assert tellapart.resume(cut.run, quiet=True).metrics == ended.metrics, "nothing is left to do"
    assert (cut.run / "members/members.json").read_bytes() == before


@pytest.mark.parametrize("place", ["before the members", "between them", "before the student"])
def test_killed_between_two_runs_it_continues_to_the_same(
    best: Best, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    calls, begin = 0, run.begin
    wanted = {"before the members": 1, "between them": 2, "before the student": 3}[place]

    class KilledError(Exception):
        pass

    def counted(*words: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == wanted:
            raise KilledError
        return begin(*words)

    with monkeypatch.context() as patch:
        for module in (members, workflow.series):
            patch.setattr(module, "begin", counted)
        if wanted == 1:
            patch.undo()
            patch.setattr(members.Members, "_write", lambda self: (_ for _ in ()).throw(KilledError()))
        with pytest.raises(KilledError):
            tellapart.train(best.data, quiet=True, **TINY, **{"run.dir": str(tmp_path / "run")})
    with pytest.raises(RunError, match="tellapart resume"):
        tellapart.train(best.data, quiet=True, **TINY, **{"run.dir": str(tmp_path / "run")})
    ended = tellapart.resume(tmp_path / "run" / ("members" if wanted == 3 else ""), quiet=True)
    assert ended.run == tmp_path / "run"
    assert ended.metrics == best.result.metrics
    assert same(ended.run, best.run)


# The end of a run


@dataclass
class Fake:
    """Logits by the name of a model's folder, in place of what its file would answer."""

    logits: dict[str, np.ndarray]

    def __call__(self, judge: Any, model: Path, device: Any, views: Any = None) -> np.ndarray:
        return self.logits[f"{model.name}{'-mirrored' if views else ''}"].astype(np.float32)


def right(labels: np.ndarray, errors: int, lead: float = 3.0) -> np.ndarray:
    """Logits of three classes that are wrong for the first ``errors`` images."""
    given = labels.copy()
    given[:errors] = (given[:errors] + 1) % 3
    return lead * np.eye(3)[given]


@pytest.fixture
def settled(
    best: Best, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, Any, str]]:
    """Return a function: errors of each model on validation -> what is settled, members.json, and the messages."""
    shutil.copytree(best.run, tmp_path / "run")

    def decide(
        student: int,
        member: int,
        mirrored: int,
        hflip: float = 0.5,
        views_open: bool = True,
        lead: float = 0.2,
    ) -> Any:
        folder = tmp_path / "run"
        listed = folder / "members/members.json"
        runs.write_json(listed, {**runs.read_json(listed), "views_open": views_open})
        spec = runs.read_spec(folder / "spec.yaml")
        spec = workflow.make_spec(spec=spec, **{"augment.hflip": hflip})
        labels = np.arange(60) % 3

        class Set:
            samples = type("S", (), {"labels": labels.astype(np.int64), "targets": None})

            def __len__(self) -> int:
                return 60

        prepared = type("P", (), {"val": Set(), "spec": spec})
        fake = Fake(
            {
                "run": right(labels, student, lead),
                "run-mirrored": right(labels, mirrored, lead),
                "member-1": right(labels, member, lead),
                "member-2": right(labels, 30, lead),
            }
        )
        monkeypatch.setattr(settling._Judge, "answers", lambda *words: fake(*words))
        said: list[str] = []
        console = type("C", (), {"message": said.append, "warn": said.append})
        judged = task.Classification(None, None)  # type: ignore[arg-type]
        card = artifact.read_card(folder)
        found = settling.settle(folder, prepared, judged, card, console, torch.device("cpu"))  # type: ignore[arg-type]
        return found, runs.read_json(listed), "\n".join(said)

    return decide


@pytest.mark.parametrize(("student", "member"), [(5, 5), (8, 3), (9, 3), (20, 10), (0, 30)])
def test_a_member_takes_the_students_place_only_if_it_is_better_by_more_than_chance(
    settled: Callable[..., Any], tmp_path: Path, student: int, member: int
) -> None:
    """By scipy's binomial test of the images that only one of the two has right."""
    found, told, said = settled(student, member, student)
    apart = abs(student - member)
    worse = student > member and binomtest(0, apart).pvalue < 0.05
    assert told["kept"] == ("member-1" if worse else "distilled")
    assert told["validation"]["distilled"] == pytest.approx(1 - student / 60)
    run, theirs = tmp_path / "run", tmp_path / "run/members/member-1"
    assert same(run, theirs) == worse
    assert ("the run's model has the weights of member-1" in said) == worse
    if worse:
        card = artifact.read_card(run)
        assert card.preprocessing == artifact.read_card(theirs).preprocessing
        assert found.epoch == artifact.read_card(theirs).scores["epoch"]


@pytest.mark.parametrize(
    ("mirrored", "changes", "kept"),
    [
        (0, {}, "mirror"),
        (7, {}, "one"),  # 3 more are right: chance
        (20, {}, "one"),
        (0, {"hflip": 0.0}, "one"),
        (0, {"views_open": False}, "one"),
    ],
)
def test_views_are_kept_if_they_help_by_more_than_chance(
    settled: Callable[..., Any], tmp_path: Path, mirrored: int, changes: dict[str, Any], kept: str
) -> None:
    found, told, said = settled(10, 10, mirrored, **changes)
    card = artifact.read_card(tmp_path / "run")
    assert (told["views"], card.views.name, found.changed) == (kept, kept, kept == "mirror")
    assert ("(60 of 60 validation images)" in said) == (not changes)
    if kept == "mirror":
        assert card.views.below == 0.5


def test_the_averaged_answer_is_the_mean_of_the_members(best: Best) -> None:
    told = json.loads((best.run / "members/members.json").read_text())["validation"]
    read = [rows(best.run / "members" / name / "evaluation/val/predictions.csv") for name in MEMBERS]
    mean = np.mean(
        [[[float(row[f"p:{c}"]) for c in ("ant", "bee", "cat")] for row in one] for one in read], axis=0
    )
    labels = [("ant", "bee", "cat").index(row["label"]) for row in read[0]]
    assert told["averaged"] == pytest.approx(np.mean(mean.argmax(1) == labels))
    for name, one in zip(MEMBERS, read, strict=True):
        assert told[name] == pytest.approx(np.mean([row["correct"] == "1" for row in one]))


def test_what_is_wrong_leaves_no_folder(best: Best, tmp_path: Path) -> None:
    place = {"run.dir": str(tmp_path / "run")}
    with pytest.raises(SpecError, match="teacher of its own"):
        tellapart.train(best.data, quiet=True, **TINY, **place, **{"distill.teacher": str(best.run)})
    with pytest.raises(SpecError, match=r"distill\.members is 1"):
        tellapart.train(best.data, quiet=True, **{**TINY, "distill.members": 1}, **place)
    with pytest.raises(SpecError, match="by name"):
        tellapart.train(best.data, quiet=True, **TINY, **place, loss=torch.nn.functional.cross_entropy)
    for call in (tellapart.repeat, tellapart.cross_validate):
        with pytest.raises(SpecError, match="effort best trains several models"):
            call(best.data, quiet=True, **TINY, **place)
    assert not (tmp_path / "run").exists()


# Other kinds of data


def test_several_labels_are_averaged_class_by_class(tmp_path: Path) -> None:
    data = make(tmp_path / "data", count=60)
    changes = changed(tmp_path / "run", epochs=1) | {"effort": "best", "distill.members": 2}
    result = tellapart.train(data, quiet=True, **changes)
    assert "map" in result.metrics
    content = json.loads((result.run / "members/members.json").read_text())
    assert set(content["validation"]) == {*MEMBERS, "averaged", "distilled"}
    assert content["views"] == "one"
    assert "map" in content["out_of_fold"]


def test_python_objects_are_given_again_to_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = (rng.integers(0, 60, (60, 8, 8, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    place, inputs, steps = {"run.dir": str(tmp_path / "run")}, task.Labelled.inputs, 0

    def count(self: Any, *words: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 5:  # of three in each member
            signal.raise_signal(signal.SIGINT)
        return inputs(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(task.Labelled, "inputs", count)
        cut = tellapart.train((images, labels), quiet=True, **TINY, **place)
    assert cut.interrupted
    with pytest.raises(RunError, match="cannot be resumed without its data"):
        tellapart.resume(cut.run, quiet=True)
    ended = tellapart.resume(cut.run, data=(images, labels), quiet=True)
    assert not ended.interrupted
    answers = rows(ended.run / "members/evaluation/out-of-fold/predictions.csv")
    assert len(answers) == sum(split == "train" for split in splits(ended.run).values())


def test_a_finished_run_goes_on_past_its_end(best: Best, tmp_path: Path) -> None:
    shutil.copytree(best.run, tmp_path / "run")
    longer = tellapart.resume(tmp_path / "run", quiet=True, training={"epochs": 2})
    assert runs.read_spec(tmp_path / "run/spec.yaml").training.epochs == 2
    assert (longer.run / "last.safetensors").read_bytes() != (best.run / "last.safetensors").read_bytes()
    assert sum(row["name"] == "epoch" for row in rows(longer.run / "metrics.csv")) == 2
    assert same(longer.run / "members/member-1", best.run / "members/member-1")
