from __future__ import annotations

import types
import warnings

import pytest
import torch

from tellapart import doctor
from tellapart.doctor import GIB, accelerators

DEVICES = {
    "NVIDIA H100 80GB HBM3": ((9, 0), 80 * GIB, 79 * GIB),
    "Tesla V100-SXM2-16GB": ((7, 0), 16 * GIB, 2 * GIB),
    "NVIDIA GeForce GTX 1660": ((7, 5), 6 * GIB, 6 * GIB),
    "Tesla P100-PCIE-16GB": ((6, 0), 16 * GIB, 16 * GIB),
}


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch, no_packages: None) -> None:
    rows = list(DEVICES.items())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(rows))
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda i: types.SimpleNamespace(name=rows[i][0], total_memory=rows[i][1][1]),
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: rows[i][1][0])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: (rows[i][1][2], rows[i][1][1]))
    monkeypatch.setattr(
        torch.cuda, "get_arch_list", lambda: ["sm_70", "sm_75", "sm_80", "sm_90", "compute_90"]
    )
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.version, "hip", None, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)


def test_gpus_are_described(fake_cuda: None) -> None:
    found = doctor.examine()
    h100, v100, gtx, p100 = found.gpus
    assert [gpu.name for gpu in found.gpus] == list(DEVICES)
    assert (h100.capability, h100.bf16, h100.tensor_cores, h100.supported) == ("9.0", True, True, True)
    assert (v100.capability, v100.bf16, v100.tensor_cores) == ("7.0", False, True)
    assert (gtx.capability, gtx.bf16, gtx.tensor_cores) == ("7.5", False, False)
    assert (p100.bf16, p100.tensor_cores, p100.supported) == (False, False, False)
    assert h100.used_memory == 1 * GIB
    assert v100.used_memory == 14 * GIB
    assert found.torch.cudnn_version == "9.10.2"
    text = doctor.render(found)
    assert "GPU 0: NVIDIA H100 80GB HBM3" in text
    assert "14.0 GiB, free 2.0 GiB" in text
    sentences = " ".join(found.advice)
    assert "torchrun --nproc-per-node 4" in sentences
    assert "GPU 0 (NVIDIA H100 80GB HBM3): use --training.precision bf16" in sentences
    assert "GPU 1 (Tesla V100-SXM2-16GB): use --training.precision fp16" in sentences
    assert "no kernels for GPU 3 (Tesla P100-PCIE-16GB, capability 6.0)" in sentences
    assert "GPU 1: 88 % of its memory" in sentences
    assert "No GPU" not in sentences


def test_quick_does_not_touch_the_gpus_memory(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda i: pytest.fail("asked"))
    gpu = doctor.examine(quick=True).gpus[0]
    assert gpu.total_memory == 80 * GIB
    assert gpu.used_memory is None


def test_one_broken_gpu_does_not_hide_the_others(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.cuda.get_device_properties

    def broken(index: int) -> object:
        if index == 1:
            raise RuntimeError("CUDA error: device is lost\nmore")
        return whole(index)

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    found = doctor.examine()
    assert [gpu.name for gpu in found.gpus][:2] == ["NVIDIA H100 80GB HBM3", "unknown"]
    assert "GPU 1: RuntimeError: CUDA error: device is lost" in found.unknown
    assert "device is lost" in doctor.render(found)


def test_memory_of_a_gpu_that_another_process_holds(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(index: int) -> tuple[int, int]:
        raise RuntimeError("all CUDA-capable devices are busy")

    monkeypatch.setattr(torch.cuda, "mem_get_info", busy)
    found = doctor.examine()
    assert found.gpus[0].total_memory == 80 * GIB
    assert found.gpus[0].used_memory is None
    assert any("memory in use" in line for line in found.unknown)


def test_rocm_is_named(fake_cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4.1", raising=False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: True)
    found = doctor.examine()
    assert (found.gpus[0].bf16, found.gpus[0].tensor_cores) == (True, None)
    assert "ROCm version        6.4.1" in doctor.render(found)


def test_a_driver_that_is_too_old_is_explained(no_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    assert any("too old" in sentence for sentence in doctor.examine().advice)


@pytest.mark.parametrize(
    ("compiled", "capability", "expected"),
    [
        (("sm_80", "sm_90"), (8, 6), True),
        (("sm_80", "sm_90"), (7, 5), False),
        (("sm_80", "sm_90"), (12, 0), False),
        (("sm_80", "compute_90"), (12, 0), True),
        (("sm_90a", "sm_120"), (12, 0), True),
        (("sm_86",), (8, 0), False),
        ((), (9, 0), None),
        (("gfx90a",), (9, 0), None),
    ],
)
def test_kernels_for_a_capability(
    compiled: tuple[str, ...], capability: tuple[int, int], expected: bool | None
) -> None:
    assert accelerators._has_kernels(compiled, *capability) is expected


@pytest.mark.parametrize(
    ("number", "text"), [(8907, "8.9.7"), (91002, "9.10.2"), (90100, "9.1.0"), (7605, "7.6.5")]
)
def test_cudnn_version(number: int, text: str) -> None:
    assert accelerators._cudnn(number) == text
