"""CIFAR-10 to 94 or 96 %: `tellapart train FOLDER --recipe cifar10-fast` against airbench's own scripts, here.

    python bench/cifar10_fast.py --data FOLDER --airbench airbench94_muon.py [--seeds 0 1 2]
    python bench/cifar10_fast.py --data FOLDER --recipe cifar10-best --airbench airbench96_faster.py [--parts warm]

FOLDER holds train/CLASS/* and test/CLASS/*, lossless. The script is airbench94_muon.py, airbench96_faster.py or (of
legacy/) airbench96.py of https://github.com/KellerJordan/cifar10-airbench (MIT), which is not part of this project. It
is changed by the replacements that the run prints. On a GPU these are the number of runs and a seed: there all seeds
run in one process, after a first run that compiles. Where there is no CUDA device airbench94_muon.py is made to run on
the CPU in bf16 autocast with channels_last, one seed in a process; network, hyper-parameters, batch and steps stay its
own. Both see the same test images once.

The parts (--parts), which can run one by one, and their clocks:

- command: our whole command: imports, reading and decoding the folder with a cold cache, training, evaluation, report.
- warm (by default on a GPU only): the seeds one after the other in one process in which the recipe has run once
  before. Counted are, as in airbench's scripts, whitening (with the building of the network), the epochs, and the
  evaluation of the test part with all its views, each to the end of the GPU's work; reading, validation and files are
  not.
- theirs: the script's process, which gets the images decoded, in the file that it reads; and beside it what the script
  counts itself.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import common

# (what is there, what is put there, why). Each must be found, so that another version of the script is noticed.
CPU_CHANGES = (
    (
        "import torchvision\nimport torchvision.transforms as T\n",
        "{stand_ins}",
        "no torchvision, a clock for CUDA's",
    ),
    ("@torch.compile\n", "", "no compiler needed"),
    ('map_location=torch.device("cuda")', 'map_location="cpu"', "the CPU"),
    ("(self.images.half() / 255)", "(self.images.float() / 255)", "images in float32"),
    ("                mod.half()\n", "                mod.float()\n", "weights in float32, autocast casts"),
    (
        "    def forward(self, x, whiten_bias_grad=True):",
        '    @torch.autocast("cpu", dtype=torch.bfloat16)\n    def forward(self, x, whiten_bias_grad=True):',
        "bf16 autocast",
    ),
    ("return self.head(x) / x.size(-1)", "return (self.head(x) / x.size(-1)).float()", "the loss in float32"),
    ("torch.cuda.Event(enable_timing=True)", "Clock()", "a clock"),
    ("torch.cuda.synchronize()", "pass", "nothing to wait for"),
    ("CifarNet().cuda()", "CifarNet()", "the CPU"),
    ('    model.compile(mode="max-autotune")\n', "", "no compiler needed"),
    ('    main("warmup", model)\n', "", "nothing was compiled, so no run before the measured one"),
)
SEED = (
    "torch.backends.cudnn.benchmark = True\n",
    "torch.backends.cudnn.benchmark = True\ntorch.manual_seed({seed})\n__import__('random').seed({seed})\n",
    "a seed",
)
# By a word that only this script has: its name, and how many times it runs. The first of those with "+ 1" compiles.
SCRIPTS = {
    "zeropower_via_newtonschulz5": ("airbench94_muon", "for run in range(200)]", "for run in range({runs})]"),
    "train_proxy": ("airbench96_faster", "for run in range(200)]", "for run in range({runs} + 1)]"),
    "#main('warmup')": ("airbench96", "for run in range(25)]", "for run in range({runs} + 1)]"),
}
STAND_INS = """
import time
class T:
    class Normalize:
        def __init__(self, mean, std):
            self.mean, self.std = mean.view(3, 1, 1), std.view(3, 1, 1)
        def __call__(self, images):
            return (images - self.mean) / self.std
class Clock:
    def record(self):
        self.time = time.perf_counter()
    def elapsed_time(self, other):
        return (other.time - self.time) * 1e3
