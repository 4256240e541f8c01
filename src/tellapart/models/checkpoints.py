"""State dicts from files, and their way into a network.

Knows files and tensors, not where weights come from or what their licence is. Never unpickles objects:
``.pth`` files are read with ``weights_only=True``.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tellapart.errors import ModelError
from tellapart.models import heads, surgery, trainers
from tellapart.models.trainers import Found, State

SUFFIXES = (".pth", ".pt", ".bin", ".tar", ".ckpt", ".safetensors")
ARTIFACT = "model.safetensors"
"""The name of the weights in a run folder, and in a folder of the Hugging Face hub."""
HUB_FILES = (ARTIFACT, "pytorch_model.bin")
METADATA_KEY = "tellapart"
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Merged:
    """The result of loading: how many tensors, which parameters are new, and what had to be adapted."""

    loaded: int
    new: tuple[str, ...]
    notes: tuple[str, ...]


def is_path(weights: str) -> bool:
    """Return whether ``weights`` means a file or folder, not a name: by its ending, a slash, or whether it exists."""
    if weights == "pretrained":  # a name, even if there is a folder of that name
        return False
    path = Path(weights).expanduser()
    return path.suffix in SUFFIXES or "/" in weights or "\\" in weights or path.exists()


def find(path: str | Path) -> Path:
    """Return the file with the weights: ``path`` itself, or the one in the run or hub folder ``path``."""
    given = Path(path).expanduser()
    file = given
    if given.is_dir():
        file = next((given / name for name in HUB_FILES if (given / name).is_file()), given / ARTIFACT)
    if not file.is_file():
        what = f"the folder {given} holds no {ARTIFACT}" if given.is_dir() else f"{given} does not exist"
        raise ModelError(
            f"No weights: {what}. --model.weights takes {', '.join(SUFFIXES)} files and run folders."
        )
    return file


def read_metadata(file: Path) -> dict[str, Any]:
    """Return the JSON that an artifact has beside its weights; empty for every other file."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(file, framework="pt") as stream:
            text = (stream.metadata() or {}).get(METADATA_KEY, "{}")
        content = json.loads(text)
    except (safetensors.SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{file} cannot be read as safetensors: {error}") from error
    return content if isinstance(content, dict) else {}


def read(file: Path) -> Found:
    """Return the tensors by name, on the CPU, without wrappers and the prefixes that wrapping modules add.

    Raises ModelError for a damaged file, one that holds pickled objects, or one without tensors.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(file)
        else:
            with torch.serialization.safe_globals(trainers.harmless()):
                content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(trainers.refused(file, str(file))) from error
    except (safetensors.SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ModelError(f"{file} cannot be read as weights: {' '.join(str(error).split())[:200]}") from error
    return trainers.find(content, str(file))


def read_options(file: Path) -> Mapping[str, Any]:
    """Return the options that a trainer saved beside the weights; empty if there are none, or they cannot be read.

    For files in torch's current format this reads no tensor.
    """
    if file.suffix == ".safetensors" or not zipfile.is_zipfile(file):
        return {}
    try:
        with torch.serialization.safe_globals(trainers.harmless()):
            content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception:  # loading the weights will report what is wrong
        return {}
    return trainers.options(content)


def read_state(file: Path) -> State:
    """Return the tensors that `read` finds."""
    return read(file).state


def adapt_channels(weight: Tensor, channels: int) -> Tensor | None:
    """Return a first convolution's weight ``[O, I, h, w]`` for other input ``channels``; None: not possible.

    To one channel: the sum over the old ones, so that a grey image gives the same as three equal channels did.
    To more: the old ones repeated in turn and scaled by old / new, which
    from one channel keeps the response too.
    """
    if weight.ndim != 4 or weight.shape[1] not in (1, 3):
        return None
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    old = weight.shape[1]
    return weight[:, torch.arange(channels) % old] * (old / channels)


def timm_filter(model: nn.Module) -> Callable[[State, nn.Module], State] | None:
    """Return timm's own translation of original checkpoints for this kind of network, if it has one."""
    module = sys.modules.get(type(model).__module__)
    name = type(model).__module__
    return getattr(module, "checkpoint_filter_fn", None) if name.startswith("timm.") else None


def merge(model: nn.Module, state: State, may_be_new: Sequence[str], where: str) -> Merged:
    """Copy ``state`` into ``model``.

    The head's tensors may differ in the number of classes: the head is then new. Tensors inside the modules
    or of the names ``may_be_new`` may differ or be absent. The first convolution is adapted to the model's
    channels. Raises ModelError, naming the first few tensors, for anything else that is missing, left over or
    of another shape; the network is then unchanged.
    """
    own = model.state_dict()
    notes = []
    state = dict(state)
    note = _adapt_first_conv(model, state, own)
    notes += [note] if note else []
    head = heads.head_names(model)
    new_head = _head_differs(own, state, head)
    allowed = [*may_be_new, *(head if new_head else ())]
    chosen: State = {}
    problems: list[str] = []
    new: list[str] = []
    for name, tensor in own.items():
        found = state.pop(name, None)
        if (
            found is not None
            and found.shape == tensor.shape
            and not (new_head and heads.is_inside(name, head))
        ):
            chosen[name] = found
        elif heads.is_inside(name, allowed):
            new.append(name)
        elif found is None and not name.endswith("num_batches_tracked"):
            problems.append(f"{name} {_size(tensor)} is missing")
        elif found is not None:
            problems.append(f"{name} is {_size(found)}, not {_size(tensor)}")
    problems += [
        f"{name} {_size(t)} has no place" for name, t in state.items() if not heads.is_inside(name, allowed)
    ]
    if problems:
        shown = "; ".join(problems[:_SHOWN]) + (
            f"; and {len(problems) - _SHOWN} more" if problems[_SHOWN:] else ""
        )
        raise ModelError(f"The weights of {where} do not fit {type(model).__name__}: {shown}.")
    model.load_state_dict(chosen, strict=False)
    return Merged(len(chosen), tuple(new), tuple(notes))


def _head_differs(own: Mapping[str, Tensor], state: State, head: Sequence[str]) -> bool:
    """Return whether the head must be new: the file has none, or one for another number of classes."""
    for name, tensor in own.items():
        if heads.is_inside(name, head):
            found = state.get(name)
            if found is None or (found.shape[0] != tensor.shape[0] and found.shape[1:] == tensor.shape[1:]):
                return True
    return False


def _adapt_first_conv(model: nn.Module, state: State, own: Mapping[str, Tensor]) -> str | None:
    path = surgery.first_conv(model)
    name = f"{path}.weight"
    if path is None or name not in state or name not in own:
        return None
    found, wanted = state[name], own[name]
    same = (
        found.ndim == wanted.ndim == 4
        and found.shape[0] == wanted.shape[0]
        and found.shape[2:] == wanted.shape[2:]
    )
    if not same or found.shape[1] == wanted.shape[1]:
        return None
    adapted = adapt_channels(found, wanted.shape[1])
    if adapted is None:
        return None
    state[name] = adapted
    how = "summed over its input channels" if wanted.shape[1] == 1 else "spread over the input channels"
    return f"{name} was made for {found.shape[1]} channels and is {how} for {wanted.shape[1]}."


def _size(tensor: Tensor) -> str:
    return "x".join(str(n) for n in tensor.shape) or "scalar"
