"""Training speed of the tutorials' networks: their own loop against tellapart's, interleaved in one run.

    python bench/tutorial_speed.py [--data DATA] [--rounds 5] [--images 4000] [--batch-size 128]

DATA is CIFAR-10 in any form that tellapart reads (a folder of train/CLASS/*.png, an archive, cifar10); without it
pictures of the same size in ten classes are generated, which cost the same. The
peer is the loop of PyTorch's "Training a Classifier": a data set that gives PIL images, ToTensor and Normalize,
DataLoader with two workers (--workers), zero_grad, forward, backward,
step, and the running loss read in every step. With a GPU the network and each batch go there, as its last part has
it. Both start from decoded images in memory, with the same network, optimizer, batch size and number of images, after
a warm-up; the peer has a fresh process for each run, whose start is not counted. Each round times both, one after the
other; the table has the medians and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import common
from common import Silent, fresh
from tellapart import packages, recipes
from tellapart.data.samples import Samples
from tellapart.data.sources import opening
from tellapart.devices import tune_allocator
from tellapart.models import zoo
from tellapart.spec import Spec, update
from tellapart.training import loop, setup
from tellapart.training.distributed import Processes

packages.prepare_torchvision()
from torchvision import transforms  # noqa: E402 - torchvision imports only after the line above


class PilImages(torch.utils.data.Dataset):
    """What torchvision's CIFAR10 does: an array's row becomes a PIL image and goes through the transform."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        steps = [transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


def their_loop(images: np.ndarray, labels: np.ndarray, spec: Spec, workers: int) -> float:
    """Return the seconds that the tutorial's loop takes for one epoch."""
    torch.manual_seed(0)
    device = common.device()
    model = zoo.build(zoo.Architecture(spec.model.name, 10)).to(device)
    loader = torch.utils.data.DataLoader(
        PilImages(images, labels), batch_size=spec.training.batch_size, shuffle=True, num_workers=workers
    )
    criterion = torch.nn.CrossEntropyLoss()
    lr = spec.training.lr
    if spec.training.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)

    def step(inputs: torch.Tensor, targets: torch.Tensor) -> float:
        inputs, targets = inputs.to(device), targets.to(device)
        optimizer.zero_grad()
        loss = criterion(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    blank = torch.zeros(spec.training.batch_size, 3, *images.shape[1:3])
    common.timed(functools.partial(step, blank, torch.zeros(len(blank), dtype=torch.int64)), 0)  # warm-up
    running = 0.0
    started = time.perf_counter()
    for inputs, targets in loader:
        running += step(inputs, targets)
    common.wait()
    return time.perf_counter() - started


def our_loop(prepared: setup.RunData) -> float:
    """Return the seconds that tellapart's loop takes for one epoch, its checkpoint included."""
    model, _, _ = setup.build_model(prepared)
    processes = Processes(0, 1, common.device())
    plan = setup.plan(setup.complete(prepared, model, processes), model, processes)
    with tempfile.TemporaryDirectory() as folder:
        trainer = loop.Trainer(plan, processes, Path(folder), Silent())
        started = time.perf_counter()
        trainer.run()
        common.wait()
        return time.perf_counter() - started


def subset(samples: Samples, count: int) -> Samples:
    """Return ``count`` training images, evenly over the table."""
    train = samples.split("train")
    return train.select(np.linspace(0, len(train) - 1, min(count, len(train))).astype(int))


def measure(name: str, data: dict[str, str], args: argparse.Namespace) -> None:
    """Measure one recipe's network and print its line."""
    changes = {**data, "data.val_fraction": 0.0, "training.epochs": 1}
    if args.batch_size:
        changes["training.batch_size"] = args.batch_size
    spec = update(recipes.recipe(name), changes)
    samples = subset(opening.open_source(spec.data, lambda text: None), args.images)
    prepared = setup.prepare(spec, samples, lambda count: None)
    rows = np.arange(len(prepared.train))
    images = prepared.train.batch(rows).images.numpy()
    labels = prepared.train.samples.labels
    our_loop(prepared)  # warm-up
    ways = {
        "tutorial": lambda: fresh(their_loop, images, labels, prepared.spec, args.workers),
        "tellapart": lambda: our_loop(prepared),
    }
    seconds, count = common.in_turns(ways, args.rounds), len(rows)
    theirs, ours = (seconds.get(side, []) for side in ways)
    rates = (f"{count / statistics.median(times):,.0f}" if times else "-" for times in (theirs, ours))
    print("{:<14}{:>16}{:>17}".format(name, *rates) + common.ratios(theirs, ours, 1), flush=True)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", default="", help="CIFAR-10; empty: generated pictures")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=0, help="instead of the recipe's")
    parser.add_argument("--workers", type=int, default=2, help="of its DataLoader; the tutorial has 2")
    parser.add_argument("--recipes", nargs="+", default=["tutorial", "tutorial-cnn"])
    args = parser.parse_args()
    tune_allocator()
    common.introduce(f"{args.images} images in a round, {args.rounds} rounds; {args.workers} workers")
    print(f"{'recipe':<14}{'tutorial img/s':>16}{'tellapart img/s':>17}{common.RATIOS}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = {"data.source": args.data}
        if not args.data:  # three of five are for training
            made = common.pictures(Path(folder) / "made", args.images * 5 // 3 + 5, (32, 32), "png", 10)
            data = {"data.source": str(made), "data.cache_dir": f"{folder}/cache"}
        for name in args.recipes:
            measure(name, data, args)


if __name__ == "__main__":
    main()
