"""CIFAR-10 to 94 %: `tellapart train FOLDER --recipe cifar10-fast` against airbench's own script, on this machine.

    python bench/cifar10_fast.py --data FOLDER --airbench airbench94_muon.py [--seeds 0 1 2]

FOLDER holds train/CLASS/* and test/CLASS/*, lossless. AIRBENCH is airbench94_muon.py of
https://github.com/KellerJordan/cifar10-airbench (MIT), which is not part of this project. Where there is no CUDA
device it is changed by the replacements that the run prints, so that it runs on the CPU in bf16 autocast with
channels_last; network, hyper-parameters, batch and steps stay its own. For each seed both run, one after the other,
each in a process of its own.

Our time is that of the whole command: imports, reading and decoding the folder with a cold cache, training,
evaluation, report. The script's is that of its process too, but it gets the images decoded, in the file that it
reads; its own count of seconds, of training and evaluation alone, stands beside it. Both see the same test images
once.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
ALL_CHANGES = (
    ("for run in range(200)]", "for run in range(1)]", "one run"),
    (
        "torch.backends.cudnn.benchmark = True\n",
        "torch.backends.cudnn.benchmark = True\ntorch.manual_seed({seed})\n",
        "a seed",
    ),
)
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


def adapted(script: Path, seed: int, cpu: bool) -> str:
    """Return the script's text with the replacements; SystemExit where it is not the text that they are for."""
    text = script.read_text()
    for old, new, why in (CPU_CHANGES if cpu else ()) + ALL_CHANGES:
        if old not in text:
            sys.exit(
                f"{script} is not the script that this benchmark knows: it has no {old.strip()!r} ({why})."
            )
        text = text.replace(old, new.replace("{stand_ins}", STAND_INS).replace("{seed}", str(seed)))
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


def run_airbench(script: Path, prepared: Path, seed: int) -> tuple[float, float, float]:
    """Return the seconds of the process, the seconds that the script counts, and its accuracy."""
    code = prepared / f"airbench-{seed}.py"
    code.write_text(adapted(script, seed, not torch.cuda.is_available()))
    started = time.perf_counter()
    command = [sys.executable, str(code)]
    done = subprocess.run(command, cwd=prepared, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    last = re.findall(r"\|\s+eval\s+\|.*\|\s+([\d.]+)\s+\|\s+([\d.]+)\s+\|\n", done.stdout)
    if done.returncode or not last:
        sys.exit(f"airbench's script failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")
    accuracy, counted = map(float, last[-1])
    return seconds, counted, accuracy


def run_ours(folder: Path, seed: int, extra: list[str]) -> tuple[float, float]:
    """Return the seconds of the whole command, with a cache of its own that begins empty, and the accuracy."""
    with tempfile.TemporaryDirectory() as work:
        command = [
            sys.executable,
            "-m",
            "tellapart",
            "train",
            str(folder),
            "--recipe",
            "cifar10-fast",
            "--json",
        ]
        command += [
            "--seed",
            str(seed),
            "--data.cache-dir",
            f"{work}/cache",
            "--run.dir",
            f"{work}/run",
            *extra,
        ]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"tellapart failed:\n{done.stderr[-3000:]}")
    return seconds, float(json.loads(done.stdout)["metrics"]["accuracy"])


def main() -> None:
    parser = common.parser(__doc__, rounds=None)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--airbench", type=Path, help="airbench94_muon.py; without it only ours runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args, extra = parser.parse_known_args()  # what is not ours goes to tellapart: --training.epochs 7
    common.introduce(f"extra flags of ours: {' '.join(extra) or 'none'}")
    if args.airbench and not torch.cuda.is_available():
        print("Replacements in airbench's script:")
        for old, new, why in CPU_CHANGES + ALL_CHANGES:
            put = "a Normalize and a Clock" if new == "{stand_ins}" else repr(new.strip())
            print(f"  {old.strip()!r} -> {put}: {why}")
    print(
        f"\n{'seed':>4}{'ours s':>10}{'accuracy':>10}{'airbench s':>12}{'it counts':>11}{'accuracy':>10}{'ratio':>8}"
    )
    rows = []
    with tempfile.TemporaryDirectory() as work:
        prepared = Path(work)
        (prepared / "cifar10").mkdir()
        if args.airbench:
            decode(args.data, prepared / "cifar10")
        for seed in args.seeds:
            ours, accuracy = run_ours(args.data.resolve(), seed, extra)
            theirs, counted, peer = (
                run_airbench(args.airbench, prepared, seed) if args.airbench else (np.nan,) * 3
            )
            rows.append((ours, accuracy, theirs, counted, peer, ours / theirs))
            print(row(str(seed), rows[-1]), flush=True)
    middle = [statistics.median(column) for column in zip(*rows, strict=True)]
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    print(row("med.", tuple(middle)))
    print(row("mean", tuple(means)))
    print("\nratio: seconds of our whole command over seconds of the script's process.")


def row(name: str, values: tuple[float, ...]) -> str:
    ours, accuracy, theirs, counted, peer, ratio = values
    return f"{name:>4}{ours:>10.1f}{accuracy:>10.2%}{theirs:>12.1f}{counted:>11.1f}{peer:>10.2%}{ratio:>8.2f}"


if __name__ == "__main__":
    main()
