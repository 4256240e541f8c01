"""What this machine offers for training and serving, and what to do about it.

Asks torch, the operating system and the installed packages; changes nothing and needs no network. Every probe is
guarded: a failed one is listed in ``Report.unknown`` and the rest is still reported. Knows nothing of data, models or
runs.

`report` holds the results; `accelerators`, `host` and `extras` probe; `advice` judges; `text` formats; `examination`
puts them together.
"""

from tellapart.doctor.examination import examine
from tellapart.doctor.extras import PACKAGES
from tellapart.doctor.host import FAST_BF16, INSTRUCTIONS, processors
from tellapart.doctor.report import GIB, Cpu, Disk, Gpu, Memory, Package, Report, Torch
from tellapart.doctor.text import render

__all__ = [
    "FAST_BF16",
    "GIB",
    "INSTRUCTIONS",
    "PACKAGES",
    "Cpu",
    "Disk",
    "Gpu",
    "Memory",
    "Package",
    "Report",
    "Torch",
    "examine",
    "processors",
    "render",
]
