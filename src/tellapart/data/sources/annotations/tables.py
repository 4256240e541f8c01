"""From labelled boxes to the rows of a listing: one for each image, or one for each box."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from tellapart.data.samples import Conflict
from tellapart.data.sources.annotations.entries import Labelled
from tellapart.data.sources.listing import NO_BOX, Box, Listing, Note, clean_label, many, some


def images(
    listing: Listing,
    objects: Mapping[str, list[Labelled]],
    splits: Mapping[str, str],
    _: set[str],
    note: Note,
) -> Listing:
    """Fill the listing with one row for each image that has one label."""
    empty = 0
    for image, found in sorted(objects.items()):
        labels = {label for label, _ in found}
        if not labels:
            empty += 1
        elif len(labels) > 1:
            listing.conflicts.append(Conflict(image, tuple(sorted(labels))))
        else:
            listing.add(image, labels.pop(), splits[image])
    if empty:
        note(f"Skipped {many(empty, 'image')} without a labelled box.")
    if listing.conflicts:
        note(
            f"Skipped {many(len(listing.conflicts), 'image')} with boxes of more than one label "
            f"({some([c.path for c in listing.conflicts], 3)}). --data.boxes crop makes a sample of each box, "
            "--data.labels multi gives the image all of them."
        )
    return listing


def sets(
    listing: Listing,
    objects: Mapping[str, list[Labelled]],
    splits: Mapping[str, str],
    note: Note,
    opinions: Mapping[str, Sequence[frozenset[str]]] | None = None,
    mark: str = "",
) -> Listing:
    """Fill the listing with one row for each image, with all labels of its boxes, or none.

    ``opinions``: of images, what each annotator said; where they do not agree, that is a conflict. ``mark``: what
    stands between several labels in a text, where they are written so.
    """
    listing.sets = []
    for image, found in sorted(objects.items()):
        names = frozenset(label for label, _ in found)
        if len({names & said for said in (opinions or {}).get(image, ())}) > 1:
            listing.conflicts.append(Conflict(image, tuple(sorted(names))))
        else:
            listing.add_set(image, tuple(sorted(_parts(names, mark))), splits[image])
    if listing.conflicts:
        first = some([c.path for c in listing.conflicts], 3)
        note(f"Skipped {many(len(listing.conflicts), 'image')} whose annotators gave other labels ({first}).")
    several = sum(len(names) > 1 for names in listing.sets)
    bare = sum(not names for names in listing.sets)
    note(
        f"Labels of whole images: {many(several, 'image')} with several, {bare:,} annotated with none (no class is in "
        "them)."
    )
    return listing


def _parts(names: Iterable[str], mark: str) -> set[str]:
    """Return the labels that names hold, separated by ``mark`` where there is one."""
    parts = (part for name in names for part in (name.split(mark) if mark else (name,)))
    return {clean_label(part) for part in parts} - {""}


def crops(
    listing: Listing,
    objects: Mapping[str, list[Labelled]],
    splits: Mapping[str, str],
    relative: set[str],
    note: Note,
) -> Listing:
    """Fill the listing with one row for each box; the same box twice is one row, with two labels a conflict."""
    listing.boxes = []
    empty = hollow = 0
    for image, found in sorted(objects.items()):
        empty += not found
        size = _upright_size(listing, image) if image in relative and found else None
        labels: dict[str, set[str]] = defaultdict(set)
        boxes: dict[str, Box] = {}
        for label, box in found:
            pixels = _in_pixels(box, size) if image in relative else box
            if pixels[0] >= pixels[2] or pixels[1] >= pixels[3]:
                hollow += 1
                continue
            labels[str(pixels)].add(label)
            boxes[str(pixels)] = pixels
        for key, names in labels.items():
            if len(names) > 1:
                listing.conflicts.append(Conflict(image, tuple(sorted(names))))
            else:
                listing.add(image, names.pop(), splits[image])
                listing.boxes.append(boxes[key])
    empties = ((empty, "image without a box", "images without boxes"), (hollow, "empty box", "empty boxes"))
    for number, one, several in empties:
        if number:
            note(f"Skipped {many(number, one, several)}.")
    if listing.conflicts:
        note(f"Skipped {many(len(listing.conflicts), 'box', 'boxes')} with more than one label.")
    return listing


def _upright_size(listing: Listing, image: str) -> tuple[int, int] | None:
    """Return width and height after EXIF orientation, or None if unreadable (decoding will list the image)."""
    try:
        with Image.open(os.path.join(listing.root, image)) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112) in (5, 6, 7, 8)
    except Exception:  # Pillow raises many kinds of error for damaged files; decoding reports which
        return None
    return (height, width) if turned else (width, height)


def _in_pixels(box: Box, size: tuple[int, int] | None) -> Box:
    if size is None:
        return NO_BOX
    width, height = size
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height
