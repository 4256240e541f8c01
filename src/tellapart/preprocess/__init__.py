"""The preprocessing contract: from a file's bytes to the network's input, by one piece of code.

Training's sources, evaluation, prediction, every export and serving go through here. `decoding` says by which
rules bytes become pixels, `contract` how pixels become the input, and
`views` over which versions of an image the answer is averaged. Knows nothing of where bytes come from, of
augmentation, of labels or of models.
"""

from tellapart.preprocess.contract import (
    REDUCED_MARGIN,
    Preprocessing,
    PreprocessModule,
    as_module,
    denormalise,
    fit_short_side,
    load,
    normalise,
    normalise_,
    resize,
    slices,
)
from tellapart.preprocess.decoding import (
    MAX_ASPECT,
    MAX_PIXELS,
    MAX_SIDE,
    BadImage,
    Pixels,
    crop_box,
    decode,
    to_channels,
)
from tellapart.preprocess.views import Views, averaged

__all__ = [
    "MAX_ASPECT",
    "MAX_PIXELS",
    "MAX_SIDE",
    "REDUCED_MARGIN",
    "BadImage",
    "Pixels",
    "PreprocessModule",
    "Preprocessing",
    "Views",
    "as_module",
    "averaged",
    "crop_box",
    "decode",
    "denormalise",
    "fit_short_side",
    "load",
    "normalise",
    "normalise_",
    "resize",
    "slices",
    "to_channels",
]
