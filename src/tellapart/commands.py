"""What can be typed: the commands of the program with their arguments, as frozen dataclasses.

Loads no torch. Knows nothing of what a command does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

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
    """Train a classifier and evaluate it. Without DATA: the built-in digits."""

    folds: int = 0
    """Cross-validation: train so many models, each measured on the images that it has not seen."""
    repeat: int = 0
    """Train so many times with other seeds: mean and standard deviation."""
    verbose: Annotated[bool, tyro.conf.arg(aliases=["-v"])] = False
    """List every choice made for options left open, not only those that the data or the machine decided."""
    profile: bool = False
    """Print where the time of a step goes, and write a trace for Perfetto (profile/ in the run folder)."""


@dataclass(frozen=True)
class FindLr(FromSpec):
    """Find a good learning rate: the range test of Smith (2015), with a rising rate."""

    steps: int = 100
    """Number of training steps to take."""


@dataclass(frozen=True)
class Resume:
    """Continue an interrupted run exactly where it stopped, or go on past its end."""

    run: _Run
    """The run folder."""
    as_json: Json = False
    """Print one JSON object on standard output."""
    epochs: Annotated[int | None, tyro.conf.arg(name="training.epochs", help_behavior_hint=_MAY)] = None
    """Go on to this epoch; the learning rate is from there on that of a run of so many epochs."""
    time_limit: Annotated[
        float | None, tyro.conf.arg(name="time-limit", metavar="DURATION", help_behavior_hint=_MAY)
    ] = None
    """Another limit of time, of which what was used counts; a later one goes on past the end."""
    patience: Annotated[int | None, tyro.conf.arg(name="training.patience", help_behavior_hint=_MAY)] = None
    """Another patience of early stopping; 0: off."""
    log_every: Annotated[int | None, tyro.conf.arg(name="run.log-every", help_behavior_hint=_MAY)] = None
    """Steps between logged values."""
    checkpoint_minutes: Annotated[
        float | None, tyro.conf.arg(name="run.checkpoint-minutes", help_behavior_hint=_MAY)
    ] = None
    """Minutes between checkpoints inside an epoch."""
    tensorboard: Annotated[bool | None, tyro.conf.arg(name="run.tensorboard", help_behavior_hint=_MAY)] = None
    """Whether to write TensorBoard events."""
    mlflow: Annotated[bool | None, tyro.conf.arg(name="run.mlflow", help_behavior_hint=_MAY)] = None
    """Whether to log to MLflow."""
    report: Annotated[bool | None, tyro.conf.arg(name="run.report", help_behavior_hint=_MAY)] = None
    """Whether to write report.html at the end."""

    @property
    def changes(self) -> dict[str, Any]:
        """What is to change in the run's spec, by dotted names."""
        fields = {
            "training.epochs": self.epochs,
            "time_limit": self.time_limit,
            "training.patience": self.patience,
            "run.log_every": self.log_every,
            "run.checkpoint_minutes": self.checkpoint_minutes,
            "run.tensorboard": self.tensorboard,
            "run.mlflow": self.mlflow,
            "run.report": self.report,
        }
        return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class Evaluate:
    """Evaluate a model: accuracy or mAP with its interval, per class, loss, speed."""

    model: _Model
    """Run folder, artifact or exported file."""
    source: Annotated[Positional[str | None], tyro.conf.arg(metavar="[DATA]", help_behavior_hint=_MAY)] = None
    """Labelled images; by default the data that the run was trained on."""
    split: Literal["", "train", "val", "test", "all"] = ""
    """Which split; by default test if there is one, else val, else all images."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Folder for metrics.json, predictions.csv and pictures of the mistakes."""
    device: _Device = "auto"
    """auto, cpu, cuda, cuda:N or mps; for an ONNX file also tensorrt and tensorrt:N."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision to compute in; below fp32 the answers can differ slightly."""
    epoch: Literal["best", "last"] = "best"
    """Which epoch of a run folder: the one chosen on validation, or the last."""
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
    levels: Annotated[str, tyro.conf.arg(metavar="MARK")] = "auto"
    """What separates the levels in the names of DATA's classes, such as /, or none; auto: as the model has it."""
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
    """Classify images: files, folders, patterns, or - for one on standard input."""

    model: _Model
    """Run folder, artifact or exported file."""
    images: Annotated[
        Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE…", help_behavior_hint="(required)")
    ]
    """What to label."""
    format: Literal["table", "jsonl", "csv"] = "table"
    """How to print."""
    top: int = 1
    """Number of classes to print for each image."""
    features: Annotated[str, tyro.conf.arg(metavar="FILE.npz")] = ""
    """Also write the input of the last layer to a new file: paths, features, logits and classes, as NumPy arrays."""
    urls: bool = False
    """Allow IMAGE to be an http(s) URL; nothing is fetched otherwise."""
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
    """Compare runs: which options and results differ, and whether that may be chance."""

    runs: Annotated[
        Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN RUN…", help_behavior_hint="(required)")
    ]
    """Two or more run folders."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Check:
    """Check a data set: bad files, duplicates, leaks, outliers, imbalance."""

    data_source: Annotated[Positional[str], tyro.conf.arg(metavar="[DATA]", name="source")] = "digits"
    """Folder, list, archive, annotation file or name."""
    html: _File = None
    """Write a page with pictures to FILE."""
    as_json: Json = False
    """Print one JSON object on standard output."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)


