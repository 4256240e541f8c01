"""Random changes of training images: batched, on the device of the batch, each image with its own parameters.

In distribution the whole equals this composition of torchvision's transforms v2 (the tests compare them), but for
a resized crop with an affine map, which are one resampling here:

==============================  =============================================================================
crop=pad                        RandomCrop(size, padding=crop_padding, padding_mode=constant 0 | reflect)
crop=resized                    RandomResizedCrop(size, crop_scale, crop_ratio, bilinear, antialias=True)
hflip, vflip                    RandomHorizontalFlip, RandomVerticalFlip; hflip_mode=alternating is not theirs
rotation, translate, scale,     RandomAffine(rotation, (translate, translate), scale, shear, bilinear), with
shear                           what ``padding_mode`` says outside of the image
policy                          RandAugment(policy_ops, policy_magnitude) or TrivialAugmentWide()
brightness ... hue              ColorJitter
normalise                       `tellapart.preprocess.normalise`
erasing                         RandomErasing(erasing), value 0 after normalisation, which is the mean colour
cutout                          Cutout (arXiv:1708.04552) with the square wholly inside, value 0 as above
mixup, cutmix                   MixUp, CutMix, one of the two for each batch
==============================  =============================================================================

The order of the four colour changes is drawn for the batch and not for each image, which leaves one image's
distribution as it is. Colours and affine maps are computed in floating point and not rounded to integers in
between, except before a policy, which is defined on integers. MixUp and CutMix draw from numpy's beta.

Crops with padding and flips copy pixels and change none. A resized crop is computed as torchvision does for
uint8 images: on the CPU with the same 8-bit kernel, a call for each image, because a batched `grid_sample` has
no anti-aliasing and two matrix products take thirty times as long; on other devices as two batched matrix
products with the same filter, which may differ by one of 255 levels. The affine map is one bilinear resampling
of all images at once; with crop=pad or without a crop it is the only one, because crops with padding and flips
move whole pixels. A resized crop with an affine map is one resampling too (`tellapart.augment.resample`), where
torchvision's composition is two; the same numbers are drawn. On the CPU a batch
goes through in parts that stay in the cache, each by one thread.

Everything random comes from the generator given (on the CPU), so a step can be repeated exactly. Nothing
here knows labels' meaning, files, models or the loop.
"""

from tellapart.augment.mix import Mix
from tellapart.augment.params import Params
from tellapart.augment.pipeline import Augment, needs_large_source
from tellapart.augment.presets import check_depth, describe, for_channels, resolve

__all__ = [
    "Augment",
    "Mix",
    "Params",
    "check_depth",
    "describe",
    "for_channels",
    "needs_large_source",
    "resolve",
]
