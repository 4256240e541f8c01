"""A network's features: the input of its last layer, without changing the network.

The last layer is found as for a frozen head (`heads.head_names`), while the network runs. Knows nothing of files.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from tellapart.errors import ModelError
from tellapart.models import heads


class Capture:
    """Runs a network and returns its features beside its logits; may be called from several threads at once.

    Features are float [B, F]. If the last layer gets a map or a row of tokens (as in SqueezeNet), they are the mean
    over its positions; with several last layers (distilled networks) the inputs of all are concatenated.
    """

    def __init__(self, model: nn.Module) -> None:
        """Raises ModelError if the network has no last layer."""
        names = heads.head_names(model)
        if not names:
            raise ModelError("The network has no linear layer or convolution, and so no features.")
        self._model, self._count = model, len(names)
        self._own = threading.local()  # other threads run the same layers
        for name in names:
            model.get_submodule(name).register_forward_pre_hook(self._note)

    def __call__(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, K] and features [B, F]. Raises ModelError if the network does not use its last layer."""
        self._own.seen = []
        try:
            logits = self._model(images_NCHW)
            seen: list[Tensor] = self._own.seen
        finally:
            self._own.seen = None
        if len(seen) != self._count:
            raise ModelError(
                f"The network uses its last layer {len(seen)} times for an image, so its features are not known."
            )
        return logits, seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)

    def joint(self, images_NCHW: Tensor) -> Tensor:
        """Return logits and features side by side, [B, K + F], so that both are averaged over views in the same way."""
        return torch.cat(self(images_NCHW), dim=1)

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if getattr(self._own, "seen", None) is None:
            return
        value = inputs[0]
        if isinstance(layer, nn.Conv2d):
            value = value.mean(dim=(2, 3))
        elif value.ndim > 2:
            value = value.mean(dim=tuple(range(1, value.ndim - 1)))
        self._own.seen.append(value)
