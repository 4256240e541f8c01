"""Devices: which one to use, how to seed it, and what to do when its memory does not suffice.

The same code for CPU, CUDA and MPS. Knows nothing of models, data or processes.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import threading
from collections.abc import Iterator

import torch

from tellapart.allocator import keep_freed
from tellapart.errors import SpecError, TrainingError

AMP_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}  # by training.precision


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device for ``training.device``; raises SpecError for one that this machine does not have."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SpecError(f"training.device is {name!r}; it must be auto, cpu, cuda, cuda:N or mps.") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SpecError(
            f"training.device is {name!r}, but no CUDA device is available; see: tellapart doctor"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SpecError(
            f"training.device is {name!r}, but there are {torch.cuda.device_count()} CUDA devices."
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SpecError("training.device is 'mps', but this machine has no such device.")
    if device.type not in ("cpu", "cuda", "mps"):
        raise SpecError(f"training.device is {name!r}; it must be auto, cpu, cuda, cuda:N or mps.")
    return torch.device("cuda", local_rank) if name == "cuda" else device


def tune_allocator() -> None:
    """Let glibc keep freed memory instead of giving it back to the system after each large tensor.

    Without this every step maps and unmaps its activations, and the kernel zeroes them again: a third
    of the time of a convolutional network on the CPU. Does nothing with other C libraries.
    """
    keep_freed(trim=(1 << 31) - 1, mmap=1 << 30)


def thread_pool(workers: int) -> concurrent.futures.ThreadPoolExecutor:
    """Return a pool of threads in each of which torch computes on that one thread.

    By default every thread that calls torch gets a team of as many threads as there are processors: with a few
    workers they spend their time waiting for each other. The caller's own number of threads stays as it was.
    """
    before = torch.get_num_threads()

    def alone() -> None:
        torch.get_num_threads()  # otherwise the thread's first operation takes over the process's number
        torch.set_num_threads(1)

    pool = concurrent.futures.ThreadPoolExecutor(workers, initializer=alone)
    together = threading.Barrier(workers)
    # all have started, and later threads are others'
    list(pool.map(lambda _: together.wait(), range(workers)))
    torch.set_num_threads(before)
    return pool


@contextlib.contextmanager
def plain_kernels(wanted: bool, threads: int = 1) -> Iterator[None]:
    """While entered, let torch compute on the CPU without oneDNN and in one thread (or ``threads``), where ``wanted``.

    For steps of a millisecond: what oneDNN costs for each call, and threads that wait for one another, outweigh
    what both save.
    """
    before, before_threads = torch.backends.mkldnn.enabled, torch.get_num_threads()
    if wanted:
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before
        if wanted:
            torch.set_num_threads(before_threads)


@contextlib.contextmanager
def kernel_search(wanted: bool) -> Iterator[None]:
    """While entered, let cuDNN try its kernels for each new size of a convolution, where ``wanted``."""
    before = torch.backends.cudnn.benchmark
    if wanted:
        torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def seed_device(device: torch.device, seed: int) -> None:
    """Seed the generators that dropout and the like draw from on ``device``."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def put(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return ``values`` on ``device``; to CUDA through pinned memory, without waiting for the copy."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory did not suffice, by CUDA's error, MPS's, the CPU allocator's or Python's."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text
        or "out of memory" in text
        or "can't allocate memory" in text
        or "could not create a primitive" in text  # oneDNN's words
    )


def halved(count: int, problem: object, during: str = "") -> int:
    """Return how many images to try next where ``count`` were too many. Raises TrainingError where that was one."""
    if count == 1:
        raise TrainingError(
            f"Out of memory{during} with a single image at a time. Use a smaller model or --input.size. ({problem})"
        )
    return -(-count // 2)


def release(device: torch.device) -> None:
    """Give cached memory back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
