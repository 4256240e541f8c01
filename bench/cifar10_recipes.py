"""CIFAR-10 to 94 %: ResNet-18 as timm's and torchvision's standard recipes train it, against `cifar10-fast`.

    python bench/cifar10_recipes.py --data FOLDER [--peers PYTHON] [--ours-seconds S] [--rounds 5] [--steps 20]

FOLDER holds train/CLASS/*, lossless. The peers' images a second are measured over a few batches of 128 at 32 px, in
fp32, from files to update (peers/cifar10_resnet18.py, in an environment of its own), in turns with steps of
`cifar10-fast`'s network on images that are decoded already (all at 32 px: its recipe begins with smaller ones, which
are faster). A whole training of a peer takes half a day on two cores, so its time to 94 % is extrapolated: 50,000
images x epochs / images a second, without its start, its validation and its checkpoints.

How many epochs a peer needs is a matter of its recipe. RECIPES lists published ones with what they state; the first
is the most favourable that was found, and its own text promises less than 94 % for it. Our time is that of a whole
command (S of --ours-seconds, as bench/cifar10_fast.py measures it: imports, decoding, evaluation and report too), or
else that of the recipe's epochs at the measured rate.
"""

from __future__ import annotations

import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import common
from tellapart import recipes
from tellapart.data import sources
from tellapart.devices import tune_allocator
from tellapart.spec import update
from tellapart.training import loop, setup
from tellapart.training.distributed import Processes

IMAGES, BATCH, SIDES = 50_000, 128, ("timm", "torchvision")


@dataclass(frozen=True)
class Recipe:
    """A published training of ResNet-18 with this stem: its epochs, and what it says that they reach."""

    epochs: int
    schedule: str
    states: str
    source: str


RECIPES = (
    Recipe(
        30,
        "one-cycle",
        "title: ~94 %; text: 92-93 % in 20-30 epochs",
        "Lightning-AI/tutorials, lightning_examples/cifar10-baseline (torchvision's network)",
    ),
    Recipe(
        50,
        "one-cycle",
        "93-94 % in 40-50 epochs",
        "the same",
    ),
    Recipe(
        70,
        "fast.ai-like",
        "95.32 %",
        "WeihaoZhuang/cifar10-100-fast-training, README",
    ),
    Recipe(
        200,
        "cosine",
        "95.43 %",
        "afzalxo/ResNet-Simplified-Pytorch, README (settings of kuangliu/pytorch-cifar)",
    ),
    Recipe(
        300,
        "plateau",
        "94.98 %",
        "huggingface.co/edadaltocg/resnet18_cifar10 (timm's network)",
    ),
)


def our_way(data: Path, cache: str, steps: int) -> tuple[Callable[[], float], int]:
    """Return a function that measures images a second of `cifar10-fast`'s step, and the recipe's epochs."""
    own = {"data.source": str(data), "data.cache_dir": cache, "training.start_size": 0}
    spec = update(recipes.recipe("cifar10-fast"), own)
    batch = spec.training.batch_size
    train = sources.open_source(spec.data, lambda text: None).split("train")
    few = train.select(np.linspace(0, len(train) - 1, 4 * batch).astype(int))
    prepared = setup.prepare(spec, few, lambda count: None)
    processes = Processes(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    plan = setup.plan(prepared, setup.build_model(prepared)[0], processes)
    step = loop.Trainer(plan, processes, Path(cache), common.Silent()).steps_at()

    def measure() -> float:
        step(0.001)
        started = time.perf_counter()
        for _ in range(steps):
            step(0.001)
        return batch * steps / (time.perf_counter() - started)

    return measure, spec.training.epochs


def table(found: dict[str, list[float]], epochs: int, ours: float) -> None:
    """Print the rates, and each side's extrapolated time by each recipe."""
    print(f"{'side':<24}{'images/s':>10}{'lowest':>9}{'highest':>9}")
    for name, rates in found.items():
        print(f"{name:<24}{statistics.median(rates):>10.1f}{min(rates):>9.1f}{max(rates):>9.1f}")
    rate = statistics.median(found["tellapart"])
    seconds = ours or IMAGES * epochs / rate
    how = "whole command, as given" if ours else f"{epochs} epochs at the rate above, training alone"
    print(f"\ntellapart, cifar10-fast: {seconds:,.0f} s ({how})")
    print(f"\n{'epochs':>6}  {'schedule':<14}{'side':<13}{'hours':>7}{'ratio':>8}  it states")
    for recipe in RECIPES:
        for side in SIDES:
            theirs = IMAGES * recipe.epochs / statistics.median(found[side])
            print(
                f"{recipe.epochs:>6}  {recipe.schedule:<14}{side:<13}{theirs / 3600:>7.1f}{theirs / seconds:>7.1f}x  "
                f"{recipe.states}"
            )
    print("\nsources:")
    for recipe in RECIPES:
        print(f"{recipe.epochs:>6}  {recipe.source}")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS")
    parser.add_argument(
        "--peers", default=sys.executable, help="Python of an environment with timm, torchvision"
    )
    parser.add_argument("--steps", type=int, default=20, help="batches of a peer in a round")
    parser.add_argument("--workers", type=int, default=2, help="of the peers' DataLoaders")
    parser.add_argument(
        "--ours-seconds", type=float, default=0.0, help="of a whole run of ours, measured elsewhere"
    )
    args = parser.parse_args()
    tune_allocator()
    common.introduce(
        f"{args.steps} batches of {BATCH} in a round, {args.rounds} rounds; {args.workers} workers"
    )
    options = {"data": args.data.resolve(), "steps": args.steps, "workers": args.workers, "batch": BATCH}
    with tempfile.TemporaryDirectory() as cache:
        measure, epochs = our_way(args.data, cache, max(1, args.steps * BATCH // 2000))
        ways: dict[str, Callable[[], float]] = {"tellapart": measure}
        for side in SIDES:
            ways[side] = functools.partial(common.peer, args.peers, "cifar10_resnet18", side=side, **options)
        table(common.in_turns(ways, args.rounds), epochs, args.ours_seconds)


if __name__ == "__main__":
    main()
