"""ONNX files that keep to what the compilers of TensorRT and of Huawei's Atlas accept, and the commands for them.

Neither compiler runs on an ordinary machine, so what is checked here is the file: onnx's checker with shape inference,
the vendor's published list of operators, and the answers of the same file in ONNX Runtime. The vendor's compiler
comes afterwards, on the vendor's machine. Resizing stays outside both graphs: neither list has anti-aliased `Resize`.
Knows nothing of how the compiled files are run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tellapart import packages
from tellapart.contract import Card, Preprocessing, sides
from tellapart.errors import ExportError
from tellapart.export import onnx as onnx_export
from tellapart.export import operators
from tellapart.export.base import Options, Written
from tellapart.export.graph import GraphModel
from tellapart.export.onnx import LOGITS, NETWORK_SCOPE, PROBABILITIES
from tellapart.export.onnx_layers import scopes
from tellapart.export.programs import FromInput

PIXELS, INPUT = "pixels", "input"
TENSORRT_OPSET, ATLAS_OPSET = 18, 18
PROFILE = (1, 8, 32)  # the smallest, the usual and the largest batch


class _FromPixels(nn.Module):
    """uint8 [B, height, width, C] -> (probabilities, logits). Floats first: TensorRT does not compute with bytes."""

    def __init__(self, graph: GraphModel) -> None:
        super().__init__()
        self.classify = graph.classify

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        probabilities, logits = self.classify(pixels.to(torch.float32))
        return probabilities, logits


def write_tensorrt(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the ONNX file and the trtexec command beside it. Raises MissingPackageError, ExportError."""
    onnx = packages.require("onnx", "onnx", "Export for TensorRT")
    dims = {} if options.batch else {0: torch.export.Dim("batch")}
    example = graph.example_pixels(options.batch or 2)
    outputs = [PROBABILITIES, LOGITS]
    model = onnx_export.convert(_FromPixels(graph), example, dims, PIXELS, outputs, TENSORRT_OPSET)
    kept: tuple[str, ...] = ()
    if options.precision == "fp16":
        nodes = [node.name for node in model.graph.node if NETWORK_SCOPE in scopes(node)]
        model, kept = onnx_export.halved(model, nodes, "pixels", card.preprocessing, options)
    _finish(onnx, model, card, target, options, "pixels", operators.TENSORRT)
    bytes_used = _consumers(model, PIXELS) - {"Cast", "Shape"}
    if bytes_used:
        raise ExportError(
            f"TensorRT only converts bytes to floats; here {', '.join(sorted(bytes_used))} would read them."
        )
    text = target.with_suffix(".txt")
    text.write_text(_tensorrt_text(card, target, options), encoding="utf-8")
    notes = (
        f"Operators and opset are within {operators.TENSORRT.source}. TensorRT itself was not run.",
        "Resizing stays outside: TensorRT has no anti-aliased Resize.",
        *kept,
    )
    return Written((target, text), onnx_export.facts(model), notes)


def write_atlas(graph: GraphModel, card: Card, target: Path, options: Options) -> Written:
    """Write the ONNX file, AIPP's settings and the atc command. Raises MissingPackageError, ExportError."""
    onnx = packages.require("onnx", "onnx", "Export for Atlas")
    with torch.no_grad():
        example = graph.classify.preprocess(graph.example(options.batch or 1))
    model = onnx_export.convert(FromInput(graph), example, {}, INPUT, [PROBABILITIES, LOGITS], ATLAS_OPSET)
    _finish(onnx, model, card, target, options, "normalised", operators.ATLAS)
    settings, text = target.with_suffix(".aipp.cfg"), target.with_suffix(".txt")
    settings.write_text(aipp(card.preprocessing), encoding="utf-8")
    text.write_text(_atlas_text(card, target, settings, options), encoding="utf-8")
    grouped = _grouped(onnx, model)
    notes = [
        f"Operators and opset are within {operators.ATLAS.source}. ATC itself was not run.",
        "Resizing stays outside, normalisation is AIPP's; ATC computes in fp16 unless told otherwise.",
    ]
    if grouped:
        notes.append(
            f"{grouped} convolutions are grouped. The published page on Conv says that group must be 1 and also that "
            "channels must be divisible by it; try such a network on the device before you rely on it."
        )
    error = aipp_error(card.preprocessing)
    facts = {**onnx_export.facts(model), "aipp_fp16_error": error, "batch": options.batch or 1}
    return Written((target, settings, text), facts, tuple(notes))


