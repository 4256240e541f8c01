"""TorchScript (legacy): a file for programs with libtorch that cannot read ``.pt2`` yet.

PyTorch no longer develops TorchScript and does not support it on Python 3.14; ``torch-export`` takes its place. The
network is traced with a batch of any size; the resizing is scripted, because a trace would keep the sizes of its
example. Knows nothing of how the file is run.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tellapart.contract import Card, Preprocessing
from tellapart.errors import ExportError
from tellapart.export import programs
from tellapart.export.base import Options, Written
from tellapart.export.graph import GraphModel
from tellapart.preprocess.transform import average, matrix, weigh
from tellapart.runtime import trust
from tellapart.runtime.torch_program import CARD, GRAPH, kind_of

LEGACY = "TorchScript is legacy: PyTorch no longer develops it. Prefer --to torch-export."


def write(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the file. Raises ExportError."""
    try:
        with programs.quiet(), torch.no_grad():
            if options.plain:
                example = graph.classify.preprocess(graph.example())
                module = torch.jit.trace(graph.bare, example, check_trace=False)
            else:
                classify = torch.jit.trace(graph.classify, graph.example_pixels(), check_trace=False)
                whole = _WithFeatures if options.features else _Whole
                module = torch.jit.script(whole(_Resize(card.preprocessing), classify))
            extra = {CARD: card.to_json(), GRAPH: kind_of(options.plain, options.features)}
            module.save(str(target), _extra_files=extra)
    except Exception as error:  # TorchScript's compiler raises many kinds of error
        raise ExportError(f"TorchScript cannot express this network: {programs.first_line(error)}") from error
    notes = tuple(filter(None, [LEGACY, trust.record(target)]))
    return Written((target,), {"torch": torch.__version__, "dynamic": ["batch", "height", "width"]}, notes)


def locate(path: Path, graph: GraphModel, pixels: npt.NDArray[np.uint8]) -> str:
    """Return which module of the file gives a different output for the input that it has in the graph's network.

    For pixels uint8 [B, height, width, C]. A traced network keeps its modules; so each can be run alone.
    """
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if len(inputs) == 1 and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                calls.setdefault(name, (inputs[0].clone(), output.clone()))  # of the first view

        return hook

    handles = [m.register_forward_hook(note(name)) for name, m in graph.network.named_modules() if name]
    with programs.quiet(), torch.inference_mode():
        graph.network(
            graph.classify.preprocess.normalised(torch.from_numpy(pixels).permute(0, 3, 1, 2).float())
        )
        for handle in handles:
            handle.remove()
        saved = torch.jit.load(str(path), map_location="cpu")
        network = saved.classify.network if hasattr(saved, "classify") else saved
        found = {}
        for name, (given, _) in calls.items():
            with contextlib.suppress(RuntimeError, AttributeError):  # a trace leaves out what does nothing
                found[name] = operator.attrgetter(name)(network)(given).numpy()
    expected = [(name, name, output.numpy()) for name, (_, output) in calls.items()]
    return programs.first_difference(expected, lambda names: found, "fp32")


class _Whole(nn.Module):
    """Levels [B, H, W, C] -> (probabilities, logits), in TorchScript's words."""

    def __init__(self, resize: nn.Module, classify: nn.Module) -> None:
        super().__init__()
        self.resize, self.classify = resize, classify

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, logits = self.classify(self.resize(images))
        return probabilities, logits


class _WithFeatures(_Whole):
    """uint8 [B, H, W, C] -> (probabilities, logits, features), in TorchScript's words."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        probabilities, logits, features = self.classify(self.resize(images))
        return probabilities, logits, features


class _Resize(nn.Module):
    """`Resize` in TorchScript's words: [B, H, W, C] -> [B, height, width, C] of the contract's depth."""

    def __init__(self, contract: Preprocessing) -> None:
        super().__init__()
        self.policy: str = contract.resize
        self.mode: str = contract.interpolation
        self.height, self.width = contract.sides
        self.edge_height, self.edge_width = contract.edges
        self.rounds: bool = contract.version > 1
        self.fill: float = float(contract.fill)
        self.exact: bool = contract.depth == "float32"

    def forward(self, images: Tensor) -> Tensor:
        source = images.permute(0, 3, 2, 1).to(torch.float32)
        height, width = int(images.shape[1]), int(images.shape[2])
        if self.policy == "squash":
            height, width = self.height, self.width
        elif self.policy == "crop":
            by_width, by_height = self.edge_width * height // width, self.edge_height * width // height
            height, width = max(self.edge_height, by_width), max(self.edge_width, by_height)
        else:
            by_width = (2 * self.width * height + width) // (2 * width)
            by_height = (2 * self.height * width + height) // (2 * height)
            height = max(min(self.height, by_width), min(2, self.height))
            width = max(min(self.width, by_height), min(2, self.width))
        top, left = 0, 0
        if self.policy == "crop":
            top, left = (height - self.height) // 2, (width - self.width) // 2
            if self.rounds:  # `Preprocessing.start`: halves to even
                top, left = (height - self.height + top % 2) // 2, (width - self.width + left % 2) // 2
        elif self.policy == "letterbox":
            top, left = -((self.height - height) // 2), -((self.width - width) // 2)
        rows, columns = int(images.shape[1]), int(images.shape[2])
        down = matrix(rows, height, max(rows, height), top, self.height, self.mode, self.exact)
        across = matrix(columns, width, max(columns, width), left, self.width, self.mode, self.exact)
        scaled = average(source, down, across) if self.exact else weigh(source, down, across)
        if self.policy == "letterbox":
            inside = down.sum(1).unsqueeze(1) * across.sum(1)
            scaled = torch.where(inside > 0, scaled, self.fill)
        pixels = scaled.permute(0, 2, 3, 1)
        return pixels if self.exact else pixels.to(torch.uint8)
