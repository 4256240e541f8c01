"""Files are whole or not there, errors name them, and what killed processes leave is told from what is being written."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tellapart import artifact, files, runs
from tellapart.errors import RunError, WriteError
from tellapart.training import checkpoint


@pytest.fixture
def limited() -> Iterator[int]:
    """Files of this process may have 100,000 bytes at most, as after ``ulimit -f``."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def _torch(path: Path) -> None:
    with files.writing(path) as stream:
        torch.save({"a": torch.zeros(100_000)}, stream)


def _safetensors(path: Path) -> None:
    with files.replacing(path) as beside:
        safetensors.torch.save_file({"a": torch.zeros(100_000)}, beside)


def _jit(path: Path) -> None:
    with files.replacing(path) as beside:
        torch.save({"a": torch.zeros(100_000)}, str(beside))  # by its own writer in C++


WRITERS = {
    "bytes": lambda path: files.write_bytes(path, bytes(200_000)),
    "text": lambda path: files.write_text(path, "x" * 200_000),
    "torch": _torch,
    "torch by path": _jit,
    "safetensors": _safetensors,
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_limit_of_size_is_reported_with_the_files_name(
    writer: str, old: bool, limited: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.bin"
    if old:
        path.write_text("old")
    with pytest.raises(
        WriteError, match=r"model\.bin.*cannot be written: it would be larger.*ulimit -f"
    ) as caught:
        WRITERS[writer](path)
    assert (caught.value.exit_code, caught.value.errno) == (1, errno.EFBIG)
    assert [p.name for p in tmp_path.iterdir()] == (["model.bin"] if old else [])
    assert not old or path.read_text() == "old"


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_reported_with_the_files_name(writer: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]).returncode
    ):
        pytest.skip("this process may not mount a small disk")
    try:
        with pytest.raises(WriteError, match=r"model\.bin.*cannot be written: the disk is full"):
            WRITERS[writer](disk / "model.bin")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
