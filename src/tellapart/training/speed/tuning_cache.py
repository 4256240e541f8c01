"""The tuning cache: what was measured on this machine, kept in the cache folder for similar runs.

Small JSON files under ``measured/``, each written whole. A file that cannot be read counts as missing, and a folder
that cannot be written to is not an error: the measurement is repeated. `describe` and `clear` are for the commands on
the cache. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tellapart import files
from tellapart.data.sources.archives import cache_folder
from tellapart.data.stores.housekeeping import StoreInfo
from tellapart.spec import DataSpec

KEY = "measured"  # the folder, and its name where the cache is listed
_FILE = re.compile(r"[0-9a-f]{24}\.json|tmp\w+\.tmp|\.tellapart-\w+")
_DAY = 24 * 3600.0


def describe(cache: Path) -> StoreInfo | None:
    """Return all records in a cache folder as one entry of its list, or None if there are none."""
    found = [status for path, status in _files(cache) if path.suffix == ".json"]
    if not found:
        return None
    about = {
        "source": f"{len(found):,} measurements",
        "purpose": "which settings are fastest here",
        "images": 0,
    }
    size, used = sum(s.st_size for s in found), max(s.st_mtime for s in found)
    return StoreInfo(KEY, cache / KEY, size, used, in_use=False, about=about)


def clear(cache: Path, older_than: float | None = None) -> tuple[int, int]:
    """Remove the records that were not written for ``older_than`` days (None: all); return how many, and bytes."""
    count = freed = 0
    for path, status in list(_files(cache)):
        if older_than is not None and time.time() - status.st_mtime <= older_than * _DAY:
            continue
        # another process may be writing it
        if path.suffix != ".json" and time.time() - status.st_mtime < _DAY:
            continue
        with contextlib.suppress(OSError):
            path.unlink()
            count, freed = count + 1, freed + status.st_size
    return count, freed


def _files(cache: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield our own files in the folder of records, with their sizes and times."""
    with contextlib.suppress(OSError):
        for path in (cache / KEY).iterdir():
            if _FILE.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    yield path, path.stat()


class TuningCache:
    """Records by name for one ``key``: everything that a measurement depends on, as plain values."""

    def __init__(self, spec: DataSpec, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.path = Path(cache_folder(spec)) / KEY / f"{digest}.json"
        self._key = json.loads(text)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the record of that name, or None."""
        found = self._all().get(name)
        return found if isinstance(found, dict) else None

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        """Keep a record, whole or not at all."""
        content = {"key": self._key, "records": {**self._all(), name: dict(record)}}
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(self.path, json.dumps(content, indent=1))

    def _all(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("key") != self._key:
            return {}
        records = content.get("records")
        return records if isinstance(records, dict) else {}
