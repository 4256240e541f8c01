"""Small plans for the loop: images in memory, a small network, and a reporter that remembers."""

from __future__ import annotations

import copy
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.data.samples import Samples
from tellapart.devices import choose_device
from tellapart.models import zoo
from tellapart.spec import Spec, update
from tellapart.training import checkpoint, setup
from tellapart.training.distributed import Processes
from tellapart.training.loop import Trainer

BASE: dict[str, Any] = {
    "model.name": "simple-cnn",
    "augment.preset": "none",
    "training.device": "cpu",
    "training.optimizer": "sgd",
    "training.momentum": 0.9,
    "training.lr": 0.002,
    "training.batch_size": 8,
    "training.schedule": "constant",
    "training.epochs": 2,
    "run.log_every": 1,
}


def _pictures(
    train: Sequence[int] = (20, 20, 20),
    val: Sequence[int] = (),
    test: Sequence[int] = (),
    size: int = 8,
    channels: int = 3,
    seed: int = 0,
    noise: float = 45,
) -> Samples:
    """Samples with so many images of each class; a class is a stripe of its own, under noise."""
    rng = np.random.default_rng(seed)
    pixels, labels, splits = [], [], []
    for split, counts in (("train", train), ("val", val), ("test", test)):
        for label, count in enumerate(counts):
            for _ in range(count):
                image = np.full((size, size, channels), 110.0)
                image[label % size :: len(train)] += 70
                image += rng.normal(0, noise, image.shape)
                pixels.append(np.clip(image, 0, 255).astype(np.uint8))
                labels.append(label)
                splits.append(split)
    array = np.stack(pixels)
    return Samples(
        paths=np.array([f"{split}/{place}" for place, split in enumerate(splits)], dtype=object),
        labels=np.array(labels, np.int64),
        splits=np.array(splits, dtype=object),
        classes=tuple(f"class {label}" for label in range(len(train))),
        name="pictures",
        pixels=array if channels == 3 else array[..., 0],
        keys=np.arange(len(labels)),
    )


@dataclass
class Recorder:
    """Remembers what the loop reports."""

    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    epochs: list[tuple[int, dict[str, float], bool]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)

    def start(self, epochs: int, steps_per_epoch: int, first_step: int, ahead: Any) -> None:
        self.first_step = first_step

    def plan(self, epochs: int, ahead: Any) -> None:
        self.planned = epochs

    def message(self, text: str) -> None:
        self.messages.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def step(self, epoch: int, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        self.steps.append(step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.logged.append((step, dict(values)))

    def epoch_done(self, epoch: int, values: Mapping[str, float], best: bool) -> None:
        self.epochs.append((epoch, dict(values), best))

    def column(self, name: str) -> list[float]:
        """Every logged value of that name, in order."""
        return [values[name] for _, values in self.logged if name in values]


@dataclass
class Bench:
    """A trainer that has not begun, with everything that it was made from."""

    prepared: setup.RunData
    plan: Any
    trainer: Trainer
    recorder: Recorder
    start: torch.nn.Module  # a copy of the network with its first weights

    @property
    def model(self) -> torch.nn.Module:
        return self.plan.model

    def inputs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The training images as the network gets them, by the formula, and their labels."""
        samples, contract = self.prepared.train.samples, self.prepared.contract
        pixels = np.stack([samples.read(row) for row in range(len(samples))]).astype(np.float32)
        images = torch.from_numpy(pixels.reshape(*pixels.shape[:3], -1)).permute(0, 3, 1, 2) / 255
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (contract.mean, contract.std))
        return (images - mean) / std, torch.from_numpy(samples.labels)


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Samples]:
    return _pictures


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Bench]:
    """Return a function: samples and changes of the spec -> Bench. ``model`` takes the built network's place; ``task`` makes another."""
    made: list[Path] = []

    def make(
        samples: Samples,
        /,
        model: torch.nn.Module | None = None,
        device: str = "cpu",
        task: setup.MakeTask = setup.build_task,
        **changes: Any,
    ) -> Bench:
        own = {"input.size": samples.pixels.shape[1], "data.cache_dir": str(tmp_path / "cache")}
        own["training.device"] = device
        spec = update(Spec(), {**BASE, **own, **changes})
        prepared = setup.prepare(spec, samples, lambda count: None)
        built, _, _ = setup.build_model(prepared)
        network = built if model is None else model
        start = copy.deepcopy(network)
        processes = Processes(0, 1, choose_device(device))
        prepared = setup.complete(prepared, network, processes)
        plan = setup.plan(prepared, network, processes, task)
        recorder = Recorder()
        made.append(tmp_path / f"run{len(made)}")
        trainer = Trainer(plan, processes, made[-1] / "checkpoint", recorder)
        return Bench(prepared, plan, trainer, recorder, start)

    return make


@pytest.fixture(scope="session")
def difference() -> Callable[[torch.nn.Module, torch.nn.Module], float]:
    """Return a function: the largest difference between two networks' parameters and buffers."""

    def largest(ours: torch.nn.Module, theirs: torch.nn.Module) -> float:
        a, b = ours.state_dict(), theirs.state_dict()
        assert a.keys() == b.keys()
        return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)

    return largest


@pytest.fixture(scope="session")
def saved_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a network's state dict, with lively norms, and returns the file's path."""
    folder = tmp_path_factory.mktemp("weights")

    def save(name: str = "simple-cnn", **shape: Any) -> Path:
        path = folder / (name.replace("/", "-") + "".join(f"-{key}{value}" for key, value in shape.items()))
        path = path.with_name(path.name + ".pth")
        if not path.exists():
            torch.manual_seed(5)
            model = zoo.build(zoo.Architecture(name, **{"num_classes": 5, "size": 8, **shape}))
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.running_mean, 0, 0.2)
                    torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.save(model.state_dict(), path)
        return path

    return save


@pytest.fixture
def interrupt_at() -> Callable[[Bench, int], None]:
    """Return a function that has Ctrl-C pressed once the bench's trainer has logged the step of that number."""

    def press(bench: Bench, step: int) -> None:
        log = bench.recorder.log

        def counted(at: int, values: Mapping[str, float]) -> None:
            log(at, values)
            if at >= step and "train/loss" in values and bench.recorder.log is counted:
                bench.recorder.log = log  # type: ignore[method-assign]
                os.kill(os.getpid(), signal.SIGINT)

        bench.recorder.log = counted  # type: ignore[method-assign]

    return press


@pytest.fixture
def cut_in_the_middle(
    build: Callable[..., Bench], interrupt_at: Callable[[Bench, int], None]
) -> Callable[..., tuple[Bench, Bench]]:
    """Return a function: samples, a step and changes of the spec -> (a whole run, one cut at that step and resumed)."""

    def run(samples: Samples, step: int, /, **changes: Any) -> tuple[Bench, Bench]:
        whole, cut, again = (build(samples, **copy.deepcopy(changes)) for _ in range(3))
        assert whole.trainer.run().finished
        interrupt_at(cut, step)
        assert not cut.trainer.run().finished
        again.trainer.restore(checkpoint.load_newest(cut.trainer.folder))
        assert again.trainer.progress.step_in_epoch
        assert again.trainer.run().finished
        return whole, again

    return run
