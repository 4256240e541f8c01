"""Who decodes: processes give what threads give, whatever happens to them, and leave nothing behind."""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart.data.loader import ImageSet, batches
from tellapart.data.samples import Samples
from tellapart.data.stores import building, workers
from tellapart.data.stores.cache import ImageStore, open_or_build
from tellapart.data.stores.decoded import AsContracted, AsSource
from tellapart.data.stores.streaming import StreamedStore
from tellapart.data.stores.workers import Processes, Threads
from tellapart.errors import DataError, SpecError
from tellapart.preprocess import Preprocessing, as_tensor
from tellapart.spec import DataSpec

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes need descriptors that can be sent")
CONTRACT = Preprocessing(12, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3, decode="scaled")
EVALUATION, SOURCE = AsContracted(CONTRACT, 10**6), AsSource(3, 14, 10**6, reduced=True)


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    made = Processes(2)
    yield made
    assert all(worker._process.poll() is None for worker in made._workers)


def table(paths: list[str], root: str = "", **changes: Any) -> Samples:
    count = len(paths)
    labels, splits = np.zeros(count, np.int64), np.full(count, "train", dtype=object)
    return Samples(np.array(paths, dtype=object), labels, splits, ("a", "b"), root, **changes)


def encoded(number: int, kind: str, size: tuple[int, int]) -> bytes:
    small = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(stream, kind)
    return stream.getvalue()


def mixture(folder: Path) -> Samples:
    """PNG and JPEG files of many sizes, and every kind of bad one; also a name that is no text."""
    folder.mkdir()
    contents = {f"{n}.png": encoded(n, "PNG", (9 + 5 * n, 8 + 3 * n)) for n in range(9)}
    contents |= {f"{n}.jpg": encoded(n, "JPEG", (10 + 20 * n, 70 + 4 * n)) for n in range(9)}
    contents |= {"empty.png": b"", "text.jpg": b"hello", "cut.png": contents["5.png"][:-30]}
    contents[os.fsdecode(b"\xff.png")] = contents["3.png"]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    return table([*contents, "missing.png", "folder.png", "nul\0.png"], str(folder))


def columns(samples: Samples, decode: Any, who: workers.Workers) -> tuple[dict[str, Any], bytes]:
    pixels = list[bytes]()
    found = building.scan(samples, decode, who, write=lambda view: pixels.append(bytes(view)))
    return {name: column.tolist() for name, column in found.items()}, b"".join(pixels)


@pytest.mark.parametrize("decode", [EVALUATION, SOURCE], ids=["evaluation", "source"])
@pytest.mark.parametrize("what", ["files", "boxes", "arrays"])
def test_processes_give_what_threads_give(what: str, decode: Any, two: Processes, tmp_path: Path) -> None:
    samples = mixture(tmp_path / "in")
    if what == "boxes":
        boxes = np.array([[1, 2, 6 + n, 7.5] for n in range(len(samples))])
        boxes[::4], boxes[1::7] = np.nan, 500
        samples = dataclasses.replace(samples, boxes=boxes)
    elif what == "arrays":
        pixels = np.random.default_rng(0).integers(0, 256, (30, 20, 17, 3), dtype=np.uint8)
        samples = table([str(n) for n in range(25)], pixels=pixels, keys=np.arange(25)[::-1].copy())
    by_threads, pixels_by_threads = columns(samples, decode, Threads(2))
    by_processes, pixels_by_processes = columns(samples, decode, two)
    assert by_processes == by_threads
    assert pixels_by_processes == pixels_by_threads
    assert len(pixels_by_threads) > 5000
    if what == "files":
        assert sum(map(bool, by_threads["reasons"])) == 6


def stream(samples: Samples, decode: Any, who: workers.Workers) -> StreamedStore:
    index = ImageStore(channels=3, **building.scan(samples, decode, Threads(1)))
    return StreamedStore(index, samples, decode, who)


