"""A comparison in a process of its own: if the file's runtime crashes, nothing else does.

The process gets a `Job` on its standard input and sends messages on its standard output, pickled by and for the same
program. It opens the artifact and the file anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from tellapart import artifact, references, runtime
from tellapart.contract import Pixels
from tellapart.devices import tune_allocator
from tellapart.errors import DataError, ExportError, MissingPackageError, UserError
from tellapart.export import formats, onnx_half, parity
from tellapart.export.base import Options, Written
from tellapart.export.graph import graph_of
from tellapart.export.outcome import Cases, Parity
from tellapart.runtime import environments
from tellapart.runtime.eager import EagerBackend

_PROGRAM = "from tellapart.export.apart import main; main()"


@dataclass(frozen=True)
class Job:
    """What is compared.

    ``model``: the artifact's file. ``device``: where an ONNX file is run. ``environment``: where a format's own
    environment is looked for; empty: in the usual places.
    """

    format: str
    options: Options
    written: Written
    model: Path
    cases: Cases
    threads: int
    device: str = "cpu"
    environment: str = ""
    allowed: tuple[str, ...] = ()
    """What may be imported for the artifact's network."""


def compare(job: Job, advance: Callable[[int], None]) -> Parity:
    """Return the comparison; ``advance`` is called with the number of images that were done.

    Raises ExportError with the reason if there is none: the file cannot be opened or run, or its runtime crashed.
    Raises UserError if something is missing on this machine, or no image can be read.
    """
    if references.is_provided("model", artifact.read_card(job.model).architecture.name):
        return _compare(job, advance)  # another process does not have the network that was passed here
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        try:
            return _answer(process, job, advance)
        except (EOFError, OSError, pickle.UnpicklingError):
            code = process.wait()
            errors.seek(0)
            said = environments.last_error(errors.read()[-8000:].decode("utf-8", "replace"))
            raise ExportError(
                f"the process that ran it {environments.ending(code)}" + (f": {said}" if said else "")
            ) from None
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # data that the process did not read before it ended
                    stream and stream.close()


def _answer(process: subprocess.Popen[bytes], job: Job, advance: Callable[[int], None]) -> Parity:
    """Send the job and follow the messages to the last one. Raises EOFError or OSError if the process died."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(pickle.dumps(dataclasses.replace(job, allowed=references.allowed())))
    process.stdin.flush()
    while True:
        kind, value = pickle.load(process.stdout)
        if kind == "done":
            advance(value)
        elif kind == "parity":
            assert isinstance(value, Parity)
            return value
        else:
            raise UserError(value) if kind == "user" else ExportError(value)


def main() -> None:
    """Do the job on standard input; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)
        job: Job = pickle.load(sys.stdin.buffer)
        references.allow(*job.allowed)

        def send(kind: str, value: Any) -> None:
            _send(sink, kind, value)

        try:
            with environments.at(job.environment):
                send("parity", _compare(job, lambda count: send("done", count)))
        except (DataError, MissingPackageError, environments.MissingEnvironmentError) as error:
            send("user", str(error))
        except Exception as error:  # whatever the file's runtime raises is the reason to reject it
            text = str(error).strip().partition("\n")[0][:500]
            send(
                "failed",
                text if isinstance(error, (UserError, ExportError)) else f"{type(error).__name__}: {text}",
            )


def _send(sink: IO[bytes], kind: str, value: Any) -> None:
    sink.write(pickle.dumps((kind, value)))
    sink.flush()


def _compare(job: Job, advance: Callable[[int], None]) -> Parity:
    torch.set_num_threads(job.threads)
    tune_allocator()  # the artifact is timed as the program runs it
    entry, options, file = formats.find(job.format), job.options, job.written.files[0]
    reference = EagerBackend(artifact.open_model(job.model))
    if entry.open is None:
        device = job.device if file.suffix == ".onnx" else "cpu"
        # trust: the file was written a moment ago, in a folder that only this user can enter
        backend = runtime.open_backend(file, device, threads=job.threads, trust=True)
    else:
        backend = entry.open(file, reference.card, job.threads)

    def locate(pixels: Pixels) -> str:
        graph = graph_of(job.model, options.features)
        return entry.locate(file, graph, pixels) if entry.locate else "The difference starts in the network."

    return parity.compare(
        reference,
        backend,
        job.cases,
        entry.tolerance[options.precision],
        about={
            "format": entry.name,
            "precision": options.precision,
            "file": file.name,
            "facts": {**job.written.facts, **_provider(backend)},
            "notes": job.written.notes,
        },
        sizes=(job.model.stat().st_size, sum(path.stat().st_size for path in job.written.files)),
        threads=job.threads,
        locate=locate,
        watch=_watch(file) if options.precision == "fp16" and file.suffix == ".onnx" else None,
        advance=advance,
        features=options.features,
    )


def _watch(file: Path) -> Callable[[Pixels], str]:
    """Return a function that looks for values beyond fp16's range inside an ONNX file, for batches of pixels."""
    look = onnx_half.Watch(file)

    def watch(pixels: Pixels) -> str:
        name = look(pixels)
        return (
            f"the layer {name} gives values beyond fp16's range, which become infinite on real fp16 hardware"
            if name
            else ""
        )

    return watch


def _provider(backend: runtime.Backend) -> dict[str, str]:
    """Return which device the runtime says it computed on, if it says so."""
    name = getattr(backend, "provider", "")
    return {"computed by": f"{name} ({backend.device})"} if name else {}  # type: ignore[attr-defined]