"""


def changes(script: Path) -> tuple[tuple[str, str, str], ...]:
    """Return the replacements for this script on this machine; SystemExit where it is none that is known."""
    text = script.read_text()
    known = [entry for word, entry in SCRIPTS.items() if word in text]
    if not known:
        sys.exit(f"{script} is none of: {', '.join(name for name, _, _ in SCRIPTS.values())}.")
    name, old, new = known[0]
    if not common.on_gpu() and name != "airbench94_muon":
        sys.exit(f"{name} runs on a GPU only.")
    return (*(() if common.on_gpu() else CPU_CHANGES), (old, new, "fewer runs"), SEED)


def adapted(script: Path, seed: int, runs: int) -> str:
    """Return the script's text with the replacements; SystemExit where it is not the text that they are for."""
    text = script.read_text()
    for old, new, why in changes(script):
        if old not in text:
            sys.exit(
                f"{script} is not the script that this benchmark knows: it has no {old.strip()!r} ({why})."
            )
        new = new.replace("{stand_ins}", STAND_INS).replace("{seed}", str(seed)).replace("{runs}", str(runs))
        text = text.replace(old, new)
    return text


def decode(folder: Path, out: Path) -> None:
    """Write train.pt and test.pt as the script reads them; shuffled, since it whitens by the first 5,000."""
    classes = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    for split in ("train", "test"):
        files = [(f, i) for i, name in enumerate(classes) for f in sorted((folder / split / name).iterdir())]
        order = np.random.default_rng(0).permutation(len(files))
        images = np.stack([np.asarray(Image.open(files[i][0]).convert("RGB")) for i in order])
        labels = torch.tensor([files[i][1] for i in order])
        content = {"images": torch.from_numpy(images), "labels": labels, "classes": classes}
        torch.save(content, out / f"{split}.pt")


@dataclass(frozen=True)
class Outcome:
    """Of one run: process (seconds of a process of ``runs`` runs), counted (seconds); NaN where they do not apply."""

    accuracy: float
    process: float = math.nan
    counted: float = math.nan
    runs: int = 1

    def tell(self, part: str, seed: int) -> Outcome:
        print(
            f"{part:<9} seed {seed}: {self.accuracy:.2%}, process {self.process:.1f} s of {self.runs} runs, counted "
            f"{self.counted:.2f} s",
            flush=True,
        )
        return self


def theirs(args: argparse.Namespace, work: Path) -> list[Outcome]:
    """Run the script: on a GPU all runs in one process, else one for each seed."""
    (work / "cifar10").mkdir()
    decode(args.data, work / "cifar10")
    runs = args.runs or len(args.seeds)
    found: list[Outcome] = []
    for seed, count in [(args.seeds[0], runs)] if common.on_gpu() else [(seed, 1) for seed in args.seeds]:
        code = work / f"airbench-{seed}.py"
        code.write_text(adapted(args.airbench, seed, count))
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(code)], cwd=work, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        rows = re.findall(r"\|\s+eval\s+\|.*\|\s+([\d.]+)\s+\|\s+([\d.]+)\s+\|\n", done.stdout)[-count:]
        for accuracy, counted in rows:
            found.append(Outcome(float(accuracy), seconds, float(counted), count).tell("theirs", seed))
        if done.returncode:
            print(f"airbench's script failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}", flush=True)
    return found


def words(folder: Path, args: argparse.Namespace, seed: int, cache: str, run: str) -> list[str]:
    """Return the arguments of tellapart."""
    options = ["--seed", str(seed), "--data.cache-dir", cache, "--run.dir", run]
    return ["train", str(folder), "--recipe", args.recipe, "--json", *options, *args.extra]


def command(args: argparse.Namespace, work: Path) -> list[Outcome]:
    """Run the whole command for each seed, each with a cache of its own that begins empty."""
    found: list[Outcome] = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory(dir=work) as own:
            line = [sys.executable, "-m", "tellapart"]
            line += words(args.data.resolve(), args, seed, f"{own}/cache", f"{own}/run")
            started = time.perf_counter()
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            seconds = time.perf_counter() - started
        if done.returncode:
            print(f"tellapart failed:\n{done.stderr[-3000:]}", flush=True)
            break
        accuracy = float(json.loads(done.stdout)["metrics"]["accuracy"])
        found.append(Outcome(accuracy, seconds).tell("command", seed))
    return found


