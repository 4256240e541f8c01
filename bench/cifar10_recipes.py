"""CIFAR-10 to 94 %: ResNet-18 as timm's and torchvision's standard recipes train it, against `cifar10-fast`.

    python bench/cifar10_recipes.py --data FOLDER [--peers PYTHON] [--ours-seconds S] [--rounds 5] [--steps 20]

FOLDER holds train/CLASS/*, lossless. The peers' images a second are measured over a few batches of 128 at 32 px, in
fp32, with --bf16 also in bf16 autocast and channels-last, from files to update (peers/cifar10_resnet18.py, in an
environment of its own; on the GPU where there is one), in turns with steps of `cifar10-fast`'s network on images that
are decoded already (all at 32 px: its recipe begins with smaller ones, which are faster). A whole training of a peer
takes half a day on two cores, so its time to 94 % is extrapolated: 50,000 images x epochs / images a second, without
its start, its validation and its checkpoints.

How many epochs a peer needs is a matter of its recipe. RECIPES lists published ones with what they state; the first
is the most favourable that was found, and its own text promises less than 94 % for it.

Two ratios: "training" compares training alone on both sides by the rates of this run, round by round; "whole" sets
the peer's training against the seconds of a whole command of ours (S, as bench/cifar10_fast.py measures it: imports,
decoding, evaluation and report too). The second means something only where the machine was as busy then as now, so
it is left out where S is less than our training alone would take at the rates of this run.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import common
from tellapart import recipes
from tellapart.data.sources import opening
from tellapart.devices import tune_allocator
from tellapart.spec import update
from tellapart.training import setup

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
    train = opening.open_source(spec.data, lambda text: None).split("train")
    few = train.select(np.linspace(0, len(train) - 1, 4 * batch).astype(int))
    prepared = setup.prepare(spec, few, lambda count: None)
    trainer = common.trainer(prepared, steps + 1, Path(cache))
    return lambda: common.training_rate(trainer, steps, 1), spec.training.epochs


def table(found: dict[str, list[float]], epochs: int, whole: float) -> None:
    """Print the rates, our seconds, and each peer's extrapolated hours and ratios by each recipe."""
    print(f"{'side':<24}{'images/s':>10}{'lowest':>9}{'highest':>9}")
    if not found.get("tellapart"):
        return
    for name, rates in found.items():
        print(f"{name:<24}{statistics.median(rates):>10.1f}{min(rates):>9.1f}{max(rates):>9.1f}")
    training = IMAGES * epochs / statistics.median(found["tellapart"])
    print(f"\ntellapart, cifar10-fast: {epochs} epochs, {training:,.0f} s of training alone at this rate")
    if whole:
        print(f"its whole command, as given: {whole:,.0f} s")
    comparable = whole >= training
    if whole and not comparable:
        print(
            'That is less than training alone takes now: the machine was quicker then, so "whole" is left out.'
        )
    print(f"\n{'epochs':>6}  {'schedule':<14}{'side':<18}{'hours':>7}{'training':>10}{'whole':>8}  it states")
    for recipe, side in itertools.product(RECIPES, (name for name in found if name != "tellapart")):
        theirs = IMAGES * recipe.epochs / statistics.median(found[side])
        rounds = zip(found["tellapart"], found[side], strict=True)
        ratio = statistics.median(us / them for us, them in rounds) * recipe.epochs / epochs
        other = f"{theirs / whole:.1f}x" if comparable else "-"
        print(
            f"{recipe.epochs:>6}  {recipe.schedule:<14}{side:<18}{theirs / 3600:>7.1f}{ratio:>9.1f}x{other:>8}  "
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
    parser.add_argument(
        "--workers", type=int, default=common.default_workers(), help="of the peers' DataLoaders"
    )
    parser.add_argument(
        "--ours-seconds", type=float, default=0.0, help="of a whole run of ours, measured elsewhere"
    )
    parser.add_argument("--bf16", action="store_true", help="the peers a second time, in bf16")
    args = parser.parse_args()
    tune_allocator()
    common.introduce(
        f"{args.steps} batches of {BATCH} in a round, {args.rounds} rounds; {args.workers} workers"
    )
    options = {"data": args.data.resolve(), "steps": args.steps, "workers": args.workers, "batch": BATCH}
    with tempfile.TemporaryDirectory() as cache:
        measure, epochs = our_way(args.data, cache, max(1, args.steps * BATCH // 2000))
        ways: dict[str, Callable[[], float]] = {"tellapart": measure}
        for side, bf16 in itertools.product(SIDES, (False, True) if args.bf16 else (False,)):
            ways[f"{side}, bf16" if bf16 else side] = functools.partial(
                common.peer, args.peers, "cifar10_resnet18", side=side, bf16=bf16, **options
            )
        table(common.in_turns(ways, args.rounds), epochs, args.ours_seconds)


if __name__ == "__main__":
    main()
