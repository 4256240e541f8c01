"""Formats whose packages cannot share an environment with the core: where theirs is, and how to create it.

Their programs (`tellapart.runtime.programs`) run with that environment's Python. Loads none of their packages.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tellapart import places
from tellapart.errors import UserError

_chosen: contextvars.ContextVar[str] = contextvars.ContextVar("environment", default="")
_PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True)
class Environment:
    """A separate environment. ``packages``: pinned; ``size``: its space on disk, as text."""

    name: str
    packages: tuple[str, ...]
    size: str

    @property
    def variable(self) -> str:
        """The environment variable that names its folder."""
        return f"TELLAPART_{self.name.upper()}_ENV"

    @property
    def folder(self) -> Path:
        """Its default location: the user's own folder, since the working folder may be a stranger's."""
        return places.data_folder() / self.name

    @property
    def program(self) -> Path:
        """The program that runs in it."""
        return _PROGRAMS / f"{self.name}_program.py"

    def command(self) -> str:
        """Return the command that creates it."""
        python, folder = shlex.quote(sys.executable), shlex.quote(str(self.folder))
        return f"{python} -m venv {folder} && {folder}/bin/pip install {' '.join(self.packages)}"

    def python(self) -> Path:
        """Return its Python. If there is none, raises UserError, which says how to create it."""
        given = _chosen.get() or os.environ.get(self.variable)
        folder = Path(given or self.folder)
        for place in ("bin/python", "Scripts/python.exe"):
            if (folder / place).is_file():
                return (folder / place).absolute()
        where = f"in {folder} there is no Python" if given else f"there is none in {folder}"
        raise MissingEnvironmentError(
            f"{self.name} needs an environment of its own ({self.size}), and {where}. This command creates it:\n\n"
            f"    {self.command()}\n\n"
            f"For an environment elsewhere give --env PATH (export) or {self.variable}=PATH."
        )


class MissingEnvironmentError(UserError):
    """The environment that a format needs is missing; the message has the command that creates it."""


@contextlib.contextmanager
def at(folder: str) -> Iterator[None]:
    """Within this context, look for environments in ``folder``; an empty one changes nothing."""
    token = _chosen.set(folder)
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> str:
    """Return the folder that `at` set; empty if none."""
    return _chosen.get()


LITERT = Environment("litert", ("torch==2.13.0", "litert-torch==0.10.0"), "about 2.2 GB")
EXECUTORCH = Environment("executorch", ("torch==2.13.0", "executorch==1.5.1"), "about 1.6 GB")


def run(environment: Environment, words: Sequence[str]) -> str:
    """Run the environment's program; return what it said on standard error. Raises UserError, RuntimeError."""
    done = subprocess.run(
        [str(environment.python()), str(environment.program), *words],
        capture_output=True,
        text=True,
        check=False,
        env=clean_environment(),
    )
    if done.returncode:
        raise RuntimeError(last_error(done.stderr) or f"it {ending(done.returncode)}")
    return done.stderr


def last_error(text: str) -> str:
    """Return the last line of a program's messages that reports an error, otherwise the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or [""])[-1][:600]


def ending(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return f"ended with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def clean_environment() -> dict[str, str]:
    """Return this process's environment without the variables by which another Python would find our packages."""
    values = dict(os.environ)
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
        values.pop(name, None)
    return values
