"""What can be typed: the commands of the program with their arguments, as frozen dataclasses.

Loads no torch. Knows nothing of what a command does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from tellapart.serve.options import Options
from tellapart.spec import DataFormat, Spec

Json = Annotated[bool, tyro.conf.arg(name="json")]

# What stands for a value in usage lines, help and errors.
_Run = Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
_Model = Annotated[Positional[str], tyro.conf.arg(metavar="MODEL")]
_Device = Annotated[str, tyro.conf.arg(metavar="DEVICE")]
_Column = Annotated[str, tyro.conf.arg(metavar="COLUMN")]
_Folder = Annotated[str, tyro.conf.arg(metavar="FOLDER")]
_File = Annotated[str | None, tyro.conf.arg(metavar="FILE")]
_MAY = "(optional)"  # instead of "(default: None)"


@dataclass(frozen=True)
class FromSpec:
    """What commands that train have in common."""

    data_source: Annotated[
        Positional[str | None], tyro.conf.arg(metavar="[DATA]", name="source", help_behavior_hint=_MAY)
    ] = None
    """Folder, list, archive, annotation file or name (the same as --data.source)."""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Start from a recipe: tutorial, tutorial-cnn, transfer, staged, finetune, cifar10-fast, cifar10-best."""
    spec_file: Annotated[str | None, tyro.conf.arg(name="spec", metavar="FILE")] = None
    """Start from a YAML file (such as a run's spec.yaml)."""
    as_json: Json = False
    """Print one JSON object on standard output."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)


@dataclass(frozen=True)
class Train(FromSpec):
    """Train a classifier and measure it. No DATA: the embedded handwritten digits."""

    profile: bool = False
    """Tell where a step's time goes, and write a trace for Perfetto (profile/ in the run's folder)."""


@dataclass(frozen=True)
class FindLr(FromSpec):
    """Find a good learning rate: the range test of Smith (2015), with a rising rate."""

    steps: int = 100
    """Steps of the test."""


@dataclass(frozen=True)
class Resume:
    """Go on exactly where a run was cut off."""

    run: _Run
    """The run folder."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: accuracy with its interval, per class, confusion, loss, speed."""

    model: _Model
    """Run folder, artifact or exported file."""
    source: Annotated[Positional[str | None], tyro.conf.arg(metavar="[DATA]", help_behavior_hint=_MAY)] = None
    """Labelled images; without it the data that the run was trained with."""
    split: Literal["", "train", "val", "test", "all"] = ""
    """Which part; by default test where there is one, else val, else all."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for metrics.json, predictions.csv and pictures of the mistakes."""
    device: _Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; for an ONNX file also tensorrt and tensorrt:N."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the network computes in; with less than fp32 the answers can differ a little."""
    epoch: Literal["best", "last"] = "best"
    """Of a run folder: the epoch that validation chose, or the last."""
    trust: bool = False
    """Open a .pt2 or TorchScript file that tellapart did not write here: such files are programs. With a name, such as
    --trust my_package: import that package for a network that is not tellapart's (every command takes this)."""
    format: DataFormat = "auto"
    """How to read DATA."""
    boxes: Literal["image", "crop"] = "image"
    """Annotation files: one label for the image, or one crop for each box."""
    encoding: Annotated[str, tyro.conf.arg(metavar="NAME")] = "utf-8"
    """Encoding of lists and annotation files that declare none; auto guesses it."""
    path_column: _Column = ""
    """Lists: the column with the images' paths, file names or ids; empty: guessed."""
    label_column: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN…")] = ()
    """Lists: the column with the label; several: one-hot columns; empty: guessed."""
    split_column: _Column = ""
    """Lists: the column with the split; empty: guessed; none: no column."""
    root: _Folder = ""
    """Lists: the folder that the paths in a list start from; empty: the list's own, or where the images are."""
    suffix: Annotated[str, tyro.conf.arg(metavar="END")] = ""
    """Lists: what is missing at the end of each path, such as .jpg; empty: looked for."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Predict:
    """Label images: files, folders, patterns, or - for one image on standard input."""

    model: _Model
    """Run folder, artifact or exported file."""
    images: Annotated[
        Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="(required)")
    ]
    """What to label."""
    format: Literal["table", "jsonl", "csv"] = "table"
    """How to print."""
    top: int = 1
    """How many classes to give for each image."""
    features: Annotated[str, tyro.conf.arg(metavar="FILE.npz")] = ""
    """Write what the last layer gets to a new file: paths, features, logits and classes, as NumPy arrays."""
    urls: bool = False
    """Fetch http(s) addresses; nothing is fetched otherwise."""
    device: _Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; for an ONNX file also tensorrt and tensorrt:N."""
    trust: bool = False
    """Open a .pt2 or TorchScript file that tellapart did not write here: such files are programs. With a name, such as
    --trust my_package: import that package for a network that is not tellapart's (every command takes this)."""


