"""Checkpoints: everything needed to resume, written so that a kill at any moment leaves a good one.

A checkpoint is one file ``checkpoint/step-N.pt`` of tensors and plain values, read back with
``weights_only=True``. It is written under a temporary name, flushed to disk and renamed; the newest two are kept. Knows
nothing of what is in it.
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
_PAYS = 10.0  # at an epoch's end a checkpoint is due if training took this many times as long as writing the last one
Check = Callable[[dict[str, Any]], None]
_NAME = re.compile(r"step-(\d+)\.pt")


def existing(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step``, then remove all but the newest two and what an earlier kill left."""
    path = folder / f"step-{step:09d}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder, files.EARLIER_CHECKPOINTS)
    with files.writing(path) as stream:
        torch.save(content, stream)
    for old in existing(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path, check: Check | None = None) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, or None. If it is damaged, the older one is read.

    Every byte of a checkpoint is verified against its stored checksum. ``check`` raises an error for unusable content.
    Raises RunError if the system refuses to read a file.
    """
    return _newest(folder, check, lambda path, reason: None)


def take_newest(folder: Path, check: Check, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Like `load_newest`, to resume from it: damaged checkpoints are reported and renamed."""

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
        ) as error:  # errors of the archive, its pickle, its tensors: random bytes may cause any
            lines = str(error).strip().splitlines()
            damaged(path, lines[0][:200] if lines else type(error).__name__)
            continue
        return content
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        wrong = archive.testzip()  # torch does not verify the checksums
    if not parts or min(part.header_offset for part in parts):
        raise ValueError("there is something else before it in the file")
    if any(part.external_attr or part.compress_type != zipfile.ZIP_STORED for part in parts):
        # torch reads nothing for a record that is marked as a folder
        raise ValueError("its directory is wrong")
    if wrong is not None:
        raise ValueError(f"the checksum of its record {wrong} is wrong")
    content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, dict):
        raise ValueError("it holds no training state")
    return content


class Pace:
    """When a checkpoint is due: by the clock, and at an epoch's end only if writing is short compared with training."""

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
