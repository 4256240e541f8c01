"""Good by default: `tellapart train SET --time-limit T` against fastai, PyTorch's tutorial and Hugging Face's example.

    python bench/defaults.py --out FOLDER --peers PYTHON [sources, see default_sets.py] [--limit 10m] [--seeds 0 1 2]
    python bench/defaults.py --out FOLDER … --limits 1m 3m 10m 30m
    python bench/defaults.py --out FOLDER … --settings

Every side gets the same files, the same weights (EfficientNet-Lite0, where it uses any) and the same seconds, which
--limit sets for all sets; without it each set has its own (default_sets.SETS). Ours is the command with nothing but
the time (and a seed, and folders of its own; its cache is empty). The others train as their documentation shows it
(peers/defaults_*.py), for as many epochs as fit, by epochs measured before, and never more than their documentation
has; where not even one fits they get one, and their time is what it took. Nothing beside a run counts: the accuracy of
the others on the test split is measured while their clock stands still; ours measures it in its time.

For the time in which ours is as accurate as a peer in the end, ours also runs with parts of the time (--fractions).

--limits: ours alone, with each of the times: does it end within 5 %, and does accuracy fall with more time?
--settings: ours alone, with the options of default_settings.py at the same times: how much was left to gain?

FOLDER/cells keeps what is finished, and what is there is not run again: interrupt it when you like, and give the same
command to go on. FOLDER/defaults.html shows accuracy over seconds for each set. Take a quiet machine.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import default_page
import default_results as results
import default_sets
from default_results import Cell
from default_settings import SETTINGS
from tellapart import files

OURS = "tellapart"


@dataclass(frozen=True)
class Peer:
    """Another library's way. epochs: the most that its documentation has."""

    script: str
    epochs: int
    variant: str = ""


PEERS = {
    "fastai": Peer("defaults_fastai", 12),  # the longest run of its book
    "tutorial, all layers": Peer("defaults_torchvision", 25, "finetune"),
    "tutorial, last layer": Peer("defaults_torchvision", 25, "fixed"),
    "transformers": Peer("defaults_transformers", 5),  # of the README's two examples the longer
}
VARIANTS = ("tutorial, all layers", "tutorial, last layer")


class FailedError(Exception):
    """A run failed; the text says which, and where its output is."""


def call(words: Sequence[str], folder: Path) -> tuple[float, str]:
    """Run a command in ``folder``; return its seconds and standard output. Standard error goes to a file there."""
    started = time.perf_counter()
    with (folder / "stderr.txt").open("w") as errors:
        done = subprocess.run(
            words, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True, check=False
        )
    if done.returncode:
        tail = (folder / "stderr.txt").read_text().strip()[-1500:]
        raise FailedError(f"{shlex.join(words)}\n{tail}")
    return time.perf_counter() - started, done.stdout


