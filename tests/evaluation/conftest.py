from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml

from tellapart import spec as specs
from tellapart.contract.answers import Answers
from tellapart.evaluation import metrics
from tellapart.tracking import CsvTracker

TEN = (
    "airplane",
    "小汽车",
    "bird",
    "猫",
    "deer <b>&amp;",
    "dog",
    "青蛙",
    "horse",
    "ship with a very long name indeed, longer than any column",
    "truck",
)


def fake_logits(rng, labels, count, skill=4.0):
    logits = rng.normal(size=(len(labels), count)) * 1.5
    logits[np.arange(len(labels)), labels] += skill
    neighbours = (labels + 1) % count
    logits[np.arange(len(labels)), neighbours] += 1.6 * (labels % 3 == 0)
    return torch.tensor(logits, dtype=torch.float32)


def fake_picture(rng, label, side):
    y, x = np.mgrid[0:side, 0:side] / side
    base = np.stack([np.sin(3 * x * (label % 4 + 1)), np.cos(4 * y * (label % 3 + 1)), x * y * label % 1], -1)
    return np.clip(127 + 90 * base + rng.normal(size=base.shape) * 12, 0, 255).astype(np.uint8)


@pytest.fixture
def make_run(tmp_path):
    def make(
        name="run",
        classes=TEN,
        splits=("test", "val"),
        epochs=12,
        n=600,
        seed=0,
        skill=4.0,
        seconds=None,
        changes=(),
        side=32,
        boxes=None,
        mark="",
        own=None,
    ):
        folder = tmp_path / name
        more = (dict(changes), side, boxes, mark, own or {})
        return build_run(folder, classes, splits, epochs, n, seed, skill, seconds, *more)

    return make


def build_run(folder, classes, splits, epochs, n, seed, skill, seconds, changes, side, boxes, mark, own):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    spec = specs.update(
        specs.Spec(),
        {"data.source": "data/动物", "training.epochs": max(epochs, 1), "model.name": "fast-cnn", **changes},
    )
    (folder / "spec.yaml").write_text(
        yaml.safe_dump(specs.to_dict(spec), sort_keys=False, allow_unicode=True)
    )
    (folder / "environment.json").write_text(
        json.dumps(
            {
                "python": "3.11.7",
                "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
                "device": "cpu",
                "threads": 2,
            }
        )
    )
    with open(folder / "bad-images.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(
            [
                ("path", "reason"),
                ("train/猫/0042.jpg", "truncated: 812 of 4,096 bytes"),
                ("train/dog/<script>alert(1)</script>.jpg", "not an image (HTML)"),
            ]
        )
    write_metrics(folder, rng, epochs, seconds, "val" in splits or "test" in splits)
    labels_of = {split: np.random.default_rng(17).integers(0, len(classes), n) for split in splits}
    with open(folder / "samples.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "label", "split", "hash"))
        for k, label in enumerate(rng.integers(0, len(classes), 3 * n)):
            writer.writerow((f"train/{k:05}.png", classes[label], "train", f"{k:032x}"))
        for split, labels in labels_of.items():
            for k, label in enumerate(labels):
                writer.writerow((f"{split}/{k:05}.png", classes[label], split, f"{k:031x}{len(split):x}"))
    for split, labels in labels_of.items():
        logits = fake_logits(rng, labels, len(classes), skill)
        answers, truth = Answers(logits.numpy(), tuple(classes), mark=mark), np.asarray(labels)
        found = metrics.evaluate(answers, truth, split, seconds=0.8, latencies_ms=rng.gamma(9, 0.3, 30))
        found = dataclasses.replace(found, own=own)
        metrics.write_evaluation(
            folder / "evaluation" / split,
            found,
            [f"{split}/{k:05}.png" for k in range(n)],
            answers,
            truth,
            lambda row, labels=labels: fake_picture(rng, int(labels[row]), side),
            boxes=boxes,
        )
    return folder


def write_metrics(folder, rng, epochs, seconds, validated):
    tracker = CsvTracker(folder / "metrics.csv")
    for epoch in range(epochs):
        for step in range(10):
            at = epoch + (step + 1) / 10
            values = {
                "train/loss": 2.3 * np.exp(-at / 4) + 0.1 + rng.normal() * 0.05,
                "train/accuracy": 1 - 0.9 * np.exp(-at / 4) + rng.normal() * 0.02,
            }
            tracker.log(
                epoch * 100 + step * 10 + 10,
                {**values, "train/lr": 1e-3 * (1 + np.cos(np.pi * at / epochs)) / 2},
            )
        done = {
            "epoch": epoch + 1,
            "train/epoch-loss": 2.3 * np.exp(-(epoch + 0.5) / 4) + 0.1,
            "train/epoch-accuracy": 1 - 0.9 * np.exp(-(epoch + 0.5) / 4),
        }
        if validated:
            over = 0.15 * (1 - np.exp(-max(0, epoch - 7) / 8))
            done |= {
                "val/loss": 2.1 * np.exp(-(epoch + 1) / 3) + 0.4 + over * 2,
                "val/accuracy": 0.86 - 0.7 * np.exp(-(epoch + 1) / 3) - over,
            }
        if seconds is not None:
            done["seconds"] = seconds / epochs
        tracker.log(epoch * 100 + 100, done)
    tracker.close()
