"""The spec: everything that describes a run, as frozen typed dataclasses.

Flags, YAML files and keyword arguments are three spellings of these fields, and nothing else lists
parameters. Standard library only (YAML is read by the caller), so that ``--help`` and validation are
instant; how a value is checked is in `sections`. Knows nothing of what the values do.

``auto``, 0 or an empty value stands for "to be chosen from the data and the model"; the spec that is saved
with a run holds what was chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tellapart import references
from tellapart.errors import SpecError
from tellapart.sections import (
    Count,
    CountOrZero,
    Fraction,
    NonNegative,
    Positive,
    Range,
    Section,
    Words,
    flatten,
    to_dict,
    update,
)

__all__ = [
    "AugmentSpec",
    "DataFormat",
    "DataSpec",
    "InputSpec",
    "ModelSpec",
    "Range",
    "RunSpec",
    "Section",
    "Spec",
    "SpeedSpec",
    "TrainingSpec",
    "flatten",
    "own_names",
    "to_dict",
    "update",
]

_NUMBER = r"(-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
_LEVELS = re.compile(rf"(?:{_NUMBER}\s*-\s*)?{_NUMBER}", re.IGNORECASE)


DataFormat = Literal[
    "auto",
    "folder",
    "classes",
    "list",
    "voc",
    "createml",
    "yolo",
    "coco",
    "cvat",
    "label-studio",
    "labelme",
    "via",
    "retinanet",
    "table",
    "webdataset",
    "name",
]
"""How data can be laid out."""


@dataclass(frozen=True)
class DataSpec(Section, prefix="data."):
    """The images: where they are, how they are split, and what happens to bad ones."""

    source: str = "digits"
    """Folder, list (CSV, TSV, JSONL), archive (.tar, .zip), annotation file, Parquet, shards, or a known set's name."""
    format: DataFormat = "auto"
    """How to read the source; auto looks at it. classes: the top folders are classes, whatever their names."""
    encoding: str = "utf-8"
    """Encoding of lists and annotation files that have no byte-order mark and declare none; auto guesses it."""
    match: Literal["auto", "stem", "name"] = "auto"
    """Annotation files: the image of the same stem, or that named inside; auto: stem, an error where many differ."""
    val_fraction: Annotated[float, Range(0, 0.9)] = 0.1
    """Part of train that becomes validation where there is none; 0 trains on everything."""
    test_fraction: Annotated[float, Range(0, 0.9)] = 0.2
    """Part that becomes test where the source has no splits of its own at all."""
    split_seed: int = 0
    """Seed of the split, apart from the seed of training."""
    group: str = ""
    """Column, or regular expression on the path, whose value keeps images together in one split."""
    train: tuple[str, ...] = ()
    """Folders (in the source, or anywhere) of class folders that are the train split, whatever their names."""
    val: tuple[str, ...] = ()
    """Folders of class folders that are the val split."""
    test: tuple[str, ...] = ()
    """Folders of class folders that are the test split."""
    path_column: str = ""
    """Lists: the column with the images' paths, file names or ids (Parquet: of bytes); empty: by name and content."""
    label_column: tuple[str, ...] = ()
    """Lists: the column with the label; several: one-hot columns, whose names are the classes; empty: guessed."""
    split_column: str = ""
    """Lists: the column with the split (also fold numbers, or yes and no); empty: guessed; none: no column."""
    root: str = ""
    """Lists: the folder that the paths in a list start from; empty: the list's own, or where the images are."""
    suffix: str = ""
    """Lists: what is missing at the end of each path, such as .jpg; empty: looked for."""
    copies: Literal["exact", "near"] = "exact"
    """Which copies of a picture go to one split where splits are made: the same bytes, or near copies (saved again,
    cropped, brighter, mirrored) too, for which every image is decoded once more."""
    boxes: Literal["image", "crop"] = "image"
    """Annotation files with boxes: one label for the image, or one crop for each box."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """What to do with an image that cannot be read: list it and go on, or stop."""
    max_pixels: Count = 178_000_000
    """Images with more pixels than this are refused as decompression bombs."""
    cache_dir: str = ""
    """Where decoded images and downloads are kept; by default the user's cache folder."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep decoded images on the disk; auto: where they fit, else decode anew in each epoch; on: or stop."""
    cache_limit: NonNegative = 50.0
    """GiB of decoded images in the cache folder, for which the least recently used make room; 0: no limit."""
    download: bool = True
    """Whether a named data set may be downloaded."""
    workers: CountOrZero = 0
    """Threads or processes that decode images; 0: one for each processor (of processes at most 32)."""
    worker_kind: Literal["auto", "threads", "processes"] = "auto"
    """What decodes; auto: processes for 4000 files or more where there are 6 processors or more, else threads."""


