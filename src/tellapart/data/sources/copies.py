"""Copies of one image among the rows that are about to be split: they must go to the same split.

Looks at files' sizes, then at the bytes of those of equal size, and decodes nothing, unless near copies are
wanted too (``--data.copies near``): `health.duplicates` finds these. What deals, and by which rules, is `splits`.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.samples import Samples, read_file
from tellapart.data.sources import splits
from tellapart.data.sources.listing import Listing, Note, many, printable
from tellapart.preprocess import MAX_PIXELS
from tellapart.spec import DataSpec

Rows = npt.NDArray[np.int64]

MAX_FILES = 200_000  # more are not searched: on a slow disk that could take longer than the training
_END = 4_096  # bytes at each end that are compared before whole files are read
_LEAST = 24  # bytes; what is shorter shows nothing in any format, and is bad in the same way as others
_THREADS = 8  # they wait for the disk


def deal(
    listing: Listing,
    labels: npt.NDArray[Any],
    groups: Sequence[str] | None,
    rows: npt.NDArray[np.intp],
    fractions: tuple[float, float],
    spec: DataSpec,
    notes: Note,
    warn: Note | None = None,
) -> npt.NDArray[Any]:
    """Return the split of each of ``rows`` as `splits.assign` deals them, copies of one picture together.

    Of each picture the copy whose path comes first is dealt, and the others follow it; so without copies the
    splits are what `splits.assign` makes, and with some, they are nearly that. Where there are groups, those that
    share a picture become one. ``labels``: int64 [N], or targets uint8 [N, K]. ``warn`` (None: ``notes``) is told of
    copies with different labels.
    """
    paths = [listing.paths[row] for row in rows]
    chosen = None if groups is None else [groups[row] for row in rows]
    seed = spec.split_seed
    if not any(fractions):
        return splits.assign(labels[rows], paths, *fractions, seed, chosen)
    first = _copies(listing, _kinds(labels), rows, spec, notes, warn or notes)
    own = np.arange(len(rows))
    if (first == own).all():
        return splits.assign(labels[rows], paths, *fractions, seed, chosen)
    if chosen is not None or len(set(paths)) < len(paths):
        merged = splits.merge([paths[n] for n in first.tolist()], chosen or paths)
        return splits.assign(labels[rows], paths, *fractions, seed, merged)
    kept = np.flatnonzero(first == own)
    dealt = np.empty(len(rows), dtype=object)
    dealt[kept] = splits.assign(labels[rows][kept], [paths[n] for n in kept.tolist()], *fractions, seed)
    return dealt[first]


def units(
    listing: Listing,
    labels: npt.NDArray[Any],
    groups: Sequence[str] | None,
    rows: npt.NDArray[np.intp],
    spec: DataSpec,
    notes: Note,
    warn: Note,
) -> list[str]:
    """Return for each of ``rows`` the name of what it stays together with: its group, its copies, its own path."""
    paths = [listing.paths[row] for row in rows]
    first = _copies(listing, _kinds(labels), rows, spec, notes, warn)
    chosen = paths if groups is None else [groups[row] for row in rows]
    return splits.merge([paths[n] for n in first.tolist()], chosen)


def _kinds(labels: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return a number for each label, or for each set of labels, int64 [N]."""
    return labels if labels.ndim == 1 else np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def _copies(
    listing: Listing,
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.intp],
    spec: DataSpec,
    notes: Note,
    warn: Note,
) -> npt.NDArray[np.int64]:
    """Return for each row the place (among ``rows``) of the first copy of its picture; tell of copies."""
    paths = [listing.paths[row] for row in rows]
    first = _first_copies(listing, paths, rows, notes)
    _tell(listing, paths, labels[rows], first, notes, warn)
    if spec.copies == "near":
        first = _with_near_copies(listing, paths, labels, rows, first, notes)
    return first


def _first_copies(
    listing: Listing, paths: Sequence[str], rows: npt.NDArray[np.intp], notes: Note
) -> npt.NDArray[np.int64]:
    """Return for each row the place (among ``rows``) of the first by path with the same bytes."""
    if listing.pixels is not None:
        keys = rows if listing.keys is None else np.asarray(listing.keys)[rows]
        pixels = listing.pixels
        numbers = {n: _digest(np.ascontiguousarray(pixels[key]).tobytes()) for n, key in enumerate(keys)}
        return _firsts(paths, numbers)
    if listing.items is not None:
        keys = rows if listing.keys is None else np.asarray(listing.keys)[rows]
        hashes = [listing.items.hashes[key].encode() for key in keys.tolist()]
        return _firsts(paths, {n: digest for n, digest in enumerate(hashes) if digest})
    places = {path: n for n, path in reversed(list(enumerate(paths)))}
    if len(places) > MAX_FILES:
        notes(
            f"Copies among the {many(len(places), 'image')} were not looked for (that is done up to "
            f"{MAX_FILES:,}): some may lie on both sides of the split. tellapart check finds them."
        )
        return np.fromiter((places[path] for path in paths), np.int64, len(paths))
    of_path = same_bytes([os.path.join(listing.root, path) for path in places])
    known = {n: of_path[k] for k, n in enumerate(places.values()) if of_path[k]}
    of_place = _firsts(paths, known)
    return np.fromiter((of_place[places[path]] for path in paths), np.int64, len(paths))