@dataclass(frozen=True)
class Report:
    """Write a run's report: one self-contained HTML page."""

    run: _Run
    """The run folder."""
    out: _File = None
    """Where to write it; by default RUN/report.html."""


@dataclass(frozen=True)
class Compare:
    """Compare runs: what differs in spec and result, and whether it may be chance."""

    runs: Annotated[
        Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN RUN…", help_behavior_hint="(required)")
    ]
    """Two or more run folders."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Check:
    """Look at a data set's health: bad files, copies, leaks, suspects, imbalance."""

    data_source: Annotated[Positional[str], tyro.conf.arg(metavar="[DATA]", name="source")] = "digits"
    """Folder, list, archive, annotation file or name."""
    html: _File = None
    """Write a page with pictures to FILE."""
    as_json: Json = False
    """Print one JSON object on standard output."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)


@dataclass(frozen=True)
class Models:
    """List the models by name, or look into one."""

    pattern: Annotated[Positional[str], tyro.conf.arg(metavar="[PATTERN]", help_behavior_hint=_MAY)] = ""
    """Part of a name, or a pattern such as 'resnet*'."""
    summary: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Print one model's layers, shapes, parameters and FLOPs."""
    size: int = 0
    """With --summary: input size in pixels; 0: the model's own."""
    channels: int = 3
    """With --summary: input channels."""
    num_classes: int = 10
    """With --summary: classes."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Doctor:
    """Say what this machine offers, and what follows from it."""

    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Cache:
    """List what is kept on disk, or clear it: decoded images, features, measurements."""

    action: Positional[Literal["list", "clear"]]
    """What to do."""
    keys: Annotated[
        Positional[tuple[str, ...]], tyro.conf.arg(metavar="[KEY…]", help_behavior_hint=_MAY)
    ] = ()
    """With clear: keys, or how they begin, of what to remove; without any: everything that is not in use."""
    older_than: Annotated[float | None, tyro.conf.arg(metavar="DAYS")] = None
    """With clear: only what was not used for so many days."""
    cache_dir: _Folder = ""
    """The cache folder, as in --data.cache-dir."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Export:
    """Write a model in other formats, each compared with the artifact on real images."""

    model: _Model
    """Run folder or artifact."""
    to: tuple[
        Literal[
            "onnx",
            "openvino",
            "torch-export",
            "aot-inductor",
            "torchscript",
            "litert",
            "executorch",
            "tensorrt-ready",
            "atlas-ready",
            "state-dict",
        ],
        ...,
    ] = ("onnx",)
    """Formats to write (docs/formats.md): what each file holds, and what opens it."""
    out: _Folder = "export"
    """Folder to write to; nothing in it is overwritten."""
    precision: tuple[Literal["fp32", "fp16"], ...] = ("fp32",)
    """What the network computes in; a file for each."""
    plain: bool = False
    """The bare network: normalised floats in, logits out."""
    features: bool = False
    """One more output, features: what the last layer gets (onnx and openvino)."""
    batch: int = 0
    """Images of one call, for formats that fix it; 0: any, or the format's own choice."""
    opset: int = 0
    """Opset of ONNX files, from 18 on, for runtimes that know no newer one; 0: torch's own choice."""
    env: _Folder = ""
    """Folder of the environment that litert or executorch have of their own; an error says how to make it."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Labelled images to compare on; without it the run's own (validation part), or made-up ones."""
    split: Literal["", "train", "val", "test", "all"] = ""
    """Which part of them; by default val where there is one, else test, else all."""
    images: int = 500
    """How many images to compare on at most, of each class alike."""
    threads: int = 0
    """Threads that both sides compute with; 0: as many as torch uses."""
    device: _Device = "cpu"
    """Where ONNX files are run for the comparison: cpu, cuda, cuda:N, tensorrt or tensorrt:N."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class ServeOptions(Options):
    """How to serve, as flags."""

    allow_origin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Origin of a page elsewhere whose scripts may ask, such as https://pages.example; can be given several times.
    *: every page of the web."""


