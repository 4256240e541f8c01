"""What a run chose where options were left open, and why: in the log, in its folder, and in its report."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tellapart import runs, workflow
from tellapart.spec import Spec, flatten, update
from tellapart.training.resolution import Choice
from tellapart.workflow.telling import choices_text

TINY: dict[str, Any] = {
    "training": {"epochs": 1, "device": "cpu"},
    "run": {"tensorboard": False},
    "augment.hflip": 0.25,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    root = tmp_path_factory.mktemp("choices")
    data = make_folder(root / "data", splits=("train", "val"), count=10)
    return workflow.train(data, quiet=True, **TINY, **{"run.dir": str(root / "run")}).run


def test_the_folder_has_every_choice_with_its_reason(run: Path) -> None:
    """What was asked, with the choices over it, is what was run."""
    choices = runs.read_choices(run)
    asked = {"data.source": runs.read_spec(run / "spec.yaml").data.source, "run.dir": str(run), **TINY}
    made = update(update(Spec(), asked), {one["field"]: one["value"] for one in choices})
    assert made == runs.read_spec(run / "spec.yaml")
    assert all(one["reason"] for one in choices)
    fields = [one["field"] for one in choices]
    assert len(set(fields)) == len(fields)
    assert "augment.hflip" not in fields, "it was given"
    told = {one["field"] for one in choices if one["matters"]}
    assert told == {"model.name", "input.size", "training.batch_size", "training.optimizer", "augment.preset"}


def test_the_log_shows_those_that_matter_with_their_reasons(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(tmp_path / "data", splits=("train", "val"), count=10)
    verbose = {}
    for name in ("short", "verbose"):
        run = workflow.train(data, verbose=name == "verbose", **TINY, **{"run.dir": str(tmp_path / name)}).run
        said = capfd.readouterr().err.splitlines()
        begin = next(number for number, line in enumerate(said) if line.startswith("Chosen, and why"))
        table = [line for line in said[begin + 1 :] if line.startswith("  ")]
        assert said.index(table[-1]) - begin == len(table), "in one place"
        assert max(map(len, [said[begin], *table])) <= 80
        shown = [line.split()[0] for line in table if not line.startswith("   ")]
        expected = [one["field"] for one in runs.read_choices(run) if one["matters"] or name == "verbose"]
        assert sorted(shown) == sorted(expected)
        sections = [field.partition(".")[0] for field in shown]
        assert len([1 for a, b in itertools.pairwise(sections) if a != b]) == len(set(sections)) - 1
        verbose[name] = shown
    assert len(verbose["verbose"]) > 3 * len(verbose["short"])


def test_going_on_chooses_nothing_anew(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (run / runs.CHOICES_FILE).read_bytes()
    workflow.resume(run, **{"training.epochs": 2})
    assert "Chosen" not in capfd.readouterr().err
    assert (run / runs.CHOICES_FILE).read_bytes() == before


def test_the_report_has_a_table_of_them(run: Path) -> None:
    page = workflow.report(run).read_text(encoding="utf-8")
    section = page[page.index("What tellapart chose, and why") : page.index("<h2>Spec</h2>")]
    for one in runs.read_choices(run):
        assert one["field"] in section
        assert one["reason"].replace("'", "&#39;") in section
    (run / runs.CHOICES_FILE).rename(run / "kept.jsonl")
    try:  # a run of an earlier version
        assert "What tellapart chose" not in workflow.report(run).read_text(encoding="utf-8")
    finally:
        (run / "kept.jsonl").rename(run / runs.CHOICES_FILE)


def test_a_run_from_its_own_spec_has_nothing_to_choose(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    workflow.train(spec=run / "spec.yaml", **{"run.dir": str(again)})
    assert "Chosen" not in capfd.readouterr().err
    assert runs.read_choices(again) == []


def test_several_runs_say_it_once_and_each_folder_has_all(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(tmp_path / "data", splits=("train",), count=12)
    folder = workflow.cross_validate(data, folds=2, **TINY, **{"run.dir": str(tmp_path / "folds")}).run
    assert capfd.readouterr().err.count("Chosen, and why") == 1
    common = {one["field"] for one in runs.read_choices(folder)}
    for name in ("fold-1", "fold-2"):
        found = {one["field"]: one["value"] for one in runs.read_choices(folder / name)}
        spec = flatten(runs.read_spec(folder / name / "spec.yaml"))
        assert common < set(found)
        assert {"input.mean", "model.name", "training.precision"} <= set(found)
        for field, value in found.items():
            assert spec[field] == (tuple(value) if isinstance(value, list) else value), field


@pytest.mark.parametrize(
    "choices",
    [
        [Choice("model.name", "library/" + "name_" * 12, "for a reason " * 9, matters=True)],
        [Choice("distill.fingerprint", "f" * 64, "the file"), Choice("input.mean", (0.1,) * 30, "measured")],
    ],
    ids=["a long name", "long values"],
)
def test_no_line_is_too_wide(choices: list[Choice]) -> None:
    lines = choices_text(choices, every=True).splitlines()
    assert len(lines) > len(choices)
    assert max(map(len, lines)) <= 80
    for choice in choices:
        assert choice.reason.split()[-1] in lines[-1] + lines[1]


def test_where_nothing_matters_that_is_said() -> None:
    assert re.search(r"defaults.*--verbose", choices_text([Choice("input.resize", "squash", "small images")]))


def test_a_damaged_file_is_read_as_far_as_it_goes(run: Path, tmp_path: Path) -> None:
    content = (run / runs.CHOICES_FILE).read_text(encoding="utf-8").splitlines()
    (tmp_path / runs.CHOICES_FILE).write_text(
        "\n".join(["{", "[]", "3", '{"field": 1}', *content[:2], content[2][:9]])
    )
    assert runs.read_choices(tmp_path) == runs.read_choices(run)[:2]
    assert yaml.safe_load((run / "spec.yaml").read_text())["model"]["name"] == "whitened-cnn-small"
