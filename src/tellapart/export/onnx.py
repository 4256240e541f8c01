"""ONNX by torch's current exporter: one file with the preprocessing in its graph and the card in its properties.

The whole graph takes ``images``, [batch, height, width, C] of any size, uint8 or float32 by the contract's depth, and
gives ``probabilities`` and ``logits``; the tensor ``pixels`` in its middle ([batch, height, width, C] of the same kind)
is where a reader may cut it in two. Knows nothing of runtimes.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tellapart import packages
from tellapart.contract import Card, Preprocessing
from tellapart.errors import ExportError
from tellapart.export import onnx_layers, programs
from tellapart.export.base import Options, Written
from tellapart.export.graph import GraphModel
from tellapart.export.onnx_half import to_half
from tellapart.export.onnx_layers import SCOPES, scopes
from tellapart.runtime import onnx as runtime

IMAGES, PIXELS, INPUT, PROBABILITIES, LOGITS = "images", "pixels", "input", "probabilities", "logits"
NETWORK_SCOPE = "classify.network"
LOWEST_OPSET = 18
"""torch's exporter writes none below."""
_LOOKED_AT = 4  # images at once whose inner values are looked at


class _WithPixels(nn.Module):
    """The graph, with the pixels as one more output so that they keep a name."""

    def __init__(self, graph: GraphModel) -> None:
        super().__init__()
        self.resize, self.classify = graph.resize, graph.classify

    def forward(self, images_NHWC: Tensor) -> tuple[Tensor, ...]:
        """Return (probabilities, logits, features if any, pixels)."""
        pixels = self.resize(images_NHWC)
        return (*self.classify(pixels), pixels)


