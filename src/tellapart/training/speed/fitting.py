"""The epoch in which a solver fits the head to features: the solver, the task's loss, and what is said of it.

Knows nothing of how features are computed or of what the loop does with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from tellapart import numerals
from tellapart.data.loader import ImageSet
from tellapart.data.sources.listing import many
from tellapart.errors import ModelError, SpecError
from tellapart.models import frozen, heads
from tellapart.training import setup, stages
from tellapart.training.methods import fitted_head
from tellapart.training.methods.fitted_head import Examples, Linear
from tellapart.training.step import Fit, Plan
from tellapart.training.task import Batch, Labelled


def check(head: torch.nn.Module, shape: tuple[int, ...]) -> torch.nn.Linear:
    """Return the head if it is a linear layer on features of ``shape``. Raises ModelError."""
    if not isinstance(head, torch.nn.Linear) or len(shape) != 1:
        raise ModelError(f"its last layer is no linear layer on one vector ({type(head).__name__})")
    return head


def cut_off(
    model: torch.nn.Module, blocks: Sequence[Sequence[str]], prepared: setup.RunData, device: torch.device
) -> frozen.Split:
    """Return the network cut before its head. Raises ModelError, saying why, if that cannot be."""
    contract = prepared.contract
    generator = torch.Generator().manual_seed(0)
    trial = torch.randn(2, contract.channels, *contract.sides, generator=generator)
    return frozen.Split(model, blocks, trial.to(device))


def able(prepared: setup.RunData, model: torch.nn.Module) -> setup.RunData:
    """Return ``prepared``, with a head that trains by steps if a fitted one was chosen and the network's cannot be.

    Raises SpecError if a fitted head was asked for.
    """
    if not stages.fitted_at(prepared.spec, 0):
        return prepared
    try:
        cut = cut_off(model, heads.blocks(model), prepared, next(model.parameters()).device)
        check(cut.head.layer, cut.shape)
    except ModelError as error:
        if not prepared.resolution.leaves("model.head"):
            raise SpecError(
                f"model.head is fitted, and the head of {prepared.spec.model.name} cannot be fitted: {error}. Use "
                "--model.head gradient."
            ) from error
        return dataclasses.replace(prepared, resolution=prepared.resolution.without_fit(str(error)))
    return prepared


class HeadFit:
    """Fits the head of a plan's network to the features of ``train``; see `fitted_head.fit`."""

    def __init__(
        self, plan: Plan, head: torch.nn.Module, train: ImageSet, val: ImageSet | None, device: torch.device
    ) -> None:
        assert isinstance(head, torch.nn.Linear)
        assert isinstance(plan.task, Labelled)
        self.plan, self.head, self.task = plan, head, plan.task
        self.train, self.val = train, val
        self.device = torch.device("cpu") if device.type == "mps" else device  # which has no float64

    def __call__(self) -> Fit:
        """Set the head's weights; return what was done."""
        train = self._examples(self.train)
        val = None if self.val is None else self._examples(self.val)
        has_bias, classes = self.head.bias is not None, self.head.out_features
        fitted = fitted_head.fit(train, val, classes, self._losses, self.plan.spec.seed, has_bias)
        with torch.no_grad():
            self.head.weight.copy_(fitted.layer.weight)
            if has_bias:
                self.head.bias.copy_(fitted.layer.bias)
        text = (
            f"the head is fitted to features of {many(len(train), 'image')}; weight decay "
            f"{numerals.setting(fitted.decay)}, the best of {fitted.tried} on {fitted.chosen_on}"
        )
        return Fit(text, *self._sums(fitted.layer, train), len(train))

    def _losses(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.task.by_labels(logits, Batch(logits, targets, targets))

    @torch.no_grad()
    def _sums(self, layer: Linear, train: Examples) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the sums of the loss and of the task's metrics over the training images."""
        logits = torch.cat([layer.logits(part) for part in train.features.split(fitted_head.CHUNK)])
        batch = Batch(logits, train.targets, train.targets)
        name = self.task.metrics[0]
        return self._losses(logits, train.targets).sum(), {name: self.task.counted(logits, batch)}

    def _examples(self, images: ImageSet) -> Examples:
        """Return the features of a set, which stay in their file where the device is the CPU, and the targets."""
        samples = images.samples
        targets: Any = torch.from_numpy(samples.labels if samples.targets is None else samples.targets)
        if samples.targets is not None:
            targets = targets.float()
        values = images.store.images_NHWC
        assert values is not None
        return Examples(values[:, 0].to(self.device), targets.to(self.device))
