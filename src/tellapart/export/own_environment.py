"""LiteRT and ExecuTorch: converted by programs in environments of their own, from a program of `torch.export`.

Both contain the classifier from the contract's pixels on (uint8 [batch, height, width, C], NHWC): normalisation,
network, views, temperature and softmax. Resizing stays outside: LiteRT fixes all shapes, and neither has the contract's
anti-aliased filter for a size that is not known beforehand. Knows nothing of how the files are run.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from tellapart.contract import Card
from tellapart.errors import ExportError
from tellapart.export import programs
from tellapart.export.base import Options, Written
from tellapart.export.graph import GraphModel
from tellapart.runtime.environments import EXECUTORCH, LITERT, Environment, run

LARGEST_BATCH = 32  # that an ExecuTorch file's program allows
USED_BATCH = 8  # ExecuTorch 1.5 plans memory for fewer (measured: 15 if 32 are allowed)


def write_litert(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the .tflite file, for a fixed batch (1 by default). Raises UserError, ExportError."""
    batch = options.batch or 1
    LITERT.python()  # before the work begins
    program = programs.trace(graph.classify, graph.example_pixels(batch))
    _convert(LITERT, program, card, target)
    return Written((target,), _facts(LITERT, batch), (f"The file takes {batch} image(s) at a time.",))


def write_executorch(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the .pte file, lowered to XNNPACK, for batches of up to 8. Raises UserError, ExportError."""
    EXECUTORCH.python()
    dims = {} if options.batch else programs.batch_dim(LARGEST_BATCH)
    program = programs.trace(programs.InOneOrder(graph), graph.example_pixels(options.batch or 2), dims)
    _convert(EXECUTORCH, program, card, target)
    return Written((target,), _facts(EXECUTORCH, options.batch or f"1 to {USED_BATCH}"))


def _convert(
    environment: Environment, program: torch.export.ExportedProgram, card: Card, target: Path
) -> None:
    """Run the environment's converter. Raises ExportError with its last message."""
    with tempfile.TemporaryDirectory(prefix="convert-", dir=target.parent) as folder:
        source, described = Path(folder) / "program.pt2", Path(folder) / "card.json"
        with programs.quiet():
            torch.export.save(program, source)
        described.write_text(card.to_json(), encoding="utf-8")
        try:
            run(environment, ["convert", str(source), str(described), str(target)])
        except RuntimeError as error:
            raise ExportError(f"{environment.name} cannot convert this network: {error}") from None
    if not target.is_file():
        raise ExportError(f"{environment.name} ended without writing a file.")


def _facts(environment: Environment, batch: object) -> dict[str, object]:
    return {
        "packages": list(environment.packages),
        "batch": batch,
        "input": "uint8 NHWC of the contract's size",
    }
