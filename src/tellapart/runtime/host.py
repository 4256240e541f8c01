"""What a backend does with an image before its graph: decoding by the contract. Loads no torch."""

from __future__ import annotations

import numpy as np

from tellapart.contract import Pixels, Preprocessing, decode
from tellapart.contract.decoding import MAX_PIXELS, to_channels


def upright(content: bytes | Pixels, contract: Preprocessing) -> Pixels:
    """Return an image's own pixels: a file's bytes or uint8 [H, W(, C)] -> uint8 [h, w, C], upright.

    A JPEG may be reduced while it is decoded, as the contract says. Raises BadImage.
    """
    if isinstance(content, np.ndarray):
        return np.ascontiguousarray(to_channels(content, contract.channels))
    suffices = contract.suffices if contract.decode == "scaled" else None
    return decode(content, contract.channels, MAX_PIXELS, suffices)
