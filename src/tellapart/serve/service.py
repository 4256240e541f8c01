"""What all routes share: from a request's images to logits, with the limits, the queue and the deadline on the way.

Knows the components and the order of their use; nothing of the routes' own formats.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from starlette.requests import Request

from tellapart.contract import Pixels
from tellapart.serve.images import ImageReader, fits
from tellapart.serve.intake import Intake
from tellapart.serve.metrics import Metrics
from tellapart.serve.models import Model, Repository
from tellapart.serve.options import Options
from tellapart.serve.refusal import Refusal

T = TypeVar("T")
_AT_ONCE = 4  # images that one request decodes before the next gets its turn


class Service:
    """One service: its options, its models, and the threads that decode."""

    def __init__(self, repository: Repository, options: Options, metrics: Metrics) -> None:
        self.repository, self.options, self.metrics = repository, options, metrics
        self.intake = Intake(options.max_bytes, options.max_memory_mb * 2**20, options.body_timeout)
        self.reader = ImageReader(options.formats, options.max_pixels)
        self.draining = False
        """Whether the service is about to end: it still answers, but asks clients to close their connections."""
        self.failure: Exception | None = None
        """Why the service could not start."""
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._explaining = False
        metrics.holds(lambda: float(self.intake.held))

    @property
    def pool(self) -> concurrent.futures.ThreadPoolExecutor:
        """The threads that decode images."""
        if self._pool is None:
            workers = self.options.decoders or os.cpu_count() or 1
            # A model's format needs torch: each decoding thread must not start a team of threads.
            if "torch" in sys.modules:
                from tellapart.devices import thread_pool

                self._pool = thread_pool(workers)
            else:
                self._pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="decode")
        return self._pool

    def deadline(self, request: Request) -> float:
        """Return when a request must be answered, by ``time.monotonic``. Raises Refusal."""
        limit = self.options.deadline_ms
        text = request.headers.get("deadline-ms")
        if text is not None:
            if not (text.isascii() and text.isdigit() and 0 < len(text) < 10 and int(text)):
                raise Refusal(
                    400, "bad_deadline", "Deadline-Ms must be a whole number of milliseconds from 1"
                )
            limit = min(limit, int(text))
        return time.monotonic() + limit / 1000

    def deadline_in(self, seconds: float) -> float:
        """Return the deadline that is so far away."""
        return time.monotonic() + seconds

    async def in_thread(self, work: Callable[[], T], deadline: float) -> T:
        """Run ``work`` in one of the decoding threads and return its result. Raises Refusal 504 when it is late."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                return await asyncio.get_running_loop().run_in_executor(self.pool, work)
        except TimeoutError:
            raise Refusal(504, "deadline", "the deadline passed before there was an answer") from None

    async def files(self, files: Sequence[bytes], model: Model, deadline: float) -> Pixels:
        """Return image files as images resized by the model's contract. Raises Refusal.

        Only a few are decoded at a time, so that other requests get in between those of a large one.
        """
        late, parts = late_after(deadline), []
        for start in range(0, len(files), _AT_ONCE):
            work = functools.partial(
                self.reader.files, files[start : start + _AT_ONCE], model.backend, late, start
            )
            parts.append(await self.in_thread(work, deadline))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    async def pixels(self, images: Pixels, model: Model, deadline: float) -> Pixels:
        """Return pixels [n, H, W, C] sized by the model's contract. Raises Refusal."""
        if fits(images, model.card.preprocessing):
            return images
        late = late_after(deadline)
        return await self.in_thread(lambda: self.reader.arrays(images, model.backend, late), deadline)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Compute a heat map, one at a time. Raises Refusal 503 if another is being computed."""
        if self._explaining:
            raise Refusal(503, "overloaded", "another heat map is being computed; try again", retry_after=1)
        self._explaining = True
        try:
            yield
        finally:
            self._explaining = False

    def close(self) -> None:
        """End the threads that decode."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def late_after(deadline: float) -> Callable[[], bool]:
    """Return a function that says whether ``deadline`` has passed."""
    return lambda: time.monotonic() > deadline
