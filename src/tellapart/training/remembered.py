"""What was measured on this machine, kept in the cache folder for the next run of the same kind.

Small JSON files under ``measured/``, each written whole. A file that cannot be read counts as none, and a folder
that cannot be written to is no error: then it is measured again. Knows nothing of what is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tellapart.data.archives import cache_folder
from tellapart.spec import DataSpec


class Memory:
    """Records by name for one ``key``: everything that a measurement depends on, as plain values."""

    def __init__(self, spec: DataSpec, key: Mapping[str, Any]) -> None:
        text = json.dumps(key, sort_keys=True, default=str)
        digest = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
        self.path = Path(cache_folder(spec)) / "measured" / f"{digest}.json"
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
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as stream:
                    json.dump(content, stream, indent=1)
                os.replace(temporary, self.path)
            except BaseException:
                os.unlink(temporary)
                raise

    def _all(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get("key") != self._key:
            return {}
        records = content.get("records")
        return records if isinstance(records, dict) else {}
