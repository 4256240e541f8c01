"""What several of the measurements need: a peer in a process of its own, and a reporter that shows nothing."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def fresh(function: Callable[..., T], *args: Any) -> T:
    """Return what ``function`` returns in a fresh process, where nothing that tellapart sets up has any effect.

    tellapart tunes the C library's allocator, which would make a peer in the same process, and its workers, faster
    than they are for their users.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_usual_start) as pool:
        return pool.submit(function, *args).result()


def _usual_start() -> None:
    """Let DataLoaders start their workers as they do in a program: a spawned process would spawn them too."""
    multiprocessing.set_start_method(None, force=True)


class Silent:
    """A reporter of training that shows nothing."""

    def start(self, epochs: int, steps_per_epoch: int, first_step: int) -> None: ...
    def message(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None: ...
