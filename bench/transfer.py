"""Transfer learning from the command to the artifact: the official tutorial's loop against `tellapart train`.

    python bench/transfer.py --data hymenoptera_data [--rounds 5] [--peer-epochs 25]
    python bench/transfer.py --data hymenoptera_data --full --epochs 5 [--rounds 3]

DATA is a folder with train/CLASS and val/CLASS. The peer does what PyTorch's "Transfer Learning for Computer Vision
Tutorial" does in its second half ("ConvNet as fixed feature extractor"): ImageFolder, RandomResizedCrop(224) and
flips, Resize(256) and CenterCrop(224) for validation, DataLoader with batches of 4 and two workers (beside a GPU
four, as it has itself), a new linear layer on a frozen backbone, on the GPU where there is one, SGD 0.001 with
momentum 0.9, StepLR(7, 0.1), 25 epochs, and the best epoch's weights. It has the same backbone and weights as the
recipe (EfficientNet-Lite0 instead of the tutorial's ResNet-18), with the weights' own mean and deviation. Its time
runs from the start of a fresh process to the weights on the disk.

tellapart runs as a command of its own, imports included, in each round once with an empty cache and once more with
what that run left there; both end with the artifact, its evaluation and the report. The three are timed one after
the other in each round; the table has medians, the medians of the rounds' ratios, and the accuracy on val of each.
With --peer-epochs N below 25 the peer's time is that of its start and N epochs, the latter scaled to 25: the table
says so, and its accuracy is that of N epochs.

--full compares full fine-tuning, the tutorial's first half: all layers train, on both sides for the same number of
epochs at 224 pixels, on ours with random resized crops and flips too, in bf16 and in fp32.
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
from collections.abc import Callable
from pathlib import Path

import common

EPOCHS = 25


Outcome = tuple[float, float]  # seconds, accuracy


# Full fine-tuning with our own optimizer, at the peer's size and with its augmentation.
FULL = [
    "--model.finetune",
    "full",
    "--input.size",
    "224",
    "--augment.crop",
    "resized",
    "--augment.hflip",
    "0.5",
]
FULL += ["--training.batch-size", "16", "--training.lr", "0.0003"]


def peer(data: Path, out: Path, epochs: int, workers: int, full: bool) -> None:
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
        name: torch.utils.data.DataLoader(images, batch_size=4, shuffle=True, num_workers=workers)
        for name, images in sets.items()
    }
    for parameter in model.parameters():
        parameter.requires_grad = full
    model.classifier = torch.nn.Linear(model.classifier.in_features, len(sets["train"].classes))
    device = common.device()
    model = model.to(device)
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD((model if full else model.classifier).parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    best, started = 0.0, time.perf_counter()
    for _ in range(epochs):
        for phase in ("train", "val"):
            model.train(phase == "train")
            right, running = 0, 0.0
            for inputs, labels in loaders[phase]:
                inputs, labels = inputs.to(device), labels.to(device)
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
        raise RuntimeError(f"{' '.join(words)}\n{done.stderr[-3000:]}")
    return seconds, done.stdout


def theirs(args: argparse.Namespace, folder: Path) -> Outcome:
    words = [sys.executable, __file__, "--data", args.data, "--as-peer", str(folder / "best.pt")]
    words += ["--peer-epochs", str(args.peer_epochs), "--workers", str(args.workers)]
    seconds, output = run([*words, "--full"] if args.full else words)
    told = json.loads(output.splitlines()[-1])
    scaled = told["seconds"] * args.epochs / args.peer_epochs
    return seconds - told["seconds"] + scaled, told["accuracy"]


def ours(args: argparse.Namespace, folder: Path, name: str, *more: str) -> Outcome:
    words = [sys.executable, "-m", "tellapart", "train", args.data, "--recipe", "transfer", "--json"]
    words += ["--data.cache-dir", str(folder / "cache"), "--run.dir", str(folder / name), *more, *args.flags]
    seconds, output = run(words)
    told = json.loads(output)
    assert Path(told["artifact"]).is_file()
    return seconds, told["metrics"]["accuracy"]


def ways(args: argparse.Namespace, scratch: Path) -> dict[str, Callable[[], Outcome]]:
    """Return the three sides; each cold one begins a folder of its own, in which the others after it go on."""
    folders: list[Path] = []
    full = [*FULL, "--training.epochs", str(args.epochs), "--training.precision"] if args.full else []

    def cold() -> Outcome:
        folders.append(Path(tempfile.mkdtemp(dir=scratch)))
        return ours(args, folders[-1], "cold", *([*full, "bf16"] if full else []))

    second = "fp32, warm cache" if full else "warm cache"
    return {
        f"tellapart, {'bf16, ' if full else ''}cold cache": cold,
        f"tellapart, {second}": lambda: ours(args, folders[-1], "warm", *([*full, "fp32"] if full else [])),
        "tutorial": lambda: theirs(args, folders[-1]),
    }


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the tutorial; with --full of both")
    parser.add_argument("--peer-epochs", type=int, default=0, help="epochs that the peer really runs; all")
    parser.add_argument("--full", action="store_true", help="fine-tune all layers")
    own = 4 if common.on_gpu() else 2
    parser.add_argument("--workers", type=int, default=own, help=f"of the tutorial's DataLoaders; {own}")
    parser.add_argument("--as-peer", default="", help=argparse.SUPPRESS)
    parser.add_argument("flags", nargs="*", help="more flags for tellapart train, after --")
    args = parser.parse_args()
    args.data = os.path.abspath(args.data)
    args.peer_epochs = args.peer_epochs or args.epochs
    if args.as_peer:
        peer(Path(args.data), Path(args.as_peer), args.peer_epochs, args.workers, args.full)
        return
    common.introduce(f"{args.rounds} rounds; {args.workers} workers")
    if args.peer_epochs != args.epochs:
        print(f"The tutorial's time is extrapolated from {args.peer_epochs} of its {args.epochs} epochs.")
    with tempfile.TemporaryDirectory() as scratch:
        found = common.in_turns(ways(args, Path(scratch)), args.rounds)
    print(f"\n{'':<29}{'seconds':>9}{'accuracy':>11}  tutorial / this:{common.RATIOS}")
    peers = [seconds for seconds, _ in found.get("tutorial", [])]
    for name, outcomes in found.items():
        seconds, accuracy = (statistics.median(column) for column in zip(*outcomes, strict=True))
        compared = common.ratios(peers, [seconds for seconds, _ in outcomes], 1)
        print(f"{name:<29}{seconds:>9.1f}{accuracy:>11.1%}{'':<18}{compared}", flush=True)


if __name__ == "__main__":
    main()
