"""Run folders: their names, and the small files that describe a run.

Knows nothing of training itself.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tellapart import files, json_text, locks, yaml_text
from tellapart.errors import RunError, SpecError, WriteError
from tellapart.spec import Spec, to_dict, update

SPEC_FILE = "spec.yaml"
SAMPLES_FILE = "samples.csv"
CHECKPOINTS = "checkpoint"
OBJECTS_FILE = "objects.json"  # of a run on Python objects: what was known of them
WARNINGS_FILE = "warnings.jsonl"
CHOICES_FILE = "choices.jsonl"  # what options that were left open became, and why
FOLDS_FILE = "folds.json"  # of a folder with the runs of a cross-validation
REPEATS_FILE = "repeats.json"  # of a folder with runs that differ in the seed
MEMBERS = "members"  # the folder, in that of a run, with the runs whose answers its model was distilled from
MEMBERS_FILE = "members.json"  # of that folder
LOCK_FILE = ".tellapart-lock"
COMPLETE = "environment.json"  # the last of the files that a run begins with
_SERIES = (FOLDS_FILE, REPEATS_FILE, MEMBERS_FILE)
_BEGINNING = {
    SPEC_FILE,
    SAMPLES_FILE,
    OBJECTS_FILE,
    FOLDS_FILE,
    REPEATS_FILE,
    LOCK_FILE,
    CHOICES_FILE,
    "bad-images.csv",
    "conflicts.csv",
    "warnings.jsonl",
}


class Claim:
    """A new run folder that this process alone writes to, for the time of the block.

    directory: the folder, which is made and locked at once; empty: ``runs/DATE-TIME-MODEL``, which `make` makes, so
    here it is only tried whether it could. What did not become a run is removed after the block. Raises RunError
    if the folder is not empty (existing files are never overwritten), if another process writes to it, or if it cannot
    be written to.
    """

    def __init__(self, directory: str) -> None:
        self.folder = Path(directory) if directory else None
        self._made: list[Path] = []
        self._held: locks.Lock | None = None

    def __enter__(self) -> Claim:
        try:
            if self.folder is not None:
                self._take(self.folder)
            else:
                self._make_folder(Path("runs"))
                with files.workplace(Path("runs")):
                    pass
        except BaseException:
            self._give_up()
            raise
        return self

    def make(self, model_name: str) -> Path:
        """Return the folder, now made in any case."""
        if self.folder is None:
            self.folder = create("", model_name)
            self._made.append(self.folder)
            self._held = hold(self.folder)
        return self.folder

    def __exit__(self, *error: object) -> None:
        self._give_up()

    def _take(self, folder: Path) -> None:
        if not folder.is_dir() or not (folder / LOCK_FILE).exists():
            _refuse_used(folder)
        self._make_folder(folder)
        self._held = hold(folder)
        _refuse_used(folder)  # again, since another may have begun a run in it meanwhile
        files.sweep(folder)
        for path in folder.iterdir():  # of a run that was killed before it began
            if path.name != LOCK_FILE:
                path.unlink()

    def _make_folder(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            for path in reversed(missing):
                path.mkdir(exist_ok=True)
                self._made.append(path)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def _give_up(self) -> None:
        with contextlib.suppress(OSError):
            if self.folder is not None and self._held is not None and not is_run(self.folder):
                (self.folder / LOCK_FILE).unlink()
            for path in reversed(self._made):
                path.rmdir()  # where it is empty
        if self._held is not None:
            self._held.release()


def hold(folder: Path) -> locks.Lock:
    """Lock a run folder: only one process may write to it. Raises RunError where another has it."""
    try:
        held = locks.lock(folder / LOCK_FILE)
        if held is not None:
            _sign(held)
            return held
        who = (folder / LOCK_FILE).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        raise _unwritable(folder, error) from error
    raise RunError(
        f"Another process is training in {folder}{f' ({who})' if who else ''}. Wait until it has ended, or end it."
    )


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Make a folder, if need be, that this process alone writes results to, for the time of the block.

    Raises RunError where another has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = locks.lock_folder(folder)
    if held is None:
        raise RunError(
            f"Another process is writing to {folder}. Wait until it has ended, or choose another --out."
        )
    try:
        yield
    finally:
        held.release()


def _sign(held: locks.Lock) -> None:
    """Write down who has the lock, for people."""
    assert held.descriptor is not None
    text = f"process {os.getpid()} on {platform.node()}, since {datetime.datetime.now():%Y-%m-%d %H:%M:%S}\n"
    with contextlib.suppress(OSError):  # a full disk, say: the lock holds nevertheless
        os.ftruncate(held.descriptor, 0)
        os.write(held.descriptor, text.encode())


def _unwritable(folder: Path, error: OSError) -> Exception:
    told = error if isinstance(error, WriteError) else files.failure(folder, error)
    if told.exit_code == 1:
        return told
    return RunError(
        f"The run folder {folder} cannot be written to: {told.strerror}. Choose another --run.dir."
    )


def _refuse_used(folder: Path) -> None:
    """Raise RunError where ``folder`` is not empty. One killed before it began is taken."""
    if not os.path.lexists(folder):
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name}
    names -= {name for name in names if files.is_temporary(name)}
    if not names or (LOCK_FILE in names and names <= _BEGINNING and folder.is_dir()):
        return
    hint = f" To resume the run in it: tellapart resume {folder}" if is_run(folder) else ""
    raise RunError(f"The run folder {folder} exists and is not empty; choose another --run.dir.{hint}")


def create(directory: str, model_name: str) -> Path:
    """Make and return a new run folder: ``directory``, or ``runs/DATE-TIME-MODEL``.

    Raises RunError if the folder is not empty: existing files are never overwritten.
    """
    if directory:
        folder = Path(directory)
        _refuse_used(folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    short = re.sub(r"[^\w.-]+", "-", model_name.rpartition("/")[2])
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{short}"
    for number in range(1, 1000):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"No free name like runs/{stem}")


def has_begun(folder: Path) -> bool:
    """Return whether a run folder has all the files that a run begins with, or a checkpoint."""
    whole = (folder / SAMPLES_FILE).is_file() and (folder / COMPLETE).is_file()
    return whole or any((folder / CHECKPOINTS).glob("step-*"))


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is a run folder of tellapart."""
    return (folder / SPEC_FILE).is_file()


