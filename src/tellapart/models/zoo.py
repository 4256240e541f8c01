"""Networks by name: tellapart's own, timm's and torchvision's under one scheme.

``tutorial-net``, ``simple-cnn``, ``fast-cnn`` and the three ``whitened-cnn`` are tellapart's; ``timm/NAME`` and
``torchvision/NAME`` are those libraries'. A bare name is tellapart's if it exists there, otherwise timm's, otherwise
torchvision's, whatever is installed. A part after a dot (``timm/resnet18.a1_in1k``) names weights, not an architecture:
:func:`split_tag` parts the two, and :func:`resolve` leaves the tag out.

Knows nothing of weights: everything built here has random ones.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from tellapart import packages, references
from tellapart.contract.architecture import Architecture
from tellapart.contract.sides import Size, longest
from tellapart.errors import ModelError, did_you_mean
from tellapart.models import own_code, shrink, small_cnn, timm_zoo, torchvision_zoo, whitened_cnn

__all__ = [
    "Architecture",
    "ModelInfo",
    "build",
    "choose_stem",
    "default_size",
    "list_models",
    "min_size",
    "resolve",
    "split_tag",
]

SMALL_IMAGES = 64
"""Images of up to this many pixels get the small stem, if the family has one."""


@dataclass(frozen=True)
class OwnModel:
    """One of tellapart's networks: its builder, and the image sizes it is made for."""

    build: Callable[[Architecture], nn.Module]
    min_size: int
    default_size: int
    takes: tuple[str, ...] = ("dropout",)
    """The optional values of an Architecture that it uses."""


def _tutorial_net(a: Architecture) -> nn.Module:
    return small_cnn.TutorialNet(a.num_classes, a.channels, a.size, a.dropout)


def _simple_cnn(a: Architecture) -> nn.Module:
    return small_cnn.SimpleCNN(a.num_classes, a.channels, a.size, a.dropout, a.batch_norm)


def _fast_cnn(a: Architecture) -> nn.Module:
    return small_cnn.FastCNN(a.num_classes, a.channels, a.size, a.dropout)


def _fast_cnn_small(a: Architecture) -> nn.Module:
    return small_cnn.FastCNN(a.num_classes, a.channels, a.size, a.dropout, small_cnn.FastCNN.SMALL)


def _whitened_cnn(a: Architecture) -> nn.Module:
    return whitened_cnn.WhitenedCNN(a.num_classes, a.channels, a.size, a.dropout)


def _whitened_cnn_small(a: Architecture) -> nn.Module:
    return whitened_cnn.WhitenedCNN(a.num_classes, a.channels, a.size, a.dropout, whitened_cnn.SMALL)


def _whitened_cnn_large(a: Architecture) -> nn.Module:
    widths, depth = (128, 384, 512), 3
    return whitened_cnn.WhitenedCNN(a.num_classes, a.channels, a.size, a.dropout, widths, depth)


OWN: dict[str, OwnModel] = {
    "tutorial-net": OwnModel(_tutorial_net, min_size=16, default_size=32),
    "simple-cnn": OwnModel(_simple_cnn, min_size=4, default_size=32, takes=("dropout", "batch_norm")),
    "fast-cnn": OwnModel(_fast_cnn, min_size=4, default_size=32),
    "fast-cnn-small": OwnModel(_fast_cnn_small, min_size=4, default_size=32),
    "whitened-cnn": OwnModel(_whitened_cnn, min_size=4, default_size=32),
    "whitened-cnn-small": OwnModel(_whitened_cnn_small, min_size=4, default_size=32),
    "whitened-cnn-large": OwnModel(_whitened_cnn_large, min_size=4, default_size=32),
}


@dataclass(frozen=True)
class ModelInfo:
    """One line of the list of models; ``size`` in pixels, ``licence`` that of the default weights.

    ``accuracy``: top-1 on ImageNet-1K's validation part in %, as the library states it of those weights (torchvision
    does, timm's package does not).
    """

    name: str
    parameters: int | None
    size: int | None
    licence: str | None
    source: str
    accuracy: float | None = None


def split_tag(name: str) -> tuple[str, str | None]:
    """Return (canonical name, tag of weights or None): ``resnet18.a1_in1k`` -> ``timm/resnet18, a1_in1k``.

    Raises ModelError for an unknown name, MissingPackageError where the library that would know is missing.
    """
    if references.is_own(name):
        return name, None
    library, slash, rest = name.rpartition("/")
    bare, _, tag = rest.partition(".")
    if not slash and bare in OWN:
        canonical = bare
    elif library == "timm" or (not slash and bare in timm_zoo.names()):
        canonical = _checked("timm", bare, name, timm_zoo.names())
    elif library == "torchvision" or (not slash and bare in torchvision_zoo.names()):
        canonical = _checked("torchvision", bare, name, torchvision_zoo.names())
    else:
        valid = list(dict.fromkeys([*OWN, *timm_zoo.names(), *torchvision_zoo.names()]))
        raise ModelError(f"There is no model {name!r}. {did_you_mean(bare, valid)} See: tellapart models.")
    return canonical, tag or None


def _checked(library: str, bare: str, name: str, names: list[str]) -> str:
    if bare not in names:
        raise ModelError(
            f"There is no model {name!r} in {library}. {did_you_mean(bare, names)} See: tellapart models."
        )
    return f"{library}/{bare}"


