"""Mosaics of four CIFAR-10 images each, whose labels are known: several labels for an image, against a loop of torch.

    python bench/mosaics.py /data/cifar10 /tmp/mosaics --count 3000
    python bench/mosaics.py /data/cifar10 /tmp/mosaics --train

The first makes /tmp/mosaics/images/*.png of 64 x 64 pixels and list.csv (path, labels separated by |, split); DATA has
train/CLASS/*.png and test/CLASS/*.png, and no image is in two mosaics. How many of the four are of one class is drawn
with weights, so that some classes are rare. The second trains fast-cnn on it with tellapart and with a loop of torch
(the same network, loss, optimizer, schedule and epochs; another start and order of batches), and prints the
mean average precision of both on the test split, by scikit-learn.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score

import tellapart
from tellapart import artifact
from tellapart.models import zoo

SIDE, EPOCHS, BATCH, LR, DECAY = 64, 8, 64, 0.002, 0.01
RARER = 0.75  # each class is drawn so much less often than the one before


def make(data: Path, out: Path, count: int, seed: int = 0) -> None:
    """Make ``count`` mosaics of training images (a tenth of them val), and a third as many of test images."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with open(out / "list.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "labels", "split"])
        for part, number in (("train", count), ("test", count // 3)):
            files = {folder.name: sorted(folder.iterdir()) for folder in sorted((data / part).iterdir())}
            names = list(files)
            odds = RARER ** np.arange(len(names))
            pools = {name: rng.permutation(len(found)).tolist() for name, found in files.items()}
            for place in range(number):
                full = np.array([bool(pools[name]) for name in names])
                weights = odds * full
                tiles = []
                for _ in range(4):
                    name = names[rng.choice(len(names), p=weights / weights.sum())]
                    if pools[name]:
                        tiles.append((name, files[name][pools[name].pop()]))
                whole = Image.new("RGB", (SIDE, SIDE))
                for k, (_, path) in enumerate(tiles):
                    with Image.open(path) as tile:
                        whole.paste(tile, (k % 2 * 32, k // 2 * 32))
                name = f"images/{part}{place:05}.png"
                whole.save(out / name)
                split = "val" if part == "train" and place % 10 == 0 else part
                writer.writerow([name, "|".join(sorted({label for label, _ in tiles})), split])


def spec(out: Path, run: Path) -> dict[str, object]:
    """Return how tellapart trains, the same as `plain`."""
    return {
        "data": {"source": str(out / "list.csv"), "cache_dir": str(run.parent / "cache")},
        "model": {"name": "fast-cnn"},
        "augment": {"preset": "none"},
        "training": {
            "epochs": EPOCHS, "batch_size": BATCH, "lr": LR, "weight_decay": DECAY, "optimizer": "adamw",
            "schedule": "cosine", "threads": 1, "device": "cpu", "best_metric": "loss", "precision": "fp32",
        },
        "speed": {"probe": False},
        "run": {"dir": str(run), "tensorboard": False},
    }  # fmt: skip


def read(out: Path, split: str) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Return a split's images, float32 [N, 3, 64, 64] from 0 to 1, and targets, float32 [N, K]."""
    with open(out / "list.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    classes = sorted({name for row in rows for name in row["labels"].split("|")})
    rows = [row for row in rows if row["split"] == split]
    images = np.stack([np.asarray(Image.open(out / row["path"])) for row in rows])
    targets = [[float(name in row["labels"].split("|")) for name in classes] for row in rows]
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.tensor(targets), classes


def plain(out: Path, model: torch.nn.Module) -> float:
    """Train ``model`` by a loop of torch alone; return the mAP on test."""
    images, targets, _ = read(out, "train")
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    images = (images - mean) / std
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR)
    steps = EPOCHS * math.ceil(len(images) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = F.binary_cross_entropy_with_logits(model(images[rows]), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()
    images, targets, _ = read(out, "test")
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in ((images - mean) / std).split(256)])
    return float(average_precision_score(targets.numpy(), logits.numpy(), average="macro"))


def of_run(out: Path, run: Path) -> float:
    """Return the mAP of a run's predictions on test."""
    with open(run / "evaluation" / "test" / "predictions.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = [name[2:] for name in rows[0] if name.startswith("p:")]
    truth = np.array([[name in row["labels"].split("|") for name in names] for row in rows])
    scores = np.array([[float(row[f"p:{name}"]) for name in names] for row in rows])
    return float(average_precision_score(truth, scores, average="macro"))


def train(out: Path, seeds: int) -> None:
    """Train both, and print what they reach."""
    torch.set_num_threads(1)
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            run = Path(place) / "run"
            started = time.perf_counter()
            tellapart.train(quiet=True, seed=seed, **spec(out, run))
            ours, seconds = of_run(out, run), time.perf_counter() - started
            torch.manual_seed(seed)
            model = zoo.build(artifact.read_card(run).architecture)
            started = time.perf_counter()
            theirs = plain(out, model)
            print(
                f"seed {seed}: mAP {ours:.4f} tellapart ({seconds:.0f} s with evaluation and report), "
                f"{theirs:.4f} torch loop ({time.perf_counter() - started:.0f} s)",
                flush=True,
            )


def main() -> None:
    """Make the mosaics, or train on them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("out", type=Path, help="folder of the mosaics")
    parser.add_argument("--count", type=int, default=3000, help="mosaics of training images")
    parser.add_argument("--train", action="store_true", help="train on mosaics that are there")
    parser.add_argument("--seeds", type=int, default=1, help="runs of both")
    given = parser.parse_args()
    if given.train:
        train(given.out, given.seeds)
    else:
        make(given.data, given.out, given.count)


if __name__ == "__main__":
    main()
