"""What a classifier is beside its weights, as data, and the decoding of image files.

Loads no torch, so that a service with another runtime needs none. Knows nothing of how the rules are computed on
tensors (`tellapart.preprocess`), or of files that hold models (`tellapart.artifact`, `tellapart.runtime`).
"""

from tellapart.contract.architecture import Architecture
from tellapart.contract.card import Card
from tellapart.contract.decoding import BadImage, Pixels, decode
from tellapart.contract.preprocessing import Preprocessing
from tellapart.contract.views import Views

__all__ = ["Architecture", "BadImage", "Card", "Pixels", "Preprocessing", "Views", "decode"]