def _finish(
    onnx: Any, model: Any, card: Card, target: Path, options: Options, kind: str, accepted: operators.Accepted
) -> None:
    """Describe, check and save. Raises ExportError if the file has something that the compiler does not document."""
    onnx_export.clean(model)
    onnx_export.describe(model, card, options, kind)
    model.metadata_props.add(key="format", value="tensorrt-ready" if kind == "pixels" else "atlas-ready")
    try:
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"The ONNX file is not valid: {error}") from error
    wrong = operators.violations(model, accepted)
    if wrong:
        raise ExportError(
            f"{accepted.compiler} does not document what this network needs: {'; '.join(wrong)}. The list: "
            f"{accepted.source}."
        )
    onnx.save(model, target)


def _consumers(model: Any, name: str) -> set[str]:
    return {node.op_type for node in model.graph.node if name in node.input}


def _grouped(onnx: Any, model: Any) -> int:
    """Return how many convolutions have groups."""
    values = [
        attribute.i for node in model.graph.node if node.op_type == "Conv" for attribute in node.attribute
        if attribute.name == "group"
    ]  # fmt: skip
    return sum(value > 1 for value in values)


def aipp(contract: Preprocessing) -> str:
    """Return AIPP's settings for the contract.

    AIPP computes (pixel - mean_chn - min_chn) * var_reci_chn, which has to be (pixel / 255 - mean) / std.

    Source of the formula: CANN commercial 8.0.0, ATC, "Normalization Configuration" (atlasatc_16_0022). ``min_chn``
    takes the mean because ``mean_chn`` holds whole numbers only.
    """
    if contract.channels not in (1, 3):
        raise ExportError(
            f"AIPP normalises images of 1 or 3 channels, and this model takes {contract.channels}. Export to onnx with "
            "--plain, and normalise before the network."
        )
    lines = [
        "aipp_op {",
        "    aipp_mode: static",
        "    related_input_rank: 0",
        f"    input_format: {'RGB888_U8' if contract.channels == 3 else 'YUV400_U8'}",
        f"    src_image_size_w: {contract.sides[1]}",
        f"    src_image_size_h: {contract.sides[0]}",
        "    crop: false",
        "    csc_switch: false",
        "    rbuv_swap_switch: false",
    ]
    for channel, (mean, std) in enumerate(zip(contract.mean, contract.std, strict=True)):
        lines += [
            f"    mean_chn_{channel}: 0",
            f"    min_chn_{channel}: {255 * mean:.10g}",
            f"    var_reci_chn_{channel}: {1 / (255 * std):.10g}",
        ]
    return "\n".join([*lines, "}", ""])


def aipp_error(contract: Preprocessing) -> float:
    """Return how far an input computed by AIPP's fp16 is from the contract's at most, over all 256 levels."""
    levels = np.arange(256, dtype=np.float64)[:, None]
    mean, std = np.array(contract.mean), np.array(contract.std)
    half = np.float16
    computed = ((levels.astype(half) - (255 * mean).astype(half)) * (1 / (255 * std)).astype(half)).astype(
        half
    )
    return float(np.abs(computed.astype(np.float64) - (levels / 255 - mean) / std).max())


def _tensorrt_text(card: Card, target: Path, options: Options) -> str:
    contract = card.preprocessing
    shape = f"{sides.words(contract.size)}x{contract.channels}"
    words = ["trtexec", f"--onnx={target.name}", f"--saveEngine={target.stem}.engine"]
    if not options.batch:
        for kind, batch in zip(("min", "opt", "max"), PROFILE, strict=True):
            words.append(f"--{kind}Shapes={PIXELS}:{batch}x{shape}")
    words.append("--stronglyTyped" if options.precision == "fp16" else "--noTF32")
    typed = (
        "The file itself says what is computed in fp16; --stronglyTyped keeps to it."
        if options.precision == "fp16"
        else "--noTF32 computes in full float32, as the artifact does. --precision fp16 writes a file for fp16."
    )
    return "\n".join(
        [
            "TensorRT 10, in this folder:",
            "",
            "    " + " \\\n        ".join(words),
            "",
            typed,
            f"Input {PIXELS}: uint8 [{options.batch or 'batch'}, {_shape(contract)}]"
            f", {_CHANNELS.get(contract.channels, 'channels as in training')}. In the graph: normalisation, "
            "views, temperature, softmax.",
            f"Outputs {PROBABILITIES} and {LOGITS}: float32 [batch, {len(card.classes)}].",
            "",
            *_host(contract),
            *_classes(card),
        ]
    )