@dataclass(frozen=True)
class Models:
    """List models by name or for a data set, or show one's layers."""

    pattern: Annotated[Positional[str], tyro.conf.arg(metavar="[PATTERN]", help_behavior_hint=_MAY)] = ""
    """Part of a name, or a pattern such as 'resnet*'."""
    for_data: Annotated[str | None, tyro.conf.arg(name="for", metavar="DATA", help_behavior_hint=_MAY)] = None
    """Candidates for this data, with their weights, and how long they take here: measured on a few of its images."""
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
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)


@dataclass(frozen=True)
class Doctor:
    """Show what this machine offers, and what to do about it."""

    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Cache:
    """List or remove what is cached on disk: decoded images, features, measurements."""

    action: Positional[Literal["list", "clear"]]
    """What to do."""
    keys: Annotated[
        Positional[tuple[str, ...]], tyro.conf.arg(metavar="[KEY…]", help_behavior_hint=_MAY)
    ] = ()
    """With clear: keys (or their first characters) to remove; by default everything that is not in use."""
    older_than: Annotated[float | None, tyro.conf.arg(metavar="DAYS")] = None
    """With clear: only what has not been used for this many days."""
    cache_dir: _Folder = ""
    """The cache folder, as in --data.cache-dir."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Export:
    """Write a model in other formats, and check each against it on real images."""

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
    """Precision of the network; one file for each."""
    plain: bool = False
    """Only the network: normalised floats in, logits out."""
    features: bool = False
    """Add an output, features: the input of the last layer (docs/formats.md says which formats can hold it)."""
    batch: int = 0
    """Fixed batch size; 0: any, or what the format requires."""
    opset: int = 0
    """ONNX opset, 18 or higher, for runtimes that do not support a newer one; 0: torch's choice."""
    env: _Folder = ""
    """Folder of the separate environment for litert or executorch; the error shows how to create it."""
    data: Annotated[str | None, tyro.conf.arg(metavar="DATA")] = None
    """Labelled images to compare on; by default the run's validation split, or synthetic images."""
    split: Literal["", "train", "val", "test", "all"] = ""
    """Which split of them; by default val if there is one, else test, else all images."""
    images: int = 500
    """Largest number of images to compare on, the same number of each class."""
    threads: int = 0
    """Threads for both models in the comparison; 0: as many as torch uses."""
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
    """Serve models over HTTP, with a page to try them: also Open Inference Protocol."""

    path: Annotated[Positional[str | None], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint=_MAY)] = None
    """Run folder, artifact or exported file."""
    models: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="model", metavar="NAME=PATH")
    ] = ()
    """A model as name=path; can be given several times."""
    as_json: Json = False
    """Print one JSON object on standard output when the service is ready."""
    options: Annotated[ServeOptions, tyro.conf.arg(name="")] = field(default_factory=ServeOptions)


@dataclass(frozen=True)
class Compress:
    """Make smaller, faster versions of a model: compare accuracy, size and latency."""

    model: _Model
    """Run folder or artifact."""
    data_source: Annotated[
        Positional[str | None], tyro.conf.arg(metavar="[DATA]", name="source", help_behavior_hint=_MAY)
    ] = None
    """Labelled images; by default the data that the run was trained on."""
    method: tuple[Literal["int8", "qat", "prune", "sparse", "distill"], ...] = ("int8",)
    """int8: quantise; qat: with training; prune: remove channels; sparse: zero weights; distill: a smaller network."""
    out: _Folder = "compressed"
    """A new folder for all results."""
    ratio: tuple[float, ...] = (0.5,)
    """prune: fraction of the operations to remove; sparse: fraction of the weights to zero; one or more."""
    rounds: int = 3
    """prune: number of rounds to reach a ratio, each with fine-tuning."""
    epochs: int = 0
    """Epochs of each fine-tuning, or of the student; 0: a quarter of the run's epochs, all of them for a student."""
    student: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """distill: the smaller network (see: tellapart models), such as fast-cnn-small."""
    alone: bool = False
    """distill: also train the student without the teacher, to see what the teacher contributes."""
    images: int = 256
    """Number of training images used to rank channels and calibrate ranges."""
    max_drop: float = 0.5
    """int8: largest loss of validation accuracy (several labels: mAP), in percentage points."""
    reduce_range: bool = False
    """int8 for ONNX Runtime: 7-bit weights, for x86 processors without VNNI, whose 16-bit sums overflow."""
    runtime: tuple[Literal["onnx", "openvino"], ...] = ("onnx", "openvino")
    """int8: runtimes to quantise for."""
    threads: int = 0
    """Threads for measuring latency; 0: one per core."""
    spec_file: Annotated[str | None, tyro.conf.arg(name="spec", metavar="FILE")] = None
    """YAML file whose fields override the options of fine-tuning."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Import:
    """Turn a state dict (.pth, .safetensors) from elsewhere into a tellapart model."""

    weights: Annotated[Positional[str], tyro.conf.arg(metavar="WEIGHTS")]
    """The file, a trainer's checkpoint, a folder of the Hugging Face hub with timm's config.json, or the name of
    weights in a package."""
    out: Annotated[str, tyro.conf.arg(metavar="FILE")]
    """The artifact to write, such as model.safetensors."""
    classes: Annotated[str, tyro.conf.arg(metavar="NAME,NAME…")] = ""
    """Class names in the order of the outputs, separated by commas; not needed if config.json has them."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)