@dataclass(frozen=True)
class Serve:
    """Answer over HTTP, with a page to try it: also by the Open Inference Protocol."""

    path: Annotated[Positional[str | None], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint=_MAY)] = None
    """Run folder, artifact or exported file."""
    models: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="model", metavar="NAME=PATH")
    ] = ()
    """A model as name=path; can be given several times."""
    as_json: Json = False
    """Print one JSON object on standard output when requests are taken."""
    options: Annotated[ServeOptions, tyro.conf.arg(name="")] = field(default_factory=ServeOptions)


@dataclass(frozen=True)
class Compress:
    """Make smaller, faster models of a trained one: compare accuracy, size, latency."""

    model: _Model
    """Run folder or artifact."""
    data_source: Annotated[
        Positional[str | None], tyro.conf.arg(metavar="[DATA]", name="source", help_behavior_hint=_MAY)
    ] = None
    """Labelled images; without it the data that the run was trained with."""
    method: tuple[Literal["int8", "qat", "prune", "sparse", "distill"], ...] = ("int8",)
    """int8, qat (with training): files for runtimes; prune: channels; sparse: weights; distill: a smaller network."""
    out: _Folder = "compressed"
    """A new folder for everything that is made."""
    ratio: tuple[float, ...] = (0.5,)
    """prune: parts of the operations to take away; sparse: parts of the weights."""
    rounds: int = 3
    """prune: steps on the way to a ratio, each with fine-tuning."""
    epochs: int = 0
    """Epochs of each fine-tuning, or of the student; 0: a quarter of the run's, for a student as many."""
    student: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """distill: the smaller network (see: tellapart models), such as fast-cnn-small."""
    alone: bool = False
    """distill: train the student once more, without the teacher, to see what the teacher is worth."""
    images: int = 256
    """Training images by which channels are judged and ranges measured."""
    max_drop: float = 0.5
    """int8: points of accuracy on validation that it may cost."""
    reduce_range: bool = False
    """int8 for ONNX Runtime: weights of seven bits, for x86 processors without VNNI, whose 16-bit sums overflow."""
    runtime: tuple[Literal["onnx", "openvino"], ...] = ("onnx", "openvino")
    """int8: for which runtimes."""
    threads: int = 0
    """Threads of the measurement; 0: one for each core."""
    spec_file: Annotated[str | None, tyro.conf.arg(name="spec", metavar="FILE")] = None
    """YAML file whose fields go over the spec of fine-tuning."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Import:
    """Bring in a state dict (.pth, .safetensors) from elsewhere as a model of ours."""

    weights: Annotated[Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """The file, a trainer's checkpoint, or a folder of the Hugging Face hub with timm's config.json."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """The artifact to write, such as model.safetensors."""
    classes: Annotated[str, tyro.conf.arg(metavar="NAME,NAME…")] = ""
    """Class names in the order of the outputs, with commas between; may be left out where config.json names them."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)
