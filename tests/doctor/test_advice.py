from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tellapart.doctor import GIB, Cpu, Disk, Gpu, Memory, Torch, advice

Make = Callable[..., Any]


def test_a_plain_machine_hears_only_that_there_is_no_gpu(report: Make, advice_for: Make) -> None:
    assert len(list(advice.advise(report()))) == 1
    assert "--model.finetune head" in advice_for()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"torch": Torch("2.11.0+cu128", cuda_version="12.8")}, "no NVIDIA driver is loaded"),
        ({"torch": Torch("2.11.0+cu128", cuda_version="12.8"), "nvidia": "device"}, "install the driver"),
        ({"torch": Torch("2.11.0+cu128", cuda_version="12.8"), "nvidia": "driver"}, "--gpus all"),
        ({"torch": Torch("2.11.0+cpu"), "nvidia": "driver"}, "this torch is a CPU build"),
        ({"torch": Torch("2.11.0", mps_available=True)}, "Apple GPU"),
        ({"torch": Torch(error="ImportError: libcudart.so.12")}, "libcudart.so.12"),
        ({"cpu": Cpu(fast_bf16=True)}, "--training.precision bf16"),
        ({"cpu": Cpu(fast_bf16=False)}, "--training.precision fp32"),
        ({"cpu": Cpu(logical=2)}, "Only 2 processor cores"),
        ({"cpu": Cpu(logical=8, quota=0.5)}, "Only 0.5 processor cores"),
        ({"cpu": Cpu(logical=8, quota=2.0), "torch": Torch("2", threads=8)}, "--training.threads 2"),
        ({"memory": Memory(2 * GIB, GIB, 2 * GIB)}, "memory limit is 2.0 GiB"),
        ({"memory": Memory(8 * GIB, GIB)}, "Only 1.0 GiB of memory free"),
        ({"disk": Disk("/cache", 100 * GIB, GIB)}, "--data.cache-dir"),
    ],
)
def test_advice(advice_for: Make, changes: dict[str, object], expected: str) -> None:
    assert expected in advice_for(**changes)
    assert expected not in advice_for()


def test_several_gpus_of_one_kind_are_all_used(advice_for: Make) -> None:
    gpus = (Gpu(0, "A", "8.0", bf16=True), Gpu(1, "A", "8.0", bf16=True))
    assert "--nproc-per-node 2" in advice_for(gpus=gpus)
    assert "No GPU" not in advice_for(gpus=gpus)
