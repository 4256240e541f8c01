"""Folders of the Hugging Face hub: ``config.json`` beside the weights gives network, classes and preparation.

Reads timm's own (``push_to_hf_hub``, also wrapped by transformers); other networks of transformers are refused by name.
Knows nothing of tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.errors import ModelError
from tellapart.models import preparation

CONFIG = "config.json"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Described:
    """What ``config.json`` says: the network's name, its class names if any, and the images' preparation."""

    name: str
    classes: tuple[str, ...]
    prepared: preparation.Preparation


def describe(file: Path) -> Described | None:
    """Return the description beside a weights file; None if there is no ``config.json`` of a network.

    Raises ModelError if it describes a network that cannot be built here, or is invalid.
    """
    config = _read(file.parent / CONFIG)
    architecture, cfg = config.get("architecture"), config.get("pretrained_cfg")
    where = str(file.parent / CONFIG)
    if isinstance(architecture, str) and isinstance(cfg, Mapping):
        return Described(f"timm/{architecture}", _classes(config, cfg), preparation.of_timm(cfg, where))
    kind = config.get("model_type") or next(iter(config.get("architectures") or ()), None)
    if kind:
        raise ModelError(
            f"{where} describes a network of transformers ({kind}), whose tensors have names of their own; only timm's "
            "networks are read. Many are in timm too: take the weights from there (tellapart models)."
        )
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(
                f"{path} has more than {_MOST_BYTES >> 20} MiB; it is not a description of a network."
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error!s:.160}") from None
    return content if isinstance(content, dict) else {}


def _classes(config: Mapping[str, Any], cfg: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names by index; names that occur twice (ImageNet has some) get their index appended."""
    named = config.get("label_names") or cfg.get("label_names") or config.get("id2label") or ()
    if isinstance(named, Mapping):
        try:
            by_index = {int(key): str(name) for key, name in named.items()}
        except ValueError:
            return ()
        names = [by_index.get(index, "") for index in range(len(by_index))]
    else:
        names = [str(name) for name in named]
    if not all(names):
        return ()
    return tuple(name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names))
