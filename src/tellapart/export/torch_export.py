"""`torch.export`: a ``.pt2`` file with the whole classifier, for any program that has torch; also compiled.

The program takes images of any size and number, and holds the card as an extra file. ``aot-inductor`` compiles it to
a shared library for this machine's processor, which needs a C++ compiler now and torch, but no compiler, later.
Knows nothing of how the files are run.
"""

from __future__ import annotations

import collections
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tellapart import packages
from tellapart.contract import Card
from tellapart.errors import ExportError
from tellapart.export import programs
from tellapart.export.base import Options, Written
from tellapart.export.graph import GraphModel
from tellapart.runtime import trust
from tellapart.runtime.torch_program import CARD, GRAPH, kind_of

COMPILERS = ("g++", "clang++", "c++")


def write(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the program. Raises ExportError."""
    program = _plain(graph) if options.plain else _whole(graph)
    extra = {CARD: card.to_json(), GRAPH: kind_of(options.plain, options.features)}
    with programs.quiet():
        torch.export.save(program, target, extra_files=extra)
    facts = {
        "torch": torch.__version__,
        "operators": _operators(program),
        "dynamic": [] if options.plain else ["batch", "height", "width"],
    }
    return Written((target,), facts, tuple(filter(None, [trust.record(target)])))


def write_compiled(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Compile the program with AOTInductor and write the package. Raises ExportError."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise ExportError(
            f"AOTInductor compiles C++, and there is no compiler ({', '.join(COMPILERS)}). Install one (on Debian "
            "and Ubuntu: apt-get install g++), or export --to torch-export, which needs none."
        )
    from torch._inductor import aoti_compile_and_package

    program = _whole(graph)
    metadata = {
        "tellapart": card.to_json(),
        "graph": kind_of(options.plain, options.features),
        "version": packages.version("tellapart") or "",
    }
    try:
        with programs.quiet():
            aoti_compile_and_package(
                program, package_path=str(target), inductor_configs={"aot_inductor.metadata": metadata}
            )
    except Exception as error:  # whatever the compiler's many parts raise
        raise ExportError(f"AOTInductor cannot compile this network: {programs.first_line(error)}") from error
    instructions = torch.backends.cpu.get_cpu_capability()
    notes = (
        f"Compiled for this machine's instruction set ({instructions}) and torch {torch.__version__}: another "
        "processor or another torch needs a new export.",
        "The file holds native code that runs when it is opened: open only files that you trust.",
        *filter(None, [trust.record(target)]),
    )
    facts = {"torch": torch.__version__, "instructions": instructions, "compiler": Path(compiler).name}
    return Written((target,), {**facts, "operators": _operators(program)}, notes)


def locate(path: Path, graph: GraphModel, pixels: npt.NDArray[np.uint8]) -> str:
    """Return where the file's values begin to differ from the graph's, for pixels uint8 [B, height, width, C]."""
    from tellapart.runtime.torch_program import embedded

    images = embedded(pixels, graph.card.preprocessing)
    expected = programs.inner_values(_whole(graph), images)
    with programs.quiet():
        saved = torch.export.load(path)
    found = {name: value for name, _, value in programs.inner_values(saved, images)}
    return programs.first_difference(expected, lambda names: found, "fp32")


def _whole(graph: GraphModel) -> torch.export.ExportedProgram:
    return programs.trace(graph, graph.example(), programs.image_dims())


def _plain(graph: GraphModel) -> torch.export.ExportedProgram:
    example = graph.classify.preprocess(graph.example())
    return programs.trace(graph.bare, example, programs.batch_dim())


def _operators(program: torch.export.ExportedProgram) -> dict[str, int]:
    targets: list[Any] = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return dict(sorted(collections.Counter(str(getattr(t, "__name__", t)) for t in targets).items()))
