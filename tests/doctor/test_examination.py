from __future__ import annotations

import json
import os
import sys
from types import ModuleType

import pytest
import torch

from tellapart import doctor, packages
from tellapart.doctor import Report, accelerators, advice, extras, host


@pytest.fixture(scope="module")
def here() -> Report:
    return doctor.examine()


def test_this_machine_is_described(here: Report) -> None:
    assert here.torch.version == torch.__version__
    assert here.torch.cuda_available == torch.cuda.is_available()
    assert here.torch.threads == torch.get_num_threads()
    assert len(here.gpus) == torch.cuda.device_count()
    assert here.memory.total is not None
    assert here.memory.free is not None
    assert 0 < here.memory.free <= here.memory.total
    assert here.disk.free is not None
    assert here.disk.free > 0
    if hasattr(os, "sched_getaffinity"):
        assert here.cpu.logical == len(os.sched_getaffinity(0))
    vision = next(package for package in here.packages if package.name == "torchvision")
    assert vision.imports is (True if vision.version else None)
    assert {package.name for package in here.packages} == {row[1] for row in doctor.PACKAGES}


def test_json_holds_what_the_dataclass_holds(here: Report) -> None:
    plain = json.loads(json.dumps(here.to_dict()))
    assert plain["torch"]["version"] == torch.__version__
    assert plain["cpu"]["logical"] == here.cpu.logical
    assert len(plain["packages"]) == len(doctor.PACKAGES)


def test_text_has_80_columns(here: Report) -> None:
    lines = doctor.render(here).splitlines()
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)
    assert torch.__version__ in doctor.render(here)


def test_without_torch_the_rest_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = doctor.examine()
    assert found.torch.error
    assert "does not import" in doctor.render(found)
    assert found.memory.total
    assert any("nothing works without it" in sentence for sentence in found.advice)


def test_every_probe_may_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("no such thing")

    probes: dict[ModuleType, tuple[str, ...]] = {
        accelerators: ("about_torch", "find_gpus", "nvidia_state"),
        host: ("system_name", "about_cpu", "about_memory", "about_disk"),
        extras: ("about_package",),
        advice: ("advise",),
    }
    for module, names in probes.items():
        for name in names:
            monkeypatch.setattr(module, name, fail)
    monkeypatch.setattr(packages, "version", fail)
    found = doctor.examine()
    assert len(found.unknown) == sum(map(len, probes.values())) + 1
    assert "no such thing" in doctor.render(found)
    json.dumps(found.to_dict())


def test_single_questions_to_torch_may_fail(no_packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(torch.backends.mkldnn, "is_available", fail)
    found = doctor.examine()
    assert found.torch.onednn is None
    assert found.torch.version == torch.__version__
    assert "oneDNN: RuntimeError: no" in found.unknown
