"""The whole examination: every probe, each guarded."""

from __future__ import annotations

import dataclasses
import platform
import sys
import warnings
from collections.abc import Callable
from typing import TypeVar

from tellapart import packages
from tellapart.doctor import accelerators, advice, extras, host
from tellapart.doctor.probing import reason_of
from tellapart.doctor.report import Cpu, Disk, Memory, Package, Report, Torch

T = TypeVar("T")


def examine(quick: bool = False) -> Report:
    """Examine this machine; never raises.

    With ``quick`` it does not try to import torchvision (seconds) and does not ask GPUs for their memory in
    use (asking takes some of it on each): enough for a training run's record.
    """
    unknown: list[str] = []

    def probe(what: str, function: Callable[[], T], default: T) -> T:
        try:
            return function()
        except Exception as error:  # one failing probe must not hide all the others
            unknown.append(f"{what}: {reason_of(error)}")
            return default

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_report = probe("torch", lambda: accelerators.about_torch(unknown), Torch())
        report = Report(
            tellapart=probe("tellapart", lambda: packages.version("tellapart"), None),
            python=f"{platform.python_version()} ({sys.executable})",
            system=probe("system", host.system_name, sys.platform),
            torch=torch_report,
            gpus=probe("GPUs", lambda: accelerators.find_gpus(torch_report, unknown, quick), ()),
            nvidia=probe("NVIDIA driver", accelerators.nvidia_state, ""),
            cpu=probe("processor", lambda: host.about_cpu(unknown), Cpu()),
            memory=probe("memory", host.about_memory, Memory()),
            disk=probe("disk", host.about_disk, Disk()),
            packages=probe(
                "packages",
                lambda: tuple(extras.about_package(*row, quick) for row in extras.PACKAGES),
                tuple[Package, ...](),
            ),
        )
    sentences = probe("advice", lambda: list(advice.advise(report)), list[str]())
    return dataclasses.replace(report, advice=tuple(sentences), unknown=tuple(unknown))