@pytest.mark.parametrize("decode", [EVALUATION, SOURCE], ids=["alike", "ragged"])
def test_streams_are_the_same_and_stay_as_they_are(decode: Any, two: Processes, tmp_path: Path) -> None:
    """A batch keeps its pixels while later ones are decoded; memory that nobody looks at is used again."""
    store = stream(mixture(tmp_path / "in"), decode, two)
    direct = stream(store.samples, decode, Threads(1))
    rows = np.flatnonzero(store.good)
    images = ImageSet(store.samples.select(rows), store, rows)
    order = np.random.default_rng(0).integers(0, len(rows), 60)
    held = list(batches(images, order, 5))
    for step, batch in held:
        expected = as_tensor(direct.batch(rows[order[5 * step : 5 * step + 5]]))
        assert np.array_equal(as_tensor(batch.images), expected)
    assert len(held) == 12
    del held, batch
    for _ in range(3):
        for _, batch in batches(images, order, 5):
            del batch
    assert len(two._blocks._free) <= 12 + 2
    assert store._begun == {}


@pytest.mark.parametrize(
    ("length", "count", "step"),
    [(64, 16, 4), (256, 16, 8), (4, 16, 1), (32, 16, 2), (64, 2, 16), (5, 2, 3), (1, 1, 1)],
)
def test_a_batch_is_shared_out(length: int, count: int, step: int) -> None:
    parts = workers._parts(length, count)
    assert [row for part in parts for row in range(length)[part]] == list(range(length))
    assert {part.stop - part.start for part in parts[:-1]} <= {step}
    assert parts[0].stop == step


def test_few_batches_are_decoded_ahead(tmp_path: Path) -> None:
    begun = list[int]()

    class Counting(Threads):
        def batch(self, *words: Any) -> Any:
            begun.append(len(words[2]))
            return super().batch(*words)

    store = stream(mixture(tmp_path / "in"), EVALUATION, Counting(2))
    rows = np.flatnonzero(store.good)
    reading = batches(ImageSet(store.samples.select(rows), store, rows), np.arange(len(rows)), 1)
    for number in range(5):
        next(reading)
        assert len(begun) == number + 1 + store.ahead
    assert len(store._begun) <= store.ahead
    reading.close()
    assert store._begun == {}


def test_a_streamed_file_that_changes_is_an_error(two: Processes, tmp_path: Path) -> None:
    store = stream(mixture(tmp_path / "in"), SOURCE, two)
    (tmp_path / "in" / "2.png").write_bytes(encoded(0, "PNG", (90, 80)))  # larger than there is room for
    assert store.batch(np.array([0, 1, 3])).shape[0] == 3
    with pytest.raises(DataError, match=r"2\.png has changed"):
        store.batch(np.array([1, 2, 3]))
    (tmp_path / "in" / "2.png").unlink()
    with pytest.raises(DataError, match=r"2\.png has changed.*cannot be read"):
        store.batch(np.array([2]))
    assert store.batch(np.array([0, 1, 3])).shape[0] == 3