def _with_near_copies(
    listing: Listing,
    paths: Sequence[str],
    labels: npt.NDArray[np.int64],
    rows: npt.NDArray[np.intp],
    first: npt.NDArray[np.int64],
    notes: Note,
) -> npt.NDArray[np.int64]:
    """Return ``first`` with near copies joined too; which ones are found depends on no order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    from tellapart.data.health.duplicates import near_copies
    from tellapart.data.health.measure import measure_all

    order = sorted(np.unique(first).tolist(), key=lambda n: paths[n])
    chosen = np.asarray(order, dtype=np.int64)
    samples = Samples(
        paths=np.array([*paths, None], dtype=object)[:-1],
        labels=labels[rows],
        splits=np.full(len(rows), "train", dtype=object),
        classes=(),
        root=listing.root,
        pixels=listing.pixels,
        items=listing.items,
        keys=np.asarray(rows if listing.keys is None else np.asarray(listing.keys)[rows]),
    )
    table, reasons = measure_all(samples, chosen, samples.read, None, MAX_PIXELS, 0)
    fine = np.array([n not in reasons for n in range(len(chosen))], dtype=bool)
    near = near_copies(table[fine], samples.labels[chosen[fine]])
    ends = chosen[fine][near.pairs]
    edges = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(rows), len(rows)))
    _, component = connected_components(edges, directed=False)
    lead: dict[int, int] = {}
    for n in order:
        lead.setdefault(int(component[n]), n)
    joined = np.array([lead[int(component[n])] for n in first.tolist()], dtype=np.int64)
    together = len(order) - len(lead)
    if together:
        notes(
            f"{many(together, 'further image')} nearly a copy of another: near copies go to the same split."
        )
    if reasons:
        index = min(reasons)
        notes(
            f"The search for near copies left out {many(len(reasons), 'image')}; the first, "
            f"{printable(str(paths[chosen[index]]))}: {reasons[index]}."
        )
    if not near.complete:
        notes(
            "So many images are alike that not all could be compared: some near copies may lie on both sides."
        )
    return joined


def _firsts(paths: Sequence[str], contents: dict[int, bytes]) -> npt.NDArray[np.int64]:
    first = np.arange(len(paths))
    found: dict[bytes, int] = {}
    for n in sorted(contents, key=lambda n: paths[n]):
        first[n] = found.setdefault(contents[n], n)
    return first


def same_bytes(files: Sequence[str]) -> list[bytes]:
    """Return for each file a hash that those of the same bytes share; b"" for a file unlike all others.

    Only files of equal size, and of these only those with equal ends, are read whole. What cannot be read has
    no copy.
    """
    result = [b""] * len(files)
    places: Iterable[int] = range(len(files))
    with ThreadPoolExecutor(_THREADS) as pool:
        for look in (_size, _ends, _whole):
            kinds: dict[bytes, list[int]] = defaultdict(list)
            order = list(places)
            for place, value in zip(order, pool.map(_quietly(look), (files[n] for n in order)), strict=True):
                if value:
                    kinds[value].append(place)
            shared = {value: kind for value, kind in kinds.items() if len(kind) > 1}
            places = [place for kind in shared.values() for place in kind]
    for value, kind in shared.items():
        for place in kind:
            result[place] = value
    return result


def _quietly(look: Callable[[str], bytes]) -> Callable[[str], bytes]:
    def looked(path: str) -> bytes:
        try:
            return look(path)
        except (OSError, ValueError):
            return b""

    return looked


def _size(path: str) -> bytes:
    size = os.stat(path).st_size
    return str(size).encode() if size >= _LEAST else b""


def _ends(path: str) -> bytes:
    """Return a hash of the size and both ends. Raises OSError."""
    size = os.stat(path).st_size
    if size <= 2 * _END:
        return _digest(read_file(path))
    with open(path, "rb") as stream:
        head = stream.read(_END)
        stream.seek(size - _END)
        return _digest(str(size).encode() + head + stream.read(_END))


def _whole(path: str) -> bytes:
    return _digest(read_file(path))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _tell(
    listing: Listing,
    paths: Sequence[str],
    labels: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    notes: Note,
    warn: Note,
) -> None:
    """Say in one line how many pictures have copies, and in another which have more than one label."""
    names: dict[int, dict[str, int]] = defaultdict(dict)
    for n in np.flatnonzero(np.isin(first, first[first != np.arange(len(first))])).tolist():
        names[int(first[n])].setdefault(paths[n], int(labels[n]))
    copied = {n: found for n, found in names.items() if len(found) > 1}
    if not copied:
        return
    files = sum(map(len, copied.values()))
    verb = "occurs" if len(copied) == 1 else "occur"
    notes(
        f"{many(len(copied), 'picture')} {verb} more than once, byte for byte ({many(files, 'image')}): copies of "
        "one picture go to the same split."
    )
    torn = [list(found) for found in copied.values() if len(set(found.values())) > 1]
    if torn and listing.boxes is None:
        example = " and ".join(printable(path) for path in torn[0][:2])
        warn(
            f"{len(torn):,} of them with different labels, such as {example}: "
            "one of the labels is wrong. tellapart check lists them."
        )
