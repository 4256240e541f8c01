"""Networks for small images that learn in few epochs: a whitening layer, then groups of 3x3 convolutions.

The design is that of cifar10-airbench (Jordan 2024, arXiv:2404.00498): the first layer decorrelates 2x2 patches
by statistics of the training images and is not trained, convolutions begin as the identity, and the norms have no
scale. Each network takes float32 images ``[B, C, height, width]`` and returns logits ``[B, num_classes]``. Knows
nothing of training; ``initialise_from``, ``early_parameters`` and ``muon_weights`` say what a trainer should know.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tellapart.contract.sides import Size, shortest
from tellapart.models.small_cnn import stem_stride

PATCH = 2
SMALL = (32, 128, 128)
"""Half the widths: about a quarter of the work, for few images or a processor without half precision."""
EPSILON = 5e-4
"""Added to each variance, so that directions in which patches hardly differ are not amplified to noise."""
_CHUNK = 256  # images whose patches are in memory at once


def whitening_filters(images_NCHW: Tensor) -> Tensor:
    """Return filters that decorrelate the images' 2x2 patches: float32 ``[2 * 4 * C, C, 2, 2]``.

    ``images_NCHW``: float32, normalised. The first half are the eigenvectors of the patches' second moments
    (they are about centred), each divided by the root of its eigenvalue plus :data:`EPSILON`, largest first;
    the second half are the same with the other sign, so that a rectifier keeps both sides of each. The sign of
    a vector is such that its largest entry is positive.
    """
    channels = images_NCHW.shape[1]
    width = channels * PATCH * PATCH
    moments = torch.zeros(width, width, dtype=torch.float64)
    count = 0
    for chunk in images_NCHW.split(_CHUNK):
        patches = functional.unfold(chunk.double(), PATCH)  # [b, width, places]
        moments += torch.einsum("bip,bjp->ij", patches, patches)
        count += patches.shape[0] * patches.shape[2]
    values, vectors = torch.linalg.eigh(moments / count)
    values, rows = values.flip(0), vectors.T.flip(0)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    filters = rows * largest.sign() / (values.clamp(min=0) + EPSILON).sqrt()[:, None]
    return torch.cat([filters, -filters]).view(-1, channels, PATCH, PATCH).float()


class Whitening(nn.Module):
    """Convolution with fixed filters (a buffer, in the state dict) and a bias that trains."""

    weight: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        outputs = 2 * channels * PATCH * PATCH
        filters = torch.empty(outputs // 2, channels, PATCH, PATCH)
        nn.init.orthogonal_(filters)  # until the training images are known
        self.register_buffer("weight", torch.cat([filters, -filters]))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` -> ``[B, 8 * C, H - 1, W - 1]``."""
        return functional.conv2d(images, self.weight, self.bias)


class BiasNorm(nn.BatchNorm2d):
    """Batch normalisation with a bias and without a scale, whose running statistics follow quickly."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.2)
        self.register_parameter("weight", None)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[B, channels, H, W]``, normalised."""
        if not maps.is_cuda or not self.training:
            return super().forward(maps)
        # torch's CUDA kernels for channels-last maps return a gradient for the scale whether there is one or not.
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        scale = torch.ones_like(self.bias)
        return functional.batch_norm(
            maps, self.running_mean, self.running_var, scale, self.bias, True, self.momentum or 0.0, self.eps
        )

    def reset_parameters(self) -> None:
        """Begin with a bias of 0."""
        self.reset_running_stats()
        nn.init.zeros_(self.bias)


class WhitenedGroup(nn.Module):
    """A convolution to the new width and 2x2 max pooling, then one more or two, the second of them residual.

    Pooling comes before the norm, which then works on a quarter of the values. ``pool``: whether the maps are
    large enough to be halved.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, pool: bool) -> None:
        super().__init__()
        convs = [_conv(inputs if place == 0 else outputs, outputs) for place in range(depth)]
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(BiasNorm(outputs) for _ in convs)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        """Maps ``[B, inputs, H, W]`` -> ``[B, outputs, H / 2 or H, W / 2 or W]``."""
        first = x = functional.gelu(self.norms[0](self.pool(self.convs[0](maps))))
        for place, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if place:
                x = norm(conv(x))
                x = functional.gelu(x + first if place == 2 else x)
        return x


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a 3x3 convolution whose first ``inputs`` filters pass their own channel on."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:inputs])
    return conv


class WhitenedCNN(nn.Module):
    """Whitening, three groups at widths of ``widths`` with ``depth`` convolutions each, maximum, linear head.

    Images above 48 pixels are averaged over 2x2, 4x4, ... pixels first; maps of fewer than 4 pixels are not
    halved. With 32x32 images the maps are 31, 15, 7 and 3 pixels wide. ``size`` of at least 4; the weights do not
    depend on it. Widths 64, 256, 256 with depth 2: 2.0 million parameters, 0.24 GFLOP in an image's forward
    pass; widths 128, 384, 512 with depth 3: 9.9 million and 0.9 GFLOP.

    The whitening filters are set by ``initialise_from`` before training; until then they are random ones.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 3,
        size: Size = 32,
        dropout: float = 0.0,
        widths: tuple[int, int, int] = (64, 256, 256),
        depth: int = 2,
    ) -> None:
        super().__init__()
        stride = stem_stride(size)
        side = shortest(size) // stride - PATCH + 1
        self.shrink = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.whiten = Whitening(channels)
        inputs = 2 * channels * PATCH * PATCH
        groups = []
        for width in widths:
            pool = side >= 4
            groups.append(WhitenedGroup(inputs, width, depth, pool))
            side, inputs = side // 2 if pool else side, width
        self.groups = nn.Sequential(*groups)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(inputs, num_classes, bias=False)
        # Small logits: the features' maxima are all positive and of one size, and label smoothing wants little.
        nn.init.normal_(self.head.weight, std=1 / inputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``[B, C, H, W]`` -> logits ``[B, num_classes]``."""
        x = self.groups(functional.gelu(self.whiten(self.shrink(images))))
        # Not amax, whose gradient divides by how often the maximum occurs: compiled in bf16, where a recomputed map is
        # rounded differently, that may be never.
        largest = functional.max_pool2d(x, tuple(x.shape[2:])).flatten(1)
        logits: Tensor = self.head(self.dropout(largest))
        return logits

    @torch.no_grad()
    def initialise_from(self, images_NCHW: Tensor) -> None:
        """Set the whitening filters by training images, float32 ``[n, C, height, width]``, normalised."""
        self.whiten.weight.copy_(whitening_filters(self.shrink(images_NCHW)))

    def early_parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters that need only the first epochs."""
        return ("whiten.bias",)

    def muon_weights(self) -> set[str]:
        """Return the names of the weights that Muon is made for: all convolutions, as the first layer is fixed."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim == 4}
