"""Writing files so that neither a kill, nor a full disk, nor another process makes anybody see half of one.

A file is written beside its place under a name of its own (``.tellapart-…``), flushed to the disk, renamed, and the
folder is flushed as well. Whatever goes wrong, the temporary goes, what was there stays, and the error names the file.
A temporary is locked (flock) while it is written, so what a killed process left can be distinguished from what another
is still writing: `sweep` removes the former. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from tellapart import locks
from tellapart.errors import WriteError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_TEMPORARY = re.compile(r"\.tellapart-[0-9a-f]{16}")
# Names that earlier versions wrote under.
EARLIER_EXPORTS = re.compile(r"\.export-[a-z0-9_]{8}")
EARLIER_CHECKPOINTS = re.compile(r"step-\d+\.tmp")
_DAY = 24 * 3600.0
_PROBE = 1 << 18  # bytes that a disk must still take for it not to count as full
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it would be larger than files may be here (ulimit -f)",
    errno.EIO: "the disk failed",
    errno.EROFS: "the disk can only be read",
}
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_USERS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOENT,
    errno.ENAMETOOLONG,
}


def failure(path: str | os.PathLike[str], error: OSError) -> WriteError:
    """Return what to raise where ``path`` could not be written."""
    number = error.errno or 0
    reason = error.strerror or str(error)
    reason = f"{_REASONS[number]} ({reason})" if number in _REASONS else reason
    made = WriteError(f"{os.fspath(path)!r} cannot be written: {reason}.")
    made.errno, made.strerror = number, reason
    if number in _USERS:
        made.exit_code = 2
    return made


def told(error: OSError, place: Path) -> WriteError | None:
    """Return a WriteError for what a full or failing disk did to a file below ``place``; None for other errors."""
    if isinstance(error, WriteError):
        return error
    return failure(error.filename or place, error) if error.errno in _DISK else None


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], text: bool = False, errors: str = "strict") -> Iterator[IO[Any]]:
    """Yield a stream; what was written to it becomes ``path`` if the block ends without an error.

    ``text``: of characters, in UTF-8 with line ends as they are; else of bytes. A link is followed; a device or a pipe
    is written to directly. Raises WriteError.
    """
    if _special(Path(path)):
        with _named(path), open(path, "wb") as direct, _as_text(direct, text, errors) as stream:
            yield stream
        return
    target = _place(path)
    try:
        temporary, descriptor = _begin(target.parent)
    except OSError as error:
        raise failure(path, error) from error
    raw = _Raw(descriptor, "wb")
    stream = _as_text(io.BufferedWriter(raw), text, errors)
    try:
        yield stream
        with _named(path):
            stream.flush()
            os.fsync(descriptor)
            if not locks.available():
                stream.close()  # an open file cannot be renamed there
            os.replace(temporary, target)
        stream.close()
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):
            stream.close()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # A library may have made an error of its own of the disk's.
        if raw.error is not None and isinstance(error, Exception) and not isinstance(error, WriteError):
            raise failure(path, raw.error) from error
        raise
    with _named(path):
        _sync_folder(target.parent)


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, complete or not at all. Raises WriteError."""
    with writing(path) as stream:
        stream.write(content)


def write_text(path: str | os.PathLike[str], content: str, errors: str = "strict") -> None:
    """Write a file in UTF-8, complete or not at all. Raises WriteError, UnicodeEncodeError."""
    write_bytes(path, content.encode("utf-8", errors))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path of the same name for a library that writes by path; the file there becomes ``path``.

    Raises WriteError, also for errors of the library that a full disk, a quota or a limit is behind.
    """
    target = _place(path)
    with workplace(target.parent, path) as folder:
        yield folder / target.name
        move([(folder / target.name, target)])


@contextlib.contextmanager
def workplace(parent: Path, name: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Yield a new, locked folder in ``parent``, which is gone after the block.

    ``name``: what an error says could not be written. Raises WriteError as `replacing` does.
    """
    named = parent if name is None else name
    try:
        folder, descriptor = _begin(parent, folder=True)
    except OSError as error:
        raise failure(named, error) from error
    try:
        yield folder
    except WriteError:
        raise
    except Exception as error:
        cause = _cause(error, folder)
        if cause is None:
            raise
        raise failure(named, cause) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def move(pairs: Sequence[tuple[Path, Path]]) -> None:
    """Give files (and folders) of a workplace their names, all or none: the last is what the others belong to.

    All are on the disk before the first is renamed. What has such a name already is set aside, that of the last first,
    so that a kill between two renames leaves nothing that looks whole. Raises WriteError; then all is as it was.
    """
    for source, target in pairs:
        with _named(target):
            _settle(source)
    if len(pairs) == 1 and not pairs[0][0].is_dir():
        with _named(pairs[0][1]):
            os.replace(*pairs[0])
    else:
        _move_all(pairs)
    for folder in dict.fromkeys(target.parent for _, target in pairs):
        with _named(folder):
            _sync_folder(folder)


