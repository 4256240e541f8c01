"""Lowers a `torch.export` program to ExecuTorch with XNNPACK, and runs such files: for ExecuTorch's own environment.

    python executorch_program.py convert PROGRAM.pt2 CARD.json MODEL.pte
    python executorch_program.py serve MODEL.pte THREADS

``serve`` uses the protocol of `litert_program.serve`, in the file beside this one. Imports nothing from tellapart.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

CARD = "card"  # the name of the method that returns the card


def convert(program: str, card: str, target: str) -> None:
    """Write the .pte file, with the card as a constant method."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    described = torch.frombuffer(bytearray(Path(card).read_bytes()), dtype=torch.uint8)
    lowered = to_edge_transform_and_lower(
        torch.export.load(program), partitioner=[XnnpackPartitioner()], constant_methods={CARD: described}
    )
    Path(target).write_bytes(lowered.to_executorch().buffer)


class Model:
    """An ExecuTorch file: uint8 [B, height, width, C] -> logits float32 [B, K]; any batch up to the file's largest."""

    def __init__(self, path: str, threads: int) -> None:
        from executorch.runtime import Runtime

        self._program = Runtime.get().load_program(path)
        self._forward = self._program.load_method("forward")
        self.batch = 0

    def card(self) -> bytes:
        """Return the card; empty if there is none."""
        if CARD not in self._program.method_names:
            return b""
        return bytes(self._program.load_method(CARD).execute([])[0].numpy())

    def __call__(self, images: Any) -> Any:
        """Return the logits of one batch."""
        import torch

        return self._forward.execute([torch.from_numpy(images.copy())])[1].numpy()


def main(words: list[str]) -> None:
    """Do what the command line says."""
    if words[0] == "convert":
        convert(*words[1:])
        return
    sys.path.insert(0, str(Path(__file__).parent))
    from litert_program import own_output, serve

    sink = own_output()
    model = Model(words[1], int(words[2]))
    serve(model, model.card(), sink)


if __name__ == "__main__":
    main(sys.argv[1:])