def _atlas_text(card: Card, target: Path, settings: Path, options: Options) -> str:
    contract, batch = card.preprocessing, options.batch or 1
    shape = f"{batch},{contract.channels},{contract.sides[0]},{contract.sides[1]}"
    words = [
        "atc --framework=5",
        f"--model={target.name}",
        f"--output={target.stem}",
        "--input_format=NCHW",
        f'--input_shape="{INPUT}:{shape}"',
        f"--insert_op_conf={settings.name}",
        "--output_type=FP32",
        '--soc_version="$SOC"',
    ]
    return "\n".join(
        [
            "ATC (CANN 8.0 or newer), in this folder, on a machine with CANN's toolkit:",
            "",
            "    SOC=Ascend310P3   # Ascend and the name that npu-smi info gives for your device",
            "    " + " \\\n        ".join(words),
            "",
            f"{settings.name} lets AIPP normalise: the compiled model takes uint8 [{batch}, "
            f"{_shape(contract)}]"
            + (", RGB in this order." if contract.channels == 3 else ", grey (YUV400_U8: luma only)."),
            f"AIPP computes in fp16; its input differs from the contract's by at most {aipp_error(contract):.2g}.",
            f"In the graph: views, temperature, softmax. Outputs {PROBABILITIES} and {LOGITS}: [{batch}, "
            f"{len(card.classes)}].",
            f"Without AIPP (leave out --insert_op_conf) the input is float32 [{shape.replace(',', ', ')}]: (pixel "
            "/ 255 - mean) / std.",
            "",
            *_host(contract),
            *_classes(card),
        ]
    )


_CHANNELS = {1: "grey", 3: "RGB"}


def _shape(contract: Preprocessing) -> str:
    return ", ".join(map(str, (*contract.sides, contract.channels)))


def _host(contract: Preprocessing) -> list[str]:
    """Return what the program before the model has to do, in words."""
    (height, width), corner = contract.sides, "round" if contract.version > 1 else "floor"
    square, (edge, edge_width) = height == width, contract.edges
    size = str(height) if square else "its side"
    steps = {
        "squash": [
            f"Scale both sides to {height}." if square else f"Scale to {height} high and {width} wide."
        ],
        "crop": [
            f"Scale so that the short side is {edge}; the long side is rounded down."
            if square
            else f"Scale to the smallest that is at least {edge} high and {edge_width} wide; the other side is rounded "
            "down.",
            f"Cut out the centre, {height}x{width}, its upper left corner at {corner}((scaled - {size}) / 2)"
            + (", halves to even." if contract.version > 1 else "."),
        ],
        "letterbox": [
            f"Scale so that the long side is {height}; the short side is rounded, at least 2."
            if square
            else f"Scale to the largest that is at most {height} high and {width} wide; the other side is rounded, at "
            "least 2.",
            f"Put it in the middle of {height}x{width} filled with {contract.fill}, at floor(({size} - scaled) / 2).",
        ],
    }[contract.resize]
    reduced = (
        " A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, as the card says."
        if contract.decode == "scaled"
        else ""
    )
    if contract.range is not None:
        low, high = contract.range
        reduced += f" Of images of more than 8 bits, {low:g} becomes 0 and {high:g} becomes 255."
    return [
        "Outside the graph, for the program that calls it:",
        f"  1. Decode; turn upright by EXIF; transparency on white; {contract.channels} channels.{reduced}",
        *(f"  {number}. {step}" for number, step in enumerate(steps, 2)),
        f"  Scaling is {contract.interpolation} with anti-aliasing (as torch's interpolate with antialias=True and as",
        "  Pillow's filter of that name), rounded to whole numbers from 0 to 255. tellapart.contract.resizing.resize",
        "  does it with numpy alone. Another filter gives other answers than were measured.",
        "",
    ]


def _classes(card: Card) -> list[str]:
    names = ", ".join(f"{index} {name}" for index, name in enumerate(card.classes[:1000]))
    return [f"Classes: {names}", ""]
