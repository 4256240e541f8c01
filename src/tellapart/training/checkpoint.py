"""Checkpoints: everything that going on needs, written so that a kill at any moment leaves a good one.

A checkpoint is one file ``checkpoint/step-N.pt`` of tensors and plain values, read back with
``weights_only=True``. It is written under a temporary name, flushed to the disk and renamed; the newest two
stay. Knows nothing of what is in it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tellapart import files

KEPT = 2
_NAME = re.compile(r"step-(\d+)\.pt")


def existing(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a folder, newest first."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def save(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write the checkpoint of ``step``, then drop all but the newest two and what an earlier kill left."""
    path = folder / f"step-{step:09d}.pt"
    folder.mkdir(parents=True, exist_ok=True)
    files.sweep(folder, earlier_names=True)
    with files.writing(path) as stream:
        torch.save(content, stream)
    for old in existing(folder)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the newest checkpoint that can be read, or None. A damaged one is passed over for the older."""
    for path in existing(folder):
        try:
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, KeyError):
            continue
        return content
    return None
