"""Dynamic batches: images of many requests computed together if that pays, with a bound on the wait.

As soon as a thread is free, it takes the waiting images in order. It waits for more only while other requests are known
to be on their way, and at most ``max_wait`` after the oldest arrived; so a lone request never waits. Knows nothing of
HTTP, of image files, or of what computes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tellapart.runtime import timing
from tellapart.serve.refusal import Refusal

Logits = npt.NDArray[np.float32]
Images = npt.NDArray[Any]
MOST = 32
"""Images of the largest batch that `worthwhile` tries."""
_ENOUGH = 0.9  # of the best rate
_GAIN = 1.05
_HAND_OVER = (
    0.0003  # seconds that a batch costs beside its computation: waking a thread and delivering the answers
)
_PASSES, _SECONDS = 3, 2.0
_SHARE_MOST, _SHARE_SECONDS = 8, 0.05
_log = logging.getLogger("tellapart.serve")


def worthwhile(compute: Callable[[Images], Logits], image: Images) -> int:
    """Return the smallest batch with nearly the best rate, by timing ``compute`` on copies of one image [1, H, W, C].

    Larger batches would only keep each of their images waiting for the others. Sizes are doubled up to `MOST`, as long
    as that helps and a few seconds allow it, several times over, so that brief other work on the machine does not
    decide.
    """
    rates: dict[int, float] = {}
    started = time.monotonic()
    for _ in range(_PASSES):
        size, useless = 1, 0
        while size <= MOST and useless < 2 and time.monotonic() - started < _SECONDS:
            seconds = _HAND_OVER + _fastest(compute, np.repeat(image, size, axis=0))
            rates[size] = max(size / seconds, rates.get(size, 0.0))
            smaller = [rate for other, rate in rates.items() if other < size]
            useless = useless + 1 if smaller and rates[size] < _GAIN * max(smaller) else 0
            size *= 2
    return min(size for size, rate in rates.items() if rate >= _ENOUGH * max(rates.values()))


def _fastest(compute: Callable[[Images], Logits], images: Images) -> float:
    """Return the seconds of the faster of two runs, after one that does not count."""
    call = functools.partial(compute, images)
    return min(timing.milliseconds(call, least=2, warm_up=1, longest=_SECONDS / 4)) / 1000


class Watcher(Protocol):
    """The reports about batches; the methods are called from the computing threads."""

    def batch(self, images: int, waited: list[float], seconds: float) -> None:
        """After a batch: its images, how long each request waited, and how long it took to compute."""
        ...


@dataclass(slots=True, eq=False)
class _Work:
    images: Images
    deadline: float
    arrived: float
    future: asyncio.Future[Logits]


class Expected:
    """One request that was announced and has not put its images into the queue yet."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._open = True

    def arrived(self) -> None:
        """Stop waiting for this request; a second call does nothing."""
        if self._open:
            self._open = False
            self._batcher._arrived()


