"""Decoding workers: threads of this process, or other processes. Both give the same pixels in the same order.

Only one thread at a time runs Python code (the GIL), so threads do not read small files faster than a single one could,
however many processors there are. Processes do, but they have to be started, and their pixels come through shared
memory (`blocks`). A thread of this process talks to each through a socket, so that the main script is not run again (as
with multiprocessing), and a process ends when this one does, however that ends. Knows nothing of stores or batches.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from tellapart.data.samples import Samples
from tellapart.data.stores.blocks import Blocks, Bytes
from tellapart.data.stores.decoded import Decode, Decoded, decoded, kind
from tellapart.data.stores.decoding_worker import Item, Place, Task, receive, send
from tellapart.devices import thread_pool
from tellapart.doctor import processors
from tellapart.errors import DataError, SpecError
from tellapart.spec import DataSpec

PROCESSORS = 6  # with fewer, threads are as fast
IMAGES = 4000  # with fewer, processes do not make up for their start-up
MOST = 32  # processes, unless more are requested
_TRIES = 2  # processes that an image may crash when it is decoded alone
_PATIENCE = 5.0  # seconds for a process to end by itself
_COMMAND = (
    "import sys; sys.path[:] = sys.argv[1:]; from tellapart.data.stores.decoding_worker import main; main()"
)
_ALONE = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


class Workers(Protocol):
    """Decodes ``count`` chunks of images at a time."""

    count: int

    def submit(self, samples: Samples, decode: Decode, rows: Sequence[int]) -> Future[list[Decoded]]:
        """Begin to decode rows, of whatever size."""

    def batch(
        self, samples: Samples, decode: Decode, rows: Sequence[int], sizes: Sequence[int]
    ) -> list[Future[list[Decoded]]]:
        """Begin to decode rows whose sizes in bytes are known; their results in order, in several chunks."""


class Threads:
    """Threads that decode, started with the first task: decoders and torch release the interpreter while they work."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._starting = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None

    def submit(self, samples: Samples, decode: Decode, rows: Sequence[int]) -> Future[list[Decoded]]:
        """See `Workers`."""
        with self._starting:
            if self._pool is None:
                self._pool = thread_pool(self.count)
                weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        return self._pool.submit(_chunk, samples, decode, rows)

    def batch(
        self, samples: Samples, decode: Decode, rows: Sequence[int], sizes: Sequence[int]
    ) -> list[Future[list[Decoded]]]:
        """See `Workers`."""
        return [self.submit(samples, decode, rows[part]) for part in _parts(len(rows), self.count)]


def _chunk(samples: Samples, decode: Decode, rows: Sequence[int]) -> list[Decoded]:
    return [decoded(samples, decode, row) for row in rows]