@dataclass(frozen=True)
class InputSpec(Section, prefix="input."):
    """The preprocessing contract: how a file becomes the network's input, in training and ever after."""

    size: CountOrZero = 0
    """Height and width in pixels; 0: the model's or the data's own."""
    channels: Literal[0, 1, 3] = 0
    """1 for greyscale, 3 for colour; 0: what the data is."""
    resize: Literal["auto", "squash", "crop", "letterbox"] = "auto"
    """Squash to the square, crop its centre, or fit the whole image with a border."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """How pixels are interpolated (always with anti-aliasing)."""
    crop_fraction: Fraction = 0.0
    """With crop: the part of the resized short side that is kept; 0: the model's own, else 0.875."""
    decode: Literal["auto", "full", "crops", "scaled"] = "auto"
    """Large JPEGs at 1/2 to 1/8 where that suffices: for training's random crops (auto, crops), always, or never."""
    range: str = "full"
    """Of images of more than 8 bits, what becomes black to white: full (the file's range), max (train's), LOW-HIGH."""
    mean: tuple[float, ...] = ()
    """Mean of each channel (range 0 to 1); empty: the weights' own, else measured on train."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel; empty: the weights' own, else measured on train."""
    views: Literal["one", "mirror", "mirror-shift"] = "one"
    """Views of each image that the model averages: 1, 2 (mirrored too) or 6 (both shifted by a pixel too)."""
    views_below: Fraction = 1.0
    """With more views: only images whose best class leads by less than this probability get them; 1: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.range not in ("full", "max"):
            self.levels()

    def levels(self) -> tuple[float, float] | None:
        """Return what ``range`` makes black and white; None for full, and for max until it is measured."""
        if self.range in ("full", "max"):
            return None
        found = _LEVELS.fullmatch(self.range.strip())
        low, high = (float(found[1] or 0), float(found[2])) if found else (0.0, 0.0)
        if not low < high < float("inf"):
            raise SpecError(
                f"input.range is {self.range!r}; it must be full, max, or LOW-HIGH, such as 0-4095."
            )
        return low, high


@dataclass(frozen=True)
class AugmentSpec(Section, prefix="augment."):
    """Random changes of the training images; a preset, and any single value over it."""

    preset: Literal["auto", "none", "light", "tutorial", "cifar", "photo", "strong"] = "auto"
    """A combination by name; auto: none for a head alone, cifar for small images (no mirrored digits), else photo."""
    crop: Literal["none", "pad", "resized"] | None = None
    """Random crop: of the padded image, or RandomResizedCrop."""
    crop_padding: CountOrZero | None = None
    """Pixels of border for crop=pad."""
    padding_mode: Literal["zeros", "reflect"] | None = None
    """What the border holds."""
    crop_scale: tuple[float, float] | None = None
    """Area of a resized crop, as a part of the image."""
    crop_ratio: tuple[float, float] | None = None
    """Width over height of a resized crop."""
    hflip: Fraction | None = None
    """Probability of a left-right flip."""
    hflip_mode: Literal["random", "alternating"] | None = None
    """random: anew each time; alternating: hflip is drawn for the first epoch, then every other one is turned."""
    vflip: Fraction | None = None
    """Probability of an up-down flip."""
    rotation: NonNegative | None = None
    """Largest rotation in degrees, either way."""
    translate: Fraction | None = None
    """Largest shift, as a part of the image."""
    scale: tuple[float, float] | None = None
    """Zoom of the affine map, from and to."""
    shear: NonNegative | None = None
    """Largest shear in degrees, either way."""
    brightness: NonNegative | None = None
    """Brightness factor from 1-x to 1+x."""
    contrast: NonNegative | None = None
    """Contrast factor from 1-x to 1+x."""
    saturation: NonNegative | None = None
    """Saturation factor from 1-x to 1+x."""
    hue: Annotated[float, Range(0, 0.5)] | None = None
    """Hue shift from -x to x, as a part of the colour circle."""
    policy: Literal["none", "randaugment", "trivialaugment"] | None = None
    """RandAugment or TrivialAugment (wide)."""
    policy_ops: Count | None = None
    """RandAugment: operations for each image."""
    policy_magnitude: Annotated[int, Range(0, 30)] | None = None
    """RandAugment: strength, 0 to 30."""
    erasing: Fraction | None = None
    """Probability that a rectangle is erased."""
    cutout: CountOrZero | None = None
    """Side in pixels of a square that is erased in every image; 0: off."""
    mixup: NonNegative | None = None
    """MixUp's alpha; 0: off."""
    cutmix: NonNegative | None = None
    """CutMix's alpha; 0: off. With MixUp on too, each batch takes one of the two."""
    transform: str = ""
    """Your own, package.module:function, after all of the above but erasing; with preset auto, in its place."""
    transform_arguments: tuple[str, ...] = ()
    """Your own: what it is given besides, NAME=VALUE."""
    transform_takes: Literal["auto", "image", "array", "batch"] = "auto"
    """Your own takes a tensor [C, H, W], image=array [H, W, C], or a tensor [B, C, H, W]; auto: by what it is."""

    def __post_init__(self) -> None:
        given: Any = self.transform_arguments
        if isinstance(given, Mapping):
            object.__setattr__(self, "transform_arguments", references.arguments(given))
        super().__post_init__()
        references.arguments(self.transform_arguments)
        if self.transform and not references.is_own(self.transform):
            raise SpecError(
                f"augment.transform is {self.transform!r}; it must be a name such as my_package.my_module:function."
            )


