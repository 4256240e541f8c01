"""What every format has in common: its entry in the table of formats, and an export's options and result.

Knows no format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tellapart.contract import Card, Pixels
from tellapart.export.graph import GraphModel
from tellapart.runtime import Backend


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from its artifact.

    ``probability``: the largest difference of any probability of any image. ``agreement``: the smallest share of
    images with the same most probable class; images whose two best classes are within ``probability`` of each other in
    the artifact do not count against it. ``features``: the largest norm of the difference of an image's features,
    relative to that of the artifact's.
    """

    probability: float
    agreement: float = 1.0
    features: float = 1e-3


FLOAT = {"fp32": Tolerance(1e-4), "fp16": Tolerance(5e-3, features=3e-2)}


@dataclass(frozen=True)
class Options:
    """The options of an export.

    ``plain``: the bare network, normalised floats -> logits. ``batch``: the number of images in one call, for formats
    that fix it; 0: any, or the format's own choice. ``opset``: of an ONNX file; 0: the exporter's default.
    ``examples``: images from which the ranges of intermediate values are measured, uint8 [N, height, width, C]; None:
    they are not. ``features``: whether the file has the features, the input of the last layer, as one more output.
    """

    precision: str = "fp32"
    plain: bool = False
    batch: int = 0
    opset: int = 0
    features: bool = False
    examples: Pixels | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Written:
    """What an exporter wrote. ``files``: the first is the one that is opened.

    ``facts``: plain values to be reported, such as opset and operators. ``notes``: sentences for people.
    """

    files: tuple[Path, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


Write = Callable[[GraphModel, Card, Path, Options], Written]
Open = Callable[[Path, Card, int], Backend]
Locate = Callable[[Path, GraphModel, Any], str]


@dataclass(frozen=True)
class Exporter:
    """A format that an artifact can be written in.

    Attributes:
        name: as in ``tellapart export --to``.
        suffix: of the file that is opened, with its dot.
        extra: the extra that has the converter's packages; empty for none.
        write: (graph, card, target, options) -> what was written. The graph is in evaluation mode, float32, on the
            CPU, and belongs to the exporter: it may be changed. Target is in an empty folder of this export's own and
            ends in ``suffix``; further files go beside it, named after it. They are moved together afterwards. Raises
            UserError (also MissingPackageError) or ExportError.
        tolerance: by precision; a precision that is not in it is not offered.
        plain: whether the bare network can be written.
        features: whether features can be one more output.
        floats: whether it takes models whose pixels are float32 (`Preprocessing.depth`).
        open: (file, card, threads) -> backend, if `runtime.open_backend` cannot open the file (None: it can).
        locate: (file, graph, pixels uint8 [B, height, width, C]) -> a sentence on where the file's values begin to
            differ from the graph's; called after a failed check. None if the format gives no access to intermediate
            values.
        stem: how the file's name begins; two formats with one suffix need two.
    """

    name: str
    suffix: str
    extra: str
    write: Write
    tolerance: Mapping[str, Tolerance]
    plain: bool = False
    features: bool = False
    floats: bool = False
    open: Open | None = None
    locate: Locate | None = None
    stem: str = "model"

    def file_name(self, options: Options) -> str:
        """Return the name of the file for these options, such as ``model-fp16.onnx``."""
        parts = [self.stem] + ["plain"] * options.plain + ["features"] * options.features
        return "-".join(parts + ([] if options.precision == "fp32" else [options.precision])) + self.suffix
