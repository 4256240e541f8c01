"""The table of formats: each with its exporter, the extra that it needs, and its tolerance."""

from __future__ import annotations

from tellapart.errors import SpecError, did_you_mean
from tellapart.export import onnx, state_dict
from tellapart.export.base import FLOAT, Exporter, Tolerance

FORMATS: dict[str, Exporter] = {
    entry.name: entry
    for entry in (
        Exporter("onnx", ".onnx", "onnx", onnx.write, FLOAT, plain=True, locate=onnx.locate),
        Exporter(
            "state-dict", ".pth", "", state_dict.write, {"fp32": Tolerance(1e-6)}, open=state_dict.open_file
        ),
    )
}


def find(name: str) -> Exporter:
    """Return a format by its name. Raises SpecError."""
    if name not in FORMATS:
        raise SpecError(f"There is no export to {name!r}. {did_you_mean(name, FORMATS)}")
    return FORMATS[name]