@dataclass(frozen=True)
class ModelSpec(Section, prefix="model."):
    """The network: its architecture, the weights that it starts from, and which of them train."""

    name: str = "auto"
    """Architecture (see: tellapart models), or your own, package.module:function; auto: fast-cnn, for photographs a
    pretrained network."""
    arguments: tuple[str, ...] = ()
    """A network of your own: what its function is given besides num_classes and channels, NAME=VALUE."""
    weights: str = "auto"
    """none, pretrained, a tag, efficientnet-lite0, a file, or a run of ours; auto: only with name auto."""
    finetune: Literal["auto", "full", "head", "staged"] = "auto"
    """With weights: train all layers, only the new head, or the head first and deeper blocks later."""
    unfreeze: tuple[int, ...] = ()
    """Staged: epochs (from 0) that each free the next of up to 6 stages; empty: spread over the first half."""
    freeze_blocks: CountOrZero = 0
    """Blocks, from the first layers on, that stop training before the end, which saves their backward pass."""
    freeze_from: Fraction = 0.75
    """freeze_blocks: part of the epochs after which they stop."""
    layer_decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Learning rate of each block, as a part of that of the block above it."""
    dropout: Annotated[float, Range(0, 0.95)] = 0.0
    """Dropout before the head (and after the blocks of simple-cnn); 0: timm's models keep their own."""
    drop_path: Annotated[float, Range(0, 0.95)] = 0.0
    """Stochastic depth, where the model has it."""
    batch_norm: bool = False
    """simple-cnn: batch normalisation after each convolution."""
    stem: Literal["auto", "small", "standard"] = "auto"
    """First layers: small keeps the resolution of images of up to 64 pixels."""

    def __post_init__(self) -> None:
        given: Any = self.arguments
        if isinstance(given, Mapping):
            object.__setattr__(self, "arguments", references.arguments(given))
        super().__post_init__()
        references.arguments(self.arguments)


