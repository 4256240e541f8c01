"""What several of the measurements need: the environment in words, rounds in turns, peers in fresh processes, tables.

Everything runs on the device that tellapart chooses by itself: a GPU where there is one.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

T = TypeVar("T")
WARM_UP = 3  # steps


def parser(doc: str | None, rounds: int | None = 5) -> argparse.ArgumentParser:
    """Return a parser with a script's text as its help, and ``--rounds`` where the script has rounds."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    if rounds:
        made.add_argument("--rounds", type=int, default=rounds, help=f"each side once in each; {rounds}")
    return made


def introduce(note: str = "") -> None:
    """Print on what a table was measured, and with which command."""
    from tellapart.doctor import host

    threads = os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()
    card = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(
        f"{time.strftime('%Y-%m-%d')}; {host.about_cpu([]).model}{card}; {os.cpu_count()} processors, {threads} "
        f"threads; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"python {shlex.join(sys.argv)}")
    print(f"{note}\n" if note else "", flush=True)


def device() -> torch.device:
    """Return the device that tellapart trains on here: a GPU where there is one."""
    from tellapart.devices import choose_device

    return choose_device("auto")


def on_gpu() -> bool:
    return device().type == "cuda"


def wait() -> None:
    """Return when the GPU, where there is one, has done what it was given."""
    if on_gpu():
        torch.cuda.synchronize()


def default_workers() -> int:
    """Return how many workers the others' DataLoaders get: beside a GPU one for each processor, up to 16."""
    return min(16, os.cpu_count() or 2) if on_gpu() else 2


def peers_speed(tf32: bool = False) -> None:
    """Set what the reference scripts of timm and torchvision (``tf32``: timm) set before they train on a GPU."""
    torch.backends.cudnn.benchmark = on_gpu()
    torch.backends.cuda.matmul.allow_tf32 = tf32


def timed(step: Callable[[], Any], steps: int, warm_up: int = WARM_UP) -> float:
    """Return the seconds that ``steps`` calls take on the device, after the warm-up."""
    for _ in range(warm_up):
        step()
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    return time.perf_counter() - started


def in_turns(ways: Mapping[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Return what each way gave in each round; in a round every way has its turn.

    Each figure is told on standard error at once. A way that fails is told too, and left out of the result: the
    others go on.
    """
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(found):
            started = time.perf_counter()
            try:
                found[name].append(value := ways[name]())
            except Exception as error:
                print(f"{name} failed and is left out: {type(error).__name__}: {error}", flush=True)
                del found[name]
                continue
            seconds = time.perf_counter() - started
            print(
                f"round {number + 1} of {rounds}: {name}, {seconds:.1f} s: {_brief(value)}",
                file=sys.stderr,
                flush=True,
            )
    return found


def _brief(value: Any) -> str:
    values = value if isinstance(value, tuple) else (value,)
    return ", ".join(f"{part:.5g}" if isinstance(part, float) else str(part) for part in values)


RATIOS = f"{'ratio':>8}{'lowest':>8}{'highest':>9}"


def ratios(above: Sequence[float], below: Sequence[float], decimals: int = 2) -> str:
    """Return the median, lowest and highest of the rounds' ratios as columns of 8, 8 and 9; "-" where a side failed."""
    if not above or not below:
        return f"{'-':>8}{'-':>8}{'-':>9}"
    values = [a / b for a, b in zip(above, below, strict=True)]
    return (
        f"{statistics.median(values):>8.{decimals}f}{min(values):>8.{decimals}f}{max(values):>9.{decimals}f}"
    )


class EnoughError(Exception):
    """Enough steps were taken."""


class Steps:
    """Measures steps after a warm-up and then ends the loop; made a callback by `training_rate`."""

    def __init__(self, warm_up: int, steps: int) -> None:
        self.warm_up, self.steps, self.done, self.seconds = warm_up, steps, 0, 0.0

    def stepped(self) -> None:
        self.done += 1
        if self.done == self.warm_up:
            wait()
            self.started = time.perf_counter()
        elif self.done == self.warm_up + self.steps:
            wait()
            self.seconds = time.perf_counter() - self.started
            raise EnoughError


def repeated(images: Any, count: int) -> Any:
    """Return a set of ``count`` images: those of ``images`` again and again."""
    return images.select(np.resize(np.arange(len(images)), count))


def trainer(prepared: Any, steps: int, folder: Path) -> Any:
    """Return tellapart's training loop on ``prepared``, without validation; an epoch has ``steps`` whole batches."""
    from tellapart.training import loop, setup
    from tellapart.training.distributed import Processes

    train = repeated(prepared.train, steps * prepared.spec.training.batch_size)
    prepared = dataclasses.replace(prepared, train=train, val=None)
    processes = Processes(0, 1, device())
    model = setup.build_model(prepared)[0]
    plan = setup.plan(setup.complete(prepared, model, processes), model, processes)
    return loop.Trainer(plan, processes, folder, Silent())


def training_rate(trainer: Any, steps: int, warm_up: int = WARM_UP) -> float:
    """Return images a second of ``steps`` steps of a loop, as it runs in training, from the start of an epoch."""
    from tellapart.training.callbacks import Callback, Callbacks
    from tellapart.training.progress import Progress

    measured = Steps(warm_up, steps)

    class Measuring(Callback):
        """Counts the steps."""

        def after_step(self, outcome: Any) -> None:
            measured.stepped()

    trainer.progress = Progress()
    trainer.callbacks = Callbacks([*trainer.callbacks.members.values(), Measuring()])
    with contextlib.suppress(EnoughError):
        trainer.run()
    return float(trainer.training.batch_size * steps / measured.seconds)


def bare_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    images: torch.Tensor,
    labels: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> Callable[[], None]:
    """Return a training step with nothing around it, with autocast to ``dtype`` if any; all is on the device."""

    def step() -> None:
        for parameter in model.parameters():
            parameter.grad = None
        with torch.autocast(images.device.type, dtype, enabled=dtype is not None):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    return step


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


def copies(source: Path, count: int, target: Path) -> Path:
    """Write each JPEG file of ``source`` ``count`` times, with a comment of its own in each; return ``target``."""
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        content = path.read_bytes()
        folder = target / path.parent.relative_to(source)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            comment = f"copy {number}".encode()
            segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
            (folder / f"{path.stem}-{number}.jpg").write_bytes(content[:2] + segment + content[2:])
    return target


def peer(python: str, script: str, **options: Any) -> float:
    """Return images a second of ``peers/SCRIPT.py --NAME VALUE…``, run by the Python of another environment."""
    # Absolute, because it runs in a folder of its own.
    words = [os.path.abspath(python), str(Path(__file__).parent / "peers" / f"{script}.py")]
    for name, value in options.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)] if value is not False else []
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

    def start(self, epochs: int, steps_per_epoch: int, first_step: int, ahead: Any) -> None: ...
    def plan(self, epochs: int, ahead: Any) -> None: ...
    def message(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None: ...
    def log(self, step: int, values: Mapping[str, float]) -> None: ...
    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None: ...