DEADLY = """
import os, signal
from dataclasses import dataclass
import numpy as np

@dataclass(frozen=True)
class Deadly:
    log: str
    victims: tuple[int, ...]
    lives: int

    def __call__(self, content, box):
        number = int(content[0])
        if number in self.victims:
            with open(self.log, "a+") as log:
                log.seek(0)
                if log.read().split().count(str(number)) < self.lives:
                    log.write(f"{number} ")
                    log.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
        if content == b"!":
            raise ZeroDivisionError("a bug")
        return np.full((2, number + 1, 3), number, np.uint8)
"""


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes a decoder which kills its process, ``lives`` times for each of its victims."""
    (tmp_path / "deadly_decoder.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("deadly_decoder")
    yield lambda victims, lives: module.Deadly(str(tmp_path / "log"), victims, lives)
    del sys.modules["deadly_decoder"]


def numbers(folder: Path) -> Samples:
    folder.mkdir()
    for number in range(32):
        (folder / f"{number}.bin").write_bytes(bytes([number]))
    return table([f"{number}.bin" for number in range(32)], str(folder))


def test_what_a_process_took_with_it_is_decoded_anew(deadly: Any, tmp_path: Path) -> None:
    samples = numbers(tmp_path / "in")
    store = open_or_build(samples, deadly((3, 7, 8, 31), 2), "p", 3, tmp_path / "cache", Processes(2))
    assert (tmp_path / "log").read_text().split().count("7") == 2
    assert store.good.all()
    for number in range(32):
        assert np.array_equal(store.image(number), np.full((2, number + 1, 3), number, np.uint8))
    (tmp_path / "log").unlink()
    streamed = StreamedStore(store, samples, deadly((5,), 1), Processes(1))
    batch = as_tensor(streamed.batch(np.arange(32)))
    assert batch[:, 0, 0, 0].tolist() == list(range(32))


def test_a_file_that_ends_every_process_is_named(deadly: Any, tmp_path: Path) -> None:
    samples, crew = numbers(tmp_path / "in"), Processes(2)
    with pytest.raises(DataError, match=r"in/7\.bin cannot be decoded.*SIGKILL"):
        open_or_build(samples, deadly((7,), 99), "p", 3, tmp_path / "cache", crew)
    assert list((tmp_path / "cache" / "decoded").iterdir()) == []
    assert open_or_build(samples, deadly((), 0), "p", 3, tmp_path / "cache", crew).good.all(), "it goes on"


def test_an_idle_process_may_end(deadly: Any, tmp_path: Path) -> None:
    samples, crew = numbers(tmp_path / "in"), Processes(1)
    (first,) = crew.submit(samples, deadly((), 0), [4]).result()
    crew._workers[0]._process.kill()
    (again,) = crew.submit(samples, deadly((), 0), [4]).result()
    assert np.array_equal(again[0], first[0])


def test_paths_are_those_of_this_process(
    deadly: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers(tmp_path / "in")
    crew = Processes(1)
    for folder, root in ((tmp_path, "in"), (tmp_path / "in", "."), (tmp_path / "in", str(tmp_path / "in"))):
        monkeypatch.chdir(folder)
        assert crew.submit(table(["4.bin"], root), deadly((), 0), [0]).result()[0][2] == ""


@pytest.mark.parametrize("started", [0, 1])
def test_where_processes_are_scarce(
    started: int, deadly: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, crew, left = numbers(tmp_path / "in"), Processes(3), [None] * started
    really = subprocess.Popen

    def scarce(*words: Any, **options: Any) -> Any:
        if not left:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        left.pop()
        return really(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", scarce)
    if started:
        found = building.scan(samples, deadly((), 0), crew)
        assert (found["widths"] == np.arange(1, 33)).all()
        return
    with pytest.raises(DataError, match=r"No process can be started.*temporarily unavailable"):
        building.scan(samples, deadly((), 0), crew)


def test_an_error_of_the_program_is_raised_here(deadly: Any, tmp_path: Path) -> None:
    samples, crew = numbers(tmp_path / "in"), Processes(1)
    (tmp_path / "in" / "4.bin").write_bytes(b"!")
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        columns(samples, deadly((), 0), crew)
    assert "deadly_decoder.py" in caught.value.__notes__[0]
    assert crew.submit(samples, deadly((), 0), [1]).result()[0][2] == ""
    with pytest.raises(Exception, match="pickle"):
        crew.submit(samples, lambda content, box: content, [1]).result()
    assert crew.submit(samples, deadly((), 0), [1]).result()[0][2] == ""


def test_nothing_is_left(deadly: Any, tmp_path: Path) -> None:
    def descriptors() -> set[str]:
        return {str(path) for path in Path("/proc/self/fd").iterdir()}

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to count open files by")
    samples = numbers(tmp_path / "in")
    gc.collect()
    before, crew = descriptors(), Processes(2)
    building.scan(samples, deadly((3,), 1), crew)
    pids = [worker._process.pid for worker in crew._workers]
    assert len(descriptors()) > len(before)
    del crew
    gc.collect()
    assert descriptors() == before
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


PLAIN = """
import pathlib, sys, time
import numpy as np
from tellapart.data.stores import building, workers
from tellapart.data.stores.decoded import AsSource
from tellapart.data.samples import Samples
here = pathlib.Path(sys.argv[1])
with open(here / "log", "a") as log:
    log.write("once ")
paths = np.array([path.name for path in sorted((here / "in").glob("*.png"))], dtype=object)
samples = Samples(paths, np.zeros(len(paths), np.int64), paths, ("a", "b"), str(here / "in"))
who = workers.Processes(2)
def advance(count):
    print(*(worker._process.pid for worker in who._workers), flush=True)
    time.sleep(float(sys.argv[2]))
