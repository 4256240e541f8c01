"""From a stranger's bytes to pixels for a model, within limits. Knows nothing of HTTP.

What is checked before a pixel is decoded: that the content is one of the accepted formats (the content decides, never
a name or a declared type, which programs take from the name), that the file is not an archive or a document as well,
and, by the contract's own decoder, how many parts a JPEG or PNG has, the number of pixels and the proportions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tellapart.contract import BadImage, Pixels, Preprocessing
from tellapart.contract.decoding import check_dimensions, recognise
from tellapart.contract.resizing import open_pixels
from tellapart.runtime import Backend
from tellapart.serve.refusal import Refusal

_ZIP_END, _ZIP_END_BYTES, _ZIP_COMMENT = b"PK\x05\x06", 22, 65_535
_HEAD = 1024  # PDF readers look this far for its signature, and browsers for HTML


class ImageReader:
    """Reads images for a service: ``formats`` as in the options, at most ``max_pixels`` each."""

    def __init__(self, formats: Sequence[str], max_pixels: int) -> None:
        self._formats, self._max_pixels = frozenset(formats), max_pixels

    def files(
        self, files: Sequence[bytes], backend: Backend, late: Callable[[], bool], first: int = 0
    ) -> Pixels:
        """Return images sized by the contract, [n, H, W, C] of its depth, of image files.

        Gives up with 504 as soon as ``late()``. Raises Refusal with the image's index, counted from ``first``.
        """
        contract = backend.card.preprocessing
        images = np.empty((len(files), *contract.sides, contract.channels), contract.depth)
        for place, content in enumerate(files):
            if late():
                raise Refusal(504, "deadline", "the deadline passed before there was an answer")
            try:
                images[place] = _prepared(backend, self._decode(content, contract))
            except BadImage as error:
                raise Refusal(422, "bad_image", f"bad image: {error.reason}", image=first + place) from None
            except Refusal as refusal:
                refusal.more = {"image": first + place}
                raise
            except MemoryError:
                raise Refusal(
                    503, "out_of_memory", "the service is out of memory at the moment", retry_after=5
                ) from None
        return images

    def arrays(self, images_NHWC: Pixels, backend: Backend, late: Callable[[], bool]) -> Pixels:
        """Return images sized by the contract for levels [n, H, W, 1, 3 or 4], uint8 (float32: of that depth).

        Raises Refusal.
        """
        contract = backend.card.preprocessing
        if fits(images_NHWC, contract):
            return images_NHWC
        if images_NHWC.dtype != np.uint8 and contract.depth == "uint8":
            raise Refusal(400, "bad_tensor", "the model takes pixels of 8 bits: datatype UINT8")
        try:
            check_dimensions(images_NHWC.shape[2], images_NHWC.shape[1], self._max_pixels)
            prepared = []
            for image in images_NHWC:
                if late():
                    raise Refusal(504, "deadline", "the deadline passed before there was an answer")
                prepared.append(_prepared(backend, image))
            return np.stack(prepared)
        except BadImage as error:
            raise Refusal(422, "bad_image", f"bad image: {error.reason}") from None

    def _decode(self, content: bytes, contract: Preprocessing) -> Pixels:
        found = recognise(content).lower().replace(" ", "")
        if found not in self._formats:
            valid = ", ".join(sorted(self._formats))
            raise Refusal(415, "format", f"the image is {found}; accepted are {valid}")
        other = also(content)
        if other:
            raise Refusal(422, "polyglot", f"the image is also {other}")
        return open_pixels(content, contract, self._max_pixels)


def _prepared(backend: Backend, image: Pixels) -> Pixels:
    try:
        return backend.prepare(image)
    except BadImage as error:  # a runtime's own message may follow the colon; it is not for strangers
        raise BadImage(error.reason.partition(": ")[0]) from error


def fits(images_NHWC: Pixels, contract: Preprocessing) -> bool:
    """Return whether the contract would leave these images unchanged, so that nothing need be computed.

    Of floating-point levels that is not known before each is looked at.
    """
    own = (*contract.sides, contract.channels)
    if images_NHWC.dtype != np.uint8 or contract.depth != "uint8":
        return False
    return images_NHWC.shape[1:] == own and (contract.resize != "crop" or contract.crop_fraction == 1)


def also(content: bytes) -> str:
    """Return what else an image file is ("a ZIP archive"), by the signs that other programs use; otherwise "".

    An image does not need them, and a file that is two things at once is made to deceive.
    """
    tail = content[-(_ZIP_END_BYTES + _ZIP_COMMENT) :]
    found = tail.rfind(_ZIP_END)
    if found >= 0 and len(tail) - found >= _ZIP_END_BYTES:
        comment = int.from_bytes(tail[found + 20 : found + 22], "little")
        if comment == len(tail) - found - _ZIP_END_BYTES:
            return "a ZIP archive"
    head = content[:_HEAD].lower()
    if b"%pdf-" in head:
        return "a PDF document"
    if any(sign in head for sign in (b"<html", b"<script", b"<!doctype html", b"<?php")):
        return "a web page or program"
    return ""
