"""The user's folders in which this program keeps what can be made again, and what cannot. Creates none."""

from __future__ import annotations

import os
from pathlib import Path

_NAME = "tellapart"


def cache_folder(chosen: str = "") -> Path:
    """Return the folder for what can be made again: the ``chosen`` one, or the cache folder of the user."""
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    import platformdirs

    return Path(platformdirs.user_cache_dir(_NAME, appauthor=False))


def data_folder() -> Path:
    """Return the folder for what is remembered of this machine, such as whose programs are trusted."""
    import platformdirs

    return Path(platformdirs.user_data_dir(_NAME, appauthor=False))
