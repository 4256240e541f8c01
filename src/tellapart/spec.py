"""The spec: everything that describes a run, as frozen typed dataclasses.

Flags, YAML files and keyword arguments are three spellings of these fields, and nothing else lists
parameters. Standard library only (YAML is read by the caller), so that ``--help`` and validation are
instant; how a value is checked is in `sections`. Knows nothing of what the values do.

``auto``, 0 or an empty value stands for "to be chosen from the data and the model"; the spec that is saved
with a run holds what was chosen.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tellapart import references
from tellapart.errors import SpecError
from tellapart.sections import (
    Count,
    CountOrZero,
    Duration,
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
    "graded",
    "own_names",
    "to_dict",
    "update",
]

_NUMBER = r"(-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)"
_FOLD = re.compile(r"(\d{1,6})/(\d{1,6})", re.ASCII)
_LEVELS = re.compile(rf"(?:{_NUMBER}\s*-\s*)?{_NUMBER}", re.IGNORECASE)

LOSSES = ("auto", "cross-entropy", "focal", "ordinal", "bce", "asymmetric")

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
    """How to read the source; auto finds out. classes: the top folders are the classes, whatever their names."""
    encoding: str = "utf-8"
    """Encoding of lists and annotation files that have no byte-order mark and declare none; auto guesses it."""
    match: Literal["auto", "stem", "name"] = "auto"
    """Annotation files: the image of the same stem, or the one named inside; auto: stem, an error if many differ."""
    val_fraction: Annotated[float, Range(0, 0.9)] = 0.1
    """Share of train held out as the validation split where there is none; 0 trains on everything."""
    test_fraction: Annotated[float, Range(0, 0.9)] = 0.2
    """Share of the images held out as the test split where the source has no splits of its own at all."""
    split_seed: int = 0
    """Seed for making the splits, separate from the seed of training."""
    fold: str = ""
    """One fold of a cross-validation, such as 2/5: what it holds out is the test split; train --folds 5 runs all."""
    leave_out: str = ""
    """Leave a fold of the training split out, such as 2/5; val and test stay as they are (effort best does this)."""
    group: str = ""
    """Column, or regular expression on the path: images with the same value stay in the same split."""
    train: tuple[str, ...] = ()
    """Folders (in the source or anywhere) whose class folders are the train split, whatever their names."""
    val: tuple[str, ...] = ()
    """Folders whose class folders are the val split."""
    test: tuple[str, ...] = ()
    """Folders whose class folders are the test split."""
    path_column: str = ""
    """Lists: the column with the images' paths, file names or ids (Parquet: of bytes); empty: by name and content."""
    label_column: tuple[str, ...] = ()
    """Lists: the column with the label; several: one-hot columns, whose names are the classes; empty: guessed."""
    labels: Literal["auto", "single", "multi"] = "auto"
    """Labels of an image: one, or several (or none); auto: one, unless a list plainly gives many images several."""
    label_separator: str = ""
    """Several labels: what stands between them in a list's cell, such as | or a space; empty: guessed, and said. With
    labels multi also in the texts of annotation files, where nothing is guessed."""
    order: tuple[str, ...] = ()
    """Classes that are grades, the lowest first; auto: by their names; empty: none, or auto for the loss ordinal."""
    levels: str = "auto"
    """Levels in class names: what separates them, such as / (which makes nested class folders animal/dog too), or none;
    auto: / where most names have it and some share what is before it, which is said."""
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
    """What to do with an image that cannot be read: skip and list it, or stop with an error."""
    max_pixels: Count = 178_000_000
    """Images with more pixels than this are refused as decompression bombs."""
    cache_dir: str = ""
    """Where decoded images and downloads are kept; by default the user's cache folder."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Keep decoded images on disk. auto: if they fit, else decode in every epoch; on: an error if they do not fit."""
    cache_limit: NonNegative = 50.0
    """Limit of the cache of decoded images in GiB; the least recently used are removed first; 0: no limit."""
    download: bool = True
    """Whether a named data set may be downloaded."""
    workers: CountOrZero = 0
    """Threads or processes that decode images; 0: one per processor core (at most 32 processes)."""
    worker_kind: Literal["auto", "threads", "processes"] = "auto"
    """What decodes images; auto: processes for 4,000 files or more on 6 processor cores or more, else threads."""

    def __post_init__(self) -> None:
        given: Any = self.order
        if isinstance(given, (list, tuple)):  # YAML reads 0, 1, 2 as numbers
            texts = (str(name) if type(name) is int else name for name in given)
            object.__setattr__(self, "order", tuple(texts))
        super().__post_init__()
        self.folds()
        self.left_out()
        marks = self.levels not in ("auto", "none", "")
        if marks and (len(self.levels) > 8 or any(c.isalnum() or c.isspace() for c in self.levels)):
            raise SpecError(
                f"data.levels is {self.levels!r}; it must be auto, none, or what separates the levels in the names of "
                "classes, such as / or > (at most 8 characters, no letters, digits or spaces)."
            )

    def folds(self) -> tuple[int, int] | None:
        """Return which fold is held out (from 1), and of how many; None without cross-validation."""
        return _fold_of("data.fold", self.fold)

    def left_out(self) -> tuple[int, int] | None:
        """Return which fold of the training split is left out (from 1), and of how many; None for none."""
        return _fold_of("data.leave_out", self.leave_out)


