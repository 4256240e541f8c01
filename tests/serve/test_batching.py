"""Batches: what is computed together, how long anything waits, and that everybody gets their own rows."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from tellapart.runtime import timing
from tellapart.serve import batching
from tellapart.serve.batching import MOST, Batcher, Images, Logits, worthwhile
from tellapart.serve.refusal import Refusal


class Computer:
    """Gives each image its first pixel; notes batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.waited: list[float] = []
        self.go = threading.Event()
        self.go.set()
        self.started = threading.Event()
        self.error: Exception | None = None

    def __call__(self, images: Images) -> Logits:
        self.started.set()
        assert self.go.wait(10)
        self.batches.append(len(images))
        if self.error is not None:
            raise self.error
        return images.reshape(len(images), -1)[:, :1].astype(np.float32)

    def batch(self, images: int, waited: list[float], seconds: float) -> None:
        self.waited += waited


def images(*values: int) -> Images:
    return np.array(values, np.uint8).reshape(-1, 1, 1, 1)


def soon(seconds: float = 10.0) -> float:
    return time.monotonic() + seconds


def play(scene: Callable[[Batcher, Computer], Coroutine[Any, Any, None]], **options: Any) -> Computer:
    """Run a scene with a batcher; check that its threads end."""
    computer = Computer()

    async def run() -> None:
        batcher = Batcher(computer, computer, **options)
        try:
            await scene(batcher, computer)
        finally:
            computer.go.set()
            batcher.close()
            await asyncio.to_thread(batcher.join, 10)
        assert not any(thread.is_alive() for thread in batcher._threads)
        assert batcher.waiting == 0

    asyncio.run(run())
    return computer


async def hold(batcher: Batcher, computer: Computer) -> asyncio.Future[Logits]:
    """Keep the computer busy with an image of its own."""
    computer.started.clear()
    computer.go.clear()
    busy = batcher.submit(images(99), soon())
    await asyncio.to_thread(computer.started.wait, 10)
    return busy


def test_what_waits_is_computed_together_and_in_order() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        busy = await hold(batcher, computer)
        asked = [batcher.submit(images(*range(3 * n, 3 * n + 3)), soon()) for n in range(5)]
        computer.go.set()
        answers = await asyncio.gather(busy, *asked)
        assert [answer[:, 0].tolist() for answer in answers[1:]] == [
            [3 * n, 3 * n + 1, 3 * n + 2] for n in range(5)
        ]

    assert play(scene, max_batch=7).batches == [1, 6, 6, 3]


def test_a_large_request_is_computed_in_chunks() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        answer = await batcher.submit(images(*range(11)), soon())
        assert answer[:, 0].tolist() == list(range(11))

    assert play(scene, max_batch=4).batches == [4, 4, 3]


def test_a_lone_request_does_not_wait() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        await batcher.submit(images(1), soon())

    assert max(play(scene, max_wait=5.0).waited) < 1


def test_a_request_waits_for_one_that_is_on_its_way() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        expected = batcher.expect()
        first = batcher.submit(images(1), soon())
        await asyncio.sleep(0.05)
        second = batcher.submit(images(2), soon())
        expected.arrived()
        expected.arrived()  # a second time counts for nothing
        await asyncio.gather(first, second)

    assert play(scene, max_wait=5.0).batches == [2]


def test_but_not_longer_than_the_bound() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        batcher.expect()
        await batcher.submit(images(1), soon())

    assert 0.05 <= play(scene, max_wait=0.05).waited[0] < 2


def test_a_full_batch_does_not_wait() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        batcher.expect()
        await batcher.submit(images(1, 2), soon())

    assert max(play(scene, max_wait=5.0, max_batch=2).waited) < 1


def test_a_full_queue_refuses() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        busy = await hold(batcher, computer)
        kept = batcher.submit(images(1, 2, 3), soon())
        with pytest.raises(Refusal, match="busy") as caught:
            batcher.submit(images(4, 5), soon())
        assert caught.value.status == 503
        assert int(caught.value.headers["retry-after"]) >= 1
        also = batcher.submit(images(6), soon())
        computer.go.set()
        await asyncio.gather(busy, kept, also)
        large = await batcher.submit(images(*range(9)), soon())  # nothing waits: it is let in
        assert len(large) == 9

    play(scene, capacity=4)


