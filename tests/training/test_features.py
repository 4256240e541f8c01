"""Training the head on features gives what the whole network gives, and each feature is computed once."""

from __future__ import annotations

import copy
import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tellapart.errors import CacheError
from tellapart.models import frozen
from tellapart.preprocess import normalise
from tellapart.training import checkpoint
from tellapart.training.distributed import Processes
from tellapart.training.speed import features
from tellapart.training.task import Batch, Task


class Screen:
    """Remembers messages, and how many images were computed."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.computed = 0

    def message(self, text: str) -> None:
        self.messages.append(text)

    def busy(self, label: str, total: int | None = None) -> Any:
        def advance(count: int) -> None:
            self.computed += count

        return nullcontext(SimpleNamespace(advance=advance))


def _offer(bench: Any, screen: Screen | None = None) -> Screen:
    screen = screen or Screen()
    features.offer(bench.plan, bench.prepared, Processes(0, 1, torch.device("cpu")), screen)
    return screen


@pytest.fixture
def samples(pictures: Callable[..., Any]) -> Any:
    return pictures((20, 17, 16), (6, 5, 7))


@pytest.fixture
def changes(saved_weights: Callable[..., Path]) -> dict[str, Any]:
    return {"model.weights": str(saved_weights()), "model.finetune": "head", "training.epochs": 3}


def _with_own_dropout(changes: dict[str, Any]) -> dict[str, Any]:
    return {**changes, "model.dropout": 0.4}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"model.dropout": 0.4},
        {"training.ema": 0.9, "training.optimizer": "adamw", "training.schedule": "cosine"},
        {"training.accumulate": 3, "training.sampling": "oversample", "training.label_smoothing": 0.1},
        {
            "model.finetune": "staged",
            "model.unfreeze": (1, 2),
            "training.epochs": 4,
            "training.momentum": 0.0,
        },
        {"speed.channels_last": False, "training.batch_size": 7, "training.clip_norm": 0.5},
    ],
    ids=["plain", "dropout", "ema", "accumulate", "staged", "clip"],
)
def test_equals_the_slow_way(
    more: dict[str, Any], samples: Any, changes: dict[str, Any], build: Any, difference: Any
) -> None:
    slow = build(samples, **{**changes, **more})
    slow.trainer.run()
    fast = build(samples, **{**changes, **more})
    screen = _offer(fast)
    assert fast.plan.on_features is not None, screen.messages
    fast.trainer.run()
    assert screen.computed == 53 + 18
    assert difference(fast.model, slow.model) < 1e-5
    assert difference(fast.model, fast.start) > 1e-3
    for (_, ours, _), (_, theirs, _) in zip(fast.recorder.epochs, slow.recorder.epochs, strict=True):
        for name in ("val/loss", "val/accuracy", "train/epoch-loss"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    for name, tensor in fast.trainer.best.items():
        torch.testing.assert_close(tensor, slow.trainer.best[name], atol=1e-5, rtol=1e-5)


def test_the_frozen_part_stays_bit_for_bit(samples: Any, changes: dict[str, Any], build: Any) -> None:
    bench = build(samples, **changes)
    _offer(bench)
    bench.trainer.run()
    before, after = bench.start.state_dict(), bench.model.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "head.weight",
        "head.bias",
    }


def test_computed_once_and_kept(samples: Any, changes: dict[str, Any], build: Any, difference: Any) -> None:
    first = build(samples, **changes)
    _offer(first)
    first.trainer.run()
    again = build(samples, **{**changes, "training.lr": 0.002})
    screen = _offer(again)
    again.trainer.run()
    assert screen.computed == 0
    assert difference(again.model, first.model) == 0
    files = list(Path(first.plan.spec.data.cache_dir).glob("decoded/*/features.npy"))
    assert sorted(np.load(path).shape for path in files) == [(18, 1, 512), (53, 1, 512)]


@pytest.mark.parametrize(
    ("more", "computed"),
    [
        ({"training.lr": 0.1, "training.batch_size": 5, "seed": 3, "training.epochs": 1}, 0),
        ({"input.mean": (0.3,)}, 71),
        ({"training.precision": "bf16"}, 71),
    ],
    ids=["training", "contract", "precision"],
)
def test_the_key_is_all_that_features_depend_on(
    more: dict[str, Any], computed: int, samples: Any, changes: dict[str, Any], build: Any
) -> None:
    for values, expected in ((changes, 71), ({**changes, **more}, computed)):
        bench = build(samples, **values)
        screen = _offer(bench)
        bench.trainer.run()
        assert screen.computed == expected


def test_other_weights_and_other_images_are_computed_anew(
    samples: Any, pictures: Any, changes: dict[str, Any], build: Any
) -> None:
    one = build(samples, **changes)
    _offer(one)
    one.trainer.run()
    network = copy.deepcopy(one.start)
    with torch.no_grad():
        network.hidden.bias[0] += 0.01
    screen = _offer(other := build(samples, network, **changes))
    other.trainer.run()
    assert screen.computed == 71
    screen = _offer(other := build(pictures((20, 17, 16), (6, 5, 7), seed=1), **changes))
    other.trainer.run()
    assert screen.computed == 71


@pytest.mark.parametrize("damage", ["cut", "empty", "shape"])
def test_a_damaged_file_is_computed_anew(
    damage: str, samples: Any, changes: dict[str, Any], build: Any, difference: Any
) -> None:
    first = build(samples, **changes)
    _offer(first)
    first.trainer.run()
    for path in Path(first.plan.spec.data.cache_dir).glob("decoded/*/features.npy"):
        if damage == "shape":
            np.save(path, np.zeros((2, 1, 512), np.float32))
        else:
            path.write_bytes(path.read_bytes()[: 300 if damage == "cut" else 0])
    again = build(samples, **changes)
    screen = _offer(again)
    again.trainer.run()
    assert screen.computed == 71
    assert difference(again.model, first.model) == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"augment.preset": "cifar"}, ["crop pad", "hflip 0.5", "--speed.feature-views"]),
        ({"augment.brightness": 0.2}, ["brightness 0.2", "--augment.preset none"]),
        ({"augment.mixup": 0.2}, ["MixUp"]),
        ({"augment.cutmix": 1.0, "speed.feature_views": 2}, ["CutMix"]),
    ],
)
def test_says_what_prevents_it(
    more: dict[str, Any], words: list[str], samples: Any, changes: dict[str, Any], build: Any
) -> None:
    bench = build(samples, **{**changes, **more})
    screen = _offer(bench)
    assert bench.plan.on_features is None
    assert len(screen.messages) == 1
    assert all(word in screen.messages[0] for word in words)


@pytest.mark.parametrize("more", [{"speed.features": False}, {"model.finetune": "full"}])
def test_switched_off_without_a_word(
    more: dict[str, Any], samples: Any, changes: dict[str, Any], build: Any
) -> None:
    bench = build(samples, **{**changes, **more})
    assert _offer(bench).messages == []
    assert bench.plan.on_features is None


def test_views_are_augmented_images(samples: Any, changes: dict[str, Any], build: Any) -> None:
    bench = build(samples, **{**changes, "augment.hflip": 0.5, "speed.feature_views": 4})
    screen = _offer(bench)
    bench.trainer.run()
    assert screen.computed == 4 * 53 + 18
    assert bench.trainer.progress.finished
    found = bench.trainer.way.train.batch(np.arange(53)).images
    images, _ = bench.inputs()
    split = frozen.Split(bench.model, bench.plan.blocks, images[:2])
    plain, flipped = split.trunk(images), split.trunk(images.flip(3))
    is_plain = (found - plain[:, None]).abs().amax(2) < 1e-4
    is_flipped = (found - flipped[:, None]).abs().amax(2) < 1e-4
    assert bool((is_plain | is_flipped).all())
    assert 70 < int(is_flipped.sum()) < 142  # of 212: within five deviations of half
    assert bool(is_flipped.any(1).all()) is False or bool(is_plain.any())


class _Nothing(Task):
    """A task of which only the features' own part is looked at."""

    def inputs(self, batch: Any, generator: torch.Generator, micro: int) -> Batch:
        raise NotImplementedError

    def loss(self, network: torch.nn.Module, batch: Batch) -> Any:
        raise NotImplementedError