def series_file(folder: Path) -> Path | None:
    """Return the file that says of which runs a folder is; None for the folder of a single run, or of none."""
    return next((folder / name for name in _SERIES if (folder / name).is_file()), None)


def members_of(folder: Path) -> Path | None:
    """Return the file about the members from which a run's model was, or will be, distilled; None without any."""
    listed = folder / MEMBERS / MEMBERS_FILE
    return listed if listed.is_file() else None


def whole(folder: Path) -> Path:
    """Return what is resumed for one of several runs in ``folder``: that, or the run whose members they are."""
    return folder.parent if (folder / MEMBERS_FILE).is_file() else folder


def require(path: str | os.PathLike[str]) -> Path:
    """Return the run folder at ``path``. Raises RunError if there is none."""
    folder = Path(path)
    if not folder.exists():
        raise RunError(f"There is no run folder {folder}.")
    if not is_run(folder):
        begun = (folder / LOCK_FILE).exists()
        if begun:
            hold(folder).release()  # says so where its training is just beginning
        hint = " Its training ended before it began; train into it again." if begun else ""
        raise RunError(f"{folder} is not a run folder: it has no {SPEC_FILE}.{hint}")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a file, complete or not at all. Raises WriteError."""
    files.write_text(path, text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, complete or not at all."""
    write_text(path, json_text.dumps(content, ensure_ascii=False, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; {} if there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_warnings(folder: Path) -> list[dict[str, str]]:
    """Return what a run warned of: ``severity``, ``kind`` and ``text`` of each, without a line that was cut off."""
    found = [entry for entry in _lines(folder / WARNINGS_FILE) if isinstance(entry.get("text"), str)]
    return [{name: str(entry.get(name, "")) for name in ("severity", "kind", "text")} for entry in found]


def read_choices(folder: Path) -> list[dict[str, Any]]:
    """Return what a run chose: ``field``, ``value``, ``reason``, ``matters`` of each; [] for earlier versions' runs."""
    return [
        {
            **{name: entry.get(name) for name in ("field", "value", "reason")},
            "matters": bool(entry.get("matters")),
        }
        for entry in _lines(folder / CHOICES_FILE)
        if isinstance(entry.get("field"), str) and isinstance(entry.get("reason"), str)
    ]


def write_choices(folder: Path, choices: Sequence[Mapping[str, Any]]) -> None:
    """Write what a run chose, a line of JSON for each."""
    lines = [json_text.dumps(entry) + "\n" for entry in choices]
    write_text(folder / CHOICES_FILE, "".join(lines))


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file with one on each line, [] where there is none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def honesty(warnings: Sequence[Mapping[str, str]], split: str) -> str:
    """Return what takes from a split's figures by a run's warnings: "trained", "chose" (the epoch), or ""."""
    kinds = {entry["kind"] for entry in warnings}
    if f"leak-{split}" in kinds:
        return "trained"
    return "chose" if f"shared-{split}" in kinds else ""


def append_warnings(folder: Path, entries: Sequence[Mapping[str, str]]) -> None:
    """Add what is not there yet, a line of JSON for each, in one write."""
    known = {entry["text"] for entry in read_warnings(folder)}
    path = folder / WARNINGS_FILE
    fresh = {entry["text"]: dict(entry) for entry in entries if entry["text"] not in known}
    if not fresh:
        return
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    # ASCII: names of files may be no valid text
    lines = [json.dumps(entry) + "\n" for entry in fresh.values()]
    with open(path, "a", encoding="ascii") as stream:
        stream.write("\n" * cut_off + "".join(lines))


def write_spec(spec: Spec, path: Path) -> None:
    """Write a spec as YAML."""
    write_text(path, yaml.safe_dump(to_dict(spec), sort_keys=False, allow_unicode=True))


def read_spec(path: str | os.PathLike[str], base: Spec | None = None) -> Spec:
    """Read a spec from YAML over ``base`` (the defaults where None). Raises SpecError."""
    return update(base or Spec(), read_changes(path))


def read_changes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a spec in YAML says, as changes for `spec.update`. Raises SpecError."""
    try:
        content = yaml_text.load(Path(path).read_bytes())  # UTF-8, or by its mark UTF-16; strictly
    except OSError as error:
        raise SpecError(f"The spec {os.fspath(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SpecError(f"The spec {os.fspath(path)} is not valid YAML: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SpecError(f"The spec {os.fspath(path)} must be a mapping such as 'training: {{epochs: 3}}'.")
    return content