@dataclass(frozen=True)
class TrainingSpec(Section, prefix="training."):
    """How the weights are found."""

    epochs: Count = 10
    """Passes over the training images."""
    batch_size: CountOrZero = 0
    """Images for each step of the optimizer, over all processes and micro-batches; 0: by the images' size."""
    accumulate: CountOrZero = 0
    """Micro-batches that a step's batch is computed in, to save memory or time; 0: see speed.probe, else 1."""
    optimizer: Annotated[str, Words(("sgd", "adam", "adamw", "rmsprop", "muon", "muon-sgd"))] = "adamw"
    """The optimizer, or your own, package.module:function, of (groups, lr=…); muon has AdamW for what is no hidden
    matrix, muon-sgd has SGD and holds matrices' norms."""
    optimizer_arguments: tuple[str, ...] = ()
    """An optimizer of your own: what it is given besides, NAME=VALUE."""
    lr: Positive = 0.001
    """Highest learning rate."""
    bias_lr: NonNegative = 0.0
    """Learning rate of biases and norms, which then decay too; 0: lr."""
    head_lr: NonNegative = 0.0
    """Learning rate of the head's weights; 0: lr."""
    early_epochs: CountOrZero = 3
    """Epochs in which what the model names early (whitened-cnn: its first bias) trains, at a falling rate."""
    momentum: Fraction = 0.9
    """SGD, RMSprop and Muon: momentum."""
    sgd_momentum: Fraction = 0.85
    """muon-sgd: momentum of all that is not Muon's."""
    nesterov: bool = False
    """SGD and Muon: Nesterov momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam and AdamW: averaging of the gradient and of its square."""
    weight_decay: NonNegative = 0.0
    """Weight decay; norms and biases have none."""
    schedule: Annotated[
        str, Words(("constant", "step", "multi-step", "linear", "cosine", "one-cycle", "plateau"))
    ] = "cosine"
    """How the learning rate changes; or your own, package.module:function, of (step, steps), which returns a factor."""
    warmup_epochs: NonNegative = 0.0
    """Epochs (parts too) over which the learning rate rises from nearly 0."""
    step_epochs: Count = 30
    """step: epochs between drops."""
    milestones: tuple[int, ...] = ()
    """multi-step: epochs of the drops."""
    gamma: Positive = 0.1
    """step, multi-step, plateau: factor of a drop."""
    plateau_patience: CountOrZero = 3
    """plateau: epochs without a better validation loss before a drop."""
    min_lr_factor: Fraction = 0.0
    """linear, cosine, plateau: the lowest learning rate, as a part of lr."""
    loss: Annotated[str, Words(("cross-entropy", "focal"), "losses")] = "cross-entropy"
    """The loss: cross-entropy, focal, or your own, package.module:function, of (logits, targets)."""
    loss_arguments: tuple[str, ...] = ()
    """A loss of your own: what it is given besides, NAME=VALUE."""
    label_smoothing: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability mass spread over all classes."""
    focal_gamma: NonNegative = 2.0
    """focal: how far easy images are weighted down."""
    class_weights: Literal["none", "inverse", "effective"] = "none"
    """Weight of an image in the loss, by its class: by inverse frequency, or by the effective number of samples."""
    effective_beta: Annotated[float, Range(0, 0.999999)] = 0.999
    """effective: beta of the effective number."""
    sampling: Literal["shuffle", "oversample", "undersample", "weighted"] = "shuffle"
    """Each image once; or classes balanced by repeating, by leaving out, or by drawing with weights."""
    ema: Annotated[float, Range(0, 0.999999)] = 0.0
    """Decay of the exponential moving average of the weights; 0: off."""
    clip_norm: NonNegative = 0.0
    """Largest norm of the gradient; 0: off."""
    patience: CountOrZero = 0
    """Early stopping: epochs without a better best-metric; 0: off."""
    min_delta: NonNegative = 0.0
    """Early stopping: what counts as better."""
    best_metric: str = "accuracy"
    """The validation figure by which the best epoch is chosen: accuracy, macro-f1, balanced-accuracy or loss."""
    metrics: tuple[str, ...] = ()
    """Your own figures, NAME=package.module:function, of (labels, predictions); more is better."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision by torch.amp; fp16 with a gradient scaler. auto: bf16 where speed.probe finds it faster."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: CountOrZero = 0
    """Threads of the CPU; 0: one for steps of about a millisecond, else one for each core."""
    sync_batch_norm: bool = False
    """Several processes: batch normalisation over all of them."""
    start_size: CountOrZero = 0
    """Progressive resizing: side of the images in the first epoch, growing to input.size; 0: off."""
    size_epochs: Fraction = 0.6
    """Progressive resizing: part of the epochs over which the images grow."""
    quantize: Literal["none", "int8"] = "none"
    """Quantisation-aware training: fine-tune with weights and activations rounded as INT8 runtimes round them."""
    keep_zeros: bool = False
    """Weights that are zero at the start stay zero: fine-tuning after unstructured pruning."""
    prune: Annotated[float, Range(0, 0.9)] = 0.0
    """InfoBatch: part of the well-learned images that each epoch leaves out; 0: every epoch reads all."""
    prune_from: Fraction = 0.0
    """InfoBatch: part of the epochs that read all images at the beginning (the first does always)."""
    prune_until: Fraction = 0.875
    """InfoBatch: part of the epochs after which all images are read again."""

    def __post_init__(self) -> None:
        for name in ("loss_arguments", "optimizer_arguments"):
            given: Any = getattr(self, name)
            if isinstance(given, Mapping):
                object.__setattr__(self, name, references.arguments(given))
        super().__post_init__()
        references.arguments((*self.loss_arguments, *self.optimizer_arguments))
        for one in self.metrics:
            name, _, where = one.partition("=")
            if not name or not references.is_own(where):
                raise SpecError(
                    f"training.metrics has {one!r}; it must be NAME=my_package.my_module:function."
                )