@functools.cache
def has_time_limit() -> bool:
    """Return whether this version of tellapart has ``--time-limit``."""
    words = [sys.executable, "-m", "tellapart", "train", "--help"]
    return "--time-limit" in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def ours(name: str, data: Path, seed: int, limit: float, side: str = OURS, flags: Sequence[str] = ()) -> Cell:
    """Run our command once."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        words = [sys.executable, "-m", "tellapart", "train", str(data), *flags]
        words += ["--time-limit", results.time_text(limit)] if has_time_limit() else []
        words += ["--seed", str(seed), "--run.dir", "run", "--data.cache-dir", str(folder / "cache")]
        took, _ = call(words, folder)
        right = marks(folder / "run" / "evaluation" / "test" / "predictions.csv")
        chosen = map(json.loads, (folder / "run" / "choices.jsonl").read_text().splitlines())
        told = {choice["field"]: choice["value"] for choice in chosen if choice["matters"]}
    about = {
        "command": shlex.join(words[3:]),
        "time_limit": has_time_limit(),
        "chosen": told,
    }
    return Cell(name, side, seed, limit, took, right.count("1") / len(right), right, about=about)


def marks(predictions: Path) -> str:
    """Return of each test image, in the order of their paths, "1" if the answer was right, else "0"."""
    with predictions.open(newline="", encoding="utf-8") as file:
        rows = {Path(row["path"]): row["correct"] for row in csv.DictReader(file)}
    return "".join(rows[path] for path in sorted(rows))


@dataclass(frozen=True)
class Bench:
    """Where everything is, and what the peers run with."""

    out: Path
    python: str
    points: int

    @property
    def weights(self) -> Path:
        return self.out / "efficientnet-lite0.pt"

    def script(self, peer: Peer, data: Path, folder: Path, *more: str) -> tuple[float, list[dict[str, Any]]]:
        """Run a peer's script; return the seconds and the lines that it printed."""
        script = Path(__file__).parent / "peers" / f"{peer.script}.py"
        words = [os.path.abspath(self.python), str(script), "--data", str(data)]
        words += ["--weights", str(self.weights.resolve()), "--variant", peer.variant, *more]
        took, output = call([*words, "--started", str(time.time())], folder)
        return took, [json.loads(line) for line in output.splitlines() if line.startswith('{"se')]

    def epochs(self, name: str, data: Path, side: str, limit: float) -> int:
        """Return the epochs that fit, by a short run whose outcome is kept."""
        peer, kept = PEERS[side], self.out / "cells" / name / f"{plain(side)}-probe.json"
        if not kept.exists():
            with tempfile.TemporaryDirectory() as folder:
                found = self.script(peer, data, Path(folder), "--probe")[1][-1]
            keep(kept, found)
        found = json.loads(kept.read_text())
        return results.fitting_epochs(
            limit, found["setup"], found["epochs"].get("head", 0.0), found["epochs"]["all"], peer.epochs
        )

    def theirs(self, side: str, name: str, data: Path, seed: int, limit: float) -> Cell:
        """Run a peer once, for as many epochs as fit."""
        epochs = self.epochs(name, data, side, limit)
        more = ["--epochs", str(epochs), "--seed", str(seed), "--points", str(self.points)]
        with tempfile.TemporaryDirectory() as folder:
            lines = self.script(PEERS[side], data, Path(folder), *more)[1]
        last = lines[-1]
        points = tuple((line["seconds"], line["accuracy"]) for line in lines[:-1])
        return Cell(
            name,
            side,
            seed,
            limit,
            last["seconds"],
            last["accuracy"],
            last["right"],
            points,
            {"epochs": epochs},
        )


def plain(text: str) -> str:
    """Return a side as part of a file's name."""
    return "".join(c if c.isalnum() else "-" for c in text).replace("--", "-")


def keep(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(content, indent=1))


def state_of_network(path: Path) -> None:
    """Write the weights that all sides share, in timm's names."""
    import torch

    from tellapart.models import weights, zoo

    architecture = zoo.Architecture("timm/tf_efficientnet_lite0", 1000, 3, 224)
    model = zoo.build(architecture)
    weights.load(model, architecture, "efficientnet-lite0")
    with files.replacing(path) as draft:
        torch.save(model.state_dict(), draft)


Job = tuple[Path, Callable[[], Cell]]


def jobs(args: argparse.Namespace, data: Mapping[str, Path]) -> Iterator[Job]:
    """Give the file of each cell, and what makes it: for each seed all sets, on each the sides in turns."""
    bench = Bench(args.out, args.peers, args.points)
    for turn, seed in enumerate(args.seeds):
        for name, place in data.items():
            limit = args.limit or default_sets.SETS[name].seconds
            sides = list(sides_of(args, bench, name, place, seed, limit))
            shift = turn % max(1, len(sides))
            for side, most, make in sides[shift:] + sides[:shift]:
                file = f"{plain(side)}-{most:g}s-seed{seed}.json"
                yield args.out / "cells" / name / file, make


