"""Chunks of a batch in threads, each chunk by one thread alone. Knows nothing of images.

torch divides each operation among threads that wait for one another at its end, spinning. For many operations on few
pixels that costs more than it saves, and if other programs need the processors too, several times as much.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def run(work: Callable[[T], None], parts: Sequence[T]) -> None:
    """Call ``work`` for each chunk, in as many threads as torch may use; raise the first error.

    torch's own operations use one thread inside ``work``, unless there is only one chunk: that is done directly, with
    all of torch's threads.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) < 2:
        for part in parts:
            work(part)
        return
    inference = torch.is_inference_mode_enabled()  # a thread's own, and tensors made in it stay in it

    def in_mode(part: T) -> None:
        with torch.inference_mode(inference):
            work(part)

    for _ in _pool(threads, os.getpid()).map(in_mode, parts):
        pass


@functools.lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads in which torch uses one thread; ``process`` because a fork does not inherit them."""
    ready = threading.Barrier(threads + 1)

    def begin() -> None:
        torch.get_num_threads()  # a thread's first question takes over the number kept for all
        torch.set_num_threads(1)  # from then on each thread has its own
        ready.wait()

    pool = ThreadPoolExecutor(threads, "augment")
    for _ in range(threads):
        pool.submit(begin)
    ready.wait()
    # torch's global settings: the number that new threads start with, and MKL's
    torch.set_num_threads(threads)
    return pool