class Batcher:
    """A queue in front of a function from pixels [B, H, W, C] to float32 [B, K], and the threads that call it.

    ``max_wait`` is in seconds, ``capacity`` in images. `submit` belongs to the event loop's thread.
    """

    def __init__(
        self,
        compute: Callable[[Images], Logits],
        watcher: Watcher,
        *,
        max_batch: int = 32,
        max_wait: float = 0.002,
        capacity: int = 256,
        instances: int = 1,
    ) -> None:
        self._compute, self._watcher = compute, watcher
        self.max_batch = max_batch
        """Most images that are computed at once."""
        self._max_wait, self._capacity = max_wait, capacity
        self._queue: collections.deque[_Work] = collections.deque()
        self._changed = threading.Condition()
        self.waiting = 0
        """Images in the queue."""
        self._expected = 0
        self._closed = False
        self._seconds_per_image = 0.01
        self._threads = [
            threading.Thread(target=self._work, name=f"batch-{number}", daemon=True)
            for number in range(instances)
        ]
        for thread in self._threads:
            thread.start()

    def expect(self) -> Expected:
        """Announce a request whose images will come."""
        with self._changed:
            self._expected += 1
        return Expected(self)

    def _arrived(self) -> None:
        with self._changed:
            self._expected -= 1
            if not self._expected:
                self._changed.notify_all()

    @property
    def fair_share(self) -> int:
        """Images that long work should submit at once, so that others get in between: a twentieth of a second's worth.

        At most a quarter of a batch, or eight where batches are small.
        """
        most = max(_SHARE_MOST, self.max_batch // 4)
        return max(1, min(most, round(_SHARE_SECONDS / self._seconds_per_image)))

    @property
    def retry_after(self) -> float:
        """Roughly the seconds until the images that wait now are computed."""
        return self.waiting * self._seconds_per_image / len(self._threads)

    def submit(self, images: Images, deadline: float) -> asyncio.Future[Logits]:
        """Queue images of one request; the future returns their logits [n, K].

        ``deadline`` is in the time of ``time.monotonic``. Raises Refusal 503 if the queue is full; the future raises
        Refusal 504 if the deadline passes first, and 500 if the model fails.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Logits] = loop.create_future()
        work = _Work(images, deadline, time.monotonic(), future)
        with self._changed:
            # A request larger than the whole queue is accepted when nothing waits: it could never be answered
            # otherwise.
            if self._closed or (self.waiting and self.waiting + len(images) > self._capacity):
                raise Refusal(
                    503, "overloaded", "the service is busy; try again", retry_after=self.retry_after
                )
            self._queue.append(work)
            self.waiting += len(images)
            self._changed.notify()
        timer = loop.call_later(deadline - time.monotonic(), _expire, future)
        future.add_done_callback(lambda done: timer.cancel())
        return future

    def close(self) -> None:
        """Accept no more; compute what waits, and let the threads end."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> None:
        """Wait until the threads have ended."""
        for thread in self._threads:
            thread.join(timeout)

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            if batch:
                self._run(batch)

    def _take(self) -> list[_Work] | None:
        """Return the next batch, whose requests may all have been given up; None at the end."""
        with self._changed:
            while not self._queue or self._lingers():
                if not self._queue:
                    if self._closed:
                        return None
                    self._changed.wait()
            batch: list[_Work] = []
            count = 0
            while self._queue and (not batch or count + len(self._queue[0].images) <= self.max_batch):
                work = self._queue.popleft()
                self.waiting -= len(work.images)
                if not work.future.done():  # its deadline passed, or its client is gone
                    batch.append(work)
                    count += len(work.images)
            return batch

    def _lingers(self) -> bool:
        """Wait a little for more images, if that is worth it; return whether the queue must be looked at again."""
        if self.waiting >= self.max_batch or not self._expected or self._closed:
            return False
        left = self._queue[0].arrived + self._max_wait - time.monotonic()
        if left <= 0:
            return False
        self._changed.wait(left)
        return True

    def _run(self, batch: list[_Work]) -> None:
        started = time.monotonic()
        images = batch[0].images if len(batch) == 1 else np.concatenate([work.images for work in batch])
        result: Logits | Refusal
        try:
            result = self._in_parts(images)
        except Refusal as refusal:
            result = refusal
        except Exception as error:  # whatever a runtime raises; the worker must go on
            _log.exception("a batch of %d images failed", len(images))
            short = isinstance(error, MemoryError)
            result = (
                Refusal(503, "out_of_memory", "the service is out of memory at the moment", retry_after=5)
                if short
                else Refusal(500, "model_failed", "the model failed on this request")
            )
        seconds = time.monotonic() - started
        self._seconds_per_image += 0.1 * (seconds / len(images) - self._seconds_per_image)
        loop = batch[0].future.get_loop()
        with contextlib.suppress(RuntimeError):  # the event loop is gone, and with it all clients
            loop.call_soon_threadsafe(_deliver, batch, result)
        self._watcher.batch(len(images), [started - work.arrived for work in batch], seconds)

    def _in_parts(self, images: Images) -> Logits:
        """Compute at most ``max_batch`` images at once; a single request may have more."""
        if len(images) <= self.max_batch:
            return self._compute(images)
        parts = range(0, len(images), self.max_batch)
        return np.concatenate([self._compute(images[start : start + self.max_batch]) for start in parts])


def _deliver(batch: list[_Work], result: Logits | Refusal) -> None:
    """Give each request its rows; in the event loop's thread."""
    start = 0
    for work in batch:
        end = start + len(work.images)
        if not work.future.done():
            if isinstance(result, Refusal):
                work.future.set_exception(result)
            elif not np.isfinite(result[start:end]).all():
                work.future.set_exception(
                    Refusal(500, "model_failed", "the model returned numbers that are not finite")
                )
            else:
                work.future.set_result(result[start:end])
        start = end


def _expire(future: asyncio.Future[Logits]) -> None:
    if not future.done():
        future.set_exception(Refusal(504, "deadline", "the deadline passed before there was an answer"))
