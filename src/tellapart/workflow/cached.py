"""The cache of decoded images: what lies in it, and clearing it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tellapart.data import stores
from tellapart.data.archives import cache_folder
from tellapart.spec import DataSpec


def _decoded(cache_dir: str | os.PathLike[str]) -> Path:
    return Path(cache_folder(DataSpec(cache_dir=os.fspath(cache_dir)))) / "decoded"


def cache_list(cache_dir: str | os.PathLike[str] = "") -> list[stores.StoreInfo]:
    """Return the stores of decoded images, the least recently used first; leftovers of killed builds are removed.

    ``cache_dir``: as ``data.cache_dir``; the user's cache folder where empty.
    """
    folder = _decoded(cache_dir)
    stores.sweep(folder)
    return stores.list_stores(folder)


def cache_clear(
    keys: Sequence[str] = (), older_than: float | None = None, cache_dir: str | os.PathLike[str] = ""
) -> stores.Cleared:
    """Remove stores of decoded images that nobody uses: all, the named ones, those not used for so many days.

    ``keys``: keys, or their beginnings, as `cache_list` gives them. Nothing else in the folder is touched.
    """
    return stores.clear(_decoded(cache_dir), keys, older_than)