def write(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the ONNX file. Raises MissingPackageError, ExportError."""
    onnx = packages.require("onnx", "onnx", "Export to ONNX")
    packages.require("onnxscript", "onnx", "Export to ONNX")
    model = _plain(graph, options) if options.plain else _whole(graph, options)
    notes: tuple[str, ...] = ()
    if options.precision == "fp16":
        nodes = [n.name for n in model.graph.node if options.plain or NETWORK_SCOPE in scopes(n)]
        model, notes = halved(
            model, nodes, "plain" if options.plain else "whole", card.preprocessing, options
        )
    clean(model)
    describe(model, card, options)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The ONNX file is not valid: {error}") from error
    onnx.save(model, target)
    return Written((target,), facts(model), notes)


def halved(
    model: Any, nodes: Sequence[str], kind: str, contract: Preprocessing, options: Options
) -> tuple[Any, tuple[str, ...]]:
    """Return the model with the products among ``nodes`` in fp16, and a note on those that stay in float32 for their
    range.

    ``kind``: what the model takes, as the property ``graph`` of files says it.
    """
    examples = options.examples
    feeds = (
        (
            runtime.feed(kind, contract, examples[start : start + _LOOKED_AT])
            for start in range(0, len(examples), _LOOKED_AT)
        )
        if examples is not None
        else ()
    )
    model, kept = to_half(model, nodes, feeds)
    if not kept:
        return model, ()
    names = ", ".join(kept[:8]) + (f" and {len(kept) - 8} more" if len(kept) > 8 else "")
    return model, (
        f"Computed in float32, because their values come near the limit of fp16's range: {names}.",
    )


def locate(path: Path, graph: GraphModel, pixels: Any) -> str:
    """Return where the file's values begin to differ from the graph's, for pixels uint8 [B, height, width, C]."""
    return onnx_layers.locate(path, graph, pixels)


def _whole(graph: GraphModel, options: Options) -> Any:
    dim = torch.export.Dim
    model = convert(
        _WithPixels(graph).eval(),
        graph.example(),
        {0: dim("batch"), 1: dim("height", min=2), 2: dim("width", min=2)},
        IMAGES,
        [PROBABILITIES, LOGITS, *[runtime.FEATURES] * options.features, PIXELS],
        options.opset,
    )
    _separate(model)
    (pixels,) = (value for value in model.graph.output if value.name == PIXELS)
    model.graph.value_info.append(pixels)
    model.graph.output.remove(pixels)
    return model


def _plain(graph: GraphModel, options: Options) -> Any:
    preprocess = graph.classify.preprocess
    with torch.no_grad():
        example = preprocess(graph.example())
    outputs = [LOGITS, *[runtime.FEATURES] * options.features]
    return convert(graph.bare, example, {0: torch.export.Dim("batch")}, INPUT, outputs, options.opset)


def convert(
    module: nn.Module,
    example: Tensor,
    dims: dict[int, Any],
    name: str,
    outputs: list[str],
    opset: int = 0,
) -> Any:
    """Return the module as an ONNX model (protobuf); without ``dims`` its shapes are fixed. Raises ExportError.

    ``opset``: 0 for the exporter's own.
    """
    try:
        with programs.quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=[name],
                output_names=outputs,
                dynamic_shapes=(dims,) if dims else None,
                opset_version=opset or None,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises its own errors and those of what it calls
        cause = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ExportError(f"torch cannot export this network to ONNX: {cause}") from error
    assert program is not None
    model = program.model_proto
    written = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset and written != opset:
        raise ExportError(f"torch cannot write this network in opset {opset}, only in {written}.")
    return model


def _separate(model: Any) -> None:
    """Make everything after the pixels depend on the images only through them, so that the graph can be cut there.

    torch takes the batch size from the images wherever a reshape needs it; the pixels have the same.
    """
    nodes = list(model.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    after = {PIXELS}
    copies: dict[str, str] = {IMAGES: PIXELS}
    kept: list[Any] = []
    fixed = {constant.name for constant in model.graph.initializer}

    def copied(name: str) -> str:
        """Return the name of the same value computed from the pixels; copy the nodes that it needs."""
        if name in copies or name in fixed or not name:
            return copies.get(name, name)
        source = makers[name]
        if IMAGES in source.input and (source.op_type != "Shape" or not _first_size(source)):
            raise ExportError(f"the ONNX graph uses the images beside the pixels, in {source.name}")
        twin = type(source)()
        twin.CopyFrom(source)
        twin.name = f"{source.name}_of_pixels"
        twin.input[:] = [copied(value) for value in source.input]
        for value in source.output:
            copies[value] = f"{value}_of_pixels" if value else value
        twin.output[:] = [copies[value] for value in source.output]
        kept.append(twin)
        return copies[name]

    for node in nodes:
        if after.intersection(node.input):
            after.update(node.output)
            before = [copied(v) if _needs_images(v, after, makers) else v for v in node.input]
            node.input[:] = before
        kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(kept)


def _needs_images(name: str, after: set[str], makers: dict[str, Any]) -> bool:
    """Return whether a value that does not come through the pixels comes from the images."""
    if name in after:
        return False
    if name == IMAGES:
        return True
    return name in makers and any(_needs_images(value, after, makers) for value in makers[name].input)


def _first_size(shape: Any) -> bool:
    """Return whether a Shape node gives the first size only."""
    limits = {attribute.name: attribute.i for attribute in shape.attribute}
    return limits.get("start", 0) == 0 and limits.get("end") == 1


def clean(model: Any) -> None:
    """Keep which module each node came from, and remove all traces of the machine that wrote the file.

    Operator sets that no node uses are removed, and the IR version is the lowest that the rest needs, so that older
    runtimes can read the file.
    """
    import onnx

    used = {
        node.domain or "ai.onnx"
        for node in (*model.graph.node, *(n for f in model.functions for n in f.node))
    }
    needed = [entry for entry in model.opset_import if (entry.domain or "ai.onnx") in used]
    del model.opset_import[:]
    model.opset_import.extend(needed)
    model.ir_version = onnx.helper.find_min_ir_version_for(needed, ignore_unknown=True)
    for node in model.graph.node:
        name = [(entry.key, entry.value) for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        for key, value in name:
            node.metadata_props.add(key=key, value=value)
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def describe(model: Any, card: Card, options: Options, graph: str = "") -> None:
    """Write the card, and its main fields one by one, into the model's own properties."""
    model.producer_name, model.producer_version = "tellapart", packages.version("tellapart") or ""
    model.graph.name = card.architecture.name
    properties = {
        "tellapart": card.to_json(),
        "graph": graph or ("plain" if options.plain else "whole"),
        "precision": options.precision,
        "labels": json.dumps(list(card.classes), ensure_ascii=False),
        "contract": json.dumps(card.preprocessing.to_dict()),
        "calibration": json.dumps(dict(card.calibration)),
        "licence": str(card.weights.get("licence") or ""),
        "version": packages.version("tellapart") or "",
    }
    if options.features:
        properties["features"] = "the output 'features': float32 [batch, F], the input of the last layer"
    for key, value in properties.items():
        model.metadata_props.add(key=key, value=value)


def facts(model: Any) -> dict[str, Any]:
    """Return what the file is made of: opset, operators, inputs and outputs."""
    operators = collections.Counter(node.op_type for node in model.graph.node)
    return {
        "opset": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "ir_version": model.ir_version,
        "operators": dict(sorted(operators.items())),
        "inputs": [_value(value) for value in model.graph.input],
        "outputs": [_value(value) for value in model.graph.output],
    }


def _value(info: Any) -> str:
    """Return a value as text, such as ``images: uint8 [batch, height, width, 3]``."""
    import onnx

    kind = onnx.TensorProto.DataType.Name(info.type.tensor_type.elem_type).lower()
    sizes = [size.dim_param or str(size.dim_value) for size in info.type.tensor_type.shape.dim]
    return f"{info.name}: {kind} [{', '.join(sizes)}]"
