"""The cache folder: its contents, and clearing it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

from tellapart.data.sources.archives import cache_folder
from tellapart.data.stores import housekeeping
from tellapart.errors import UserError, did_you_mean
from tellapart.spec import DataSpec
from tellapart.training.speed import tuning_cache


def _folder(cache_dir: str | os.PathLike[str]) -> Path:
    return Path(cache_folder(DataSpec(cache_dir=os.fspath(cache_dir))))


@overload
def cache(
    action: Literal["list"],
    keys: Sequence[str] = (),
    *,
    older_than: float | None = None,
    cache_dir: str | os.PathLike[str] = "",
) -> list[housekeeping.StoreInfo]: ...


@overload
def cache(
    action: Literal["clear"],
    keys: Sequence[str] = (),
    *,
    older_than: float | None = None,
    cache_dir: str | os.PathLike[str] = "",
) -> housekeeping.Cleared: ...


def cache(
    action: Literal["list", "clear"],
    keys: Sequence[str] = (),
    *,
    older_than: float | None = None,
    cache_dir: str | os.PathLike[str] = "",
) -> list[housekeeping.StoreInfo] | housekeeping.Cleared:
    """List what is kept on disk (decoded images, features, measurements), or clear it.

    Args:
        action: ``list`` or ``clear``.
        keys: with clear: keys, or how they begin, of what to remove; without any, everything that is not in use.
        older_than: with clear: only what was not used for so many days.
        cache_dir: the cache folder, as ``data.cache_dir``; the user's where empty.

    Raises UserError for a key that fits nothing, or more than one store.
    """
    if action not in ("list", "clear"):
        raise UserError(f"action is {action!r}. {did_you_mean(action, ['list', 'clear'])}")
    if action == "list":
        if keys or older_than is not None:
            raise UserError("cache list takes no keys and no --older-than; those are for cache clear.")
        return cache_list(cache_dir)
    if older_than is not None and older_than < 0:
        raise UserError(f"--older-than is {older_than:g}; it must be at least 0 days.")
    return cache_clear(keys, older_than, cache_dir)


def cache_list(cache_dir: str | os.PathLike[str] = "") -> list[housekeeping.StoreInfo]:
    """Return the stores of decoded images, the least recently used first; leftovers of killed builds are removed.

    What was measured on this machine comes last, as one entry with the key ``measured``.
    ``cache_dir``: as ``data.cache_dir``; the user's cache folder where empty.
    """
    folder = _folder(cache_dir)
    housekeeping.sweep(folder / "decoded")
    measured = tuning_cache.describe(folder)
    return housekeeping.list_stores(folder / "decoded") + ([measured] if measured else [])


def cache_clear(
    keys: Sequence[str] = (), older_than: float | None = None, cache_dir: str | os.PathLike[str] = ""
) -> housekeeping.Cleared:
    """Remove what nobody uses: all, what is named, what was not used for so many days.

    ``keys``: keys, or their beginnings, as `cache_list` gives them; ``measured`` for what was measured on this machine.
    Nothing else in the folder is touched. Raises UserError for a key that fits nothing, or more than one store.
    """
    folder = _folder(cache_dir)
    named = [key for key in keys if key and tuning_cache.KEY.startswith(key)]
    others = [key for key in keys if key not in named]
    if named and tuning_cache.describe(folder) is None:
        raise UserError(f"{named[0]!r} is the key of no store; see: tellapart cache list")
    cleared = housekeeping.Cleared((), 0, (), 0)
    if others or not keys:
        cleared = housekeeping.clear(folder / "decoded", others, older_than)
    if named or not keys:
        count, freed = tuning_cache.clear(folder, older_than)
        removed = (*cleared.removed, tuning_cache.KEY) if count else cleared.removed
        cleared = housekeeping.Cleared(removed, cleared.freed + freed, cleared.kept, cleared.leftovers)
    return cleared
