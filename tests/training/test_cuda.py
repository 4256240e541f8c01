"""What only a CUDA device can show: the same training as on the CPU, images that live there, graphs, lack of memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tellapart
from tellapart import artifact
from tellapart.augment import Augment, resolve
from tellapart.data.loader import batches
from tellapart.preprocess import Preprocessing
from tellapart.spec import AugmentSpec
from tellapart.training import checkpoint
from tellapart.training.speed.compiled import Compiled

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CUDA = torch.device("cuda")
EXACT = {"training.precision": "fp32", "training.epochs": 3, "training.lr": 0.001}


@pytest.fixture(autouse=True)
def _exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 is right for training and too coarse for comparisons."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("augmented", [False, True])
def test_training_is_that_of_the_cpu_but_for_rounding(
    augmented: bool, build: Any, pictures: Any, difference: Any
) -> None:
    changes: dict[str, Any] = dict(EXACT)
    if augmented:
        changes |= {
            "augment.crop": "pad",
            "augment.crop_padding": 2,
            "augment.hflip": 0.5,
            "augment.cutout": 3,
        }
    samples = pictures(val=(5, 5, 5))
    benches = [build(samples, device=device, **changes) for device in ("cpu", "cuda")]
    for bench in benches:
        bench.trainer.run()
    here, there = benches
    assert difference(here.model, copy.deepcopy(there.model).cpu()) < 1e-4
    for name in ("train/loss", "train/accuracy", "train/grad-norm"):
        assert there.recorder.column(name) == pytest.approx(here.recorder.column(name), rel=2e-3, abs=1e-4)
    assert [step for step, _ in there.recorder.logged] == [step for step, _ in here.recorder.logged]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "muon-sgd", "muon", "rmsprop"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_optimizer_learns_in_every_precision(
    optimizer: str, precision: str, build: Any, pictures: Any
) -> None:
    changes = {"training.optimizer": optimizer, "training.precision": precision, "training.epochs": 12}
    rates = {"sgd": 0.005, "muon-sgd": 0.02}
    changes |= {"training.lr": rates.get(optimizer, 0.002), "run.log_every": 4}
    bench = build(pictures(val=(5, 5, 5)), device="cuda", **changes)
    bench.trainer.run()
    losses = [values["train/epoch-loss"] for _, values, _ in bench.recorder.epochs]
    assert losses[-1] < 0.85 * losses[0]


def test_going_on_from_a_checkpoint_is_the_same_training(
    build: Any, pictures: Any, difference: Any, interrupt_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    changes = {**EXACT, "training.ema": 0.9, "augment.hflip": 0.5}
    whole = build(pictures(), device="cuda", **changes)
    whole.trainer.run()
    first = build(pictures(), device="cuda", **changes)
    interrupt_at(first, whole.plan.steps_per_epoch + 2)
    assert not first.trainer.run().finished
    again = build(pictures(), device="cuda", **changes)
    again.trainer.restore(checkpoint.load_newest(first.trainer.folder))
    assert again.trainer.progress.epoch == 1
    assert again.trainer.progress.step_in_epoch
    again.trainer.run()
    assert difference(copy.deepcopy(whole.model).cpu(), copy.deepcopy(again.model).cpu()) < 1e-5


@pytest.mark.parametrize("resident", [True, False])
def test_images_on_the_device_are_those_of_the_store(resident: bool, build: Any, pictures: Any) -> None:
    bench = build(pictures(), **{"input.size": 12})  # sized by a store, not the array itself
    images = bench.prepared.train
    moved = images.on_device(CUDA, 1 << 30) if resident else images
    order = np.random.default_rng(0).permutation(len(images)).astype(np.int64)
    for (_, ours), (_, theirs) in zip(
        batches(moved, order, 7, device=CUDA), batches(images, order, 7), strict=True
    ):
        assert ours.images.device.type == ours.labels.device.type == "cuda"
        assert torch.equal(ours.pixels.cpu(), theirs.pixels)
        assert torch.equal(ours.labels.cpu(), theirs.labels)


CHANGES = {
    "padded crops": {"crop": "pad", "crop_padding": 3, "padding_mode": "reflect", "hflip": 0.5, "vflip": 0.5},
    "resized crops": {"crop": "resized", "hflip": 0.5},
    "rotation": {"rotation": 30.0, "translate": 0.1, "scale": (0.8, 1.2), "shear": 10.0},
    "colour": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1},
    "policy": {"policy": "randaugment"},
    "resized and warped": {"crop": "resized", "hflip": 0.5, "rotation": 20.0, "shear": 8.0},
    "resized and mirrored": {"crop": "resized", "rotation": 20.0, "padding_mode": "reflect"},
    "erasing": {"erasing": 1.0},
}


@pytest.mark.parametrize("name", CHANGES)
def test_augmentation_is_that_of_the_cpu(name: str) -> None:
    contract = Preprocessing(24, 3, "squash", "bilinear", 1.0, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    spec = resolve(AugmentSpec(preset="none", **CHANGES[name]), 24)
    augment = Augment(spec, contract, 3, channels_last=True)
    side = 40 if augment.needs_large_source else 24
    coarse = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    images = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear").permute(0, 2, 3, 1)
    images = images.to(torch.uint8).contiguous()
    sizes = torch.full((16, 2), side) if augment.needs_large_source else None
    drawn = augment.draw(16, sizes, torch.Generator().manual_seed(1))
    here = augment.apply(images, sizes, drawn)
    there = augment.apply(images.cuda(), sizes, drawn).cpu()
    level = 1 / (255 * 0.2)
    far = ((here - there).abs() > 1.01 * level).float().mean()
    assert far < (
        0.02 if name == "policy" else 0.002
    )  # a rounded threshold moves single values of a policy's
    assert (here - there).abs().mean() < 0.3 * level


@pytest.mark.parametrize("kind", ["graphs", "compile"])
@pytest.mark.filterwarnings("ignore")  # torch's own, about what its compiler imports
def test_replayed_and_compiled_steps_are_the_plain_ones(
    kind: str, build: Any, pictures: Any, difference: Any
) -> None:
    changes: dict[str, Any] = {**EXACT, "training.start_size": 8, "model.name": "whitened-cnn"}
    changes["speed.cuda_graphs"] = "off"
    samples = pictures(train=(24, 24, 24), size=12)
    plain = build(samples, device="cuda", **changes)
    plain.trainer.run()
    changes |= {"speed.cuda_graphs": "on"} if kind == "graphs" else {"speed.compile": "on"}
    fast = build(samples, device="cuda", **changes)
    fast.trainer.run()
    assert fast.recorder.warnings == []
    if kind == "graphs":
        assert len(fast.trainer.stepper.graphs) == 2  # one for each size of the images
    else:
        assert isinstance(fast.trainer.stepper.network, Compiled)
    assert difference(copy.deepcopy(plain.model).cpu(), copy.deepcopy(fast.model).cpu()) < 1e-4


def test_a_batch_that_does_not_fit_is_computed_in_micro_batches(build: Any, pictures: Any) -> None:
    samples = pictures(train=(256, 256), size=64)
    changes = {"model.name": "fast-cnn", "training.batch_size": 512, "training.epochs": 1}
    bench = build(samples, device="cuda", **changes)
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (400 << 20)) / total)
    try:
        bench.trainer.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("Out of memory" in text for text in bench.recorder.warnings)
    assert bench.trainer.stepper.micro < 512
    assert bench.trainer.progress.step == 1


def test_a_run_from_files_to_answers(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tmp_path / "data", splits=("train", "val", "test"), size=40)
    result = tellapart.train(
        data,
        quiet=True,
        profile=True,
        training={"epochs": 4, "batch_size": 8, "device": "cuda", "precision": "bf16"},
        augment={"crop": "resized"},
        run={"dir": str(tmp_path / "run"), "tensorboard": False},
    )
    assert result.metrics["accuracy"] > 0.5
    assert (tmp_path / "run" / "profile" / "steps.txt").is_file()
    images = torch.randint(0, 256, (5, 40, 40, 3), dtype=torch.uint8)
    here, there = (artifact.open_model(result.run, device)(images) for device in ("cpu", "cuda"))
    assert there.device.type == "cpu"
    torch.testing.assert_close(here, there, atol=1e-3, rtol=1e-3)
    files = sorted((data / "test").rglob("*.png"))
    answers = [tellapart.load(result.run, device=device).predict(files, top=3) for device in ("cpu", "cuda")]
    for ours, theirs in zip(*answers, strict=True):
        assert ours.label == theirs.label
        assert ours.probability == pytest.approx(theirs.probability, abs=1e-3)


@pytest.mark.filterwarnings("ignore")  # the mode is called a prototype
def test_no_step_waits_for_the_device(build: Any, pictures: Any) -> None:
    """torch warns of every operation that does while its mode says so."""
    bench = build(
        pictures(), device="cuda", **{"training.epochs": 2, "run.log_every": 1, "augment.hflip": 0.5}
    )
    stepper = bench.trainer.stepper
    bench.trainer.set_stage()
    order = np.arange(16, dtype=np.int64)
    for index, batch in batches(bench.plan.train, order, 8, device=CUDA):
        stepper.take(batch, index, True)  # libraries prepare themselves
    for index, batch in batches(bench.plan.train, order, 8, device=CUDA):
        torch.cuda.set_sync_debug_mode("error")
        try:
            outcome = stepper.take(batch, index, True)
            bench.trainer._count(outcome, batch)
            bench.trainer._ask(outcome.norm, 1.0, 1.0, True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    bench.trainer._tell(wait=True)
    assert len(bench.recorder.logged) == 2
