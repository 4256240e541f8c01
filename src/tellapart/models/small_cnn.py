"""tellapart's own networks: the two of the tutorials, and a fast one for small images.

Each takes float32 images ``[B, C, height, width]`` and returns logits ``[B, num_classes]``. Knows nothing of
names, weights or training; :mod:`tellapart.models.zoo` calls the builders with an Architecture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tellapart.contract.sides import Size, longest, shortest, sides, words
from tellapart.errors import ModelError

FLATTEN_UP_TO = 64
"""simple-cnn flattens its maps directly for images of up to this many pixels."""
POOLED = 8
"""For larger images its maps are first averaged to this height and width (the tutorials' own at 32)."""


def initialise(module: nn.Module) -> None:
    """Kaiming's normal initialisation (He et al. 2015, fan-in, ReLU gain) of every convolution and linear
    layer inside ``module``; biases 0. The last layer of a classifier has :func:`initialise_head` instead.
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_head(head: nn.Module) -> None:
    """Kaiming's normal initialisation with gain 1 (weights of variance 1 / fan-in), biases 0.

    Logits then start with the scale of the features, and a new head of a pretrained network starts calm.
    """
    for layer in head.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class TutorialNet(nn.Module):
    """The network of PyTorch's CIFAR-10 tutorial, with its parameter names and PyTorch's default
    initialisation, so that a ``.pth`` written by the tutorial loads as it is.

    Two 5x5 convolutions of 6 and 16 channels without padding, each followed by ReLU and 2x2 max pooling;
    then 120, 84 and ``num_classes`` units. ``size`` at least 16; the first linear layer follows it.
    ReLU comes after the maximum, which gives the same values at a quarter of the cost.
    """

    def __init__(self, num_classes: int, channels: int = 3, size: Size = 32, dropout: float = 0.0) -> None:
        super().__init__()
        height, width = (((side - 4) // 2 - 4) // 2 for side in sides(size))
        self.conv1 = nn.Conv2d(channels, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.dropout = nn.Dropout(dropout)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` -> logits ``[B, num_classes]``."""
        x = functional.relu(self.pool(self.conv1(images)))
        x = functional.relu(self.pool(self.conv2(x)))
        x = torch.flatten(x, 1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(self.dropout(x))
        return logits


def _simple_block(inputs: int, outputs: int, batch_norm: bool, dropout: float) -> nn.Sequential:
    block = nn.Sequential()
    block.add_module("conv", nn.Conv2d(inputs, outputs, 3, padding=1, bias=not batch_norm))
    if batch_norm:
        block.add_module("norm", nn.BatchNorm2d(outputs))
    block.add_module("pool", nn.MaxPool2d(2))
    block.add_module("relu", nn.ReLU())  # after the maximum: the same values, at a quarter of the cost
    block.add_module("dropout", nn.Dropout(dropout / 2))
    return block


class SimpleCNN(nn.Module):
    """The beginners' network: 3x3 convolutions of 32 and 64 channels, each with ReLU and 2x2 max pooling,
    then 512 hidden units.

    Any ``size`` of at least 4. Up to 64 pixels the maps are flattened (32x32 gives the tutorials' 64*8*8 ->
    512); larger images' maps are averaged to 8x8 first, so that the hidden layer stays small.
    ``dropout`` acts before the head, and with half its value after each convolution block.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        size: Size = 32,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        flat = longest(size) <= FLATTEN_UP_TO
        height, width = (side // 4 if flat else POOLED for side in sides(size))
        self.block1 = _simple_block(channels, 32, batch_norm, dropout)
        self.block2 = _simple_block(32, 64, batch_norm, dropout)
        self.pool = nn.Identity() if flat else nn.AdaptiveAvgPool2d(POOLED)
        self.hidden = nn.Linear(64 * height * width, 512)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(512, num_classes)
        initialise(self)
        initialise_head(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` -> logits ``[B, num_classes]``."""
        x = torch.flatten(self.pool(self.block2(self.block1(images))), 1)
        logits: Tensor = self.head(self.dropout(functional.relu(self.hidden(x))))
        return logits


class ConvNormAct(nn.Sequential):
    """3x3 convolution without bias, batch normalisation, GELU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        kernel = stride + 2  # neighbouring windows overlap, and size / stride pixels are left
        self.add_module("conv", nn.Conv2d(inputs, outputs, kernel, stride, padding=1, bias=False))
        self.add_module("norm", nn.BatchNorm2d(outputs))
        self.add_module("act", nn.GELU())


class FastStage(nn.Module):
    """Halves the resolution (or not), then one convolution to the new width and one residual convolution.

    Pooling comes before the first convolution, which is then four times cheaper.
    """

    def __init__(self, inputs: int, outputs: int, pool: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.enter = ConvNormAct(inputs, outputs)
        self.residual = ConvNormAct(outputs, outputs)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[B, inputs, H, W]`` -> ``[B, outputs, H / 2 or H, W / 2 or W]``."""
        x = self.enter(self.pool(maps))
        out: Tensor = x + self.residual(x)
        return out


def stem_stride(size: Size) -> int:
    """Return by how much fast-cnn's stem shrinks an image, so that its maps' short side is at most 48 pixels."""
    stride, short = 1, shortest(size)
    while short > 48 * stride:
        stride *= 2
    return stride


class FastCNN(nn.Module):
    """A small residual network that learns much per second of processor time.

    A thin stem works at the full resolution (images above 48 pixels: at a half, a quarter, ...), three stages of
    two 3x3 convolutions follow, each at half the resolution of the one before, so that most of the work is done
    on few pixels. Maps of fewer than 24 pixels are not halved before the first stage (8x8 digits). A global
    average and a linear head end it. About 60 MFLOP (30 million multiply-adds) for a 32x32 image, 0.9 million
    parameters. ``size`` of at least 4. ``widths``: channels of the stem and of the three stages.
    """

    WIDTHS = (24, 48, 112, 224)
    SMALL = (16, 24, 56, 112)
    """A quarter of the parameters and of the work: a student, or a network for a small processor."""

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        size: Size = 32,
        dropout: float = 0.0,
        widths: tuple[int, int, int, int] = WIDTHS,
    ) -> None:
        super().__init__()
        stride = stem_stride(size)
        stem, first, second, third = widths
        self.stem = ConvNormAct(channels, stem, stride)
        self.stage1 = FastStage(stem, first, pool=shortest(size) // stride >= 24)
        self.stage2 = FastStage(first, second, pool=True)
        self.stage3 = FastStage(second, third, pool=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(third, num_classes)
        initialise(self)
        initialise_head(self.head)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` -> logits ``[B, num_classes]``."""
        x = self.stage3(self.stage2(self.stage1(self.stem(images))))
        logits: Tensor = self.head(self.dropout(torch.flatten(self.pool(x), 1)))
        return logits


def check_size(name: str, size: Size, smallest: int) -> None:
    """Raise ModelError if images of ``size`` pixels are too small for the network ``name``."""
    if shortest(size) < smallest:
        raise ModelError(
            f"{name} cannot take images of {words(size)} pixels; the smallest it takes is "
            f"{smallest}x{smallest}. Give a larger --input.size, or another --model.name."
        )
