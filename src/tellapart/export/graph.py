"""The whole classifier as one torch module, which every exporter traces: from an image's pixels to probabilities.

It is made of parts, so that formats that cannot express the resizing can use the rest. Knows no format.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tellapart import artifact
from tellapart.contract import Card, Views
from tellapart.models.features import Capture
from tellapart.preprocess import PreprocessModule, as_module, with_others


class Resize(nn.Module):
    """The contract's resizing: [B, H, W, C] of any H, W -> [B, height, width, C], called ``pixels``.

    Both are uint8, or float32 where the contract's depth is.

    B, H and W may be symbols; all images of a batch have one size.
    """

    def __init__(self, preprocess: PreprocessModule) -> None:
        super().__init__()
        self.preprocess = preprocess

    def forward(self, images_NHWC: Tensor) -> Tensor:
        """Return the pixels."""
        pixels = self.preprocess.sized(images_NHWC).permute(0, 2, 3, 1)
        return pixels if self.preprocess.contract.depth == "float32" else pixels.to(torch.uint8)


class Classify(nn.Module):
    """From the contract's pixels, [B, height, width, C] of its depth, to probabilities and logits, float32 [B, K] each.

    Logits are averaged over the card's views; probabilities are the softmax (of several labels: the sigmoids) of logits
    / temperature. ``features``: the input of the last layer, averaged in the same way, float32 [B, F], comes third.
    """

    def __init__(
        self, preprocess: PreprocessModule, network: nn.Module, card: Card, features: bool = False
    ) -> None:
        super().__init__()
        self.capture = Capture(network) if features else None
        self.preprocess, self.network = preprocess, network
        self.views, self.card = card.views, card

    def forward(self, pixels_NHWC: Tensor) -> tuple[Tensor, ...]:
        """Return (probabilities, logits), and features where they were asked for."""
        images = self.preprocess.normalised(pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32))
        if self.capture is not None:
            return self._with_features(self.capture, images)
        logits = averaged_in_graph(self.network, images, self.views)
        return told_in_graph(logits, self.card), logits

    def _with_features(self, capture: Capture, images: Tensor) -> tuple[Tensor, ...]:
        if self.views.count == 1:
            logits, features = capture(images)
        else:
            count = len(self.card.classes)
            both = averaged_in_graph(capture.joint, images, self.views, count)
            logits, features = both[:, :count], both[:, count:]
        return told_in_graph(logits, self.card), logits, features


class Bare(nn.Module):
    """A bare network with features: normalised float32 [B, C, height, width] -> logits [B, K], features [B, F]."""

    def __init__(self, network: nn.Module, capture: Capture) -> None:
        super().__init__()
        self.network, self._capture = network, capture

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and features."""
        return self._capture(images_NCHW)


class GraphModel(nn.Module):
    """Levels [B, H, W, C] of any size -> (probabilities, logits), float32 [B, K]: `Resize`, then `Classify`.

    With ``features`` these come third. Raises ModelError if the network has none.
    """

    def __init__(self, network: nn.Module, card: Card, features: bool = False) -> None:
        super().__init__()
        self.card = card
        preprocess = as_module(card.preprocessing)
        self.resize = Resize(preprocess)
        self.classify = Classify(preprocess, network, card, features)
        self.eval()

    @property
    def network(self) -> nn.Module:
        """The bare network: normalised float32 [B, C, height, width] -> logits [B, K], one view."""
        return self.classify.network

    @property
    def bare(self) -> nn.Module:
        """What a plain file holds: `network`; where features were asked for, it gives (logits, features)."""
        capture = self.classify.capture
        return self.network if capture is None else Bare(self.network, capture)

    def forward(self, images_NHWC: Tensor) -> tuple[Tensor, ...]:
        """Return (probabilities, logits), and features where they were asked for."""
        outputs: tuple[Tensor, ...] = self.classify(self.resize(images_NHWC))
        return outputs

    def example(self, batch: int = 2) -> Tensor:
        """Return noise of an image's shape, larger than the input and not square: levels [batch, H, W, C]."""
        contract = self.card.preprocessing
        generator = torch.Generator().manual_seed(0)
        height, width = contract.sides
        shape = (batch, height + 37, width + 61, contract.channels)
        if contract.depth == "float32":
            return 255 * torch.rand(shape, generator=generator)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def example_pixels(self, batch: int = 2) -> Tensor:
        """Return noise of the contract's size: levels [batch, height, width, C]."""
        height, width = self.card.preprocessing.sides
        return self.example(batch)[:, :height, :width].contiguous()


def told_in_graph(logits: Tensor, card: Card) -> Tensor:
    """Return `contract.answers.probabilities` as a graph's operations: float32 [B, K]."""
    scaled = logits if card.temperature == 1 else logits / card.temperature
    return _KINDS[card.kind](scaled)


_KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "single": lambda scaled: scaled.softmax(1),
    "multi-label": lambda scaled: scaled.sigmoid(),
}


def averaged_in_graph(
    network: Callable[[Tensor], Tensor], images_NCHW: Tensor, views: Views, classes: int | None = None
) -> Tensor:
    """Return `preprocess.averaged` by operations that do not depend on values: float32 [B, K].

    With ``views.below``, all views are computed and the first view's answer or the average is chosen for each image, so
    it saves no time in a graph.
    """
    first: Tensor = network(images_NCHW).float()
    if views.count == 1:
        return first
    average = with_others(network, images_NCHW, views, first)
    own = first[:, :classes] if classes is not None else first
    if views.below >= 1 or own.shape[1] < 2:
        return average
    probabilities = own.softmax(1)  # the two largest without `topk`, which not every format has
    best = probabilities.argmax(1, keepdim=True)
    others = torch.where(torch.arange(own.shape[1], device=first.device) == best, -1.0, probabilities)
    doubtful = probabilities.amax(1, keepdim=True) - others.amax(1, keepdim=True) < views.below
    return torch.where(doubtful, average, first)


def graph_of(model: str | os.PathLike[str], features: bool = False) -> GraphModel:
    """Return the graph of a run folder or an artifact, float32 on the CPU. Raises ArtifactError, ModelError."""
    predictor = artifact.open_model(model)
    network = predictor.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return GraphModel(network.requires_grad_(False), predictor.card, features)
