"""What glibc's malloc does with memory that is freed. Loads no torch; does nothing with other C libraries."""

from __future__ import annotations

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of malloc.h


def keep_freed(trim: int, mmap: int, arenas: int = 0) -> None:
    """Let malloc keep up to ``trim`` freed bytes, and map only what takes ``mmap`` bytes or more by itself.

    ``arenas``: the most pools of memory; 0: as many as malloc likes.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "gnu_get_libc_version"):
            if arenas:
                libc.mallopt(_ARENA_MAX, arenas)
            libc.mallopt(_MMAP_THRESHOLD, mmap)
            libc.mallopt(_TRIM_THRESHOLD, trim)
