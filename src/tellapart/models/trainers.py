"""The state dict in the usual trainers' checkpoints: which of several, under which prefix, with which options.

timm's ``model_best.pth.tar``, torchvision's reference scripts, Lightning, and the user's own scripts. Averaged weights
(EMA) take precedence, as the trainers themselves measure those; messages say what was chosen and what was left out.
Knows nothing of files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tellapart.errors import ModelError

State = dict[str, Tensor]

AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "model_ema_state_dict",
    "params_ema",
    "ema",
)
"""Keys of averaged weights, which take precedence."""
WRAPPERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
    "params",
    "weights",
)
"""Keys of a state dict, the usual ones first."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DistributedDataParallel, AveragedModel and torch.compile put before names."""
WORDS = ("model", "net", "network", "backbone", "encoder", "classifier_model", "timm_model", "base_model")
"""Usual names of a module that holds the network."""
_SHOWN = 4
_PARTS = 3  # levels of keys that are searched


class Ignored:
    """Stands for a value that is not a tensor: its content is discarded, and none of its code runs."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_IGNORED = (
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "datetime.datetime",
    "datetime.timedelta",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)


def harmless() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return what `torch.serialization.safe_globals` may allow besides tensors.

    A trainer's options (argparse.Namespace) are read; scores, paths and dates beside the weights become a stand-in, so
    that none of their own code runs.
    """
    return [argparse.Namespace, *((Ignored, name) for name in _IGNORED)]


@dataclass(frozen=True)
class Found:
    """A state dict, the messages about the choice, and the trainer's options (including ``arch``)."""

    state: State
    notes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def find(content: Any, where: str) -> Found:
    """Return the state dict in a file's content. Raises ModelError if there is none, or more than one."""
    notes: list[str] = []
    said = options(content)
    path: list[str] = []
    for _ in range(_PARTS):
        key = _next_key(content, where)
        if key is None:
            break
        path.append(key)
        content = content[key]
    if not isinstance(content, Mapping):
        raise ModelError(f"{where} holds a {type(content).__name__}, not a state dict (tensors by name).")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not state:
        keys = ", ".join(str(key) for key in list(content)[:_SHOWN])
        raise ModelError(f"{where} holds no tensors by name; its keys: {keys or 'none'}.")
    if any(key in AVERAGED for key in path):
        notes.append(f"{where} holds averaged weights ({'.'.join(path)}); these are used, not the raw ones.")
    elif path and path[-1] not in WRAPPERS[:3]:
        notes.append(f"The weights of {where} are those under {'.'.join(path)!r}.")
    if any(name.startswith(PREFIXES) for name in state):
        state.pop("n_averaged", None)  # torch.optim.swa_utils.AveragedModel counts in it
    return Found({without_wrappers(name): tensor for name, tensor in state.items()}, tuple(notes), said)


def options(content: Any) -> Mapping[str, Any]:
    """Return the options that the trainer was started with, and ``arch``, as far as they are plain values."""
    if not isinstance(content, Mapping):
        return {}
    args = content.get("args")
    found = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    arch = content.get("arch")
    named = {"arch": arch} if isinstance(arch, str) else {}
    return {**named, **{str(name): value for name, value in found.items() if not isinstance(value, Ignored)}}


def _next_key(content: Any, where: str) -> str | None:
    """Return the key of the weights in ``content``; None: they are ``content`` itself, or nowhere."""
    if not isinstance(content, Mapping):
        return None
    holding = [key for key, value in content.items() if isinstance(key, str) and _holds(value)]
    for key in (*AVERAGED, *WRAPPERS):
        if key in holding:
            return key
    for key in WRAPPERS:  # a wrapper of something else: the error says of what
        if isinstance(content.get(key), Mapping):
            return key
    if any(isinstance(value, Tensor) and value.ndim for value in content.values()) or not holding:
        return None
    if len(holding) > 1:
        raise ModelError(
            f"{where} holds several state dicts: {', '.join(holding)}. Save the one that is meant: "
            f"torch.save(torch.load(FILE)[{holding[0]!r}], NEW)."
        )
    return holding[0]


