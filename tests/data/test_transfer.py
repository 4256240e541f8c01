"""Copies beside the computation, in the order that streams demand; checked with a stand-in for CUDA."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.data import transfer
from tellapart.data.loader import ImageSet, RawBatch, batches
from tellapart.data.samples import Samples
from tellapart.data.stores.cache import open_or_build
from tellapart.data.stores.workers import Threads
from tellapart.data.transfer import Transfer, resident_limit

META = torch.device("meta")


def images(folder: Path, ragged: bool, count: int = 11) -> ImageSet:
    pixels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1)
    names = np.array([str(n) for n in range(count)], dtype=object)
    splits = np.full(count, "train", dtype=object)
    samples = Samples(names, np.arange(count) % 3, splits, ("a", "b", "c"), pixels=pixels)

    def decode(one: Any, box: Any) -> np.ndarray:
        number = int(one[0, 0])
        return np.full((4 + (number % 3 if ragged else 0), 5, 3), number, np.uint8)

    store = open_or_build(samples, decode, f"{ragged}", 3, folder, Threads(1))
    return ImageSet(samples, store, np.arange(count))


def test_nothing_is_copied_for_the_processor(tmp_path: Path) -> None:
    assert not Transfer(None).needed
    moving = Transfer(torch.device("cpu"))
    batch = images(tmp_path, True).batch(np.array([1, 2]))
    assert not moving.needed
    assert moving.end(moving.begin(batch)) is batch
    assert resident_limit(torch.device("cpu")) == 0


@pytest.mark.parametrize("ragged", [False, True])
def test_batches_arrive_on_the_device(ragged: bool, tmp_path: Path) -> None:
    found = list(batches(images(tmp_path, ragged), np.arange(11), 4, device=META))
    assert [step for step, _ in found] == [0, 1, 2]
    for _, batch in found:
        assert batch.images.device == batch.labels.device == META
        assert batch.to(META) is batch
        assert batch.sizes is None or batch.sizes.device.type == "cpu"


@pytest.mark.parametrize("ragged", [False, True])
def test_images_that_live_on_a_device_give_the_same_batches(
    ragged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tellapart.data.stores.cache._PART", 100)
    here = images(tmp_path, ragged)
    size = int((here.store.heights * here.store.widths).sum()) * 3
    assert here.on_device(torch.device("cpu"), size - 1).store is here.store
    assert here.on_device(torch.device("cpu"), 0) is here
    there = here.on_device(torch.device("cpu"), size)
    assert there.store is not here.store
    assert (there.store.resident is None) != ragged  # type: ignore[union-attr]
    order = np.array([3, 9, 0, 3, 10])
    one, other = here.batch(order), there.batch(order)
    assert torch.equal(one.pixels, other.pixels)
    assert torch.equal(one.labels, other.labels)
    assert (one.sizes is None) == (other.sizes is None) == (not ragged)
    assert np.array_equal(here.store.image(7), there.store.image(7))
    assert here.on_device(META, size).batch(order).images.device == META


class FakeTensor:
    """Stands for a tensor on the processor or on the card; writes down what is done with it."""

    def __init__(self, log: list[str], name: str, kind: str = "cpu") -> None:
        self.log, self.name, self.device = log, name, SimpleNamespace(type=kind)

    def pin_memory(self) -> FakeTensor:
        self.log.append(f"pin {self.name}")
        return self

    def to(self, device: Any, non_blocking: bool = False) -> FakeTensor:
        self.log.append(f"copy {self.name} {'async' if non_blocking else 'waiting'} on {FakeStream.current}")
        return FakeTensor(self.log, self.name, "cuda")

    def record_stream(self, stream: Any) -> None:
        self.log.append(f"{self.name} used on {stream.name}")


class FakeStream:
    current = "main"
    log: list[str]

    def __init__(self, name: str) -> None:
        self.name, self.events = name, 0

    def __enter__(self) -> None:
        FakeStream.current = self.name

    def __exit__(self, *_: Any) -> None:
        FakeStream.current = "main"

    def record_event(self) -> str:
        self.events += 1
        return f"{self.name} event {self.events}"

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")


def test_each_batch_is_waited_for_and_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    FakeStream.log = log
    main, side = FakeStream("main"), FakeStream("side")
    fake = SimpleNamespace(
        Stream=lambda device: side, stream=lambda stream: stream, current_stream=lambda device: main
    )
    monkeypatch.setattr(transfer.torch, "cuda", fake)
    moving = Transfer(torch.device("cuda", 0))

    def batch(number: int, kind: str = "cpu") -> RawBatch:
        parts: Any = [FakeTensor(log, f"{name}{number}", kind) for name in ("images", "labels")]
        return RawBatch(parts[0], parts[1], None, 0, 1)

    first, second = moving.begin(batch(1)), moving.begin(batch(2))
    moving.end(first)
    moving.end(second)
    assert log == [
        *("pin images1", "copy images1 async on side", "pin labels1", "copy labels1 async on side"),
        *("pin images2", "copy images2 async on side", "pin labels2", "copy labels2 async on side"),
        *("main waits for side event 1", "images1 used on main", "labels1 used on main"),
        *("main waits for side event 2", "images2 used on main", "labels2 used on main"),
    ]