def _move_all(pairs: Sequence[tuple[Path, Path]]) -> None:
    done: list[tuple[Path, Path]] = []  # renamed from, to
    try:
        for source, target in reversed(pairs):
            if os.path.lexists(target):
                aside = source.with_name(f".old-{secrets.token_hex(8)}")
                with _named(target):
                    os.rename(target, aside)
                done.append((target, aside))
        for source, target in pairs:
            with _named(target):
                os.rename(source, target)
            done.append((source, target))
    except BaseException:
        for before, after in reversed(done):
            with contextlib.suppress(OSError):
                os.rename(after, before)
        raise


class Appending:
    """A file that lines are added to; each call hands its bytes to the system. Raises WriteError."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        with _named(path):
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def write(self, content: bytes) -> None:
        """Append ``content``."""
        left = memoryview(content)
        with _named(self._path):
            while left:
                left = left[os.write(self._descriptor, left) :]

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sweep(folder: Path, earlier: re.Pattern[str] | None = None) -> int:
    """Remove what killed processes left in ``folder`` under temporary names; return how many there were.

    What another process is writing is locked and stays; where there are no locks, what is younger than a day.
    ``earlier``: names of an earlier version's, which go too.
    """
    count = 0
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            ours = is_temporary(path.name) or (earlier is not None and earlier.fullmatch(path.name))
            with contextlib.suppress(OSError):
                if ours and not path.is_symlink() and _abandoned(path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    count += 1
    return count


def is_temporary(name: str) -> bool:
    """Return whether a file of that name is one that is being written, or what a killed process left of it."""
    return _TEMPORARY.fullmatch(name) is not None


class _Raw(io.FileIO):
    """A file that keeps the first error of writing, which some libraries replace by words of their own."""

    error: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self.error = self.error or error
            raise


def _as_text(stream: Any, text: bool, errors: str) -> Any:
    return io.TextIOWrapper(stream, "utf-8", errors, newline="") if text else stream


def _place(path: str | os.PathLike[str]) -> Path:
    """Return the final path of the file: what a link points to, not the link."""
    return Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)


def _special(path: Path) -> bool:
    """Return whether there is something that cannot be replaced, such as a device or a pipe."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise failure(path, error) from error


def _begin(parent: Path, folder: bool = False) -> tuple[Path, int]:
    """Create a new file or folder, locked; return its path and descriptor. Raises OSError."""
    for _ in range(100):
        path = parent / f".tellapart-{secrets.token_hex(8)}"
        if folder:
            os.mkdir(path)
            descriptor = os.open(path, os.O_RDONLY) if locks.available() else -1
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            descriptor = os.open(path, flags, 0o666)
        held = locks.Lock(descriptor, True)
        # Between making and locking it a sweep may have found it, and removed it.
        if descriptor < 0 or (locks.flock(descriptor, True) is not None and held.is_of(path)):
            held.descriptor = None
            return path, descriptor
        held.release()
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(parent))


def _abandoned(path: Path) -> bool:
    old = time.time() - path.stat().st_mtime > _DAY
    if not locks.available():
        return old
    descriptor = os.open(path, os.O_RDONLY)
    try:
        taken = locks.flock(descriptor, True)
        return old if taken is False else bool(taken)
    finally:
        os.close(descriptor)


def _settle(path: Path) -> None:
    """Have a file that a library wrote on the disk, with the mode that the umask asks for."""
    if path.is_dir():
        return
    probe = path.with_name(f".mode-{secrets.token_hex(8)}")
    made = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        mode = stat.S_IMODE(os.fstat(made).st_mode)
    finally:
        os.close(made)
        os.unlink(probe)
    if stat.S_IMODE(os.stat(path).st_mode) != mode:
        os.chmod(path, mode)
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Make a rename itself durable if the system can (not on Windows, nor on some network disks)."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
                raise
        finally:
            os.close(descriptor)


def _cause(error: Exception, folder: Path) -> OSError | None:
    """Return the disk's error behind a library's, or None if there seems to be none."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.errno in _DISK:
            return found
        said = re.search(r"\bos error (\d+)\b", str(found))
        if said and int(said[1]) in _DISK:
            return OSError(int(said[1]), os.strerror(int(said[1])))
        found = found.__cause__ or found.__context__
    if resource is not None:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
        if limit != resource.RLIM_INFINITY and any(size >= limit for size in sizes):
            return OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    try:
        with open(folder / ".probe", "wb", buffering=0) as stream:
            stream.write(bytes(min(_PROBE, limit) if resource is not None and limit > 0 else _PROBE))
            os.fsync(stream.fileno())
    except OSError as full:
        return full if full.errno in _DISK else None
    return None