def sides_of(
    args: argparse.Namespace, bench: Bench, name: str, data: Path, seed: int, limit: float
) -> Iterator[tuple[str, float, Callable[[], Cell]]]:
    """Give side, seconds and run of each that was asked for."""
    if args.limits:
        for most in args.limits:
            yield OURS, most, functools.partial(ours, name, data, seed, most)
        return
    if OURS in args.sides:
        parts = args.fractions if has_time_limit() and not args.settings else []
        for most in (*sorted(round(limit * part) or 1 for part in parts), limit):
            yield OURS, most, functools.partial(ours, name, data, seed, most)
    if args.settings:
        for title, flags in SETTINGS.items():
            yield title, limit, functools.partial(ours, name, data, seed, limit, title, flags)
        return
    for side in args.sides:
        if side in PEERS:
            yield side, limit, functools.partial(bench.theirs, side, name, data, seed, limit)


def run(job: Job) -> None:
    """Make a cell that is not there; a failure is told and left for the next time."""
    path, make = job
    if path.exists():
        return
    busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    began = time.perf_counter()
    try:
        cell = make()
    except (FailedError, OSError, ValueError, KeyError, IndexError) as error:
        print(f"{path.parent.name}/{path.stem} failed: {type(error).__name__}: {error}", flush=True)
        return
    cell.about.update(date=time.strftime("%Y-%m-%d %H:%M"), load=busy, all=time.perf_counter() - began)
    keep(path, cell.to_dict())
    epochs = f", {cell.about['epochs']} epochs" if "epochs" in cell.about else ""
    print(
        f"{path.parent.name:<18}{path.stem:<38}{cell.seconds:>8.1f} s{cell.accuracy:>9.2%}{epochs}",
        flush=True,
    )


def cells(out: Path) -> list[Cell]:
    """Return every cell that is there."""
    found = sorted((out / "cells").glob("*/*-seed*.json"))
    return [Cell.from_dict(json.loads(path.read_text())) for path in found]


def show(args: argparse.Namespace, found: Sequence[Cell], names: Sequence[str]) -> None:
    """Print the tables, and write the page."""
    limits = {name: args.limit or default_sets.SETS[name].seconds for name in names}
    pictures = [default_page.Picture(name, default_sets.SETS[name].title, limits[name]) for name in names]
    page = default_page.Page(pictures, found, OURS, list(PEERS), VARIANTS, SETTINGS, introduction())
    print("\n".join(page.text()))
    target = args.out / "defaults.html"
    files.write_text(target, page.html())
    print(f"\nPage     {target}")


def introduction() -> str:
    """Return on what it was measured, as the other measurements say it."""
    import contextlib as c
    import io

    with c.redirect_stdout(io.StringIO()) as text:
        common.introduce()
    return text.getvalue().splitlines()[0]


def arguments() -> argparse.Namespace:
    parser = common.parser(__doc__, rounds=None)
    default_sets.options(parser)
    parser.add_argument("--peers", default=sys.executable, help="Python of the others' environment")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--limit", type=seconds, help="90s, 10m, 1h: for all sets; each has its own")
    parser.add_argument("--sides", nargs="+", choices=[OURS, *PEERS], default=[OURS, *PEERS], metavar="SIDE",
                        help=f"of {', '.join((OURS, *map(repr, PEERS)))}; all")  # fmt: skip
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.1, 0.25], help="0.1 0.25")
    parser.add_argument("--limits", nargs="+", type=seconds, help="ours alone, with each of these")
    parser.add_argument("--settings", action="store_true", help="ours alone, with hand-chosen options")
    parser.add_argument("--points", type=int, default=4, help="of a peer's course before its end; 4")
    parser.add_argument("--show", action="store_true", help="run nothing: table and page of what is there")
    return parser.parse_args()


def seconds(text: str) -> float:
    try:
        return results.seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def main() -> None:
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    args.out = args.out.resolve()
    common.introduce()
    data = default_sets.prepared(args)
    left_out = [name for name in args.sets if name not in data]
    if left_out:
        print(f"Left out, because their source is not given: {', '.join(left_out)}")
    if not has_time_limit():
        print("This tellapart has no --time-limit: its runs take as long as they take.")
    if not (args.show or (args.out / "efficientnet-lite0.pt").exists()):
        state_of_network(args.out / "efficientnet-lite0.pt")
    with contextlib.suppress(KeyboardInterrupt):
        for job in [] if args.show else jobs(args, data):
            run(job)
    show(args, cells(args.out), list(data))


if __name__ == "__main__":
    main()
