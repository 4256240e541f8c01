"""Run folders: made once, never overwritten, and their small files whole or not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tellapart import runs
from tellapart.errors import RunError
from tellapart.spec import Spec


def test_folders_are_named_by_time_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [runs.create("", "timm/res net:18") for _ in range(3)]
    assert len(set(made)) == 3
    for folder in made:
        assert re.fullmatch(r"runs/\d{8}-\d{6}-res-net-18(-\d)?", folder.as_posix())
        assert folder.is_dir()


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert runs.create(str(tmp_path / "empty"), "m") == tmp_path / "empty"
    assert runs.create(str(tmp_path / "deep" / "new"), "m").is_dir()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty") as caught:
        runs.create(str(tmp_path), "m")
    assert "resume" not in str(caught.value)
    with pytest.raises(RunError, match="not empty"):
        runs.create(str(tmp_path / "notes.txt"), "m")
    runs.write_spec(Spec(), tmp_path / runs.SPEC_FILE)
    with pytest.raises(RunError, match="tellapart resume"):
        runs.create(str(tmp_path), "m")


def test_when_no_name_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def taken(self: Path, parents: bool = False) -> None:
        raise FileExistsError(self)

    monkeypatch.setattr(Path, "mkdir", taken)
    with pytest.raises(RunError, match="No free name"):
        runs.create("", "m")


def test_what_is_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"There is no run folder .*nowhere"):
        runs.require(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"not a run folder: it has no spec\.yaml"):
        runs.require(tmp_path)
    runs.write_spec(Spec(), tmp_path / "spec.yaml")
    assert runs.require(str(tmp_path)) == tmp_path
    assert runs.is_run(tmp_path)


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "environment.json"
    runs.write_json(path, {"gerät": "猫", "n": 1.5})
    assert json.loads(path.read_text(encoding="utf-8")) == {"gerät": "猫", "n": 1.5}
    with pytest.raises(UnicodeEncodeError):
        runs.write_text(path, "half" * 1000 + "\ud800")
    assert json.loads(path.read_text(encoding="utf-8"))["n"] == 1.5


def test_a_run_that_is_just_beginning_is_not_called_ended(tmp_path: Path) -> None:
    with runs.Claim(str(tmp_path / "run")), pytest.raises(RunError, match="Another process is training"):
        runs.require(tmp_path / "run")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / runs.LOCK_FILE).touch()
    with pytest.raises(RunError, match="ended before it began"):
        runs.require(tmp_path / "killed")
