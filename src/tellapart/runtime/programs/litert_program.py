"""Converts a `torch.export` program to LiteRT, and runs LiteRT files: a program for LiteRT's own environment.

    python litert_program.py convert PROGRAM.pt2 CARD.json MODEL.tflite
    python litert_program.py serve MODEL.tflite THREADS

``serve`` reads batches from standard input and writes logits to standard output; the messages are in `serve`.
Imports nothing from tellapart.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path
from typing import Any

CARD = "tellapart"  # the name of the entry in the file's metadata


def convert(program: str, card: str, target: str) -> None:
    """Write the .tflite file, with the card in its metadata."""
    import litert_torch
    import torch

    exported = torch.export.load(program)
    (example,) = exported.example_inputs[0]
    model = litert_torch.convert(exported.module(), (example,))
    model.export(target)
    Path(target).write_bytes(with_card(Path(target).read_bytes(), Path(card).read_bytes()))


def with_card(content: bytes, card: bytes) -> bytes:
    """Return a LiteRT file's content with the card in its metadata."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(card, np.uint8)
    entry.name, entry.buffer = CARD, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content) + len(card) + 1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def read_card(path: str) -> bytes:
    """Return the card in a file's metadata; empty if there is none."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(Path(path).read_bytes(), 0)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if entry.Name() == CARD.encode():
            return bytes(model.Buffers(entry.Buffer()).DataAsNumpy())
    return b""


class Model:
    """A LiteRT file: uint8 [batch, height, width, C] -> logits float32 [batch, K], ``batch`` as it was converted."""

    def __init__(self, path: str, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(path, num_threads=threads or None)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        self._logits = self._interpreter.get_output_details()[1]["index"]
        self.batch = int(self._input["shape"][0])

    def __call__(self, images: Any) -> Any:
        """Return the logits of one batch."""
        self._interpreter.set_tensor(self._input["index"], images)
        self._interpreter.invoke()
        return self._interpreter.get_tensor(self._logits)


def own_output() -> Any:
    """Reserve standard output for the answers and return it; from now on libraries print to standard error."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return answers


def serve(model: Any, card: bytes, sink: Any) -> None:
    """Answer batches until the input ends; ``sink`` takes the answers.

    First the card: its length (uint32) and its bytes; then the batch that the file wants (uint32, 0: any). Each
    request is four uint32 (batch, height, width, channels) and the pixels; each answer two uint32 (batch, classes)
    and float32 logits. All little-endian.
    """
    import numpy as np

    source = sys.stdin.buffer
    sink.write(struct.pack("<I", len(card)) + card + struct.pack("<I", model.batch))
    sink.flush()
    while len(head := source.read(16)) == 16:
        shape = struct.unpack("<4I", head)
        pixels = np.frombuffer(source.read(int(np.prod(shape))), np.uint8).reshape(shape)
        logits = np.ascontiguousarray(model(pixels), np.float32)
        sink.write(struct.pack("<2I", *logits.shape) + logits.tobytes())
        sink.flush()


def main(words: list[str]) -> None:
    """Do what the command line says."""
    if words[0] == "convert":
        convert(*words[1:])
    else:
        sink = own_output()
        serve(Model(words[1], int(words[2])), read_card(words[1]), sink)


if __name__ == "__main__":
    main(sys.argv[1:])
