"""Probes of the operating system that never fail."""

from __future__ import annotations

import pathlib
import subprocess


def reason_of(error: BaseException) -> str:
    """Return an error's kind and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__


def output_of(*command: str) -> str:
    """Return a command's output, or "" if it does not exist or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def text_of(path: str) -> str:
    """Return a small file's text, or "" if it cannot be read."""
    try:
        return pathlib.Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
