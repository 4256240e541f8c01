"""The folder of stores: which are in use, how much space they take, and which may be removed.

A store that is in use has a shared lock on its file ``in-use``, and one that is being built an exclusive lock
(flock, which the system releases when a process ends, however it ends). A locked store is never removed. Where there
are no locks (Windows, some network disks) a store counts as in use for a day after its last use. Knows nothing of
images, or of the files in a store besides ``about.json``.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart import files, locks
from tellapart.errors import CacheError, UserError

GIB = 1 << 30
RESERVE = GIB // 2  # share of the disk that stores leave free
_IN_USE, _ABOUT = "in-use", "about.json"
INDEX, FEATURES = (
    "index.npz",
    "features.npy",
)  # files by which a store of images, or of features, is recognised
_KEY = re.compile(r"[0-9a-f]{32}")
_TEMPORARY = re.compile(r"\.(building|removing)-\w+")
_DAY = 24 * 3600.0
Lock = locks.Lock


@dataclass(frozen=True)
class StoreInfo:
    """A store on disk. ``used`` is seconds since 1970; ``about`` what its builder recorded."""

    key: str
    path: Path
    size: int
    used: float
    in_use: bool
    about: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        last = datetime.datetime.fromtimestamp(self.used, datetime.UTC).isoformat(timespec="seconds")
        about = {name: self.about.get(name) for name in ("source", "purpose", "images", "created", "policy")}
        return {
            "key": self.key,
            "path": str(self.path),
            "bytes": self.size,
            "last_use": last,
            "in_use": self.in_use,
            **about,
        }


@dataclass(frozen=True)
class Cleared:
    """What `clear` did: keys removed, bytes freed, keys that were in use and stayed, leftovers removed."""

    removed: tuple[str, ...]
    freed: int
    kept: tuple[str, ...]
    leftovers: int


def lock(folder: Path, exclusive: bool = False, create: bool = True) -> Lock | None:
    """Lock a folder without waiting. None: another process has the lock, or the folder cannot be written."""
    try:
        return locks.lock(folder / _IN_USE, exclusive, create)
    except OSError:
        return None


def touch(folder: Path) -> None:
    """Note that a store was used now."""
    with contextlib.suppress(OSError):
        os.utime(folder / _IN_USE)


def begin(parent: Path) -> tuple[Path, Lock | None]:
    """Make a folder to build a store in, locked. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".building-", dir=parent))
    return folder, lock(folder, exclusive=True)


def write_about(folder: Path, about: Mapping[str, Any]) -> None:
    """Record what a store contains, for `list_stores`."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    (folder / _ABOUT).write_text(json.dumps({**about, "created": created}, indent=1), encoding="utf-8")


def list_stores(decoded: Path) -> list[StoreInfo]:
    """Return the stores in a folder, the least recently used first; anything else is ignored."""
    found = []
    with contextlib.suppress(OSError):
        for path in decoded.iterdir():
            if _KEY.fullmatch(path.name) and not path.is_symlink() and _content(path) is not None:
                with contextlib.suppress(OSError):
                    found.append(describe(path))
    return sorted(found, key=lambda store: store.used)


def describe(path: Path) -> StoreInfo:
    """Return the description of the store at ``path``. Raises OSError."""
    about: Any = {}
    with contextlib.suppress(OSError, ValueError):
        about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
    mark = path / _IN_USE if (path / _IN_USE).exists() else _content(path) or path
    used = mark.stat().st_mtime
    held = lock(path, exclusive=True, create=False) if (path / _IN_USE).exists() else None
    if held is None:
        in_use = (path / _IN_USE).exists()
    else:
        in_use = not held.certain and time.time() - used < _DAY
        held.release()
    return StoreInfo(path.name, path, _size(path), used, in_use, about if isinstance(about, dict) else {})


def _content(path: Path) -> Path | None:
    """Return the file by which a store is recognised, or None if there is none."""
    return next((path / name for name in (INDEX, FEATURES) if (path / name).is_file()), None)


def hold(folder: Path, name: str) -> Lock | bool:
    """Protect the store with the file ``name`` from being removed, and record its use.

    Returns the lock (or True if the folder cannot be written, so that no process removes it); False: there is no store.
    """
    for _ in range(100):
        if not (folder / name).exists():
            return False
        held = lock(folder)
        if held is None and os.access(folder, os.W_OK):  # another process is about to remove it
            time.sleep(0.02)
            continue
        if held is None or held.is_of(folder / _IN_USE):
            touch(folder)
            return held or True
    return False


def publish(temporary: Path, target: Path, held: Lock | None) -> None:
    """Give a finished store its name; if another process was faster, its store is as good, and this one is removed.

    Raises WriteError if it cannot be renamed for another reason.
    """
    try:
        temporary.rename(target)
    except OSError as error:
        if not target.is_dir():
            raise files.failure(target, error) from error
    abandon(temporary, held)


def abandon(temporary: Path, held: Lock | None) -> None:
    """Remove what is left under a store's temporary name, and release the store under its final one."""
    if held is not None:
        held.share()
    shutil.rmtree(temporary, ignore_errors=True)


