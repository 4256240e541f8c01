"""Folders in which one picture lies in several class folders, which then are its labels: by links, or by copies.

Knows nothing of how folders become classes.
"""

from __future__ import annotations

import os

from tellapart.data.sources.copies import same_bytes
from tellapart.data.sources.listing import Listing, Note, many
from tellapart.errors import DataError


def merged(listing: Listing, note: Note) -> Listing:
    """Return the listing with one row for each picture of a split, which has the labels of all its copies.

    A copy is the same file (a symbolic or a hard link) or one of the same bytes. Raises DataError where there are no
    files to compare.
    """
    if listing.pixels is not None or listing.boxes is not None:
        raise DataError(
            "data.labels is multi, and this source has one label for each image: several are read from lists, "
            "annotation files, and folders in which a picture lies in each of its classes."
        )
    files = [os.path.join(listing.root, path) for path in listing.paths]
    kinds = [
        kind or os.path.realpath(file).encode("utf-8", "surrogateescape")
        for kind, file in zip(same_bytes(files), files, strict=True)
    ]
    rows: dict[tuple[bytes, str], int] = {}
    sets: list[dict[str, None]] = []
    kept: list[int] = []
    for row in sorted(range(len(files)), key=lambda n: listing.paths[n]):
        key = (kinds[row], listing.splits[row])
        if key not in rows:
            rows[key] = len(kept)
            kept.append(row)
            sets.append({})
        sets[rows[key]][listing.labels[row]] = None
    several = sum(len(names) > 1 for names in sets)
    note(
        f"{many(several, 'picture')} in several class folders (the same file, or the same bytes): their names are its "
        f"labels. {many(len(kept), 'picture')} in {many(len(files), 'file')}."
    )
    for name in ("paths", "splits", "groups", "keys"):
        column = getattr(listing, name)
        if column is not None:
            setattr(listing, name, [column[row] for row in kept])
    listing.labels = [""] * len(kept)
    listing.sets = [tuple(names) for names in sets]
    return listing
