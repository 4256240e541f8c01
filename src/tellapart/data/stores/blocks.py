"""Anonymous memory that processes share, so that nothing is left behind however they end.

A block is an anonymous file (of memory where the system has memfd, else of the temporary folder, deleted at once).
Another process writes to it through its descriptor; here it is mapped. Knows nothing of images.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import weakref

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
_LEAST = 1 << 20  # bytes of a block
_KEPT = 256 << 20  # bytes of free blocks that are kept for reuse


class Block:
    """A file without a name, and its first ``size`` bytes mapped."""

    def __init__(self) -> None:
        self.descriptor, self.size = _anonymous_file(), 0
        self._map: mmap.mmap | None = None

    def reach(self, size: int) -> None:
        """Map at least ``size`` bytes, if fewer are mapped."""
        if size > self.size or self._map is None:
            self.size = max(_LEAST, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            os.ftruncate(self.descriptor, self.size)
            self._map = mmap.mmap(self.descriptor, self.size)

    def bytes(self) -> Bytes:
        """Return what is mapped, uint8 [size], writable."""
        return np.frombuffer(self._map or b"", np.uint8)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


class Blocks:
    """Blocks to take and give back; some of the returned ones are kept, together with their memory."""

    def __init__(self) -> None:
        self._free: list[Block] = []
        self._lock = threading.RLock()  # `give` may be called at any moment, by the garbage collector

    def take(self, size: int = 0) -> Block:
        """Return a block of which at least ``size`` bytes are mapped; the smallest that is large enough."""
        with self._lock:
            fitting = [block for block in self._free if block.size >= size] or self._free
            block = min(fitting, key=lambda block: block.size, default=None)
            if block is not None:
                self._free.remove(block)
        block = block or Block()
        block.reach(size)
        return block

    def give(self, block: Block) -> None:
        """Take a block back."""
        with self._lock:
            if sum(other.size for other in self._free) + block.size <= _KEPT:
                self._free.append(block)

    def lend(self, block: Block) -> Bytes:
        """Return a block's bytes, uint8 [size]; the block is given back with the last array that refers to them."""
        whole = block.bytes()
        weakref.finalize(whole, self.give, block).atexit = False
        return whole


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("tellapart")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
