"""What the scripts share that train as another library's documentation shows (`defaults_*.py`): clock, log, test split.

Runs in the peers' environment; knows nothing of tellapart. Import it first: the clock begins with the process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import beside_cpu_torch  # noqa: F401
import torch
from PIL import Image

STARTED = time.time()
NETWORK, SIZE = "tf_efficientnet_lite0", 224
PROBE_BATCHES = 10


def options(doc: str | None) -> argparse.Namespace:
    """Return what every script is told."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--weights", type=Path, required=True, help="state of timm's network, by torch.save")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--points", type=int, default=4, help="epochs at whose end the test split is measured"
    )
    parser.add_argument("--probe", action="store_true", help="tell what an epoch takes, from a few batches")
    parser.add_argument(
        "--started", type=float, default=STARTED, help="when the process was started (time.time)"
    )
    parser.add_argument("--variant", default="", help="of a script that has several")
    args = parser.parse_args()
    random.seed(args.seed)
    torch.manual_seed(args.seed)
    warnings.simplefilter("ignore")
    args.epochs = 1 if args.probe else args.epochs
    args.workers = min(4, os.cpu_count() or 1)
    args.classes = sorted(path.name for path in (args.data / "train").iterdir() if path.is_dir())
    return args


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def tests(data: Path) -> list[Path]:
    """Return the test images, in the order of their paths."""
    return sorted(path for path in (data / "test").rglob("*.*") if path.is_file())


class Tests(torch.utils.data.Dataset):
    """The test images as a transform makes them."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


class Log:
    """The clock of a run, which stands still while the test split is measured, and the lines that tell the harness."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.paused, self.epoch = args, 0.0, 0
        self.steps: dict[str, list[float]] = {}
        self.validated: list[float] = []
        self.setup = 0.0
        self.chosen = _spread(args.epochs, args.points)

    def seconds(self) -> float:
        return time.time() - self.args.started - self.paused

    def step(self, phase: str) -> None:
        """Note that a training step ended."""
        self.steps.setdefault(phase, []).append(self.seconds())

    def epoch_begins(self, phase: str) -> None:
        self.setup = self.setup or self.seconds()
        self.steps.setdefault(phase, []).append(self.seconds())

    def epoch_ended(self, phase: str, answers: Callable[[], Iterable[torch.Tensor]]) -> None:
        """An epoch and its validation ended; ``answers`` gives the scores of the test images, batch by batch."""
        self.validated.append(self.seconds() - self.steps[phase][-1])
        self.epoch += 1
        if self.epoch in self.chosen and not self.args.probe:
            self.measure(answers)

    def measure(self, answers: Callable[[], Iterable[torch.Tensor]], final: bool = False) -> None:
        """Tell the accuracy on the test split; its time does not count."""
        line: dict[str, Any] = {"seconds": self.seconds()}
        began = time.time()
        with torch.no_grad():
            found = torch.cat([scores.argmax(1).cpu() for scores in answers()]).tolist()
        labels = [self.args.classes.index(path.parent.name) for path in tests(self.args.data)]
        right = [int(a == b) for a, b in zip(found, labels, strict=True)]
        line["accuracy"] = sum(right) / len(right)
        if final:
            line |= {"final": True, "right": "".join(map(str, right))}
        print(json.dumps(line), flush=True)
        self.paused += time.time() - began

    def done(
        self, answers: Callable[[], Iterable[torch.Tensor]], train: int, val: int, batch: int, seen: int
    ) -> None:
        """Tell the end; with --probe the seconds of a whole epoch, of which ``seen`` images were validated."""
        if not self.args.probe:
            self.measure(answers, final=True)
            return
        rate = statistics.median(self.validated) / max(1, seen)
        epochs = {}
        for phase, times in self.steps.items():
            each = [b - a for a, b in itertools.pairwise(times)]
            each = statistics.median(each[1:] or each)  # the first waits for the workers
            epochs[phase] = each * train / batch + rate * val
        print(json.dumps({"setup": self.setup, "epochs": epochs}), flush=True)


def _spread(epochs: int, points: int) -> set[int]:
    """Return about ``points`` epochs of those before the last, the early ones closer together."""
    return {max(1, round(epochs ** (k / points))) for k in range(points)} - {epochs}


def answers(args: argparse.Namespace, model: torch.nn.Module, transform: Any) -> Callable[[], Iterable[Any]]:
    """Return a function that gives the scores of the test images, batch by batch."""

    def give() -> Iterable[Any]:
        training = model.training
        model.eval()
        loader = torch.utils.data.DataLoader(
            Tests(tests(args.data), transform), batch_size=64, num_workers=args.workers
        )
        for images in loader:
            found = model(images.to(device()))
            yield getattr(found, "logits", found)
        model.train(training)

    return give


def held_out(count: int, part: float, seed: int, batch: int, probe: bool) -> tuple[list[int], list[int]]:
    """Return indices of training and of validation, drawn at random; of a probe a few batches of each."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    val = round(part * count)
    most = PROBE_BATCHES * batch if probe else count
    return order[val:][:most], order[:val][:most]
