"""What a user must know about a resolved spec, and what a device cannot do.

Knows nothing of how choices are made.
"""

from __future__ import annotations

import dataclasses

import torch

from tellapart.contract import sides
from tellapart.errors import SpecError
from tellapart.models import weights
from tellapart.spec import InputSpec, Spec


@dataclasses.dataclass(frozen=True)
class Doubt:
    """What a user must know about how images are prepared for weights; ``serious``: it deserves a warning."""

    text: str
    serious: bool


def doubts(given: InputSpec, chosen: Spec, info: weights.WeightsInfo | None) -> list[Doubt]:
    """Return where images are not prepared as the weights expect, or where that is unknown; and what is left out for
    images that are neither grey nor colour.

    ``given``: the options as they were before anything was chosen.
    """
    found: list[Doubt] = []
    if chosen.input.channels not in (0, 1, 3):  # 0: not chosen
        had = "" if given.channels else ", as the files have"
        text = (
            f"The input has {chosen.input.channels} channels{had}. Changes of saturation and hue, which are "
            "defined for red, green and blue, are left out of the augmentation. Pictures show the first three, or one."
        )
        found.append(Doubt(text, False))
    if info is None:
        return found
    now = chosen.input
    if info.inexact and given.resize == "auto":
        text = (
            f"{info.prepared_as or info.source} asks for {info.inexact}, which a contract cannot express: "
            f"images are prepared as {sides.words(now.size)} pixels, {now.resize}, {now.interpolation}. If "
            "other settings come closer, give --input.resize, --input.size and --input.interpolation."
        )
        found.append(Doubt(text, True))
    if info.mean is None and not (given.mean and given.std):
        frozen = chosen.model.finetune == "head" or chosen.model.freeze_blocks > 0
        why = ", and layers that stay frozen cannot adapt" if frozen else ""
        text = (
            f"{info.source} does not say how its images were normalised{why}: the mean and deviation of the "
            "training images are used. If you know the right ones, give --input.mean and --input.std."
        )
        found.append(Doubt(text, frozen))
    return found


def check_device(spec: Spec, device: torch.device) -> None:
    """Refuse what the device cannot do, before anything is read or written. Raises SpecError."""
    if spec.training.sync_batch_norm and device.type != "cuda":
        raise SpecError(
            f"training.sync_batch_norm is on, and this run is on {device.type}: torch has synchronised batch norm for "
            "CUDA only. Leave it out (batch norms then take their statistics in each process), or train on CUDA."
        )