def _holds(value: Any, depth: int = _PARTS) -> bool:
    """Return whether ``value`` is a state dict, or wraps one under a known key."""
    if not isinstance(value, Mapping) or not value:
        return False
    named = [item for name, item in value.items() if isinstance(name, str)]
    if any(isinstance(item, Tensor) and item.ndim for item in named):
        return True
    return depth > 0 and any(_holds(value.get(key), depth - 1) for key in (*AVERAGED, *WRAPPERS))


def without_wrappers(name: str) -> str:
    """Return a tensor's name without what DDP and torch.compile add before and (the latter) inside it."""
    for prefix in PREFIXES:
        if name.startswith(prefix):
            return without_wrappers(name[len(prefix) :])
    return name.replace("._orig_mod.", ".")


def fit_names(state: State, own: Mapping[str, Tensor], where: str) -> tuple[State, tuple[str, ...]]:
    """Return ``state`` under the names ``own`` of a network that it has below a prefix, and the messages.

    The prefix is found, not listed: the one under which most of the network's names are. Raises ModelError if it
    contains the network several times.
    """
    counts = {prefix: _fitting(state, own, prefix) for prefix in _candidates(state, own)}
    most = max(counts.values(), default=0)
    if most < max(1, len(own) // 2):
        return _common_word(state)
    best = [prefix for prefix, count in counts.items() if count == most]
    if best == [""]:
        return state, ()
    averaged = [prefix for prefix in best if "ema" in prefix.lower() or "averag" in prefix.lower()]
    if len(best) > 1 and len(averaged) != 1:
        raise ModelError(
            f"{where} holds the network {len(best)} times, under {', '.join(map(repr, sorted(best)[:_SHOWN]))}: save "
            "the one that is meant as a state dict of its own."
        )
    prefix = (averaged or best)[0]
    rest = [name for name in state if not name.startswith(prefix)]
    note = f"The names in {where} begin with {prefix!r}, which is removed."
    if len(best) > 1:
        note += " These are averaged weights; the raw ones are ignored."
    elif rest:
        note += (
            f" Ignored {len(rest)} other tensors: {', '.join(rest[:_SHOWN])}{', …' * (len(rest) > _SHOWN)}."
        )
    inner = {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}
    return {without_wrappers(name): tensor for name, tensor in inner.items()}, (note,)


def _candidates(state: State, own: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes under which a few of the network's names occur, including ""."""
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    anchors: Sequence[str] = [*names[:6], *names[-6:]]
    found = {
        name[: len(name) - len(anchor)]
        for name in state
        for anchor in anchors
        if name == anchor or name.endswith("." + anchor)
    }
    return sorted(found)


def _fitting(state: State, own: Mapping[str, Tensor], prefix: str) -> int:
    return sum(prefix + name in state for name in own)


def _common_word(state: State) -> tuple[State, tuple[str, ...]]:
    """Remove a usual module's name with which all names begin (checkpoints that timm has to translate first)."""
    words = {name.partition(".")[0] for name in state}
    if len(words) != 1 or not words <= set(WORDS):
        return state, ()
    (word,) = words
    inner = {without_wrappers(name.partition(".")[2]): tensor for name, tensor in state.items()}
    deeper, notes = _common_word(inner)
    return deeper, (f"All names begin with '{word}.', which is removed.", *notes)


def refused(file: Any, where: str) -> str:
    """Return why a file with other objects is refused, with their classes if torch can list them."""
    try:
        with torch.serialization.safe_globals(harmless()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # torch lists them only for its newer format
        names = []
    listed = [name for name in names if name not in _IGNORED and name != "argparse.Namespace"]
    objects = f" ({', '.join(sorted(listed)[:_SHOWN])}{', …' * (len(listed) > _SHOWN)})" if listed else ""
    return (
        f"{where} is refused: it holds more than tensors{objects or ' (a whole pickled module, perhaps)'}, and reading "
        "that could run any code. Save the state dict instead: torch.save(model.state_dict(), FILE)."
    )
