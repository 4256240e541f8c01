"""Transfer learning from the command to the artifact: the official tutorial's loop against `tellapart train`.

    python bench/transfer.py --data hymenoptera_data [--rounds 5] [--peer-epochs 25]

DATA is a folder with train/CLASS and val/CLASS. The peer does what PyTorch's "Transfer Learning for Computer Vision
Tutorial" does in its second half ("ConvNet as fixed feature extractor"): ImageFolder, RandomResizedCrop(224) and
flips, Resize(256) and CenterCrop(224) for validation, DataLoader with batches of 4 and two workers, a new linear
layer on a frozen backbone, SGD 0.001 with momentum 0.9, StepLR(7, 0.1), 25 epochs, and the best epoch's weights. It
has the same backbone and weights as the recipe (EfficientNet-Lite0 instead of the tutorial's ResNet-18), with the
weights' own mean and deviation. Its time runs from the start of a fresh process to the weights on the disk.

tellapart runs as a command of its own, imports included, in each round once with an empty cache and once more with
what that run left there; both end with the artifact, its evaluation and the report. The three are timed one after
the other in each round; the table has medians, the medians of the rounds' ratios, and the accuracy on val of each.
With --peer-epochs N below 25 the peer's time is that of its start and N epochs, the latter scaled to 25: the table
says so, and its accuracy is that of N epochs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import common

EPOCHS = 25


@dataclass(frozen=True)
class Outcome:
    seconds: float
    accuracy: float


def peer(data: Path, out: Path, epochs: int) -> None:
    """Train as the tutorial does; print JSON with the seconds of the epochs and the best accuracy."""
    import torch

    from tellapart import packages

    packages.prepare_torchvision()
    from torchvision import datasets, transforms

    from tellapart.models import weights, zoo

    torch.manual_seed(0)
    architecture = zoo.Architecture("timm/tf_efficientnet_lite0", 2, 3, 224)
    model = zoo.build(architecture)
    info = weights.load(model, architecture, "efficientnet-lite0")
    mean, std = info.statistics(3) or ((0.5,) * 3, (0.5,) * 3)
    normalise = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    random = [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()]
    fixed = [transforms.Resize(256), transforms.CenterCrop(224)]
    sets = {
        "train": datasets.ImageFolder(str(data / "train"), transforms.Compose([*random, *normalise])),
        "val": datasets.ImageFolder(str(data / "val"), transforms.Compose([*fixed, *normalise])),
    }
    loaders = {
        name: torch.utils.data.DataLoader(images, batch_size=4, shuffle=True, num_workers=2)
        for name, images in sets.items()
    }
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.classifier = torch.nn.Linear(model.classifier.in_features, len(sets["train"].classes))
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, started = 0.0, time.perf_counter()
    for _ in range(epochs):
        for phase in ("train", "val"):
            model.train(phase == "train")
            right, running = 0, 0.0
            for inputs, labels in loaders[phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                running += loss.item() * len(inputs)
                right += int((outputs.argmax(1) == labels).sum())
            if phase == "train":
                scheduler.step()
        if right / len(sets["val"]) > best:
            best = right / len(sets["val"])
            torch.save(model.state_dict(), out)
    print(json.dumps({"seconds": time.perf_counter() - started, "accuracy": best}))


def run(words: list[str]) -> tuple[float, str]:
    """Run a command to its end; return its seconds and standard output."""
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stderr}")
    return seconds, done.stdout


def theirs(args: argparse.Namespace, folder: Path) -> Outcome:
    words = [sys.executable, __file__, "--data", args.data, "--as-peer", str(folder / "best.pt")]
    seconds, output = run([*words, "--peer-epochs", str(args.peer_epochs)])
    told = json.loads(output.splitlines()[-1])
    scaled = told["seconds"] * EPOCHS / args.peer_epochs
    return Outcome(seconds - told["seconds"] + scaled, told["accuracy"])


def ours(args: argparse.Namespace, folder: Path, name: str) -> Outcome:
    words = [sys.executable, "-m", "tellapart", "train", args.data, "--recipe", "transfer", "--json"]
    words += ["--data.cache-dir", str(folder / "cache"), "--run.dir", str(folder / name), *args.flags]
    seconds, output = run(words)
    told = json.loads(output)
    assert Path(told["artifact"]).is_file()
    return Outcome(seconds, told["metrics"]["accuracy"])


def rounds(args: argparse.Namespace) -> list[dict[str, Outcome]]:
    found: list[dict[str, Outcome]] = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            outcomes = {
                "tellapart, cold cache": ours(args, folder, "cold"),
                "tellapart, warm cache": ours(args, folder, "warm"),
                "tutorial": theirs(args, folder),
            }
        found.append(outcomes)
        shown = ", ".join(f"{name} {value.seconds:.1f} s" for name, value in outcomes.items())
        print(f"round {number + 1}: {shown}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--peer-epochs", type=int, default=EPOCHS, help="epochs that the peer really runs")
    parser.add_argument("--as-peer", default="", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="more flags for tellapart train, after --")
    args = parser.parse_args()
    args.data = os.path.abspath(args.data)
    if args.as_peer:
        peer(Path(args.data), Path(args.as_peer), args.peer_epochs)
        return
    found = rounds(args)
    common.introduce(f"{args.rounds} rounds")
    if args.peer_epochs != EPOCHS:
        print(f"The tutorial's time is extrapolated from {args.peer_epochs} of its {EPOCHS} epochs.")
    print(f"\n{'':<24}{'seconds':>9}{'accuracy':>11}{'tutorial / this':>17}{'lowest':>9}{'highest':>9}")
    for name in ("tutorial", "tellapart, cold cache", "tellapart, warm cache"):
        seconds = statistics.median(outcome[name].seconds for outcome in found)
        accuracy = statistics.median(outcome[name].accuracy for outcome in found)
        ratios = [outcome["tutorial"].seconds / outcome[name].seconds for outcome in found]
        print(
            f"{name:<24}{seconds:>9.1f}{accuracy:>10.1%} {statistics.median(ratios):>17.1f}"
            f"{min(ratios):>9.1f}{max(ratios):>9.1f}"
        )


if __name__ == "__main__":
    main()
