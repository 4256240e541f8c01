"""Parts of the classifier as programs of `torch.export`, which most converters start from.

Also the parts that only some formats need, and where a converted file's intermediate values begin to differ from the
program's. Knows no format.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tellapart.errors import ExportError
from tellapart.export.graph import GraphModel, averaged_in_graph, told_in_graph

MAX_SIDE = 65_535  # the largest that is decoded
Values = npt.NDArray[np.float32]
_NOTICEABLE = {"fp32": 1e-3, "fp16": 3e-2}  # of a value's largest entry
_SILENCED = ("torch.export", "torch.onnx", "torch._dynamo", "torch._inductor", "onnxscript", "onnx_ir")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what torch prints, logs and warns about while tracing, lowering and exporting."""
    loggers = [logging.getLogger(name) for name in _SILENCED]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def trace(module: nn.Module, example: Tensor, dims: Mapping[int, Any] | None = None) -> ExportedProgram:
    """Return the module as a program; ``dims`` names the dimensions of its input that may vary.

    Raises ExportError.
    """
    try:
        with quiet(), torch.no_grad():
            shapes = (dict(dims),) if dims else None
            return torch.export.export(module.eval(), (example,), dynamic_shapes=shapes)
    except Exception as error:  # torch.export lets through the errors of whatever it traces
        raise ExportError(f"torch.export cannot trace this network: {first_line(error)}") from error


class FromInput(nn.Module):
    """The classifier after normalisation: float32 [B, C, height, width] -> (probabilities, logits), with its views."""

    def __init__(self, graph: GraphModel) -> None:
        super().__init__()
        self.classify = graph.classify

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return (probabilities, logits), float32 [B, K] each."""
        classify = self.classify
        logits = averaged_in_graph(classify.network, images_NCHW, classify.views)
        return told_in_graph(logits, classify.card), logits


class InOneOrder(FromInput):
    """The classifier from pixels, uint8 [B, height, width, C], all in one memory order.

    ExecuTorch's own operators (those that XNNPACK lacks) refuse a mix of two memory orders.
    """

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, Tensor]:
        """Return (probabilities, logits), float32 [B, K] each."""
        planes = pixels_NHWC.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        return super().forward(self.classify.preprocess.normalised(planes))


def batch_dim(most: int = 0) -> dict[int, Any]:
    """Return the dims of a batch of any size (of at most ``most`` if that is given)."""
    return {0: Dim("batch", min=1, max=most or 65_535)}


def image_dims() -> dict[int, Any]:
    """Return the dims of a batch of images of any size."""
    return {**batch_dim(), 1: Dim("height", min=1, max=MAX_SIDE), 2: Dim("width", min=1, max=MAX_SIDE)}


def first_line(error: BaseException) -> str:
    """Return the first line of an error's cause or message."""
    return (str(error.__cause__ or error).strip() or type(error).__name__).partition("\n")[0][:500]


class _Recorder(torch.fx.Interpreter):
    """Runs a program and keeps the result of every operation."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is torch.ops.aten.view.default:  # the strides seen in tracing may differ from the real ones
            return args[0].reshape(args[1])
        return super().call_function(target, args, kwargs)

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point():
            self.values[n.name] = value.detach().float().clone()
        return value


def inner_values(
    program: ExportedProgram, pixels: npt.NDArray[np.uint8], decomposed: bool = False
) -> list[tuple[str, str, Values]]:
    """Return (operation's name, module that it belongs to, value) in the order of computation, for pixels.

    ``decomposed``: the operations are torch's core ones, as converters name them.
    """
    with quiet():
        module = (program.run_decompositions() if decomposed else program).module()
    assert isinstance(module, torch.fx.GraphModule)
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(torch.from_numpy(pixels))
    owners = {node.name: _owner(node) for node in module.graph.nodes}
    return [(name, owners[name], value.numpy()) for name, value in recorder.values.items()]


def _owner(node: torch.fx.Node) -> str:
    """Return the qualified name of the module that an operation came from."""
    if node.op == "get_attr":  # a weight
        name = str(node.target).rpartition(".")[0]
    else:
        stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
        name = next((str(path) for path, _ in reversed(list(stack.values())) if path), "")
    return name.removeprefix("classify.").removeprefix("network.")


def first_difference(
    expected: Sequence[tuple[str, str, Values]],
    look_up: Callable[[Sequence[str]], Mapping[str, Values]],
    precision: str,
) -> str:
    """Return a sentence on the first operation whose value in the file differs.

    ``look_up``: names of operations -> the file's values of those that it has.
    """
    found = look_up([name for name, _, _ in expected])
    agreeing, compared = "", 0
    for name, owner, value in expected:
        other = found.get(name)
        if other is None or other.shape != value.shape:
            continue
        compared += 1
        difference = float(np.abs(other - value).max()) / (float(np.abs(value).max()) or 1.0)
        place = owner or "the classifier"
        if not difference <= _NOTICEABLE[precision]:  # true for nan as well
            before = (
                f"; the values agree up to {agreeing}" if agreeing else ", the first that can be compared"
            )
            return (
                f"The difference starts in the layer {place} (operation {name}): {difference:.2g} of its largest "
                f"value{before}."
            )
        agreeing = f"{place} ({name})"
    if not compared:
        return "No value inside the file can be compared with the network's."
    return (
        f"All {compared} values inside the file that can be compared agree when looked at one by one; the "
        "difference comes from what the runtime fuses, or from before or after the network."
    )