def _fold_of(name: str, text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = _FOLD.fullmatch(text)
    number, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (1 <= number <= count and count >= 2):
        raise SpecError(
            f"{name} is {text!r}; it must be NUMBER/FOLDS, from 1 on and of at least 2, such as 2/5."
        )
    return number, count


@dataclass(frozen=True)
class InputSpec(Section, prefix="input."):
    """The preprocessing contract: how a file becomes the network's input, in training and ever after."""

    size: CountOrZero | tuple[Count, Count] = 0
    """Height and width in pixels, one number for a square; 0: the model's or the data's own."""
    channels: Annotated[int, Range(0, 256)] = 0
    """1 for greyscale, 3 for colour, 4 for RGBA too, or as many as the TIFF or .npy files have; 0: as in the data."""
    resize: Literal["auto", "squash", "crop", "letterbox"] = "auto"
    """Squash to the size, crop the centre, or fit the whole image with a border."""
    interpolation: Literal["auto", "bilinear", "bicubic"] = "auto"
    """How pixels are interpolated (always with anti-aliasing)."""
    crop_fraction: Fraction = 0.0
    """With crop: the fraction of the resized short side that is kept; 0: the model's own, else 0.875."""
    decode: Literal["auto", "full", "crops", "scaled"] = "auto"
    """Decode large JPEGs at 1/2 to 1/8: for training's random crops (auto, crops), always (scaled), never (full)."""
    range: str = "full"
    """Images of more than 8 bits, the values of black and white: full (the file's range), max (train's), LOW-HIGH."""
    depth: Literal["auto", "uint8", "float32"] = "auto"
    """Pixels as 256 whole levels (auto, uint8), or float32: 16-bit and floating-point files are not rounded to them."""
    mean: tuple[float, ...] = ()
    """Mean of each channel (range 0 to 1); empty: the weights' own, else measured on train."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel; empty: the weights' own, else measured on train."""
    views: Literal["one", "mirror", "mirror-shift"] = "one"
    """Views of each image to average over: 1, 2 (also mirrored) or 6 (both also shifted by a pixel)."""
    views_below: Fraction = 1.0
    """With several views: use them only if the best class leads by less than this probability; 1: always."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.size, tuple) and self.size[0] == self.size[1]:
            object.__setattr__(self, "size", self.size[0])
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
    """Random changes to the training images: a preset, and single values that override it."""

    preset: Literal["auto", "none", "light", "tutorial", "cifar", "photo", "strong"] = "auto"
    """A named combination; auto: none if only the head trains, cifar for small images (digits unmirrored) or photo."""
    crop: Literal["none", "pad", "resized"] | None = None
    """Random crop: pad (crop the padded image) or resized (RandomResizedCrop)."""
    crop_padding: CountOrZero | None = None
    """Border in pixels for crop=pad."""
    padding_mode: Literal["zeros", "reflect"] | None = None
    """What fills the border."""
    crop_scale: tuple[float, float] | None = None
    """Area of a resized crop, from and to, as a fraction of the image."""
    crop_ratio: tuple[float, float] | None = None
    """Aspect ratio (width / height) of a resized crop, from and to."""
    hflip: Fraction | None = None
    """Probability of a left-right flip."""
    hflip_mode: Literal["random", "alternating"] | None = None
    """random: drawn every time; alternating: drawn for the first epoch, then reversed in every other epoch."""
    vflip: Fraction | None = None
    """Probability of an up-down flip."""
    rotation: NonNegative | None = None
    """Largest rotation in degrees, either way."""
    translate: Fraction | None = None
    """Largest shift, as a fraction of the image."""
    scale: tuple[float, float] | None = None
    """Zoom factor, from and to."""
    shear: NonNegative | None = None
    """Largest shear in degrees, either way."""
    brightness: NonNegative | None = None
    """Brightness factor from 1-x to 1+x."""
    contrast: NonNegative | None = None
    """Contrast factor from 1-x to 1+x."""
    saturation: NonNegative | None = None
    """Saturation factor from 1-x to 1+x."""
    hue: Annotated[float, Range(0, 0.5)] | None = None
    """Hue shift from -x to x, as a fraction of the colour circle."""
    policy: Literal["none", "randaugment", "trivialaugment"] | None = None
    """RandAugment or TrivialAugment (wide)."""
    policy_ops: Count | None = None
    """RandAugment: number of operations per image."""
    policy_magnitude: Annotated[int, Range(0, 30)] | None = None
    """RandAugment: strength, 0 to 30."""
    erasing: Fraction | None = None
    """Probability of erasing a rectangle."""
    cutout: CountOrZero | None = None
    """Side in pixels of a square erased from every image; 0: off."""
    mixup: NonNegative | None = None
    """MixUp's alpha; 0: off."""
    cutmix: NonNegative | None = None
    """CutMix's alpha; 0: off. If MixUp is on too, each batch gets one of the two."""
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
    """The network: its architecture, the weights it starts from, and which layers train."""

    name: str = "auto"
    """Architecture (see: tellapart models), or your own, package.module:function; auto: for photographs and few small
    colour pictures a pretrained network, else whitened-cnn or -small (with an optimizer or a rate given: fast-cnn)."""
    arguments: tuple[str, ...] = ()
    """A network of your own: what its function is given besides num_classes and channels, NAME=VALUE."""
    weights: str = "auto"
    """none, pretrained, a tag, efficientnet-lite0 to lite2, a file, or an earlier run; auto: only with name auto."""
    finetune: Literal["auto", "full", "head", "staged"] = "auto"
    """With weights: train all layers, only the new head, or the head first and deeper blocks later."""
    head: Literal["auto", "gradient", "fitted"] = "auto"
    """fitted: the first epoch fits the head to features by a solver, its weight decay chosen on validation; gradient:
    by the optimizer's steps; auto: fitted with weights where optimizer, rate and epochs are left open too."""
    norms: Literal["auto", "train", "keep"] = "auto"
    """Batch norms' running statistics: keep those of the weights, or train them; auto: keep after a fitted head."""
    unfreeze: tuple[int, ...] = ()
    """staged: epochs (from 0) that each unfreeze the next of up to 6 stages; empty: spread over the first half."""
    freeze_blocks: CountOrZero = 0
    """Number of blocks, from the first layers on, to freeze before the end, which saves their backward pass."""
    freeze_from: Fraction = 0.75
    """freeze_blocks: fraction of the epochs after which they are frozen."""
    layer_decay: Annotated[float, Range(0, 1, above=True)] = 1.0
    """Factor from the learning rate of one block to that of the block below it."""
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

    epochs: CountOrZero = 0
    """Passes over the training images; 0: chosen by the data, or by the time limit."""
    epoch_images: CountOrZero = 0
    """Images between two validations: an epoch of the log takes the next so many of a pass; 0: all of them, unless a
    time limit is too short for that."""
    batch_size: CountOrZero = 0
    """Images per optimizer step, over all processes and micro-batches; 0: chosen by image size."""
    accumulate: CountOrZero = 0
    """Number of micro-batches that a batch is computed in, to save memory or time; 0: see speed.probe, else 1."""
    optimizer: Annotated[str, Words(("auto", "sgd", "adam", "adamw", "rmsprop", "muon", "muon-sgd"))] = "auto"
    """The optimizer (auto: chosen with the network), or your own, package.module:function, of (groups, lr=…); muon uses
    AdamW for all but hidden matrices, muon-sgd uses SGD and fixes the matrices' norms."""
    optimizer_arguments: tuple[str, ...] = ()
    """An optimizer of your own: what it is given besides, NAME=VALUE."""
    lr: NonNegative = 0.0
    """Highest learning rate; 0: chosen with the optimizer."""
    bias_lr: NonNegative = 0.0
    """Learning rate of biases and norm layers, to which weight decay then applies too; 0: lr."""
    head_lr: NonNegative = 0.0
    """Learning rate of the head's weights; 0: lr."""
    early_epochs: CountOrZero = 3
    """Epochs in which early parameters (whitened-cnn: the first bias) train, at a falling learning rate."""
    momentum: Fraction = 0.9
    """SGD, RMSprop and Muon: momentum."""
    sgd_momentum: Fraction = 0.85
    """muon-sgd: momentum of the parameters that Muon does not update."""
    nesterov: bool = False
    """SGD and Muon: Nesterov momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam and AdamW: decay rates of the averages of the gradient and of its square."""
    weight_decay: NonNegative = 0.0
    """Weight decay; not applied to norm layers and biases."""
    schedule: Annotated[
        str, Words(("constant", "step", "multi-step", "linear", "cosine", "one-cycle", "plateau"))
    ] = "cosine"
    """How the learning rate changes; or your own, package.module:function, of (step, steps), which returns a factor."""
    warmup_epochs: NonNegative = 0.0
    """Epochs (fractions allowed) over which the learning rate rises from nearly 0."""
    step_epochs: Count = 30
    """step: epochs between drops."""
    milestones: tuple[int, ...] = ()
    """multi-step: epochs at which the learning rate drops."""
    gamma: Positive = 0.1
    """step, multi-step, plateau: factor of a drop."""
    plateau_patience: CountOrZero = 3
    """plateau: epochs without a better validation loss before a drop."""
    min_lr_factor: Fraction = 0.0
    """linear, cosine, plateau: the lowest learning rate, as a fraction of lr."""
    loss: Annotated[str, Words(LOSSES, "losses")] = "auto"
    """The loss; auto: cross-entropy, ordinal for grades (data.order), for several labels bce (binary cross-entropy, the
    mean over the classes). Or your own, package.module:function, of (logits, targets)."""
    loss_arguments: tuple[str, ...] = ()
    """A loss of your own: what it is given besides, NAME=VALUE."""
    label_smoothing: Annotated[float, Range(0, 0.99)] = 0.0
    """Probability mass spread over all classes; bce: over yes and no."""
    focal_gamma: NonNegative = 2.0
    """focal: how strongly easy images are down-weighted."""
    gamma_negative: NonNegative = 4.0
    """asymmetric: how strongly easy classes that an image does not have are down-weighted."""
    gamma_positive: NonNegative = 0.0
    """asymmetric: how strongly easy classes that it has are down-weighted."""
    margin: Annotated[float, Range(0, 0.9)] = 0.05
    """asymmetric: probability up to which a class that an image does not have costs nothing."""
    class_weights: Literal["auto", "none", "inverse", "effective"] = "auto"
    """Weight of each class in the loss: by inverse frequency, or by the effective number of samples; auto: effective if
    the largest class has 5 times the images of the smallest. Several labels: inverse weighs each class's yes by how
    many no there are for one; auto: none."""
    class_weight_limit: Annotated[float, Range(1)] = 20.0
    """Several labels: the largest class weight."""
    effective_beta: Annotated[float, Range(0, 0.999999)] = 0.999
    """effective: beta of the effective number; chosen with class_weights auto."""
    sampling: Literal["shuffle", "oversample", "undersample", "weighted"] = "shuffle"
    """shuffle: each image once; else balance the classes by repeating, leaving out, or drawing with weights."""
    ema: Annotated[float, Range(0, 0.999999)] = 0.0
    """Decay of the exponential moving average of the weights; 0: off."""
    clip_norm: NonNegative = 0.0
    """Clip the gradient to this norm; 0: off."""
    patience: CountOrZero = 0
    """Early stopping: stop after this many epochs in which best-metric did not improve; 0: off."""
    min_delta: NonNegative = 0.0
    """Early stopping: the smallest change that counts as an improvement."""
    best_metric: str = "auto"
    """The validation figure by which the best epoch is chosen: accuracy, macro-f1, balanced-accuracy or loss; for
    grades (data.order) kappa and mae too; for several labels mAP, macro-f1, micro-f1 or loss; auto: accuracy, kappa,
    mAP, and balanced-accuracy where unequal classes are balanced."""
    metrics: tuple[str, ...] = ()
    """Your own figures, NAME=package.module:function, of (labels, predictions); more is better."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Mixed precision by torch.amp; fp16 with a gradient scaler. auto: bf16 if speed.probe measures it faster."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: CountOrZero = 0
    """CPU threads; 0: one if a step takes about a millisecond, else one per core."""
    sync_batch_norm: bool = False
    """With several processes: compute batch statistics over all of them."""
    start_size: CountOrZero = 0
    """Progressive resizing: image size in the first epoch, growing to input.size; 0: off."""
    size_epochs: Fraction = 0.6
    """Progressive resizing: fraction of the epochs over which the images grow."""
    quantize: Literal["none", "int8"] = "none"
    """Quantisation-aware training: fine-tune with weights and activations rounded as INT8 runtimes round them."""
    keep_zeros: bool = False
    """Keep weights at zero that are zero at the start: for fine-tuning after unstructured pruning."""
    prune: Annotated[float, Range(0, 0.9)] = 0.0
    """InfoBatch: fraction of the well-learned images that each epoch skips; 0: off."""
    prune_from: Fraction = 0.0
    """InfoBatch: fraction of the epochs, at the beginning, that read all images (the first always does)."""
    prune_until: Fraction = 0.875
    """InfoBatch: fraction of the epochs after which all images are read again."""

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
    """A teacher: training also follows the outputs of a trained model (Hinton et al. 2015)."""

    teacher: str = ""
    """Run folder or artifact of the teacher, or a folder of several runs (such as folds), whose answers are averaged;
    empty: train on the labels alone."""
    temperature: Positive = 4.0
    """Temperature that the logits of teacher and student are divided by before they are compared."""
    weight: Fraction = 0.9
    """Share of the loss that compares with the teacher; the rest compares with the labels."""
    features: NonNegative = 0.0
    """Weight of a loss that compares where both networks look (attention transfer); 0: off."""
    members: Annotated[int, Range(0, 5)] = 0
    """effort best: how many models (2 to 5) are averaged and distilled into one; 0: by the images and the time."""
    fingerprint: str = ""
    """SHA-256 of the teacher's file, recorded when training begins; another file is refused from then on."""


@dataclass(frozen=True)
class SpeedSpec(Section, prefix="speed."):
    """What makes a run faster without changing its result beyond rounding; each can be switched off."""

    channels_last: bool = True
    """Keep images and convolutions in channels-last order."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: in long runs, if it is measured to be faster in total."""
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    """CUDA: record a step's kernels once and replay them; auto: in long runs of small steps."""
    kernel_search: Literal["auto", "on", "off"] = "auto"
    """CUDA: let cuDNN try its kernels at the first batch of each size; auto: in runs of at least 2,000 steps."""
    fused: bool = True
    """Use fused optimizers where torch has them."""
    probe: bool = True
    """In long runs, time a few steps to choose precision, accumulate and compile where they are auto."""
    features: bool = True
    """While only the head trains without augmentation: compute the frozen backbone's features once."""
    feature_views: CountOrZero = 0
    """With augmentation: number of augmented views of each image to compute features of; 0: no features."""
    on_device: bool = True
    """Keep the images in GPU memory if they take at most 40 % of what is free."""


@dataclass(frozen=True)
class RunSpec(Section, prefix="run."):
    """Where the results go, and what is logged."""

    dir: str = ""
    """The run's folder; empty: runs/DATE-TIME-MODEL."""
    log_every: CountOrZero = 0
    """Steps between logged values, and between lines if there is no terminal; 0: about 10 per epoch."""
    checkpoint_minutes: NonNegative = 5.0
    """Minutes between checkpoints within an epoch (also one after each epoch, if it takes at most 10 % of the time)."""
    tensorboard: bool = True
    """Write TensorBoard events if the package is installed."""
    mlflow: bool = False
    """Log to MLflow (set MLFLOW_TRACKING_URI to choose the server)."""
    report: bool = True
    """Write report.html at the end."""
    advice: bool = True
    """Say at the end what would help most, from measurements (at most 5 % of the time, or 10 seconds)."""


@dataclass(frozen=True)
class Spec(Section):
    """All options of one run."""

    data: DataSpec = field(default_factory=DataSpec)
    input: InputSpec = field(default_factory=InputSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    distill: DistillSpec = field(default_factory=DistillSpec)
    speed: SpeedSpec = field(default_factory=SpeedSpec)
    run: RunSpec = field(default_factory=RunSpec)
    effort: Literal["quick", "good", "best"] = "good"
    """With weights, where optimizer, rate and epochs are open. quick: the head alone, fitted to features; good: then
    all layers, kept only if validation is better by more than chance; best: several such in one model."""
    seed: int = 0
    """Seed for everything random in training."""
    time_limit: Duration = 0.0
    """Time for the whole command, such as 90s, 10m or 1h30m; training is planned to end in it; 0: none, but where the
    number of epochs is left open too and they would take longer than half an hour, that."""


def graded(spec: Spec) -> DataSpec:
    """Return the data section, which asks for the classes' order where the loss needs one."""
    if spec.training.loss != "ordinal" or spec.data.order:
        return spec.data
    return dataclasses.replace(spec.data, order=("auto",))


def own_names(spec: Spec) -> list[tuple[str, str]]:
    """Return (kind, name) of the user's own code that a spec names."""
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
