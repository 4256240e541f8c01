"""What several of the measurements need: the environment in words, rounds in turns, and peers in fresh processes."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

T = TypeVar("T")


def parser(doc: str | None, rounds: int | None = 5) -> argparse.ArgumentParser:
    """Return a parser with a script's text as its help, and ``--rounds`` where the script has rounds."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    if rounds:
        made.add_argument("--rounds", type=int, default=rounds, help=f"each side once in each; {rounds}")
    return made


def introduce(note: str = "") -> None:
    """Print on what a table was measured, and with which command."""
    import torch

    from tellapart.doctor import host

    threads = os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(
        f"{time.strftime('%Y-%m-%d')}; {host.about_cpu([]).model}{card}; {os.cpu_count()} processors, {threads} "
        f"threads; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"python {shlex.join(sys.argv)}")
    print(f"{note}\n" if note else "", flush=True)


def in_turns(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each way gave in each round; in a round every way has its turn. Tells on standard error."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, measure in ways.items():
            started = time.perf_counter()
            found[name].append(measure())
            seconds = time.perf_counter() - started
            print(f"round {number + 1} of {rounds}: {name}, {seconds:.1f} s", file=sys.stderr, flush=True)
    return found


def fresh(function: Callable[..., T], *args: Any) -> T:
    """Return what ``function`` returns in a fresh process, where nothing that tellapart sets up has any effect.

    tellapart tunes the C library's allocator, which would make a peer in the same process, and its workers, faster
    than they are for their users.
    """
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_usual_start) as pool:
        return pool.submit(function, *args).result()


def _usual_start() -> None:
    """Let DataLoaders start their workers as they do in a program: a spawned process would spawn them too."""
    multiprocessing.set_start_method(None, force=True)


def peer(python: str, script: str, **options: Any) -> float:
    """Return images a second of ``peers/SCRIPT.py --NAME VALUE…``, run by the Python of another environment."""
    words = [python, str(Path(__file__).parent / "peers" / f"{script}.py")]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)} failed: {done.stderr.strip()[-600:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["images_per_second"])


def installed(python: str, package: str) -> bool:
    """Return whether the Python of another environment has a package."""
    code = f"import importlib.util as u, sys; sys.exit(u.find_spec({package!r}) is None)"
    return subprocess.run([python, "-c", code], check=False).returncode == 0


def pictures(folder: Path, count: int, size: tuple[int, int], ending: str, classes: int = 2) -> Path:
    """Write smooth random pictures, width and height as ``size``, in train, val and test; return the folder."""
    rng = np.random.default_rng(0)
    for index in range(count):
        split = ("train", "train", "train", "val", "test")[index % 5]
        path = folder / split / chr(ord("a") + index // 5 % classes) / f"{index}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return folder


class Silent:
    """A reporter of training that shows nothing."""

    def start(self, epochs: int, steps_per_epoch: int, first_step: int) -> None: ...
    def message(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None: ...
