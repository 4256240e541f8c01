"""A model file that another Python runs, as a backend: LiteRT and ExecuTorch from environments of their own.

A process is started for each opened file. Batches go to it through a pipe, logits come back; their format is in
`programs.litert_program.serve`. Images are resized here, by the contract.
"""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tellapart.contract import Pixels
from tellapart.contract.resizing import open_pixels, resize
from tellapart.errors import ArtifactError
from tellapart.runtime.base import Opened, card_of
from tellapart.runtime.environments import (
    EXECUTORCH,
    LITERT,
    Environment,
    clean_environment,
    ending,
    last_error,
)

# Of a batch; 0: as the file says. ExecuTorch 1.5 plans its memory for fewer images than the program allows.
_LARGEST = {"litert": 0, "executorch": 8}


class WorkerBackend(Opened):
    """A process that answers batches. Calls wait for each other."""

    def __init__(self, environment: Environment, path: Path, threads: int) -> None:
        self.format = environment.name
        python = str(environment.python())
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self._process = subprocess.Popen(
            [python, str(environment.program), "serve", str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**clean_environment(), **({"OMP_NUM_THREADS": str(threads)} if threads else {})},
        )
        self._lock = threading.Lock()
        self._closing = weakref.finalize(self, _stop, self._process, self._errors)
        try:
            (length,) = struct.unpack("<I", self._read(4))
            text = self._read(length)
            (self._batch,) = struct.unpack("<I", self._read(4))
        except RuntimeError as error:
            self.close()
            raise ArtifactError(f"{path} cannot be run with {self.format}: {error}") from None
        if not text:
            self.close()
            raise ArtifactError(
                f"{path} has no description of tellapart's in it (class names and preprocessing); export the model "
                f"with: tellapart export MODEL --to {self.format}"
            )
        try:
            self.card = card_of(text, path)
        except ArtifactError:
            self.close()
            raise

    def prepare(self, content: bytes | Pixels) -> Pixels:
        """Decode and size an image by the contract. Raises BadImage."""
        contract = self.card.preprocessing
        return resize(open_pixels(content, contract), contract)

    def logits(self, images_NHWC: Pixels) -> npt.NDArray[np.float32]:
        """Return float32 [B, K] for uint8 [B, height, width, C], in chunks if the file's batch is limited."""
        step = self._batch or _LARGEST[self.format] or len(images_NHWC)
        answers = []
        with self._lock:
            for start in range(0, len(images_NHWC), step):
                part = images_NHWC[start : start + step]
                fill = self._batch - len(part) if self._batch else 0
                filled = np.concatenate([part, np.repeat(part[-1:], fill, axis=0)]) if fill else part
                answers.append(self._ask(np.ascontiguousarray(filled))[: len(part)])
        return np.concatenate(answers)

    def close(self) -> None:
        """End the process."""
        self._closing()

    def _ask(self, images: Pixels) -> npt.NDArray[np.float32]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(struct.pack("<4I", *images.shape) + images.tobytes())
            self._process.stdin.flush()
        except OSError:
            raise RuntimeError(self._said()) from None
        rows, columns = struct.unpack("<2I", self._read(8))
        values: Any = np.frombuffer(self._read(4 * rows * columns), np.float32)
        logits: npt.NDArray[np.float32] = values.reshape(rows, columns)
        return logits

    def _read(self, count: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(count)
        if len(content) < count:
            raise RuntimeError(self._said())
        return content

    def _said(self) -> str:
        """Return the process's last message."""
        self._process.wait()
        self._errors.seek(0)
        text = self._errors.read()[-8000:].decode("utf-8", "replace")
        return last_error(text) or f"its process {ending(self._process.returncode)}"


def _stop(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    for stream in (process.stdin, process.stdout, errors):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    try:
        process.wait(5)  # it ends with its input
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def open_litert(path: str | os.PathLike[str], threads: int = 0) -> WorkerBackend:
    """Open a ``.tflite`` file. Raises ArtifactError, and MissingEnvironmentError with the command that makes it."""
    return WorkerBackend(LITERT, Path(path), threads)


def open_executorch(path: str | os.PathLike[str], threads: int = 0) -> WorkerBackend:
    """Open a ``.pte`` file. Raises ArtifactError, and MissingEnvironmentError with the command that makes it."""
    return WorkerBackend(EXECUTORCH, Path(path), threads)