found = building.scan(samples, AsSource(3, 1000, 10**6, True), who, advance)
print(int((found["heights"] > 0).sum()))
"""


@pytest.mark.parametrize("how", [None, signal.SIGINT, signal.SIGKILL])
def test_a_plain_script_and_how_it_ends(how: signal.Signals | None, tmp_path: Path) -> None:
    """Without a guard of its main part it runs once; its processes end with it, however it ends."""
    mixture(tmp_path / "in")
    (tmp_path / "script.py").write_text(PLAIN)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path), "60" if how else "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as script:
        assert script.stdout is not None
        pids = [int(word) for word in script.stdout.readline().split()]
        if how:
            script.send_signal(how)
        assert script.stderr is not None
        # Not communicate: what readline has taken beyond its line would be lost to it.
        rest, errors = script.stdout.read(), script.stderr.read()
    assert len(pids) == 2
    assert (tmp_path / "log").read_text() == "once "
    if how is None:
        assert rest.split() == ["10"]
    if how != signal.SIGINT:
        assert errors == ""
    else:
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert errors.count("Traceback") == 1
    deadline = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, "processes stay behind"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # which another process has to reap: its parent ended before


def test_who_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(
        count: int, processors: int, local: int = 1, samples: Any = None, **values: Any
    ) -> tuple[Any, int]:
        monkeypatch.setattr(workers, "processors", lambda: processors)
        found = workers.choose(
            DataSpec(**values), table([str(n) for n in range(count)]) if samples is None else samples, local
        )
        return type(found), found.count

    many = workers.IMAGES
    assert chosen(many, 16) == (Processes, 16)
    assert chosen(many - 1, 16) == (Threads, 16)
    assert chosen(many, workers.PROCESSORS) == (Processes, workers.PROCESSORS)
    assert chosen(many, workers.PROCESSORS - 1) == (Threads, workers.PROCESSORS - 1)
    assert chosen(many, 200) == (Processes, workers.MOST)
    assert chosen(many, 16, workers=3) == (Threads, 3)
    assert chosen(many, 16, workers=40) == (Processes, 40)
    assert chosen(many, 16, local=2) == (Processes, 8)
    assert chosen(many, 16, local=8) == (Threads, 2)
    assert chosen(many, 4, local=8) == (Threads, 1)
    assert chosen(many, 16, worker_kind="threads") == (Threads, 16)
    assert chosen(2, 2, worker_kind="processes") == (Processes, 2)
    arrays = table(["0"] * many, pixels=np.zeros((1, 2, 2), np.uint8), keys=np.zeros(many, np.int64))
    assert chosen(many, 16, samples=arrays) == (Threads, 16)
    monkeypatch.delattr(socket, "send_fds")
    assert chosen(many, 16) == (Threads, 16)
    with pytest.raises(SpecError, match=r"data\.worker_kind is 'processes'"):
        chosen(many, 16, worker_kind="processes")


def test_sets_share_their_processes_while_there_are_any() -> None:
    spec = DataSpec(worker_kind="processes", workers=3)
    first = workers.choose(spec, table(["a"]))
    assert workers.choose(spec, table(["b"])) is first
    assert workers.choose(dataclasses.replace(spec, workers=2), table(["b"])) is not first
    number = id(first)
    del first
    gc.collect()
    assert number not in map(id, workers._shared.values())


def test_a_process_loads_no_torch_by_itself() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"  # a coverage tool's, which starts with the process
        "import tellapart.data.stores.decoding_worker\n"
        "from tellapart.data.stores.decoded import AsContracted, AsSource\n"
        "assert not {'torch', 'scipy', 'multiprocessing'} & (set(sys.modules) - before)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_reader_gives_up_what_it_expected(tmp_path: Path) -> None:
    store = stream(mixture(tmp_path / "in"), EVALUATION, Threads(1))
    store.expect(np.array([1, 2]))
    store.expect(np.array([1, 2]))
    assert len(store._begun) == 1
    first = store.batch(np.array([1, 2]))
    assert store._begun == {}
    assert np.array_equal(as_tensor(first), as_tensor(store.batch(np.array([1, 2]))))
    store.expect(np.array([3]))
    store.forget()
    assert store._begun == {}