@dataclass(frozen=True)
class DistillSpec(Section, prefix="distill."):
    """A teacher: training follows the answers of a trained model too (Hinton et al. 2015)."""

    teacher: str = ""
    """Run folder or artifact whose answers are followed; empty: the labels alone."""
    temperature: Positive = 4.0
    """What the logits of both are divided by before they are compared."""
    weight: Fraction = 0.9
    """Part of the loss that follows the teacher's answers; the rest follows the labels."""
    features: NonNegative = 0.0
    """Weight of a loss that compares where both networks look (attention transfer); 0: off."""
    fingerprint: str = ""
    """SHA-256 of the teacher's file, noted when training begins; another file is then refused."""


@dataclass(frozen=True)
class SpeedSpec(Section, prefix="speed."):
    """What makes a run faster without changing what it computes, but for rounding; each can be switched off."""

    channels_last: bool = True
    """Keep images and convolutions in channels-last order."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: where a run is so long that it was measured to pay."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """CUDA: record a step's kernels once and replay them; auto: where a step is small and there are many."""
    kernel_search: Literal["auto", "on", "off"] = "auto"
    """CUDA: let cuDNN try its kernels at the first batch of each size; auto: in runs of at least 2,000 steps."""
    fused: bool = True
    """One kernel for an optimizer's whole step, where torch has it."""
    probe: bool = True
    """In long runs, measure a few steps to choose what is left open: precision, accumulate and compile."""
    features: bool = True
    """While only the head trains: compute the frozen backbone's features once, where images do not change."""
    feature_views: CountOrZero = 0
    """With augmentation: compute features of so many augmented views of each image; 0: no features then."""
    on_device: bool = True
    """Keep the images in a GPU's memory, where they take at most 40 % of what is free."""


@dataclass(frozen=True)
class RunSpec(Section, prefix="run."):
    """Where the results go and how the run reports on itself."""

    dir: str = ""
    """The run's folder; empty: runs/DATE-TIME-MODEL."""
    log_every: CountOrZero = 0
    """Steps between lines where there is no terminal, and between logged values; 0: about 10 an epoch."""
    checkpoint_minutes: NonNegative = 5.0
    """Minutes between checkpoints inside an epoch (its end has one too, if that takes a tenth of the time at most)."""
    tensorboard: bool = True
    """Write TensorBoard events, where the package is installed."""
    mlflow: bool = False
    """Log to MLflow (its own environment variables say where)."""
    report: bool = True
    """Write report.html at the end."""


@dataclass(frozen=True)
class Spec(Section):
    """One run, whole."""

    data: DataSpec = field(default_factory=DataSpec)
    input: InputSpec = field(default_factory=InputSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    distill: DistillSpec = field(default_factory=DistillSpec)
    speed: SpeedSpec = field(default_factory=SpeedSpec)
    run: RunSpec = field(default_factory=RunSpec)
    seed: int = 0
    """Seed of everything random in training."""


def own_names(spec: Spec) -> list[tuple[str, str]]:
    """Return (kind, name) of the code of one's own that a spec names."""
    named = {
        "model": spec.model.name,
        "loss": spec.training.loss,
        "transform": spec.augment.transform,
        "optimizer": spec.training.optimizer,
        "schedule": spec.training.schedule,
    }
    for one in spec.training.metrics:
        name, _, where = one.partition("=")
        named[f"metrics.{name}"] = where
    return [(kind, name) for kind, name in named.items() if references.is_own(name)]
