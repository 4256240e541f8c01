"""A network in two parts: the frozen trunk, which turns images into features, and the head, which trains on them.

The cut is the input of the head (`heads.head_names`), found while the network runs, so it needs no knowledge of
families: a bare linear layer, one inside a Sequential, or a ViT's after its norm. The cut is verified: the head on the
features must give the network's own logits, in evaluation and in training mode. Knows nothing of data, of losses, or of
where features are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tellapart.errors import ModelError
from tellapart.models import heads


class FeatureHead(nn.Module):
    """The dropout before the head, if the network has one, and the head itself (not a copy).

    Features [B, ...] -> logits [B, K].
    """

    def __init__(self, layer: nn.Module, dropout: float) -> None:
        super().__init__()
        self.layer, self.dropout = layer, dropout

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, K] for features [B, ...] of the trunk."""
        logits: Tensor = self.layer(functional.dropout(features, self.dropout, self.training))
        return logits


class Split:
    """A network whose only trainable part is its head: ``trunk`` and ``head`` share its parameters.

    ``shape`` is that of one image's features. Raises ModelError (saying why) if the network cannot be cut so that
    features can be computed beforehand.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[Sequence[str]], images: Tensor) -> None:
        """``images``: a few inputs of the network, float32 [n, C, H, W], n at least 2, to verify the cut."""
        names = heads.head_names(model)
        if len(names) != 1:
            raise ModelError(f"the network has {len(names)} heads")
        self.model = model
        self._layer = model.get_submodule(names[0])
        self._name = names[0]
        heads.set_trainable(model, blocks, 1)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        if not trained or not all(heads.is_inside(name, names) for name in trained):
            raise ModelError("the first block of layers is not the last layer alone")
        self.head = self._checked(images)

    @torch.no_grad()
    def trunk(self, images_NCHW: Tensor) -> Tensor:
        """Return features [B, ...] of inputs float32 [B, C, H, W]; the network is in evaluation mode after it."""
        self.model.eval()
        return self._run(images_NCHW)[0]

    def digest(self, model: nn.Module | None = None) -> str:
        """Return a hash of everything that the features depend on inside the network: names, shapes, values.

        ``model``: another network of the same architecture.
        """
        total = hashlib.blake2b(digest_size=16)
        for name, tensor in (model or self.model).state_dict().items():
            if not heads.is_inside(name, (self._name,)):
                total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
                values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
                total.update(values.numpy().data)
        return total.hexdigest()

    @torch.inference_mode()
    def logits(self, model: nn.Module, features: Tensor) -> Tensor:
        """Return what the head of ``model``, of the same architecture, makes of features [B, ...] in evaluation."""
        logits: Tensor = model.get_submodule(self._name).eval()(features)
        return logits

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Run the whole network; return what reached the head, and the logits."""
        seen: list[Tensor] = []

        def remember(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        handle = self._layer.register_forward_pre_hook(remember)
        try:
            logits = self.model(images)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise ModelError(f"the network uses its head {len(seen)} times for an image")
        return seen[0], logits

    @torch.no_grad()
    def _checked(self, images: Tensor) -> FeatureHead:
        """Return the head with the dropout before it, after trying both modes with the same random numbers."""
        modes = [module.training for module in self.model.modules()]
        devices = [images.device] if images.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                self.model.eval()
                features, logits = self._run(images)
                self.shape = tuple(features.shape[1:])
                plain = FeatureHead(self._layer, 0.0).eval()
                if len(features) != len(images) or not _alike(plain(features), logits):
                    raise ModelError("its logits are not the output of its last layer")
                heads.train_mode(self.model)
                torch.manual_seed(0)
                changed, logits = self._run(images)
                for dropout in self._dropouts():
                    torch.manual_seed(0)
                    if not _alike(functional.dropout(features, dropout), changed):
                        continue
                    torch.manual_seed(0)
                    head = FeatureHead(self._layer, dropout).train()
                    if _alike(head(features), logits):
                        return head
        finally:
            for module, mode in zip(self.model.modules(), modes, strict=True):
                module.training = mode
        raise ModelError("there is something random other than a dropout before its last layer")

    def _dropouts(self) -> list[float]:
        """Return the probabilities that a dropout before the head may have, with 0 for none, each once."""
        found = [0.0]
        for module in self.model.modules():
            if isinstance(module, nn.Dropout) and module.training:
                found.append(module.p)
            if isinstance(rate := getattr(module, "drop_rate", None), (int, float)) and 0 < rate < 1:
                found.append(float(rate))  # timm's networks apply it as a function
        return list(dict.fromkeys(found))


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether two results of the same computation are equal except for rounding."""
    if ours.shape != theirs.shape:
        return False
    scale = float(theirs.abs().max()) if theirs.numel() else 0.0
    return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * scale)
