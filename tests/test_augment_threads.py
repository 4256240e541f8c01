"""Parts of a batch in threads: nothing is lost, nothing depends on how many there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from tellapart.augment import Augment, resolve, threads
from tellapart.preprocess import Preprocessing, normalise, transform
from tellapart.spec import AugmentSpec


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_every_chunk_is_done_by_a_thread_of_its_own(two_threads: None) -> None:
    done: list[int] = []
    inside: set[tuple[int, int]] = set()
    meet = threading.Barrier(2, timeout=20)  # passes only where two work at once

    def work(part: int) -> None:
        if part < 2:
            meet.wait()
        inside.add((threading.get_ident(), torch.get_num_threads()))
        done.append(part)

    threads.run(work, range(9))
    assert sorted(done) == list(range(9))
    assert len(inside) == 2
    assert {number for _, number in inside} == {1}
    assert torch.get_num_threads() == 2
    names: list[str] = []
    threads.run(lambda part: names.append(threading.current_thread().name), [1])
    assert names == [threading.current_thread().name]


def test_an_error_reaches_the_caller(two_threads: None) -> None:
    def work(part: int) -> None:
        if part == 3:
            raise MemoryError("part 3")

    with pytest.raises(MemoryError, match="part 3"):
        threads.run(work, range(5))


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("preset", ["photo", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_threads_and_chunks_change_no_bit(
    preset: str, channels: int, inference: bool, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Preprocessing(40, channels, "crop", "bilinear", 1.0, (0.5,) * channels, (0.2,) * channels)
    spec = resolve(AugmentSpec(preset=preset, crop="resized", rotation=10.0, vflip=0.5), 40)
    augment = Augment(spec, made, 10, channels_last=True)
    images = torch.randint(0, 256, (23, 50, 60, channels), dtype=torch.uint8)
    sizes = torch.tensor([(50, 60)] * 23)
    drawn = augment.draw(23, sizes, torch.Generator().manual_seed(1))
    with torch.inference_mode(inference):
        whole = augment.apply(images, sizes, drawn)
        plain = normalise(images, made)
        monkeypatch.setattr(transform, "CACHED_VALUES", 3 * whole[0].numel())
        in_parts = augment.apply(images, sizes, drawn)
        assert torch.equal(normalise(images, made), plain)
    assert torch.equal(whole, in_parts)
    assert in_parts.is_inference() == inference
    torch.set_num_threads(1)
    assert torch.equal(augment.apply(images, sizes, drawn), whole)
