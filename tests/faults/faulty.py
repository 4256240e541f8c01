"""Runs a job again and again, each time with one write, flush, rename or new file of it failing: the next one.

A program of its own: it imports everything once and forks for each fault, so a fault costs what the job costs. What
goes through Python (open, os.write, os.fsync, os.replace, os.rename, os.mkdir, os.open, files made by safetensors) is
counted; a fault is ENOSPC or EIO, after half of what was to be written, or SIGKILL. Prints a JSON object for each.

    python faulty.py JOB ROOT KIND START STEP
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from tellapart import artifact, files, runs, workflow
from tellapart.data.stores import housekeeping
from tellapart.errors import TellapartError
from tellapart.export import apart
from tellapart.export.outcome import Uncompared
from tellapart.training import checkpoint, progress

KINDS = {"full": errno.ENOSPC, "disk": errno.EIO, "kill": 0}
_OPEN, _SAVE = builtins.open, safetensors.torch.save_file


class Faults:
    """Counts what a job does to files below ``root``; at number ``at`` it fails."""

    def __init__(self, root: Path, kind: str, at: int) -> None:
        self.root, self.kind, self.at = os.path.realpath(root), kind, at
        self.count, self.what = 0, ""
        self._real: dict[str, Any] = {}

    def _point(self, what: str, half: Callable[[], object] = lambda: None, path: Any = None) -> None:
        if self.count == self.at:
            self.count += 1
            self.what = what
            half()
            if self.kind == "kill":
                Path(f"{self.root}.fault").write_text(what)
                os.kill(os.getpid(), signal.SIGKILL)
            number = KINDS[self.kind]
            named = (
                () if path is None else (os.fspath(path),)
            )  # as the system's calls do that are given a name
            raise OSError(number, os.strerror(number), *named)
        self.count += 1

    def _ours(self, path: Any) -> bool:
        with contextlib.suppress(TypeError, ValueError):
            return os.path.abspath(os.fspath(path)).startswith(self.root + os.sep)
        return False

    def __enter__(self) -> Faults:
        faults = self

        class Raw(io.FileIO):
            def write(self, content: Any) -> int:
                whole = memoryview(content).cast("B")
                faults._point("write", lambda: io.FileIO.write(self, whole[: len(whole) // 2]))
                return super().write(content)

        def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
            if not any(letter in mode for letter in "wxa+") or not faults._ours(file):
                return _OPEN(file, mode, buffering, *rest, **options)
            faults._point(f"open {os.path.basename(os.fspath(file))}", path=file)
            raw = Raw(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            stream = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return stream
            names = ("encoding", "errors", "newline")
            return io.TextIOWrapper(stream, **dict(zip(names, rest, strict=False)), **options)

        def counted(name: str) -> Callable[..., Any]:
            real = getattr(os, name)

            def call(*args: Any, **options: Any) -> Any:
                if name == "open" and not (len(args) > 1 and args[1] & os.O_CREAT):
                    return real(*args, **options)
                if isinstance(args[0], int) or faults._ours(args[0]):
                    half = (
                        (lambda: real(args[0], args[1][: len(args[1]) // 2]))
                        if name == "write"
                        else lambda: None
                    )
                    named = None if isinstance(args[0], int) else args[0]
                    faults._point(f"{name} {os.path.basename(named or '')}", half, named)
                return real(*args, **options)

            return call

        def saved(tensors: Any, file: Any, *args: Any, **options: Any) -> None:
            try:
                self._point("safetensors", lambda: _OPEN(file, "wb").write(b"half"))
            except OSError as error:
                raise safetensors.SafetensorError(f"I/O error: … (os error {error.errno})") from None
            _SAVE(tensors, file, *args, **options)

        for name in ("open", "write", "fsync", "replace", "rename", "mkdir"):
            self._real[name] = getattr(os, name)
            setattr(os, name, counted(name))
        real_raw = files._Raw

        class OwnRaw(real_raw):
            def write(self, content: Any) -> int:
                whole = memoryview(content).cast("B")
                try:
                    faults._point("write", lambda: io.FileIO.write(self, whole[: len(whole) // 2]))
                except OSError as error:
                    self.error = self.error or error
                    raise
                return super().write(content)

        self._real["raw"], files._Raw = real_raw, OwnRaw
        builtins.open = io.open = opened
        safetensors.torch.save_file = saved
        return self

    def __exit__(self, *error: object) -> None:
        files._Raw = self._real.pop("raw")
        for name, real in self._real.items():
            setattr(os, name, real)
        builtins.open = io.open = _OPEN
        safetensors.torch.save_file = _SAVE


class Job:
    """What is done, and what has to hold after a fault and after doing it once more."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.place = root / "work"
        self.whole: dict[str, Any] = {}

    def prepare(self) -> None:
        """Make a fresh ``place``."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()

    def run(self) -> None: ...

    def check(self) -> None:
        """Raise AssertionError where what lies there is neither nothing nor old nor new."""

    def again(self) -> None:
        """Go on, or do it again; then it must be as without a fault."""


class Train(Job):
    spec: ClassVar[dict[str, Any]] = {
        "model.name": "simple-cnn", "input.size": 8, "training.epochs": 2, "training.batch_size": 8,
        "training.device": "cpu", "training.precision": "fp32", "run.tensorboard": False, "speed.compile": "off",
        "data.worker_kind": "threads", "data.workers": 1, "training.threads": 1,
    }  # fmt: skip

    @property
    def folder(self) -> Path:
        return self.place / "run"

    def run(self) -> None:
        changes = {**self.spec, "run.dir": str(self.folder), "data.cache_dir": str(self.place / "cache")}
        workflow.train(self.root / "data", quiet=True, **changes)

    def check(self) -> None:
        _whole_stores(self.place / "cache")
        folder = self.folder
        if not folder.exists():
            return
        if runs.is_run(folder):
            runs.read_spec(folder / runs.SPEC_FILE)
        if (folder / runs.SAMPLES_FILE).exists() and self.whole:
            assert (folder / runs.SAMPLES_FILE).read_bytes() == self.whole["samples"], "samples.csv"
        for name in ("environment.json", "evaluation/val/metrics.json", "evaluation/val/mistakes/index.json"):
            if (folder / name).exists():
                json.loads((folder / name).read_text())
        for path in checkpoint.existing(folder / runs.CHECKPOINTS):
            progress.check(checkpoint._read(path))
        if (folder / artifact.FILE_NAME).exists():
            artifact.open_model(folder)
        if (folder / "report.html").exists():
            assert (folder / "report.html").read_text().rstrip().endswith("</html>"), "report.html"
        if (folder / "evaluation/val/metrics.json").exists():
            assert (folder / "evaluation/val/predictions.csv").exists(), "predictions.csv"
            assert (folder / "evaluation/val/mistakes").exists(), "mistakes"

    def again(self) -> None:
        if runs.is_run(self.folder):
            workflow.resume(self.folder, quiet=True)
        else:
            self.run()
        state = artifact.read_state(self.folder)
        figures = artifact.read_card(self.folder).scores
        rows = [
            r
            for r in (self.folder / "metrics.csv").read_text().splitlines()
            if "/loss" in r or "accuracy" in r
        ]
        now = {"samples": (self.folder / runs.SAMPLES_FILE).read_bytes(), "scores": figures, "rows": rows}
        if not self.whole:
            self.whole = {**now, "state": state}
        assert now == {name: self.whole[name] for name in now}, "the run is another"
        assert all(torch.equal(tensor, self.whole["state"][name]) for name, tensor in state.items()), (
            "weights"
        )
        assert (self.folder / "report.html").exists()


class Evaluate(Train):
    """Measure again, over figures of another model: old or new, and never a mixture."""

    def prepare(self) -> None:
        super().prepare()
        made = self.root / "made"
        if not made.exists():
            changes = {**self.spec, "run.dir": str(made), "data.cache_dir": str(self.root / "made-cache")}
            workflow.train(self.root / "data", quiet=True, **changes)
            path = made / "evaluation/val/metrics.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), "loss": 99.0}))
            (made / "evaluation/val/predictions.csv").write_text("old")
        shutil.copytree(made, self.folder)

    def run(self) -> None:
        workflow.evaluate(self.folder, out=self.folder, split="val", device="cpu", quiet=True)

    def check(self) -> None:
        super().check()
        path = self.folder / "evaluation/val"
        if (path / "metrics.json").exists():
            old = json.loads((path / "metrics.json").read_text())["loss"] == 99.0
            assert old == ((path / "predictions.csv").read_text() == "old"), (
                "figures and predictions of two models"
            )

    def again(self) -> None:
        self.run()
        assert json.loads((self.folder / "evaluation/val/metrics.json").read_text())["loss"] != 99.0


class Export(Evaluate):
    """Two formats and the pages about them."""

    def run(self) -> None:
        apart.compare = lambda job, advance: Uncompared(
            job.format, "fp32", job.written.files[0].name, ("not run",), True
        )
        changes = {"cache_dir": str(self.place / "cache")}
        workflow.export(self.folder, ["state-dict", "torchscript"], self.place / "out", **changes)

    def check(self) -> None:
        for path in (self.place / "out").glob("*.rejected"):
            torch.load(path, weights_only=True) if ".pth" in path.name else torch.jit.load(path)
        if (self.place / "out/parity.json").exists():
            json.loads((self.place / "out/parity.json").read_text())

    def again(self) -> None:
        out = self.place / "out"
        if not out.exists() or not [p for p in out.iterdir() if not files.is_temporary(p.name)]:
            self.run()
            assert not [p for p in out.iterdir() if files.is_temporary(p.name)], "leftovers"


class Compress(Evaluate):
    """A sparse model: a start, a run, and the comparison."""

    def run(self) -> None:
        workflow.compress(
            self.folder,
            method="sparse",
            out=self.place / "out",
            ratio=0.5,
            runtime=(),
            epochs=1,
            threads=1,
            quiet=True,
        )

    def check(self) -> None:
        out = self.place / "out"
        for path in out.rglob("*.safetensors"):
            if not files.is_temporary(path.parent.name):
                artifact.open_model(path)
        if (out / "compress.json").exists():
            assert len(json.loads((out / "compress.json").read_text())["rows"]) == 2
        if (out / "compress.html").exists():
            assert (out / "compress.json").exists()

    def again(self) -> None:
        for run in [path.parent for path in (self.place / "out").rglob(runs.SPEC_FILE)]:
            workflow.resume(run, quiet=True)


JOBS: dict[str, type[Job]] = {"train": Train, "evaluate": Evaluate, "export": Export, "compress": Compress}


def _whole_stores(cache: Path) -> None:
    for store in housekeeping.list_stores(cache / "decoded"):
        with np.load(store.path / "index.npz") as index:
            size = int((index["heights"].astype(np.int64) * index["widths"]).sum()) * int(index["channels"])
        if not str(store.about.get("policy")).endswith(" index"):  # that is what a full disk has room for
            assert (store.path / "pixels.bin").stat().st_size == size, "pixels.bin"


def _temporaries(place: Path) -> list[str]:
    return [
        str(path.relative_to(place))
        for path in place.rglob("*")
        if files.is_temporary(path.name)
        or path.name.startswith((".building-", ".removing-"))
        or path.suffix == ".tmp"
    ]


def _make_data(root: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label, name in enumerate(("ant", "bee")):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(5):
                pixels = random.integers(0, 128, (8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")


def _attempt(job: Job, kind: str, at: int) -> dict[str, Any]:
    """Run the job with a fault, in a process of its own; return what came of it."""
    job.prepare()
    told = Path(f"{job.place}.fault")
    told.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        answer: dict[str, Any] = {"end": "done"}
        faults = Faults(job.place, kind, at)
        try:
            with faults:
                job.run()
        except TellapartError as error:
            answer = {"end": "told", "text": str(error)}
        except OSError as error:  # the command line tells these too
            answer = {"end": "told" if error.filename else "unnamed", "text": traceback.format_exc()}
        except BaseException:
            answer = {"end": "traceback", "text": traceback.format_exc()}
        told.write_text(json.dumps({**answer, "what": faults.what, "reached": faults.count > at}))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = {"end": "killed", "what": told.read_text() if told.exists() else "?", "reached": True}
    if not os.WIFSIGNALED(status):
        found = json.loads(told.read_text())
    found.update(kind=kind, at=at)
    if found["reached"]:
        found["left"] = _temporaries(job.place) if kind != "kill" else []
        found["wrong"] = _wrong(job)
    return found


def _wrong(job: Job) -> str:
    for name, step in (("check", job.check), ("again", job.again), ("check again", job.check)):
        child = os.fork()
        if child == 0:
            try:
                step()
            except BaseException:
                Path(f"{job.place}.wrong").write_text(f"{name}: {traceback.format_exc()}")
                os._exit(1)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            return Path(f"{job.place}.wrong").read_text()
    return ""


def attempts(name: str, root: Path, kind: str, start: int, step: int) -> Iterator[dict[str, Any]]:
    """Yield what came of each fault, from number ``start`` on, until the job ends before the fault's number."""
    _make_data(root)
    job = JOBS[name](root)
    job.prepare()
    job.run()
    job.check()
    job.again()
    while True:
        found = _attempt(job, kind, start)
        if not found["reached"]:
            yield {"points": start, "end": found["end"]}
            return
        yield found
        start += step


if __name__ == "__main__":
    began = time.monotonic()
    for one in attempts(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])):
        sys.stdout.write(json.dumps({**one, "seconds": round(time.monotonic() - began, 2)}) + "\n")
        sys.stdout.flush()
