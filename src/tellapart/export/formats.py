"""The table of formats: each with its exporter, the extra that it needs, and its tolerance."""

from __future__ import annotations

from tellapart.errors import SpecError, did_you_mean
from tellapart.export import onnx, openvino, own_environment, state_dict, torch_export, torchscript, vendor
from tellapart.export.base import FLOAT, Exporter, Tolerance

_FP32 = {"fp32": FLOAT["fp32"]}

FORMATS: dict[str, Exporter] = {
    entry.name: entry
    for entry in (
        Exporter(
            "onnx",
            ".onnx",
            "onnx",
            onnx.write,
            FLOAT,
            plain=True,
            features=True,
            floats=True,
            locate=onnx.locate,
        ),
        Exporter(
            "openvino",
            ".xml",
            "openvino",
            openvino.write,
            FLOAT,
            plain=True,
            features=True,
            floats=True,
            locate=openvino.locate,
        ),
        Exporter(
            "torch-export",
            ".pt2",
            "",
            torch_export.write,
            _FP32,
            plain=True,
            features=True,
            floats=True,
            locate=torch_export.locate,
        ),
        Exporter(
            "aot-inductor",
            ".aot.pt2",
            "",
            torch_export.write_compiled,
            _FP32,
            features=True,
            floats=True,
        ),
        Exporter("litert", ".tflite", "", own_environment.write_litert, _FP32),
        Exporter("executorch", ".pte", "", own_environment.write_executorch, _FP32),
        Exporter(
            "tensorrt-ready", ".tensorrt.onnx", "onnx", vendor.write_tensorrt, FLOAT, locate=onnx.locate
        ),
        Exporter("atlas-ready", ".atlas.onnx", "onnx", vendor.write_atlas, _FP32, locate=onnx.locate),
        Exporter(
            "torchscript",
            ".torchscript",
            "",
            torchscript.write,
            _FP32,
            plain=True,
            features=True,
            floats=True,
            locate=torchscript.locate,
        ),
        Exporter(
            "state-dict",
            ".pth",
            "",
            state_dict.write,
            {"fp32": Tolerance(1e-6)},
            floats=True,
            open=state_dict.open_file,
        ),
    )
}


def find(name: str) -> Exporter:
    """Return a format by its name. Raises SpecError."""
    if name not in FORMATS:
        raise SpecError(f"There is no export to {name!r}. {did_you_mean(name, FORMATS)}")
    return FORMATS[name]
