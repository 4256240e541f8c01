"""The tensors of weights, under the names that a network uses: from files, packages and downloads.

A library's downloads go to its own cache. Knows nothing of licences or preprocessing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from tellapart import packages
from tellapart.contract.architecture import Architecture
from tellapart.errors import OfflineError, TellapartError
from tellapart.models import checkpoints, efficientnet_lite, heads, timm_zoo, torchvision_zoo, trainers
from tellapart.models.trainers import Found, State

T = TypeVar("T")

HUB_FILES = checkpoints.HUB_FILES


def fetch(model: nn.Module, architecture: Architecture, weights: str, tag: str | None) -> Found:
    """Return the tensors under the names that ``model`` uses, and the messages about how they were found."""
    library, _, bare = architecture.name.rpartition("/")
    if lite := efficientnet_lite.named(weights):
        return Found(lite.translate(checkpoints.read_state(lite.file())))
    if checkpoints.is_path(weights):
        file = checkpoints.find(weights)
        found = checkpoints.read(file)
        state, notes = trainers.fit_names(found.state, model.state_dict(), str(file))
        state = _translate(model, state) if library == "timm" else _torchvision_size(model, state, library)
        return Found(state, (*found.notes, *notes), found.options)
    if library == "timm":
        return Found(_fetch_timm(bare, architecture, tag), _channel_note(architecture))
    member = torchvision_zoo.weights_member(bare, tag or "pretrained")
    with contextlib.redirect_stdout(sys.stderr):  # torch.hub announces downloads on standard output
        state = _online(
            lambda: member.get_state_dict(progress=False, check_hash=True),
            f"torchvision/{bare}.{member.name}",
            member.url,
        )
    return Found(_torchvision_size(model, dict(state), library))


def _translate(model: nn.Module, state: State) -> State:
    """Give a timm network's file timm's own translation, if its names or shapes are not the network's."""
    translate = checkpoints.timm_filter(model)
    own = model.state_dict()
    head = heads.head_names(model)
    fits = all(
        name in state and (state[name].shape == tensor.shape or heads.is_inside(name, head))
        for name, tensor in own.items()
    )
    if fits or translate is None:
        return state
    try:
        return dict(translate(dict(state), model))
    except (KeyError, RuntimeError, AttributeError, AssertionError, ValueError):
        return state  # not a checkpoint that it knows: merging will report what does not fit


def _torchvision_size(model: nn.Module, state: State, library: str) -> State:
    """Leave out the extra heads that tellapart does not build, and fit ViT's position embedding to the image size."""
    if library != "torchvision":
        return state
    kept = {n: t for n, t in state.items() if not n.startswith(("AuxLogits.", "aux1.", "aux2."))}
    key = "encoder.pos_embedding"
    wanted = model.state_dict().get(key)
    if wanted is None or key not in kept or kept[key].shape == wanted.shape:
        return kept
    patch, size = int(model.patch_size), int(model.image_size)  # type: ignore[arg-type]
    fit = torchvision_zoo.interpolate_embeddings()
    return dict(fit(size, patch, kept))


def _fetch_timm(bare: str, architecture: Architecture, tag: str | None) -> State:
    """Let timm load its weights into a network of the same shape (standard stem), and take them from there.

    timm itself fits position embeddings to the image size, the first convolution to the channels, and leaves out the
    head if the classes differ; it is then left out here too.
    """
    standard = dataclasses.replace(architecture, stem="standard")
    cfg = timm_zoo.timm_package().get_pretrained_cfg(f"{bare}.{tag}" if tag else bare)
    chosen = timm_zoo.arguments(standard)
    more: dict[str, Any] = {"pretrained": True, "pretrained_cfg": tag} if tag else {"pretrained": True}
    cached = in_hub_cache(cfg)
    if cached:
        more["pretrained_cfg_overlay"] = {"file": cached}
    source, wanted = f"timm/{bare}.{tag}" if tag else f"timm/{bare}", cfg.file or cfg.url
    if cfg.hf_hub_id:
        wanted = f"https://huggingface.co/{cfg.hf_hub_id} (file {HUB_FILES[0]})"
        if not cached:
            _online(_look_up_hub, source, wanted)
    reference = _online(lambda: timm_zoo.create(bare, architecture.size, chosen, **more), source, wanted)
    state = dict(reference.state_dict())
    if cfg.num_classes != architecture.num_classes:
        head = heads.head_names(reference)
        state = {name: tensor for name, tensor in state.items() if not heads.is_inside(name, head)}
    return state


def _channel_note(architecture: Architecture) -> tuple[str, ...]:
    """Return what timm does to the first layer of weights for red, green and blue."""
    if architecture.channels == 3:
        return ()
    how = (
        "summed over its input channels" if architecture.channels == 1 else "repeated over the input channels"
    )
    return (f"The first layer was made for 3 channels and is {how} for {architecture.channels} (by timm).",)


def in_hub_cache(cfg: Any) -> str | None:
    """Return the local copy of what timm would fetch from the Hugging Face hub; None: none, or not cached."""
    if not cfg.hf_hub_id or cfg.custom_load:
        return None
    hub = packages.require("huggingface_hub", "models", "Downloading weights")
    for name in [cfg.hf_hub_filename] if cfg.hf_hub_filename else HUB_FILES:
        found = hub.try_to_load_from_cache(cfg.hf_hub_id, name)
        if isinstance(found, str):
            return found
    return None


def _look_up_hub() -> None:
    """Raise OSError if the hub's host name cannot be resolved; its own client would try for most of a minute."""
    constants = packages.require("huggingface_hub.constants", "models", "Downloading weights")
    host = urllib.parse.urlsplit(constants.ENDPOINT).hostname
    if host and not urllib.request.getproxies():
        socket.getaddrinfo(host, 443)


def _online(fetch: Callable[[], T], source: str, wanted: str) -> T:
    """Return ``fetch()``; raise OfflineError if the failure is one of the network."""
    try:
        return fetch()
    except TellapartError:
        raise
    except Exception as error:
        root = type(error).__module__.partition(".")[0]
        if not isinstance(error, OSError) and root not in (
            "huggingface_hub",
            "httpx",
            "httpcore",
            "requests",
            "urllib3",
        ):
            raise
        raise OfflineError(
            f"The weights of {source} are not on this machine and cannot be downloaded from {wanted} "
            f"({type(error).__name__}). Copy the file here and give it: --model.weights FILE."
        ) from error
