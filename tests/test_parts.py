"""Parts used alone: what each promises, against something independent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from tellapart import parts
from tellapart.errors import DataError, ExportError, RunError, SpecError

CONTRACT = parts.Preprocessing(12, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.25,) * 3)


def test_the_store_has_what_the_contract_makes(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(tmp_path / "data", count=6, splits=("train", "val"))
    (data / "train" / "ant" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    images = parts.open_images(data, CONTRACT, cache_dir=str(tmp_path / "cache"))
    assert set(images) == {"train", "val"}
    assert "1 image cannot be read" in capfd.readouterr().err
    train = images["train"]
    rows = np.array([5, 0, 3])
    ((step, batch),) = parts.batches(train, rows, batch_size=3)
    assert step == 0
    for row, pixels, label in zip(rows, batch.pixels, batch.labels, strict=True):
        path = train.samples.file(row)
        assert np.array_equal(parts.load(Path(path).read_bytes(), CONTRACT), pixels.numpy())
        assert train.samples.classes[label] == Path(path).parent.name


@pytest.mark.parametrize("preset", ["cifar", "photo"])
def test_augmentation_is_a_function_of_the_generator(
    tmp_path: Path, make_folder: Callable[..., Path], preset: str
) -> None:
    data = make_folder(tmp_path / "data", count=6)
    augmentation = parts.Augmentation(CONTRACT, 2, preset)
    changes = {"cache_dir": str(tmp_path / "cache")}
    train = parts.open_images(data, CONTRACT, augmentation, quiet=True, **changes)["train"]
    (first,) = parts.batches(train, np.arange(len(train)), len(train))
    made = [augmentation(first[1], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert made[0].shape == (len(train), 3, 12, 12)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_without_changes_augmentation_is_the_contract() -> None:
    images = torch.randint(0, 256, (5, 12, 12, 3), dtype=torch.uint8)
    augmentation = parts.Augmentation(CONTRACT, 2, "none")
    expected = (images.permute(0, 3, 1, 2).double() / 255 - 0.5) / 0.25
    found = augmentation(images, torch.Generator())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)
    crops = parts.Augmentation(CONTRACT, 2, "photo")
    assert crops.needs_large_source
    large = torch.randint(0, 256, (5, 30, 20, 3), dtype=torch.uint8)
    assert crops(large, torch.Generator()).shape == (5, 3, 12, 12)
    with pytest.raises(SpecError):
        parts.Augmentation(CONTRACT, 2, "fancy")


@pytest.mark.parametrize("mode", ["shuffle", "oversample", "undersample", "weighted"])
@pytest.mark.parametrize(("stop", "drop_last"), [(1, False), (7, False), (9, True), (23, True)])
def test_a_sampler_continues_exactly(mode: str, stop: int, drop_last: bool) -> None:
    """Through a loader that reads ahead in processes of its own; the state is taken between two steps."""
    labels = np.random.default_rng(0).integers(0, 3, 40)

    def run(sampler: parts.ResumableSampler, steps: int) -> list[list[int]]:
        loader = DataLoader(TensorDataset(torch.arange(40)), batch_sampler=sampler)
        found: list[list[int]] = []
        while len(found) < steps:
            for (batch,) in itertools.islice(loader, steps - len(found)):
                found.append(batch.tolist())
                sampler.done()
        return found

    def new() -> parts.ResumableSampler:
        return parts.ResumableSampler(labels, 7, mode, seed=3, drop_last=drop_last)

    whole = run(new(), 30)
    first, second = new(), new()
    begun = run(first, stop)
    second.load_state_dict(first.state_dict())
    assert begun + run(second, 30 - stop) == whole
    steps = new().steps
    order = parts.epoch_order(labels, mode, 3, 1).tolist()
    epoch = [row for batch in whole[steps : 2 * steps] for row in batch]
    assert epoch == order[: len(epoch)]
    assert drop_last or len(epoch) == len(order)


def test_a_sampler_refuses_the_state_of_another() -> None:
    state = parts.ResumableSampler([0, 1, 0, 1], 2).state_dict()
    with pytest.raises(RunError, match="batch_size 2; here it is 3"):
        parts.ResumableSampler([0, 1, 0, 1], 3).load_state_dict(state)
    with pytest.raises(RunError, match="images 4; here it is 3"):
        parts.ResumableSampler([0, 1, 0], 2).load_state_dict(state)
    with pytest.raises(SpecError, match="at least 1"):
        parts.ResumableSampler([0, 1], 0)
    with pytest.raises(SpecError, match="no batch of 3"):
        parts.ResumableSampler([0, 1], 3, drop_last=True)


def constant(*values: Any) -> Callable[[Any], Any]:
    return lambda batch: np.array(values, dtype=np.float64)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreement", "ties", "words"),
    [
        ([[1.0, 0.0]], [[1.0, 0.0]], 1.0, 0, []),
        ([[1.0, 0.0]], [[0.4, 0.6]], 0.0, 0, ["differs by 0.6", "1 of 1 inputs"]),
        ([[0.50004, 0.5]], [[0.5, 0.50004]], 0.0, 1, []),
        ([[1.0, 0.0]], [[float("nan"), 0.0]], 0.0, 0, ["differs by inf"]),
        ([[[1.0]]], [[[1.5]]], None, 0, ["differs by 0.5"]),
    ],
)
def test_parity(ours: Any, theirs: Any, agreement: float | None, ties: int, words: list[str]) -> None:
    found = parts.parity(constant(*ours), constant(*theirs), [None])
    assert found.ties == ties
    assert found.passed == (not words)
    for word in words:
        assert word in " ".join(found.reasons)
    if "inf" not in " ".join(words):
        assert found.agreement == agreement


def test_parity_names_the_worst_input_of_all_batches() -> None:
    batches = [torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.0, 7.0]])]
    found = parts.parity(lambda batch: batch, lambda batch: batch * 1.1, batches, tolerance=1.0)
    assert (found.n, found.worst, found.passed) == (5, 4, True)
    assert found.max_difference == pytest.approx(0.7, rel=1e-6)
    with pytest.raises(ExportError, match=r"\[1, 2\] of the first and \[1, 3\]"):
        parts.parity(constant([1, 2]), constant([1, 2, 3]), [None])
    with pytest.raises(DataError, match="no input"):
        parts.parity(constant([1]), constant([1]), [])


def test_the_contract_alone(tmp_path: Path) -> None:
    Image.new("L", (20, 10), 128).save(tmp_path / "a.png")
    pixels = parts.load((tmp_path / "a.png").read_bytes(), CONTRACT)
    assert pixels.shape == (12, 12, 3)
    module = parts.as_module(CONTRACT)
    expected = parts.normalise(torch.from_numpy(pixels)[None], CONTRACT)
    torch.testing.assert_close(module(torch.from_numpy(pixels)[None]), expected)