def resolve(name: str) -> str:
    """Return the canonical name of ``name``, without a tag of weights; errors as in :func:`split_tag`."""
    return split_tag(name)[0]


def build(architecture: Architecture) -> nn.Module:
    """Return the network with random weights, in training mode, on the CPU.

    Its forward takes float32 ``[B, channels, height, width]`` and returns logits ``[B, num_classes]``. The
    library's own initialisation, except for layers that are put in for another channel count or a small stem:
    those have Kaiming's. Pruned layers are as narrow as the architecture says. Raises ModelError where the network
    cannot take these images or values.
    """
    if architecture.pruned:
        whole = build(dataclasses.replace(architecture, pruned=()))
        return shrink.apply(whole, architecture)
    if references.is_own(architecture.name):
        return own_code.build(architecture)
    if architecture.arguments:
        raise ModelError(f"model.arguments are for a network of your own; {architecture.name} takes none.")
    name = resolve(architecture.name)
    if name in OWN:
        return _build_own(architecture, name)
    if architecture.batch_norm:
        raise ModelError(f"batch_norm is an option of simple-cnn; {name} is as its library made it.")
    if name.startswith("timm/"):
        return timm_zoo.build(architecture)
    return torchvision_zoo.build(architecture)


def _build_own(architecture: Architecture, name: str) -> nn.Module:
    own = OWN[name]
    small_cnn.check_size(name, architecture.size, own.min_size)
    for option in ("drop_path", "batch_norm"):
        if getattr(architecture, option) and option not in own.takes:
            who = [other for other, model in OWN.items() if option in model.takes]
            raise ModelError(
                f"{name} has no {option} to set. "
                + (f"{', '.join(who)} has." if who else "Residual networks of timm and torchvision have it.")
            )
    if architecture.stem == "small":
        raise ModelError(f"{name} has one stem only, made for small images; use stem standard or auto.")
    return own.build(architecture)


def choose_stem(name: str, size: Size, weights: str = "none") -> str:
    """Return ``small`` or ``standard`` for images of ``size`` pixels.

    ``small`` for up to 64 pixels, if the family has such a stem and no weights are to be loaded (they hold
    the standard stem, which would be lost). Our own networks have only the standard one.
    """
    name = resolve(name)
    if name in OWN or references.is_own(name) or longest(size) > SMALL_IMAGES or weights not in ("none", ""):
        return "standard"
    library, _, bare = name.partition("/")
    has_small = (timm_zoo if library == "timm" else torchvision_zoo).has_small_stem(bare)
    return "small" if has_small else "standard"


def default_size(name: str) -> int | None:
    """Return the height and width in pixels that the network was made for, if known."""
    name = resolve(name)
    if name in OWN:
        return OWN[name].default_size
    if references.is_own(name):
        return None
    library, _, bare = name.partition("/")
    return timm_zoo.info(bare)[0] if library == "timm" else torchvision_zoo.info(bare)[0]


def min_size(name: str) -> int | None:
    """Return the smallest image size of one of our networks; None for the libraries' (build tells)."""
    name = resolve(name)
    return OWN[name].min_size if name in OWN else None


def list_models(pattern: str = "", with_parameters: bool = False) -> list[ModelInfo]:
    """Return the models whose canonical name contains ``pattern`` or matches it (``*`` and ``?``), sorted.

    Builds none of the libraries' networks, unless ``with_parameters`` asks for the number of parameters where the
    library does not state it (at the default size, 3 channels, 1,000 classes; ours: 10). Libraries that are not
    installed contribute nothing.
    """
    infos = [
        ModelInfo(name, None, own.default_size, "MIT (untrained)", "tellapart") for name, own in OWN.items()
    ]
    infos = [_with_parameters(info) if _matches(info.name, pattern) else info for info in infos]
    for library, part in (("timm", timm_zoo), ("torchvision", torchvision_zoo)):
        if packages.installed(library):
            for bare in part.names():
                if not _matches(f"{library}/{bare}", pattern):
                    continue
                size, licence = part.info(bare)
                count, accuracy = torchvision_zoo.stated(bare) if library == "torchvision" else (None, None)
                infos.append(ModelInfo(f"{library}/{bare}", count, size, licence, library, accuracy))
    infos += [
        ModelInfo(name, None, None, None, where) for name, where in references.entry_points("models").items()
    ]
    chosen = [info for info in infos if _matches(info.name, pattern)]
    if with_parameters:
        chosen = [info if info.parameters else _with_parameters(info) for info in chosen]
    return chosen


def _matches(name: str, pattern: str) -> bool:
    wild = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    bare = name.partition("/")[2] or name
    return fnmatch.fnmatchcase(name, wild) or fnmatch.fnmatchcase(bare, wild)


def _with_parameters(info: ModelInfo) -> ModelInfo:
    classes = 10 if info.source == "tellapart" else 1000
    architecture = Architecture(info.name, classes, 3, info.size or 224)
    try:
        with torch.random.fork_rng(devices=[]):  # its random numbers must not affect the caller's
            parameters = sum(p.numel() for p in build(architecture).parameters())
    except ModelError:  # a network that cannot be built with defaults stays in the list
        return info
    return dataclasses.replace(info, parameters=parameters)