def _size(folder: Path) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat(follow_symlinks=False).st_size
    return total


def remove(store: StoreInfo) -> bool:
    """Remove an unused store; return whether it is gone. Renamed first, so that no process opens half of one."""
    held = lock(store.path, exclusive=True)
    if held is None and (store.path / _IN_USE).exists():
        return False
    try:
        if held is not None:
            if not held.certain and time.time() - store.used < _DAY:
                return False
            # just removed, and perhaps built again, by another process
            if not held.is_of(store.path / _IN_USE):
                return False
        aside = Path(tempfile.mkdtemp(prefix=".removing-", dir=store.path.parent))
        try:
            store.path.rename(aside / store.key)
        except OSError:
            aside.rmdir()
            return False
        shutil.rmtree(aside, ignore_errors=True)
        return True
    finally:
        if held is not None:
            held.release()


def sweep(decoded: Path) -> tuple[int, int]:
    """Remove what interrupted builds and removals left; return how many and how many bytes.

    A folder whose process is still running is locked and stays; one without a lock is removed when it is a day old.
    """
    count = freed = 0
    with contextlib.suppress(OSError):
        for path in [p for p in decoded.iterdir() if _TEMPORARY.fullmatch(p.name) and not p.is_symlink()]:
            with contextlib.suppress(OSError):
                if _abandoned(path):
                    size = _size(path)
                    shutil.rmtree(path, ignore_errors=True)
                    count, freed = count + 1, freed + size
    return count, freed


def _abandoned(path: Path) -> bool:
    old = time.time() - path.stat().st_mtime > _DAY
    if not (path / _IN_USE).exists():
        return old
    held = lock(path, exclusive=True, create=False)
    if held is None:
        return False
    try:
        return held.certain or old
    finally:
        held.release()


def clear(decoded: Path, keys: Sequence[str] = (), older_than: float | None = None) -> Cleared:
    """Remove stores: all, those whose keys begin as given, those not used for ``older_than`` days.

    Raises UserError for a key that fits no store, or more than one.
    """
    found = list_stores(decoded)
    chosen = [_by_key(found, key) for key in keys] if keys else found
    if older_than is not None:
        chosen = [store for store in chosen if time.time() - store.used > older_than * _DAY]
    leftovers, freed = sweep(decoded)
    gone = {store.key: remove(store) for store in chosen}
    freed += sum(store.size for store in found if gone.get(store.key))
    removed = tuple(key for key, done in gone.items() if done)
    return Cleared(removed, freed, tuple(key for key, done in gone.items() if not done), leftovers)


def _by_key(found: Sequence[StoreInfo], key: str) -> StoreInfo:
    fitting = [store for store in found if key and store.key.startswith(key)]
    if len(fitting) == 1:
        return fitting[0]
    problem = "matches more than one store" if fitting else "matches no store"
    raise UserError(f"{key!r} {problem}; see: tellapart cache list")


def make_room(decoded: Path, needed: int, limit: float) -> bool:
    """Remove the least recently used stores until ``needed`` bytes fit; return whether they do.

    ``limit``: GiB that all stores may take together; 0: limited by the disk only. If it cannot be reached, nothing is
    removed. Raises CacheError if the folder cannot be created.
    """
    try:
        decoded.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(decoded).free
    except OSError as error:
        raise CacheError(
            f"Decoded images cannot be kept in {decoded}: {error.strerror or error}. "
            "Choose another folder with --data.cache-dir."
        ) from error
    sweep(decoded)
    found = list_stores(decoded)
    excess = needed + RESERVE - free
    if limit:
        excess = max(excess, needed + sum(store.size for store in found) - int(limit * GIB))
    idle = [store for store in found if not store.in_use]
    if excess > sum(store.size for store in idle):
        return False
    for store in _oldest(idle, excess):
        excess -= store.size if remove(store) else 0
    return excess <= 0


def _oldest(idle: Sequence[StoreInfo], excess: int) -> Iterator[StoreInfo]:
    """Yield the fewest of the least recently used stores that together free ``excess`` bytes."""
    for store in idle:
        if excess <= 0:
            return
        excess -= store.size
        yield store