def _parts(length: int, workers: int) -> list[slice]:
    """Return slices of a batch: one or two for each worker, of at least 4 images where that leaves none idle.

    Longer slices have less overhead; with shorter ones the wait for the last is short.
    """
    step = max(1, length // (2 * workers), min(4, -(-length // workers)))
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class Processes:
    """Processes that decode, started with the first task. Needs a ``decode`` that can be pickled.

    One that ends unexpectedly (killed, or by a fault in a decoder) is replaced, and its images are decoded anew one by
    one; an image that ends `_TRIES` more is an error that names it.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = concurrent.futures.ThreadPoolExecutor(count, "decoding")
        self._blocks = Blocks()
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._starting = threading.Lock()
        weakref.finalize(self, _end, self._pool, self._workers)

    def submit(self, samples: Samples, decode: Decode, rows: Sequence[int]) -> Future[list[Decoded]]:
        """See `Workers`."""
        self._start()
        return self._pool.submit(self._decode, Task(decode, _items(samples, rows)))

    def batch(
        self, samples: Samples, decode: Decode, rows: Sequence[int], sizes: Sequence[int]
    ) -> list[Future[list[Decoded]]]:
        """See `Workers`. All images lie in one block."""
        self._start()
        starts = [0, *itertools.accumulate(sizes)]
        block = self._blocks.take(starts[-1])
        memory = self._blocks.lend(block)
        return [
            self._pool.submit(
                self._decode_into,
                Task(decode, _items(samples, rows[part]), starts[part.start], sizes[part]),
                block.descriptor,
                memory,
            )
            for part in _parts(len(rows), self.count)
        ]

    def _start(self) -> None:
        with self._starting:
            for _ in range(0 if self._workers else self.count):
                try:
                    self._workers.append(_Worker())
                except OSError as error:  # there are too many processes
                    if not self._workers:
                        raise DataError(
                            f"No process can be started that decodes: {error}. Use --data.worker-kind threads."
                        ) from error
                    break
                self._idle.put(self._workers[-1])

    def _decode(self, task: Task) -> list[Decoded]:
        block = self._blocks.take()
        try:
            places = self._ask(task, block.descriptor)
            each = kind(task.decode).itemsize
            block.reach(max((start + each * math.prod(shape) for start, shape, _, _ in places), default=0))
        except BaseException:
            self._blocks.give(block)
            raise
        return _images(places, self._blocks.lend(block), task.decode)

    def _decode_into(self, task: Task, file: int, memory: Bytes) -> list[Decoded]:
        return _images(self._ask(task, file), memory, task.decode)

    def _ask(self, task: Task, file: int) -> list[Place]:
        worker = self._idle.get()
        try:
            return worker.ask(task, file)
        except _EndedError:
            return self._one_by_one(worker, task, file)
        finally:
            self._idle.put(worker)

    def _one_by_one(self, worker: _Worker, task: Task, file: int) -> list[Place]:
        """Decode again what was lost with a process."""
        places, position = list[Place](), task.start
        for number, item in enumerate(task.items):
            sizes = None if task.sizes is None else task.sizes[number : number + 1]
            places += _persist(worker, Task(task.decode, [item], position, sizes), file)
            position += sizes[0] if sizes else kind(task.decode).itemsize * math.prod(places[-1][1] or (0,))
        return places


def _persist(worker: _Worker, task: Task, file: int) -> list[Place]:
    """Have one image decoded, by a new process if one crashes. Raises DataError if several do."""
    for _ in range(_TRIES):
        try:
            return worker.ask(task, file)
        except _EndedError as error:
            end = str(error)
    source = task.items[0][0]
    name = source if isinstance(source, str) else "an image"
    raise DataError(
        f"{name} cannot be decoded: every process that tries ends ({end}). Remove the file; if it is intact, "
        "there is not enough memory for it: use fewer --data.workers."
    )


def _items(samples: Samples, rows: Sequence[int]) -> list[Item]:
    boxes = [None] * len(rows) if samples.boxes is None else [samples.boxes[row] for row in rows]
    if samples.pixels is not None:
        return [(np.asarray(samples.read(row)), box) for row, box in zip(rows, boxes, strict=True)]
    here = os.getcwd()  # may have become another since the processes began
    return [(os.path.join(here, samples.file(row)), box) for row, box in zip(rows, boxes, strict=True)]


def _images(places: list[Place], memory: Bytes, decode: Decode) -> list[Decoded]:
    """Return what `decoded` does, with the pixels in ``memory``."""
    of = kind(decode)
    return [
        (
            memory[start : start + of.itemsize * math.prod(shape)].view(of).reshape(shape) if shape else None,
            digest,
            reason,
        )
        for start, shape, digest, reason in places
    ]


class _EndedError(Exception):
    """A process ended before it had answered."""


class _Worker:
    """A process that decodes, and the socket by which it is asked. One that has ended is replaced when it is asked."""

    def __init__(self) -> None:
        self._launch()

    def _launch(self) -> None:
        self._channel, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, *sys.path],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, **_ALONE},
                process_group=0,  # Ctrl-C is handled by the main process
            )
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()

    def ask(self, task: Task, file: int) -> list[Place]:
        """Return the offsets of the images of ``task`` in ``file``. Raises _EndedError, and what decoding raises."""
        question = pickle.dumps(tuple(task))
        try:
            if self._process.poll() is not None:
                self.end()
                self._launch()
            send(self._channel, question, file)
            answer = pickle.loads(receive(self._channel)[0])
        except BaseException as error:
            self.end()
            if not isinstance(error, (EOFError, OSError)):
                raise
            raise _EndedError(_how(self._process.returncode)) from None
        if isinstance(answer, Exception):
            raise answer
        places: list[Place] = answer
        return places

    def hang_up(self) -> None:
        """Let the process end by itself."""
        self._channel.close()

    def end(self) -> None:
        """Wait until the process has ended."""
        self.hang_up()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _how(code: int | None) -> str:
    """Return in words how a process ended."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return f"exit code {code}"


def _end(pool: concurrent.futures.ThreadPoolExecutor, workers: list[_Worker]) -> None:
    pool.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.end()


_shared: weakref.WeakValueDictionary[int, Processes] = weakref.WeakValueDictionary()


def choose(spec: DataSpec, samples: Samples, local: int = 1) -> Workers:
    """Return the workers that decode ``samples``: the share of one of ``local`` programs that decode on this machine.

    Calls for the same number of processes share them as long as they are in use.
    """
    available = max(1, processors() // local)
    if not _processes_pay(spec, samples, available):
        return Threads(spec.workers or available)
    count = spec.workers or min(available, MOST)
    found = _shared.get(count)
    if found is None:
        found = _shared[count] = Processes(count)
    return found


def _processes_pay(spec: DataSpec, samples: Samples, available: int) -> bool:
    # a frozen program would start itself
    python = bool(sys.executable) and not getattr(sys, "frozen", False)
    possible = python and os.name == "posix" and hasattr(socket, "send_fds")
    if spec.worker_kind == "processes" and not possible:
        raise SpecError(
            "data.worker_kind is 'processes', which this system does not allow; it must be auto or threads."
        )
    if samples.items is not None:  # objects stay in this process
        return False
    if spec.worker_kind != "auto":
        return spec.worker_kind == "processes"
    enough = min(available, spec.workers or available) >= PROCESSORS and len(samples) >= IMAGES
    return possible and enough and samples.pixels is None
