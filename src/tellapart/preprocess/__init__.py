"""The preprocessing contract: from a file's bytes to the network's input, by one piece of code.

Training's sources, evaluation, prediction and every export go through here. The rules are data
(`tellapart.contract`); `transform` computes the input from pixels, and `views` the average over several versions of an
image. Knows nothing of where bytes come from, of augmentation, of labels or of models.
"""

from tellapart.contract.decoding import (
    MAX_ASPECT,
    MAX_PIXELS,
    MAX_SIDE,
    BadImage,
    Pixels,
    crop_box,
    decode,
    to_channels,
)
from tellapart.contract.preprocessing import REDUCED_MARGIN, Preprocessing
from tellapart.contract.resizing import load, resize
from tellapart.contract.views import Views
from tellapart.preprocess.ragged import Images, Ragged, as_tensor
from tellapart.preprocess.transform import (
    PreprocessModule,
    as_module,
    denormalise,
    fit_short_side,
    normalise,
    normalise_,
    slices,
)
from tellapart.preprocess.views import averaged, with_others

__all__ = [
    "MAX_ASPECT",
    "MAX_PIXELS",
    "MAX_SIDE",
    "REDUCED_MARGIN",
    "BadImage",
    "Images",
    "Pixels",
    "PreprocessModule",
    "Preprocessing",
    "Ragged",
    "Views",
    "as_module",
    "as_tensor",
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
    "with_others",
]