def test_deadlines() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        busy = await hold(batcher, computer)
        late, kept = batcher.submit(images(1), soon(0.02)), batcher.submit(images(2), soon())
        with pytest.raises(Refusal, match="deadline") as caught:
            await late
        assert caught.value.status == 504
        computer.go.set()
        assert (await kept)[0, 0] == 2
        await busy

    assert play(scene).batches == [1, 1]  # the late one was not computed


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("inside"), 500), (MemoryError(), 503)])
def test_a_model_that_fails_fails_only_what_it_was_asked(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        computer.error = error
        with pytest.raises(Refusal) as caught:
            await batcher.submit(images(1), soon())
        assert caught.value.status == status
        assert "inside" not in caught.value.reason
        computer.error = None
        assert (await batcher.submit(images(7), soon()))[0, 0] == 7

    play(scene)
    assert "failed" in caplog.text


def test_answers_that_are_no_numbers_are_refused() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        batcher._compute = lambda given: np.where(given[:, :, 0, 0] == 1, np.nan, 1).astype(np.float32)
        busy, good = batcher.submit(images(1), soon()), batcher.submit(images(2), soon())
        with pytest.raises(Refusal, match="finite"):
            await busy
        assert await good == 1

    play(scene)


def test_closing_computes_what_waits_and_takes_no_more() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        busy = await hold(batcher, computer)
        kept = batcher.submit(images(1), soon())
        batcher.close()
        with pytest.raises(Refusal):
            batcher.submit(images(2), soon())
        computer.go.set()
        assert len(await asyncio.gather(busy, kept)) == 2

    play(scene)


def test_several_instances_compute_at_once() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        together = threading.Barrier(2)

        def compute(given: Images) -> Logits:
            together.wait(10)
            return np.zeros((len(given), 1), np.float32)

        batcher._compute = compute
        await asyncio.gather(batcher.submit(images(1), soon()), batcher.submit(images(2), soon()))

    play(scene, instances=2, max_batch=1)


def test_many_at_random_get_their_own() -> None:
    async def scene(batcher: Batcher, computer: Computer) -> None:
        rng = np.random.default_rng(0)

        async def one(number: int) -> None:
            expected = batcher.expect()
            await asyncio.sleep(rng.uniform(0, 0.05))
            values = rng.integers(0, 256, rng.integers(1, 6)).tolist()
            answer = batcher.submit(images(*values), soon())
            expected.arrived()
            assert (await answer)[:, 0].tolist() == values

        await asyncio.gather(*(one(number) for number in range(200)))

    computer = play(scene, max_batch=8, instances=3, capacity=10_000)
    assert max(computer.batches) <= 8


class Clock:
    """A clock that goes on only while a model computes, which takes ``fixed + each * images`` seconds."""

    def __init__(self, fixed: float, each: float) -> None:
        self.now, self.fixed, self.each = 0.0, fixed, each
        self.sizes: list[int] = []

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def compute(self, given: Images) -> Logits:
        self.sizes.append(len(given))
        self.now += self.fixed + self.each * len(given)
        return np.zeros((len(given), 2), np.float32)


@pytest.mark.parametrize(
    ("fixed", "each", "batch"),
    [
        (0.0, 0.005, 1),  # one thread of a processor: twice the images take twice as long
        (0.01, 0.0, MOST),  # an idle device: they take no longer
        (0.001, 0.001, 16),
        (0.0, 0.0002, 16),  # handing over takes longer than computing
    ],
)
def test_how_large_a_batch_pays(
    fixed: float, each: float, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(fixed, each)
    monkeypatch.setattr(batching, "time", clock)
    monkeypatch.setattr(timing, "time", clock)
    assert worthwhile(clock.compute, images(1)) == batch
    if batch == 1:
        assert max(clock.sizes) == 4  # tried twice in vain


def test_a_slow_model_is_not_tried_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(1.0, 1.0)
    monkeypatch.setattr(batching, "time", clock)
    monkeypatch.setattr(timing, "time", clock)
    assert worthwhile(clock.compute, images(1)) == 1
    assert clock.sizes == [1, 1]


@pytest.mark.parametrize(
    ("each", "max_batch", "share"),
    [(0.005, 1, 8), (0.005, 64, 10), (0.0001, 64, 16), (0.02, 32, 2), (1.0, 1, 1)],
)
def test_how_much_of_a_long_work_is_submitted_at_once(each: float, max_batch: int, share: int) -> None:
    computer = Computer()
    batcher = Batcher(computer, computer, max_batch=max_batch)
    batcher._seconds_per_image = each
    assert batcher.fair_share == share
    batcher.close()
    batcher.join(10)
