"""What vendors' compilers accept according to their documentation, and whether an ONNX file keeps to it.

Two literal tables with their sources. They say what a compiler documents; whether it compiles a given file, only the
compiler itself can show. Knows nothing of how the files are made.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Accepted:
    """What a compiler accepts. ``opsets``: the lowest and highest; ``restrictions``: of an operator's nodes.

    A restriction takes a node and the graph's constants by name, and returns what is wrong with it, or "".
    """

    compiler: str
    source: str
    opsets: tuple[int, int]
    operators: frozenset[str]
    restrictions: Mapping[str, Callable[[Any, frozenset[str]], str]]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _fixed_input(place: int, what: str) -> Callable[[Any, frozenset[str]], str]:
    """Return the restriction that an input, if it is given, is a constant."""

    def check(node: Any, constants: frozenset[str]) -> str:
        given = len(node.input) > place and node.input[place]
        return f"its {what} must be constant" if given and node.input[place] not in constants else ""

    return check


def _attributes(node: Any) -> dict[str, Any]:
    import onnx

    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _resize(reason: str) -> Callable[[Any, frozenset[str]], str]:
    """Return a check of Resize for compilers that have it without anti-aliasing; ``reason`` is the message for that."""

    def check(node: Any, constants: frozenset[str]) -> str:
        attributes = _attributes(node)
        if attributes.get("antialias"):
            return reason
        simple = attributes.get("mode", b"nearest") in (b"nearest", b"linear")
        return "" if simple else "only nearest and linear are supported"

    return check


def _one_output(node: Any, constants: frozenset[str]) -> str:
    return "only its first output is supported" if sum(bool(name) for name in node.output) > 1 else ""


def _tensorrt_average_pool(node: Any, constants: frozenset[str]) -> str:
    return "dilations must be 1" if set(_attributes(node).get("dilations", [1])) != {1} else ""


def _tensorrt_max_pool(node: Any, constants: frozenset[str]) -> str:
    return _one_output(node, constants) or _tensorrt_average_pool(node, constants)


TENSORRT = Accepted(
    compiler="TensorRT 10.1",
    source="onnx/onnx-tensorrt, branch 10.1-GA (96e7811, 2024-06-17), docs/operators.md: opset 9 to 20",
    opsets=(9, 20),
    operators=_names(
        """Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike
        Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace
        DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
        GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample
        GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
        LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool
        Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
        QuantizeLinear RNN RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
        ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
        Relu Reshape Resize ReverseSequence RoiAlign Round Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid
        Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
        ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor"""
    ),
    restrictions={
        "AveragePool": _tensorrt_average_pool,
        "LayerNormalization": _one_output,
        "MaxPool": _tensorrt_max_pool,
        "Pad": _fixed_input(3, "axes"),
        "ReduceMax": _fixed_input(1, "axes"),
        "ReduceMean": _fixed_input(1, "axes"),
        "ReduceSum": _fixed_input(1, "axes"),
        "Resize": _resize("anti-aliasing is not supported"),
        "Slice": _fixed_input(3, "axes"),
        "Squeeze": _fixed_input(1, "axes"),
        "Unsqueeze": _fixed_input(1, "axes"),
    },
)


def _atlas_conv(node: Any, constants: frozenset[str]) -> str:
    attributes = _attributes(node)
    limits = (("kernel_shape", 1, 255), ("strides", 1, 63), ("dilations", 1, 255), ("pads", 0, 255))
    for name, low, high in limits:
        if any(not low <= value <= high for value in attributes.get(name, [])):
            return f"{name} is {list(attributes[name])}; each must be from {low} to {high}"
    return ""


ATLAS = Accepted(
    compiler="ATC of CANN 8.0",
    source=(
        "hiascend.com, CANN commercial 8.0.0, operator list, ONNX operators (operatorlist_00176); opsets as on the "
        "page of each operator: 9 to 18"
    ),
    opsets=(9, 18),
    operators=_names(
        """Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
        BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Compress Concat Constant
        ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace Det Div Dropout Einsum Elu Equal Erf Exp
        Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool
        GlobalMaxPool Greater GreaterOrEqual GridSample HardSigmoid HardSwish Hardmax Identity If
        InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax
        LpNormalization LpPool MatMul Max MaxPool MaxRoiPool MaxUnpool Mean MeanVarianceNormalization Min Mod Mul
        Multinomial Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow RandomNormal RandomNormalLike
        RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
        ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign Round
        Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
        SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh TfIdfVectorizer
        ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Where Xor"""
    ),
    restrictions={"Conv": _atlas_conv, "Resize": _resize("anti-aliasing is not in its specification")},
)


def violations(model: Any, accepted: Accepted) -> list[str]:
    """Return what an ONNX model (protobuf) has that the compiler does not document; shapes must be inferred."""
    found: collections.Counter[str] = collections.Counter()
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    low, high = accepted.opsets
    for domain, version in opsets.items():
        if domain not in ("", "ai.onnx") and any(node.domain == domain for node in model.graph.node):
            found[f"operators of the domain {domain}"] += 1
        elif domain in ("", "ai.onnx") and not low <= version <= high:
            found[f"opset {version}; {low} to {high} are accepted"] += 1
    constants = frozenset(entry.name for entry in model.graph.initializer) | frozenset(
        name for node in model.graph.node if node.op_type == "Constant" for name in node.output
    )
    for node in model.graph.node:
        if node.op_type not in accepted.operators:
            found[f"operator {node.op_type}"] += 1
        elif node.op_type in accepted.restrictions:
            wrong = accepted.restrictions[node.op_type](node, constants)
            if wrong:
                found[f"operator {node.op_type}: {wrong}"] += 1
    return [f"{what} ({count} times)" if count > 1 else what for what, count in sorted(found.items())]
