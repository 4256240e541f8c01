"""One cache folder and one folder of what is remembered, whoever asks."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

from tellapart import places
from tellapart.data.sources.archives import cache_folder
from tellapart.doctor.host import about_disk
from tellapart.runtime.trust import record_file
from tellapart.spec import DataSpec


def test_all_ask_for_the_same_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(kind: str) -> object:
        # on Windows the author's name would be a folder more
        return lambda name, appauthor=None: str(tmp_path / kind / name / f"by {appauthor}")

    monkeypatch.setattr(platformdirs, "user_cache_dir", folder("cache"))
    monkeypatch.setattr(platformdirs, "user_data_dir", folder("data"))
    cache = tmp_path / "cache/tellapart/by False"
    assert places.cache_folder() == cache
    assert cache_folder(DataSpec()) == str(cache)
    assert about_disk().cache_dir == str(cache)
    assert record_file().parent == places.data_folder() == tmp_path / "data/tellapart/by False"


def test_a_chosen_folder_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert places.cache_folder("a/../b") == tmp_path / "b"
    assert places.cache_folder("~/c") == tmp_path / "home/c"
