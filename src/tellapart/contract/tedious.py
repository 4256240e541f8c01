"""Image files with very many segments, which are made to keep a decoder busy. Knows nothing of pixels."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # neither a stuffed byte nor a restart
_MAX_SCANS, _MAX_SEGMENTS = 100, 1000  # encoders write at most ten scans, and a few dozen segments
_MAX_CHUNKS, _CHUNK = 10_000, 1024  # of a PNG; the usual encoder writes one for each 8 KiB


def tedious(name: str, content: bytes) -> bool:
    """Return whether a file of the format ``name`` has more segments than any ordinary file."""
    found = _RULES.get(name)
    return found is not None and found(content)


def _png(content: bytes) -> bool:
    place = 8
    for _ in range(max(_MAX_CHUNKS, len(content) // _CHUNK)):
        place += 12 + int.from_bytes(content[place : place + 4], "big")
        if place >= len(content):
            return False
    return True


def _jpeg(content: bytes) -> bool:
    """Return whether there are very many scans or segments.

    Each scan of a progressive JPEG may go over all pixels in a few bytes: 20 MB of them take an hour. The walk ends
    with the first image; the decoder ignores what follows it (such as a phone's video).
    """
    if (
        content.count(b"\xff") - content.count(b"\xff\0") <= _MAX_SEGMENTS
        and content.count(b"\xff\xda") <= _MAX_SCANS
    ):
        return False  # of most files, in a twentieth of the time
    place, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _JPEG_MARKER.search(content, place)
        if marker is None or marker[1] == b"\xd9" or scans > _MAX_SCANS:
            break
        place = marker.end()
        if marker[1] not in (b"\x01", b"\xd8"):
            place += int.from_bytes(content[place : place + 2], "big")
        scans += marker[1] == b"\xda"
    else:
        return True
    return scans > _MAX_SCANS


_RULES: Mapping[str, Callable[[bytes], bool]] = {"JPEG": _jpeg, "PNG": _png}