@pytest.mark.parametrize("writer", ["small", "torch", "safetensors"])
def test_files_have_the_umasks_mode(writer: str, mask: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    before = os.umask(mask)
    try:
        files.write_text(path, "x") if writer == "small" else WRITERS[writer](path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.writing(tmp_path / "a"):
        raise KeyError("b")
    with pytest.raises(FileNotFoundError), files.replacing(tmp_path / "a"):
        (tmp_path / "missing").read_bytes()
    with pytest.raises(KeyboardInterrupt), files.replacing(tmp_path / "a") as beside:  # noqa: PT012
        beside.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_mistakes_in_a_path_are_the_users(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file/below", tmp_path / "none/a", tmp_path, tmp_path / ("n" * 300)):
        with pytest.raises(WriteError) as caught:
            files.write_text(path, "x")
        assert caught.value.exit_code == 2
        assert path.name in str(caught.value)


def test_links_are_followed_and_devices_written_to(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    (tmp_path / "null").symlink_to("/dev/null")
    files.write_text(tmp_path / "null", "gone")
    assert (tmp_path / "null").is_symlink()


def test_a_sweep_leaves_what_is_being_written(tmp_path: Path) -> None:
    with files.writing(tmp_path / "a") as stream, files.replacing(tmp_path / "b") as beside:
        stream.write(b"1")
        beside.write_text("2")
        assert files.sweep(tmp_path) == 0
    assert {p.name for p in tmp_path.iterdir()} == {"a", "b"}


def test_a_sweep_removes_what_killed_processes_left_and_nothing_else(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, signal, sys; from tellapart import files; p = pathlib.Path(sys.argv[1])\n"
        "with files.writing(p / 'a') as s, files.replacing(p / 'b') as b:\n"
        "    s.write(b'1' * 100000); b.write_text('2'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    (tmp_path / ".tellapart-mine").write_text("")
    (tmp_path / "notes.tmp").write_text("")
    (tmp_path / ".export-a1b2c3d4").mkdir()
    assert files.sweep(tmp_path) == 2
    assert files.sweep(tmp_path, files.EARLIER_EXPORTS) == 1
    assert {p.name for p in tmp_path.iterdir()} == {".tellapart-mine", "notes.tmp"}


@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_several_files_come_together_or_not_at_all(
    failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"old {name}")
    real, calls = os.rename, []

    def rename(*args: object) -> None:
        calls.append(args)
        if len(calls) - 1 == failing:
            raise OSError(errno.EIO, "Input/output error")
        real(*args)

    with pytest.raises(WriteError, match="the disk failed"), files.workplace(tmp_path) as place:  # noqa: PT012
        for name in ("a", "b"):
            (place / name).write_text(f"new {name}")
        monkeypatch.setattr(os, "rename", rename)
        files.move([(place / name, tmp_path / name) for name in ("a", "b")])
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "old a", "b": "old b"}


# ------------------------------------------------------------------------------------ run folders


def test_a_claimed_folder_is_refused_to_others(tmp_path: Path) -> None:
    with runs.Claim(str(tmp_path / "run")) as claim:
        assert claim.make("m") == tmp_path / "run"
        with pytest.raises(
            RunError, match=rf"Another process is training in .*run \(process {os.getpid()} on "
        ):
            runs.Claim(str(tmp_path / "run")).__enter__()
        with pytest.raises(RunError, match="Another process is training"):
            runs.hold(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("directory", ["a/b/run", ""])
def test_what_did_not_become_a_run_goes(
    directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ZeroDivisionError), runs.Claim(directory) as claim:  # noqa: PT012
        claim.make("m")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_killed_before_it_began_is_taken_up(tmp_path: Path) -> None:
    with runs.Claim(str(tmp_path / "run")):
        for name in (runs.SPEC_FILE, "bad-images.csv"):
            (tmp_path / "run" / name).write_text("half")
    assert not runs.has_begun(tmp_path / "run")
    with runs.Claim(str(tmp_path / "run")) as claim:
        assert {p.name for p in claim.make("m").iterdir()} == {runs.LOCK_FILE}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / runs.SAMPLES_FILE).write_text("a list of the user's")
    with pytest.raises(RunError, match="not empty"), runs.Claim(str(tmp_path / "mine")):
        pass
    assert [p.name for p in (tmp_path / "mine").iterdir()] == [runs.SAMPLES_FILE]


@pytest.mark.parametrize("directory", ["/proc/none/run", "/dev/null/run"])
def test_a_folder_that_cannot_be_made_is_the_users_mistake(directory: str) -> None:
    with pytest.raises(RunError, match=r"cannot be written to: .*Choose another --run\.dir"):
        runs.Claim(directory).__enter__()


# ------------------------------------------------------------------------------------ checkpoints


def _content(step: int) -> dict[str, object]:
    return {"step": step, "weights": torch.arange(300.0) + step}


def _cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def _bit(raw: bytes) -> bytes:
    place = raw.index(torch.arange(4.0).add(24).numpy().tobytes()) + 2
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


DAMAGE = {
    "empty": lambda raw: b"",
    "cut": _cut,
    "zeros": lambda raw: bytes(len(raw)),
    "text": lambda raw: b"hello\n" * 100,
    "one bit of the weights": _bit,
    "end": lambda raw: raw[:-200] + bytes(200),
    "pickle": lambda raw: b"\x80\x04}q\x00.",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_a_damaged_checkpoint_is_used_and_the_damage_reported(
    damage: str, tmp_path: Path
) -> None:
    for step in (12, 24):
        checkpoint.save(tmp_path, step, _content(step))
    path = tmp_path / "step-000000024.pt"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert checkpoint.load_newest(tmp_path)["step"] == 12
    told: list[str] = []
    assert checkpoint.take_newest(tmp_path, lambda content: None, told.append)["step"] == 12
    assert len(told) == 1
    assert "step-000000024.pt is damaged" in told[0]
    assert [p.name for p in checkpoint.existing(tmp_path)] == ["step-000000012.pt"]
    checkpoint.save(tmp_path, 18, _content(18))  # and the damaged one counts among the kept no more
    assert [p.name for p in checkpoint.existing(tmp_path)] == ["step-000000018.pt", "step-000000012.pt"]


def test_an_artifact_on_a_full_disk_leaves_the_old(limited: int, tmp_path: Path) -> None:
    path = tmp_path / artifact.FILE_NAME
    path.write_text("old")
    with pytest.raises(WriteError, match=r"model\.safetensors"), files.replacing(path) as beside:
        safetensors.torch.save_file({"a": torch.zeros(100_000)}, beside)
    assert path.read_text() == "old"
