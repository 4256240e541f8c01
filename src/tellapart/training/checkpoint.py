"""Checkpoints: everything that going on needs, written so that a kill at any moment leaves a good one.

A checkpoint is one file ``checkpoint/step-N.pt`` of tensors and plain values, read back with
``weights_only=True``. It is written under a temporary name, flushed to the disk and renamed; the newest two
stay. Knows nothing of what is in it.
"""

from __future__ import annotations

import contextlib
import re
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tellapart import files
from tellapart.errors import RunError

KEPT = 2
_PAYS = 10.0  # an epoch's end gets a checkpoint so many times after what writing the last one took
Check = Callable[[dict[str, Any]], None]
_NAME = re.compile(r"step-(\d+)\.pt")


def existing(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step``, then drop all but the newest two and what an earlier kill left."""
    path = folder / f"step-{step:09d}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder, files.EARLIER_CHECKPOINTS)
    with files.writing(path) as stream:
        torch.save(content, stream)
    for old in existing(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path, check: Check | None = None) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, or None. A damaged one is passed over for the older.

    Every byte of a checkpoint is compared with the check sum that its writer kept of it. ``check`` raises an error for
    content that is of no use. Raises RunError where the system does not let a file be read.
    """
    return _newest(folder, check, lambda path, reason: None)


def take_newest(folder: Path, check: Check, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Do as `load_newest` does, for going on from it: damaged ones are told, and get another name."""

    def tell(path: Path, reason: str) -> None:
        aside = path.with_name(f"{path.name}.damaged")
        warn(
            f"The checkpoint {path} is damaged ({reason}); it is now {aside.name}, and the one before it is used."
        )
        path.replace(aside)

    return _newest(folder, check, tell)


def _newest(folder: Path, check: Check | None, damaged: Callable[[Path, str], None]) -> dict[str, Any] | None:
    for path in existing(folder):
        try:
            content = _read(path)
            if check is not None:
                check(content)
        except PermissionError as error:
            raise RunError(f"The checkpoint {path} cannot be read: {error.strerror}.") from error
        except MemoryError:
            raise
        except (
            Exception
        ) as error:  # of the archive, of its pickle, of tensors: whatever random bytes can cause
            lines = str(error).strip().splitlines()
            damaged(path, lines[0][:200] if lines else type(error).__name__)
            continue
        return content
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        wrong = archive.testzip()  # torch does not compare the sums
    if not parts or min(part.header_offset for part in parts):
        raise ValueError("something else stands before it")
    if any(part.external_attr or part.compress_type != zipfile.ZIP_STORED for part in parts):
        raise ValueError(
            "its directory is wrong"
        )  # torch reads nothing for a part that is marked as a folder
    if wrong is not None:
        raise ValueError(f"the check sum of its part {wrong} is wrong")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError("it holds no state of a training")
    return content


class Pace:
    """When a checkpoint is due: by the clock, and at an epoch's end only where writing is little beside training."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self._saved_at, self._took = time.monotonic(), 0.0

    def begin(self) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the minutes have passed."""
        return (time.monotonic() - self._saved_at) / 60 >= self.minutes

    @property
    def pays(self) -> bool:
        """Whether training took much longer than writing the last one."""
        return time.monotonic() - self._saved_at >= _PAYS * self._took

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While entered, a checkpoint is written."""
        began = time.monotonic()
        yield
        self._saved_at = time.monotonic()
        self._took = self._saved_at - began
