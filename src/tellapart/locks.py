"""Locks on files and folders that the system releases however a process ends (flock); none on Windows.

Knows nothing of what is locked.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def available() -> bool:
    """Return whether this system has such locks."""
    return fcntl is not None


class Lock:
    """A lock on a file for as long as this object lives. ``certain``: the system really gave it."""

    def __init__(self, descriptor: int | None, certain: bool) -> None:
        self.descriptor = descriptor
        self.certain = certain

    def share(self) -> None:
        """Turn an exclusive lock into a shared one."""
        if self.descriptor is not None and fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def is_of(self, path: Path) -> bool:
        """Return whether the locked file is (still) the one at ``path``."""
        with contextlib.suppress(OSError):
            ours, theirs = os.fstat(self.descriptor or 0), os.stat(path)
            return (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
        return False

    def release(self) -> None:
        """Give the lock back."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self.descriptor)
            self.descriptor = None

    def __del__(self) -> None:
        self.release()


def lock(path: Path, exclusive: bool = True, create: bool = True) -> Lock | None:
    """Lock a file without waiting; None: another has it. Raises OSError if it cannot be opened.

    The system releases the lock however the process ends. Where there are no locks (Windows, some network disks) the
    result is not `certain`.
    """
    descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
    taken = flock(descriptor, exclusive)
    if taken is None:
        os.close(descriptor)
        return None
    return Lock(descriptor, taken)


def lock_folder(folder: Path) -> Lock | None:
    """Lock a folder itself, which leaves no file in it; as `lock`. Raises OSError if it cannot be opened."""
    if fcntl is None:
        return Lock(None, False)
    descriptor = os.open(folder, os.O_RDONLY)
    taken = flock(descriptor, True)
    if taken is None:
        os.close(descriptor)
        return None
    return Lock(descriptor, taken)


def flock(descriptor: int, exclusive: bool) -> bool | None:
    """Return whether the lock was given; None: another has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError:  # a disk without locks
        return False
    return True
