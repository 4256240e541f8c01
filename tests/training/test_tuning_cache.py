"""What was measured is kept for the next run, is listed with the cache, and goes with it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tellapart import cli, workflow
from tellapart.errors import UserError
from tellapart.spec import DataSpec
from tellapart.training.speed import tuning_cache
from tellapart.training.speed.tuning_cache import TuningCache


def memory(cache: Path, **key: Any) -> TuningCache:
    return TuningCache(DataSpec(cache_dir=str(cache)), key)


def old(path: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(path, (then, then))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two records of different works, the first ten days old; beside them a file that is not ours."""
    first, second = memory(tmp_path, model="a"), memory(tmp_path, model="b")
    first.write("precision", {"chosen": "bf16"})
    second.write("precision", {"chosen": "fp32"})
    second.write("compile", {"pays": False})
    old(first.path, 10)
    (first.path.parent / "notes.json").write_text("mine")
    return first.path, second.path


def test_a_record_is_read_back_by_whoever_has_the_same_key(tmp_path: Path, two: tuple[Path, Path]) -> None:
    assert memory(tmp_path, model="a").read("precision") == {"chosen": "bf16"}
    assert memory(tmp_path, model="b").read("compile") == {"pays": False}
    assert memory(tmp_path, model="a").read("compile") is None
    assert memory(tmp_path, model="c").read("precision") is None
    two[0].write_text("{")
    assert memory(tmp_path, model="a").read("precision") is None


def test_the_records_are_one_line_of_the_list(
    tmp_path: Path, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--cache-dir", str(tmp_path)]
    assert cli.main(["cache", "list", "--json", *place]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["stores"]
    assert (entry["key"], entry["path"]) == ("measured", str(tmp_path / "measured"))
    assert entry["bytes"] == sum(path.stat().st_size for path in two)
    assert not entry["in_use"]
    assert cli.main(["cache", "list", *place]) == 0
    text = capsys.readouterr().out
    assert "measured" in text
    assert "2 measurements" in text


def test_clearing_everything_takes_the_records_and_nothing_else(
    tmp_path: Path, two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "measured" / "tmpabc.tmp").write_text("half")  # another process is about to write
    assert cli.main(["cache", "clear", "--cache-dir", str(tmp_path)]) == 0
    assert "Removed 0 stores and what was measured" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "measured").iterdir()) == ["notes.json", "tmpabc.tmp"]
    assert workflow.cache_list(tmp_path) == []
    old(tmp_path / "measured" / "tmpabc.tmp", 2)
    workflow.cache_clear(cache_dir=tmp_path)
    assert [path.name for path in (tmp_path / "measured").iterdir()] == ["notes.json"]


def test_they_can_be_named_and_be_young(tmp_path: Path, two: tuple[Path, Path]) -> None:
    freed = two[0].stat().st_size
    cleared = workflow.cache_clear(["meas"], older_than=5, cache_dir=tmp_path)
    assert (cleared.removed, cleared.freed) == (("measured",), freed)
    assert [path.exists() for path in two] == [False, True]
    assert workflow.cache_clear(older_than=5, cache_dir=tmp_path).removed == ()
    workflow.cache_clear(["measured"], cache_dir=tmp_path)
    assert tuning_cache.describe(tmp_path) is None
    with pytest.raises(UserError, match="is the key of no store"):
        workflow.cache_clear(["measured"], cache_dir=tmp_path)


def test_naming_them_leaves_the_stores(tmp_path: Path, two: tuple[Path, Path]) -> None:
    store = tmp_path / "decoded" / ("0" * 32)
    store.mkdir(parents=True)
    (store / "index.npz").write_bytes(b"x")
    assert workflow.cache_clear(["measured"], cache_dir=tmp_path).removed == ("measured",)
    assert [entry.key for entry in workflow.cache_list(tmp_path)] == ["0" * 32]


def test_a_wrong_key_beside_them_removes_nothing(tmp_path: Path, two: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="nonsense"):
        workflow.cache_clear(["measured", "nonsense"], cache_dir=tmp_path)
    assert all(path.exists() for path in two)
