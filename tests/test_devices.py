"""Devices: chosen or refused by name, seeded, and their memory errors known."""

from __future__ import annotations

import concurrent.futures
import ctypes
import subprocess
import sys

import pytest
import torch

from tellapart import devices
from tellapart.errors import SpecError, TrainingError


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CUDA devices, as far as choosing goes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("cpu_only")
def test_on_a_machine_without_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.choose_device("auto") == devices.choose_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(SpecError, match=r"'cuda.*no CUDA device.*tellapart doctor"):
            devices.choose_device(name)
    with pytest.raises(SpecError, match="'mps'"):
        devices.choose_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.choose_device("auto") == devices.choose_device("mps") == torch.device("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "xpu", "meta"])
def test_other_names_are_answered_with_the_valid_ones(name: str) -> None:
    with pytest.raises(SpecError, match="auto, cpu, cuda, cuda:N or mps"):
        devices.choose_device(name)


@pytest.mark.usefixtures("cuda")
def test_each_process_takes_its_own_cuda_device() -> None:
    for rank in (0, 1):
        assert devices.choose_device("auto", rank) == torch.device("cuda", rank)
        assert devices.choose_device("cuda", rank) == torch.device("cuda", rank)
        assert devices.choose_device("cuda:1", rank) == torch.device("cuda", 1)
        assert devices.choose_device("cpu", rank) == torch.device("cpu")
    with pytest.raises(SpecError, match="there are 2 CUDA devices"):
        devices.choose_device("cuda:2")


def test_a_seed_gives_the_same_numbers_again() -> None:
    drawn = []
    for seed in (3, 4, 3):
        devices.seed_device(torch.device("cpu"), seed)
        drawn.append(torch.nn.functional.dropout(torch.ones(64)))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


def test_seeds_reach_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: seen.append(("cuda", seed)))
    monkeypatch.setattr(torch.mps, "manual_seed", lambda seed: seen.append(("mps", seed)))
    for name in ("cpu", "cuda", "mps"):
        devices.seed_device(torch.device(name), 7)
    assert seen == [("cuda", 7), ("mps", 7)]


def test_released_memory_goes_back_to_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: seen.append("mps"))
    for name in ("cpu", "cuda", "mps"):
        devices.release(torch.device(name))
    assert seen == ["cuda", "mps"]


def test_the_cpu_allocators_own_error_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert devices.is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("out of memory"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_which_errors_mean_memory(error: BaseException, expected: bool) -> None:
    assert devices.is_out_of_memory(error) is expected


def test_tuning_keeps_freed_memory() -> None:
    """With glibc, memory freed after a large tensor stays with the process instead of going back."""
    if not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        devices.tune_allocator()
        pytest.skip("another C library")
    program = (
        "import os, torch\n"
        "from tellapart import devices\n"
        "def kept():\n"
        "    before = resident()\n"
        "    torch.ones(48 << 20, dtype=torch.uint8)\n"
        "    return resident() - before\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * os.sysconf('SC_PAGE_SIZE')\n"
        "plain = kept()\n"
        "devices.tune_allocator()\n"
        "print(plain, kept())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    plain, tuned = map(int, done.stdout.split())
    assert plain < 16 << 20 < 40 << 20 < tuned


def test_tuning_does_nothing_without_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    class Library:
        def __init__(self, name: object) -> None:
            pass

        def mallopt(self, *words: int) -> None:
            called.append(words)

    monkeypatch.setattr(ctypes, "CDLL", Library)
    devices.tune_allocator()
    assert called == []


def test_plain_kernels_for_a_while() -> None:
    before = torch.backends.mkldnn.enabled
    with devices.plain_kernels(False):
        assert torch.backends.mkldnn.enabled == before
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with devices.plain_kernels(True):
            assert not torch.backends.mkldnn.enabled
            assert torch.get_num_threads() == 1
        assert torch.backends.mkldnn.enabled == before
        assert torch.get_num_threads() == 3
        with devices.plain_kernels(True, 2):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(StopIteration), devices.plain_kernels(True):
        next(iter([]))
    assert torch.backends.mkldnn.enabled == before


def test_a_pools_threads_compute_alone_and_leave_the_others_alone() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with devices.thread_pool(4) as pool:
            inside = list(pool.map(lambda _: torch.get_num_threads(), range(16)))
            with concurrent.futures.ThreadPoolExecutor(1) as other:
                beside = other.submit(torch.get_num_threads).result()
        assert inside == [1] * 16
        assert beside == 3
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_batches_are_halved_down_to_one_image() -> None:
    tried = [45]
    while tried[-1] > 1:
        tried.append(devices.halved(tried[-1], "no room"))
    assert tried == [45, 23, 12, 6, 3, 2, 1]
    with pytest.raises(TrainingError, match=r"Out of memory in evaluation with a single image.*\(no room\)"):
        devices.halved(1, "no room", " in evaluation")