def test_each_step_draws_a_view_of_each_image() -> None:
    values = torch.arange(6 * 3).reshape(6, 3, 1).float()
    task = features.OnFeatures(_Nothing(), 3)

    def batch(start: int, stop: int) -> Any:
        return SimpleNamespace(
            images=values[start:stop], labels=torch.zeros(stop - start), start=start, count=6
        )

    seen = set()
    for seed in range(40):
        whole = task.inputs(batch(0, 6), torch.Generator().manual_seed(seed), 9).images
        parts = [
            task.inputs(batch(a, b), torch.Generator().manual_seed(seed), 9).images
            for a, b in ((0, 4), (4, 6))
        ]
        assert torch.equal(torch.cat(parts), whole)  # two processes draw what one does
        assert torch.equal(whole.flatten().long() // 3, torch.arange(6))
        seen |= set(whole.flatten().long().tolist())
    assert seen == set(range(18))


def test_memory_that_does_not_suffice_halves_the_batch(
    samples: Any, changes: dict[str, Any], build: Any, difference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = build(samples, **changes)
    plain.trainer.run()
    trunk, sizes = frozen.Split.trunk, []

    def hungry(self: Any, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(images))
        return trunk(self, images)

    monkeypatch.setattr(frozen.Split, "trunk", hungry)
    bench = build(samples, **changes)
    screen = _offer(bench)
    bench.trainer.run()
    assert screen.computed == sum(sizes) == 71
    assert max(sizes) <= 5
    assert difference(bench.model, plain.model) < 1e-5


def test_a_full_disk_is_reported_clearly(
    samples: Any, changes: dict[str, Any], build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    bench = build(samples, **changes)
    _offer(bench)
    monkeypatch.setattr(np.lib.format, "open_memmap", full)
    with pytest.raises(CacheError, match=r"No space left on device.*--speed.no-features"):
        bench.trainer.run()
    assert not list(Path(bench.plan.spec.data.cache_dir).glob("decoded/*/features.npy"))


def test_goes_on_from_a_checkpoint_bit_for_bit(
    samples: Any, changes: dict[str, Any], build: Any, difference: Any
) -> None:
    changes = {**_with_own_dropout(changes), "model.finetune": "staged", "model.unfreeze": (2,)}
    whole = build(samples, **changes)
    _offer(whole)
    whole.trainer.run()
    for stop in (5, 9, 18):  # inside the first, the second, and the whole network's epoch
        cut = build(samples, **changes)
        _offer(cut)
        take, done = cut.trainer.stepper.take, []

        def until(
            *args: Any, take: Any = take, done: list[int] = done, cut: Any = cut, stop: int = stop
        ) -> Any:
            if len(done) == stop:
                cut.trainer.save()
                raise KeyboardInterrupt
            done.append(1)
            return take(*args)

        cut.trainer.stepper.take = until
        with pytest.raises(KeyboardInterrupt):
            cut.trainer.run()
        on = build(samples, **changes)
        _offer(on)
        on.trainer.restore(checkpoint.load_newest(cut.trainer.folder))
        on.trainer.run()
        assert difference(on.model, whole.model) == 0


def _command(data: Path, run: Path, start: Path, *more: str) -> list[str]:
    return [
        "train", str(data), "--run.dir", str(run), "--model.name", "fast-cnn", "--model.weights", str(start),
        "--model.finetune", "head", "--augment.preset", "none", "--training.batch-size", "4", "--seed", "3",
        "--data.cache-dir", str(data.parent / "cache"), "--run.no-tensorboard", "--run.no-report",
        "--model.dropout", "0.2", "--training.device", "cpu", *more,
    ]  # fmt: skip


def _run(words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def _rows(run: Path) -> list[tuple[str, str, str]]:
    with open(run / "metrics.csv", encoding="utf-8") as stream:
        rows = [(row["name"], row["step"], row["value"]) for row in csv.DictReader(stream)]
    return sorted(row for row in rows if row[0] not in ("train/images-per-second", "seconds"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> tuple[Path, Path]:
    """Return a folder of images and a run on it whose weights others start from."""
    root = tmp_path_factory.mktemp("features")
    data = make_folder(root / "data", count=40, splits=("train", "val"), size=12)
    words = [
        "-m",
        "tellapart",
        "train",
        str(data),
        "--run.dir",
        str(root / "start"),
        "--model.name",
        "fast-cnn",
    ]
    _run([*words, "--training.epochs", "1", "--run.no-tensorboard", "--run.no-report"])
    return data, root / "start"


@pytest.mark.slow
def test_killed_and_resumed_ends_with_the_same_bytes(start: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = start
    long = ("--training.epochs", "120")
    _run(["-m", "tellapart", *_command(data, tmp_path / "uncut", weights, *long)])
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "tellapart", *_command(data, cut, weights, *long)],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    until = time.monotonic() + 100
    while process.poll() is None and time.monotonic() < until and not checkpoint.existing(cut / "checkpoint"):
        time.sleep(0.002)
    time.sleep(0.05)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    _run(["-m", "tellapart", "resume", str(cut)])
    ours, theirs = (
        safetensors.torch.load_file(run / "model.safetensors") for run in (cut, tmp_path / "uncut")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert _rows(cut) == _rows(tmp_path / "uncut")


@pytest.mark.slow
def test_two_processes_compute_what_one_does(start: tuple[Path, Path], tmp_path: Path) -> None:
    data, weights = start
    words = ("--training.epochs", "3", "--model.dropout", "0")
    _run(["-m", "tellapart", *_command(data, tmp_path / "one", weights, *words)])
    more = ("--data.cache-dir", str(tmp_path / "cache"))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tellapart"]
    _run([*torchrun, *_command(data, tmp_path / "two", weights, *words, *more)])
    ours, theirs = (
        safetensors.torch.load_file(tmp_path / run / "model.safetensors") for run in ("two", "one")
    )
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-4)
    one, two = (
        sorted((folder / "decoded").glob("*/features.npy"))
        for folder in (data.parent / "cache", tmp_path / "cache")
    )
    kept = {path.parent.name: np.load(path) for path in one}
    assert len(two) == 2
    for path in two:
        np.testing.assert_array_equal(np.load(path), kept[path.parent.name])


def test_known_logits_are_those_of_the_network_with_the_same_trunk_only(
    samples: Any, changes: dict[str, Any], build: Any
) -> None:
    bench = build(samples, **changes)
    _offer(bench)
    bench.trainer.run()
    known, model, val = bench.trainer.way.known, bench.plan.model.eval(), bench.prepared.val
    logits = known(model)
    with torch.inference_mode():
        inputs = normalise(val.batch(np.arange(len(val))).images, bench.prepared.contract)
        torch.testing.assert_close(logits, model(inputs), atol=1e-5, rtol=1e-4)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(p for p in other.parameters() if p.requires_grad).mul_(2)  # the head's
        assert not torch.equal(known(other), logits)
        next(p for p in other.parameters() if not p.requires_grad).add_(1e-3)
    assert known(other) is None
