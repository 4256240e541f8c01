"""The folder of stores: what is listed, what goes and what stays, against two processes and killed builds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tellapart import cli
from tellapart.data.samples import Samples
from tellapart.data.stores import cache, housekeeping
from tellapart.data.stores.cache import ImageStore, NoRoom, open_or_build, store_key
from tellapart.data.stores.workers import Threads
from tellapart.errors import UserError

DAY = 24 * 3600.0


def table(value: int, count: int = 4, side: int = 16) -> Samples:
    pixels = np.full((count, side, side, 3), value, np.uint8)
    names = np.array([str(n) for n in range(count)], dtype=object)
    splits = np.full(count, "train", dtype=object)
    return Samples(names, np.zeros(count, np.int64), splits, ("a", "b"), "", f"set {value}", pixels=pixels)


def build(folder: Path, value: int, **options: object) -> ImageStore:
    return open_or_build(table(value), lambda one, box: one, "p", 3, folder, Threads(1), **options)  # type: ignore[arg-type]


def age(path: Path, days: float) -> None:
    past = time.time() - days * DAY
    os.utime(path, (past, past))


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """Keys of three stores that nobody uses, last used 1, 3 and 2 days ago."""
    for value, days in ((0, 1), (1, 3), (2, 2)):
        build(tmp_path, value, about={"purpose": f"purpose {value}"})
        age(tmp_path / "decoded" / store_key(table(value), "p") / "in-use", days)
    return [store_key(table(value), "p") for value in range(3)]


def test_stores_are_listed_by_last_use_and_say_what_they_are_of(tmp_path: Path, three: list[str]) -> None:
    found = housekeeping.list_stores(tmp_path / "decoded")
    assert [store.key for store in found] == [three[1], three[2], three[0]]
    described = found[0].to_dict()
    assert described["source"] == "set 1"
    assert described["purpose"] == "purpose 1"
    assert described["images"] == 4
    assert described["bytes"] == sum(f.stat().st_size for f in found[0].path.iterdir()) > 4 * 16 * 16 * 3
    assert not any(store.in_use for store in found)
    held = build(tmp_path, 1)
    found = housekeeping.list_stores(tmp_path / "decoded")
    assert [store.key for store in found] == [three[2], three[0], three[1]], "opening counts as use"
    assert [store.in_use for store in found] == [False, False, True]
    assert held.image(0).max() == 1


def test_what_is_not_ours_is_neither_listed_nor_removed(tmp_path: Path, three: list[str]) -> None:
    decoded = tmp_path / "decoded"
    (decoded / "mine").mkdir()
    (decoded / "mine" / "index.npz").write_text("x")
    (decoded / ("f" * 32)).mkdir()
    (decoded / ("f" * 32) / "thesis.txt").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "index.npz").write_text("x")
    (decoded / ("e" * 32)).symlink_to(tmp_path / "elsewhere")
    cleared = housekeeping.clear(decoded)
    assert sorted(cleared.removed) == sorted(three)
    assert cleared.freed > 3 * 4 * 16 * 16 * 3
    assert sorted(path.name for path in decoded.iterdir()) == sorted(["mine", "e" * 32, "f" * 32])
    assert (tmp_path / "elsewhere" / "index.npz").exists()


def test_clear_takes_keys_and_age_and_spares_what_is_in_use(tmp_path: Path, three: list[str]) -> None:
    decoded = tmp_path / "decoded"
    assert housekeeping.clear(decoded, older_than=2.5).removed == (three[1],)
    assert housekeeping.clear(decoded, [three[0][:8]], older_than=2.5).removed == ()
    held = build(tmp_path, 2)
    cleared = housekeeping.clear(decoded)
    assert cleared.removed == (three[0],)
    assert cleared.kept == (three[2],)
    assert held.image(3).min() == 2
    del held
    assert housekeeping.clear(decoded, [three[2]]).removed == (three[2],)
    with pytest.raises(UserError, match="matches no store"):
        housekeeping.clear(decoded, [three[2]])


def test_another_process_keeps_its_store(tmp_path: Path, three: list[str]) -> None:
    path = tmp_path / "decoded" / three[0]
    program = (
        "import sys, pathlib; from tellapart.data.stores import housekeeping\n"
        "held = housekeeping.lock(pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert housekeeping.clear(path.parent, [three[0]]).kept == (three[0],)
    finally:
        process.kill()
        process.communicate()
    assert housekeeping.clear(path.parent, [three[0]]).removed == (three[0],)


def test_room_is_made_by_the_least_recently_used(tmp_path: Path, three: list[str]) -> None:
    decoded = tmp_path / "decoded"
    size = {store.key: store.size for store in housekeeping.list_stores(decoded)}
    total, gib = sum(size.values()), housekeeping.GIB
    assert housekeeping.make_room(decoded, 1000, 0)
    assert housekeeping.make_room(decoded, 1000, (total + 1001) / gib)
    assert len(housekeeping.list_stores(decoded)) == 3
    assert not housekeeping.make_room(decoded, 1000, 900 / gib), "more than is allowed at all"
    assert len(housekeeping.list_stores(decoded)) == 3, "nothing goes in vain"
    held = build(tmp_path, 1)  # the oldest is in use now
    assert housekeeping.make_room(decoded, 1000, (total + 999) / gib)
    assert {store.key for store in housekeeping.list_stores(decoded)} == {three[0], three[1]}
    assert not housekeeping.make_room(decoded, total, (total + size[three[1]] - 1) / gib)
    assert held.image(0).max() == 1


def test_a_disk_that_is_nearly_full_counts(
    tmp_path: Path, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = housekeeping.shutil.disk_usage(tmp_path)
    tight = usage._replace(free=housekeeping.RESERVE + 999)
    monkeypatch.setattr(housekeeping.shutil, "disk_usage", lambda path: tight)
    assert housekeeping.make_room(tmp_path / "decoded", 999, 0)
    assert len(housekeeping.list_stores(tmp_path / "decoded")) == 3
    assert housekeeping.make_room(tmp_path / "decoded", 1000, 0)
    assert [store.key for store in housekeeping.list_stores(tmp_path / "decoded")] == [three[2], three[0]]


def test_building_asks_for_room_and_an_open_store_does_not(tmp_path: Path) -> None:
    with pytest.raises(NoRoom):
        build(tmp_path, 0, room=lambda: False)
    build(tmp_path, 0)
    assert build(tmp_path, 0, room=lambda: False).image(0).max() == 0


def test_leftovers_go_when_their_process_is_gone(tmp_path: Path) -> None:
    decoded = tmp_path / "decoded"
    alive, held = housekeeping.begin(decoded)
    dead, lost = housekeeping.begin(decoded)
    (dead / "pixels.bin").write_bytes(b"12345")
    assert lost is not None
    lost.release()
    new, old = decoded / ".building-new", decoded / ".removing-old"
    for folder in (new, old):
        folder.mkdir()
    age(old, 1.1)
    assert housekeeping.sweep(decoded) == (2, 5)
    assert sorted(path.name for path in decoded.iterdir()) == sorted([alive.name, new.name])
    assert held is not None


def test_a_removed_store_is_built_anew(tmp_path: Path) -> None:
    first = build(tmp_path, 3)
    stores_before = housekeeping.list_stores(tmp_path / "decoded")
    assert not housekeeping.remove(stores_before[0])
    del first
    assert housekeeping.remove(stores_before[0])
    assert not housekeeping.remove(stores_before[0])
    assert build(tmp_path, 3).image(0).max() == 3


def test_an_older_store_without_lock_and_about_is_used(tmp_path: Path) -> None:
    build(tmp_path, 3)
    target = tmp_path / "decoded" / store_key(table(3), "p")
    (target / "in-use").unlink()
    (target / "about.json").write_text("{broken")
    (listed,) = housekeeping.list_stores(tmp_path / "decoded")
    assert listed.to_dict()["source"] is None
    assert build(tmp_path, 3, room=lambda: False).image(0).max() == 3
    assert cache.open_store(target) is not None


def test_without_locks_recent_use_protects(
    tmp_path: Path, three: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping.locks, "fcntl", None)
    build(tmp_path, 0)
    found = {store.key: store.in_use for store in housekeeping.list_stores(tmp_path / "decoded")}
    assert found == {three[0]: True, three[1]: False, three[2]: False}
    cleared = housekeeping.clear(tmp_path / "decoded")
    assert set(cleared.removed) == set(three[1:])
    assert cleared.kept == (three[0],)


def test_the_command(tmp_path: Path, three: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--cache-dir", str(tmp_path)]
    assert cli.main(["cache", "list", *place]) == 0
    text = capsys.readouterr().out
    assert "set 1 (purpose 1)" in text
    assert three[1][:12] in text
    assert cli.main(["cache", "list", "--json", *place]) == 0
    listed = json.loads(capsys.readouterr().out)["stores"]
    assert [entry["key"] for entry in listed] == [three[1], three[2], three[0]]
    assert cli.main(["cache", "clear", "--older-than", "2.5", "--json", *place]) == 0
    cleared = json.loads(capsys.readouterr().out)
    assert cleared["removed"] == [three[1]]
    assert cleared["freed"] == listed[0]["bytes"]
    assert cli.main(["cache", "clear", "nonsense", *place]) == 2
    assert "cache list" in capsys.readouterr().err
    assert cli.main(["cache", "clear", *place]) == 0
    assert "Removed 2 stores" in capsys.readouterr().out
    assert cli.main(["cache", "list", *place]) == 0
    assert "The cache is empty" in capsys.readouterr().out


SLOW = """
import sys, time, pathlib
sys.path.insert(0, {tests!r})
from test_stores import table
from tellapart.data.stores.cache import open_or_build
from tellapart.data.stores.workers import Threads
def decode(one, box):
    sys.stdout.write("decoding\\n"); sys.stdout.flush()
    time.sleep(0.05)
    return one
open_or_build(table(1, 1000), decode, "p", 3, pathlib.Path(sys.argv[1]), Threads(2))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_build_leaves_nothing_wrong(how: signal.Signals, tmp_path: Path) -> None:
    program = SLOW.format(tests=str(Path(__file__).parent))
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        assert housekeeping.sweep(tmp_path / "decoded") == (0, 0), "its process lives"
        process.send_signal(how)
        started = time.monotonic()
        process.communicate(timeout=60)
    assert time.monotonic() - started < 10, "what waits to be decoded is given up"
    left = list((tmp_path / "decoded").iterdir())
    assert len(left) == (how == signal.SIGKILL)
    assert housekeeping.list_stores(tmp_path / "decoded") == []
    assert housekeeping.sweep(tmp_path / "decoded")[0] == len(left)
    assert list((tmp_path / "decoded").iterdir()) == []