def warm(args: argparse.Namespace, work: Path) -> list[Outcome]:
    """Run the seeds in one fresh process, after a first run that does not count."""
    return common.fresh(runs_in_one_process, args, work)


def runs_in_one_process(args: argparse.Namespace, work: Path) -> list[Outcome]:
    from tellapart import cli
    from tellapart.training import loop, setup
    from tellapart.workflow import measure

    seconds: dict[str, float] = {}
    for owner, name in ((setup, "build_model"), (loop.Trainer, "_train_epoch"), (measure, "_logits")):
        setattr(owner, name, clocked(getattr(owner, name), name, seconds))
    found: list[Outcome] = []
    for number, seed in enumerate([args.seeds[0], *args.seeds]):
        seconds.clear()
        out, errors = io.StringIO(), io.StringIO()
        line = words(args.data.resolve(), args, seed, f"{work}/warm", f"{work}/warm-run-{number}")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            code = cli.main(line)
        if code:
            print(f"tellapart failed:\n{errors.getvalue()[-3000:]}", flush=True)
            break
        outcome = Outcome(json.loads(out.getvalue())["metrics"]["accuracy"], counted=sum(seconds.values()))
        parts = ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items())
        if number:
            found.append(outcome.tell("warm", seed))
        print(f"{'' if number else 'first run, which does not count: '}{parts}", flush=True)
    return found


def clocked(function: Callable[..., Any], name: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Return ``function`` that adds its seconds, to the end of the GPU's work, to ``seconds[name]``."""

    def call(*arguments: Any, **options: Any) -> Any:
        common.wait()
        started = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            common.wait()
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

    return call


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[Outcome]]] = {
    "command": command,
    "warm": warm,
    "theirs": theirs,
}


def main() -> None:
    parser = common.parser(__doc__, rounds=None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--recipe", default="cifar10-fast", choices=["cifar10-fast", "cifar10-best"])
    parser.add_argument("--airbench", "--airbench96", type=Path, metavar="SCRIPT", help="without: ours only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=int, default=0, help="of theirs on a GPU; as many as seeds")
    usual = list(PARTS) if common.on_gpu() else ["command", "theirs"]
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=usual)
    args, args.extra = parser.parse_known_args()  # what is not ours goes to tellapart: --training.epochs 7
    common.introduce(f"{args.recipe}; extra flags of ours: {' '.join(args.extra) or 'none'}")
    if args.airbench and "theirs" in args.parts:
        print("Replacements in airbench's script:")
        for old, new, why in changes(args.airbench):
            put = "a Normalize and a Clock" if new == "{stand_ins}" else repr(new.strip())
            print(f"  {old.strip()!r} -> {put}: {why}")
    parts = [part for part in args.parts if part != "theirs" or args.airbench]
    with tempfile.TemporaryDirectory() as work:
        ways = {part: functools.partial(PARTS[part], args, Path(work)) for part in parts}
        found = {part: rounds[0] for part, rounds in common.in_turns(ways, 1).items()}
    table(found)


def table(found: dict[str, list[Outcome]]) -> None:
    """Print each part's clocks and accuracy, and the ratios of like clocks."""
    print(f"\n{'part':<9}{'runs':>5}{'process s':>11}{'counted s':>11}{'accuracy':>10}  each")
    for part, rows in found.items():
        if rows:
            process, counted = (middle(rows, clock) for clock in ("process", "counted"))
            mean = statistics.mean(row.accuracy for row in rows)
            each = " ".join(f"{row.accuracy:.2%}" for row in rows)
            print(f"{part:<9}{len(rows):>5}{process:>11.1f}{counted:>11.2f}{mean:>10.2%}  {each}", flush=True)
    peer = found.get("theirs")
    for part, clock in (("command", "process"), ("warm", "counted")):
        if peer and found.get(part) and (clock == "counted" or peer[0].runs == 1):
            ratio = middle(found[part], clock) / middle(peer, clock)
            print(f"our {clock} seconds ({part}) over theirs: {ratio:.2f}")


def middle(rows: list[Outcome], clock: str) -> float:
    return statistics.median(getattr(row, clock) for row in rows)


if __name__ == "__main__":
    main()
