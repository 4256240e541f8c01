"""The health of a data set: what is in it, what is broken, repeated, leaking, unbalanced or odd.

One pass reads every file once with a pool of threads and keeps some 500 bytes of numbers for each image, so
memory stays bounded for any number of images (200,000: about 200 MB). Everything is judged without a model.
Knows nothing of training; its advice names flags of the spec. Pages with pictures are made elsewhere.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from tellapart.data.samples import SPLITS, Samples, content_hash
from tellapart.preprocess import MAX_PIXELS, BadImage, decode, to_channels

Pixels = npt.NDArray[np.uint8]
Level = Literal["error", "warning", "info"]
Read = Callable[[int], "bytes | Pixels"]
Table = npt.NDArray[Any]  # of _RECORD
Pairs = npt.NDArray[np.int64]  # [P, 2]

HASH_RADIUS = 7  # bits of 64; measured on re-encoded, halved and slightly cropped photographs
BANDS = 4
PAIR_BUDGET = 200_000_000  # comparisons of hashes (about 10 s)
SUSPECT_SCORE = 4.0
MAX_SUSPECTS = 24
_BLOCK = 512
_EXTENSIONS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".png": "PNG", ".gif": "GIF", ".bmp": "BMP",
    ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM",
}  # fmt: skip

# Simple features of an image: weight in the score, words for an unusually low value and for a high one.
FEATURES: dict[str, tuple[float, str, str]] = {
    "colours": (1.0, "few colours", "very many colours"),
    "entropy": (1.0, "mostly one colour", "no dominant colours"),
    "contrast": (0.7, "hardly any contrast", "very high contrast"),
    "texture": (1.0, "hardly any detail", "very busy"),
    "structure": (0.7, "fine pattern, no large shapes", "large plain shapes"),
    "saturation": (0.7, "unusually grey", "unusually colourful"),
    "brightness": (0.7, "unusually dark", "unusually bright"),
    "aspect": (0.5, "unusually tall", "unusually wide"),
    "pixels": (0.3, "unusually small", "unusually large"),
}


@dataclass(frozen=True)
class Image:
    """One image; ``row`` is its (first) row in the samples, ``content`` the hash of its bytes."""

    row: int
    path: str
    label: str
    split: str
    content: str = ""


@dataclass(frozen=True)
class Bad:
    """An image that cannot be read, and why."""

    image: Image
    reason: str


@dataclass(frozen=True)
class Group:
    """Copies of one picture: the same bytes (``exact``), or nearly the same pixels."""

    images: tuple[Image, ...]
    exact: bool

    def differing(self, field: str, same_bytes: bool) -> bool:
        """Whether copies (with ``same_bytes``: byte for byte) differ in ``field``, "split" or "label"."""
        values: dict[str, set[str]] = collections.defaultdict(set)
        for image in self.images:
            values[image.content if same_bytes else ""].add(getattr(image, field))
        return any(len(found) > 1 for found in values.values())


@dataclass(frozen=True)
class Suspect:
    """An image far from the rest; the score has no unit (4 and more is listed)."""

    image: Image
    score: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One thing that a person should know: what was found, and what to do about it."""

    level: Level
    code: str
    message: str
    advice: str = ""
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Health:
    """What `examine` found.

    counts: readable samples of each class in each split that has any. rows: int64 [M], rows of the readable
    images; widths, heights: int32 [M] in pixels, upright; sizes: int64 [M] in bytes. formats, modes: how many
    images have each. grey: the greyscale images of a colour set. groups: duplicates, those across splits
    first; ``complete`` is False where the search for near duplicates had to stop. findings: gravest first.
    """

    name: str
    root: str
    classes: tuple[str, ...]
    counts: dict[str, list[int]]
    rows: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int32]
    heights: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int64]
    formats: dict[str, int]
    modes: dict[str, int]
    is_colour: bool
    rotated: tuple[Image, ...]
    grey: tuple[Image, ...]
    wrong_extension: tuple[Image, ...]
    bad: tuple[Bad, ...]
    groups: tuple[Group, ...]
    complete: bool
    suspects: tuple[Suspect, ...]
    notes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        """1 where there is an error among the findings, else 0."""
        return int(any(finding.level == "error" for finding in self.findings))

    def total(self) -> npt.NDArray[np.int64]:
        """Return the readable samples of each class over all splits, int64 [K]."""
        counts = [np.array(column, dtype=np.int64) for column in self.counts.values()]
        return sum(counts, start=np.zeros(len(self.classes), dtype=np.int64))

    def quantiles(self) -> dict[str, list[float]]:
        """Return minimum, quartiles and maximum of width, height (pixels), aspect ratio and size (bytes)."""
        aspect = self.widths / np.maximum(self.heights, 1)
        columns: dict[str, npt.NDArray[Any]] = {
            "width": self.widths, "height": self.heights, "aspect": aspect, "bytes": self.sizes
        }  # fmt: skip
        at = (0, 0.25, 0.5, 0.75, 1)
        return {k: [round(float(q), 4) for q in np.quantile(v, at)] for k, v in columns.items() if len(v)}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        fields = ("name", "root", "formats", "modes", "notes")
        return {
            **{name: getattr(self, name) for name in fields},
            "images": len(self.rows) + len(self.bad),
            "counts": {split: dict(zip(self.classes, n, strict=True)) for split, n in self.counts.items()},
            "quantiles": self.quantiles(),
            "rotated": [image.path for image in self.rotated],
            "grey": [image.path for image in self.grey],
            "wrong_extension": [image.path for image in self.wrong_extension],
            "bad": [{**_public(item.image), "reason": item.reason} for item in self.bad],
            "groups": [{"exact": g.exact, "images": [_public(i) for i in g.images]} for g in self.groups],
            "suspects": [
                {**_public(s.image), "score": round(s.score, 2), "reasons": list(s.reasons)}
                for s in self.suspects
            ],
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "exit_code": self.exit_code,
        }


def _public(image: Image) -> dict[str, str]:
    return {"path": image.path, "label": image.label, "split": image.split}


def examine(
    samples: Samples,
    read: Read | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    say: Callable[[str], None] | None = None,
    max_pixels: int = MAX_PIXELS,
    workers: int = 0,
) -> Health:
    """Look at every image of ``samples`` once and judge the whole.

    Args:
        samples: the table; every row has its split. Rows of one file (boxes) are looked at once.
        read: row -> encoded bytes or pixels (uint8 [H, W] or [H, W, 3]); by default the table's own.
        progress: called with (images done, images in all).
        say: called with a sentence when a new stage begins.
        max_pixels: larger images count as unreadable.
        workers: threads; 0: one for each processor.
    """
    first: dict[str, int] = {}
    for row, path in enumerate(samples.paths):
        first.setdefault(path, row)
    rows = np.fromiter(first.values(), dtype=np.int64, count=len(first))
    table, reasons = _measure_all(samples, rows, read or samples.read, progress, max_pixels, workers)
    if say:
        say(f"Looking for duplicates and odd images among {len(rows):,}")
    bad = tuple(Bad(_image(samples, rows[index]), reason) for index, reason in sorted(reasons.items()))
    if reasons:
        fine = np.array([index not in reasons for index in range(len(rows))], dtype=bool)
        table, rows = table[fine], rows[fine]
    health = _assemble(samples, table, rows, bad)
    findings = sorted(_findings(health, samples), key=lambda finding: _ORDER[finding.level])
    return dataclasses.replace(health, findings=tuple(findings))


def _assemble(samples: Samples, table: Table, rows: npt.NDArray[np.int64], bad: tuple[Bad, ...]) -> Health:
    """Put everything together but the findings. ``table`` describes the readable ``rows``."""
    bad_paths = {item.image.path for item in bad}
    readable = samples.select(np.array([path not in bad_paths for path in samples.paths], dtype=bool))
    groups, complete = _duplicates(samples, table, rows)
    is_colour = len(rows) == 0 or float(table["grey"].mean()) < 0.5
    return Health(
        name=samples.name,
        root=samples.root,
        classes=samples.classes,
        counts={
            split: readable.counts(split).tolist() for split in SPLITS if (samples.splits == split).any()
        },
        rows=rows,
        widths=table["width"].copy(),
        heights=table["height"].copy(),
        sizes=table["size"].copy(),
        formats=_tally(table["format"]),
        modes=_tally(table["mode"]),
        is_colour=is_colour,
        rotated=_images(samples, rows[table["rotated"]]),
        grey=_images(samples, rows[table["grey"]]) if is_colour else (),
        wrong_extension=_images(samples, rows[table["misnamed"]]),
        bad=bad,
        groups=groups,
        complete=complete,
        suspects=_suspects(samples, table, rows),
        notes=samples.notes,
    )


_ORDER: dict[str, int] = {"error": 0, "warning": 1, "info": 2}


def _image(samples: Samples, row: int, content: str = "") -> Image:
    label = samples.classes[int(samples.labels[row])]
    return Image(int(row), str(samples.paths[row]), label, str(samples.splits[row]), content)


def _images(samples: Samples, rows: Iterable[Any]) -> tuple[Image, ...]:
    return tuple(_image(samples, row) for row in rows)


# --- one pass over the files -------------------------------------------------------------------------------


_RECORD = np.dtype(
    [
        ("width", np.int32),
        ("height", np.int32),
        ("size", np.int64),
        ("format", "S12"),
        ("mode", "S12"),
        ("rotated", bool),
        ("grey", bool),
        ("misnamed", bool),
        ("content", "S32"),
        ("hash", np.uint64),
        ("luma", np.uint8, 256),  # 16x16
        ("colour", np.uint8, 48),  # 4x4x3
        ("features", np.float32, len(FEATURES)),
    ]
)


def _measure_all(
    samples: Samples,
    rows: npt.NDArray[np.int64],
    read: Read,
    progress: Callable[[int, int], None] | None,
    max_pixels: int,
    workers: int,
) -> tuple[Table, dict[int, str]]:
    """Return one record for each of ``rows``, and the reason for each index that could not be read."""
    table = np.zeros(len(rows), dtype=_RECORD)
    reasons: dict[int, str] = {}

    def measure(index: int) -> str | None:
        row = int(rows[index])
        try:
            table[index] = _measure(read(row), str(samples.paths[row]), max_pixels)
        except BadImage as error:
            return error.reason
        except MemoryError:
            return "does not fit in memory"
        except OSError as error:
            return error.strerror or str(error)
        return None

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or usable) as pool:
        warnings.simplefilter("ignore")  # Pillow's, about broken metadata
        for start in range(0, len(rows), _BLOCK):  # a block at a time: no queue of 200,000 tasks
            block = range(start, min(start + _BLOCK, len(rows)))
            for index, reason in zip(block, pool.map(measure, block), strict=True):
                if reason is not None:
                    reasons[index] = reason
                if progress and (index % 32 == 31 or index + 1 == len(rows)):
                    progress(index + 1, len(rows))
    return table, reasons


def _measure(content: bytes | Pixels, path: str, max_pixels: int) -> tuple[Any, ...]:
    """Return the fields of _RECORD for one image. Raises BadImage."""
    if isinstance(content, bytes):
        pixels = decode(content, 3, max_pixels)
        kind, mode, rotated = _header(content)
        expected = _EXTENSIONS.get(os.path.splitext(path)[1].lower(), kind)
        misnamed = kind not in (expected, "", "MPO")
        size = len(content)
    else:
        pixels = to_channels(content, 3)
        kind, mode, rotated, misnamed = "array", "L" if content.ndim == 2 else "RGB", False, False
        size = content.nbytes
    picture = PillowImage.fromarray(pixels)
    grey = picture.convert("L")
    luma = np.asarray(grey.resize((16, 16), PillowImage.Resampling.BOX))
    colour = np.asarray(picture.resize((4, 4), PillowImage.Resampling.BOX))
    points = _points(pixels)
    colourful = _colourfulness(points)
    is_grey = int(colourful.max()) <= 4  # JPEG's colour noise
    return (
        pixels.shape[1], pixels.shape[0], size, kind.encode(), mode.encode(), rotated, is_grey, misnamed,
        content_hash(content).encode(), dhash(grey), luma.ravel(), colour.ravel(),
        _features(points, colourful, luma, pixels.shape[0], pixels.shape[1]),
    )  # fmt: skip


def _header(content: bytes) -> tuple[str, str, bool]:
    """Return Pillow's names of format and mode, and whether EXIF turns the picture; "" where unknown."""
    try:
        with PillowImage.open(io.BytesIO(content)) as image:
            turned = image.getexif().get(0x0112, 1)
            return image.format or "", image.mode, turned in range(2, 9)
    except Exception:  # decoded, so it counts; broken metadata raises nearly every kind of error
        return "", "", False


def dhash(grey: PillowImage.Image) -> int:
    """Return the 64-bit difference hash of a greyscale picture: where it gets brighter to the right.

    Over 8 rows of 9 cells, row by row, most significant bit first. Neal Krawetz, "Kind of Like That", 2013
    (hackerfactor.com/blog/archives/529-Kind-of-Like-That.html).
    """
    cells = np.asarray(grey.resize((9, 8), PillowImage.Resampling.BOX))
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


# --- duplicates --------------------------------------------------------------------------------------------


def _duplicates(
    samples: Samples, table: Table, rows: npt.NDArray[np.int64]
) -> tuple[tuple[Group, ...], bool]:
    """Return the groups of copies, those across splits first, and whether the search was complete."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if len(rows) == 0:
        return (), True
    _, first, of_content = np.unique(table["content"], return_index=True, return_inverse=True)
    pairs, complete = near_pairs(table["hash"][first], _Alike(table, first))
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(first), len(first)))
    _, component = connected_components(edges, directed=False)
    group_of = component[of_content]
    groups = []
    repeated = np.flatnonzero(np.bincount(group_of) > 1)
    order = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[order], repeated)
    ends = np.searchsorted(group_of[order], repeated, side="right")
    for start, end in zip(starts, ends, strict=True):
        members = order[start:end]
        images = tuple(_image(samples, rows[m], table["content"][m].decode()) for m in members)
        groups.append(Group(images, exact=len({image.content for image in images}) == 1))
    groups.sort(key=lambda g: (-g.differing("split", False), -g.differing("label", False), not g.exact))
    return tuple(groups), complete


def near_pairs(
    hashes: npt.NDArray[np.uint64],
    alike: Callable[[Pairs], npt.NDArray[np.bool_]] | None = None,
    radius: int = HASH_RADIUS,
    budget: int = PAIR_BUDGET,
) -> tuple[Pairs, bool]:
    """Return the pairs i < j whose hashes differ in at most ``radius`` bits, int64 [P, 2], and whether all.

    Multi-index hashing (Norouzi, Punjani, Fleet, "Fast Search in Hamming Space with Multi-Index Hashing",
    CVPR 2012): two hashes within 7 bits agree in one of four 16-bit bands but for one bit at most, so only
    entries of equal or one-bit-different bands are compared. ``alike`` keeps some of a batch of pairs.
    Small buckets come first; after ``budget`` comparisons the search stops and says so.
    """
    if not 0 <= radius < 2 * BANDS:
        raise ValueError(f"radius is {radius}; it must be from 0 to {2 * BANDS - 1}")
    probes = [0] if radius < BANDS else [0, *(1 << bit for bit in range(16))]
    share = budget // (BANDS * len(probes))
    found = [np.zeros((0, 2), dtype=np.int64)]
    complete = True
    for band in range(BANDS):
        keys = ((hashes >> np.uint64(16 * band)) & np.uint64(0xFFFF)).astype(np.int64)
        order = np.argsort(keys, kind="stable")
        counts = np.bincount(keys, minlength=1 << 16)
        starts = np.cumsum(counts) - counts
        for probe in probes:
            buckets = np.flatnonzero(counts)
            buckets = buckets[(counts[buckets ^ probe] > 0) & (buckets <= buckets ^ probe)]
            sizes = counts[buckets] * counts[buckets ^ probe]
            by_size = np.argsort(sizes, kind="stable")
            buckets, sizes = buckets[by_size], sizes[by_size]
            allowed = int(np.searchsorted(np.cumsum(sizes), share, side="right"))
            complete = complete and allowed == len(buckets)
            for chunk in _chunks(buckets[:allowed], sizes[:allowed]):
                i, j = _cross(chunk, probe, order, starts, counts)
                near = (i < j) if probe == 0 else (i != j)
                near &= _ones(hashes[i] ^ hashes[j]) <= radius
                pairs = np.stack([np.minimum(i, j)[near], np.maximum(i, j)[near]], axis=1)
                found.append(pairs if alike is None else pairs[alike(pairs)])
    return np.unique(np.concatenate(found), axis=0), complete


def _chunks(buckets: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cut ``buckets`` so that each part makes about 250,000 comparisons (25 MB), or is one bucket."""
    if len(buckets):
        parts = np.cumsum(sizes) // 250_000
        yield from np.split(buckets, np.flatnonzero(np.diff(parts)) + 1)


def _cross(
    buckets: npt.NDArray[np.int64],
    probe: int,
    order: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return all pairs of an entry of bucket b and one of bucket b ^ probe, for every b of ``buckets``."""
    others = buckets ^ probe
    sizes = counts[buckets] * counts[others]
    which = np.repeat(np.arange(len(buckets)), sizes)
    within = np.arange(len(which)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    a, b = np.divmod(within, counts[others][which])
    return order[starts[buckets][which] + a], order[starts[others][which] + b]


def _ones(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Count the bits that are set (numpy has this from version 2 only)."""
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    counts: npt.NDArray[np.uint8] = table[np.ascontiguousarray(values).view(np.uint8).reshape(-1, 8)].sum(
        axis=1, dtype=np.uint8
    )
    return counts


class _Alike:
    """Verifies candidates on their thumbnails: correlation of luma, and mean difference of luma and colour.

    In some data all images are much alike (trousers at 28x28), so the correlation must also be far above
    what random pairs of the same data have.
    """

    def __init__(self, table: Table, rows: npt.NDArray[np.intp]) -> None:
        self.table, self.rows = table, rows  # views only: the table is large
        self.mean = table["luma"].mean(axis=1, dtype=np.float32)[rows]
        random = np.random.default_rng(0).integers(0, len(rows), (4_000, 2))
        random = random[random[:, 0] != random[:, 1]]
        usual = np.quantile(self._compare(random)[0], 0.999) if len(rows) > 100 else 0.0
        self.required = max(0.95, 1 - (1 - usual) / 5)

    def __call__(self, pairs: Pairs) -> npt.NDArray[np.bool_]:
        """Return which pairs [P, 2] show nearly the same picture, bool [P]."""
        # The difference of means is a lower bound of the mean difference, and quick to compare.
        result: npt.NDArray[np.bool_] = np.abs(self.mean[pairs[:, 0]] - self.mean[pairs[:, 1]]) < 24
        left = np.flatnonzero(result)
        for part in np.split(left, range(4_000, len(left), 4_000)):
            correlation, difference = self._compare(pairs[part])
            result[part] = (correlation > self.required) & (difference < 24)
        return result

    def _compare(self, pairs: Pairs) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the correlation and the larger mean difference of each pair, float32 [P]."""
        sides = [self.rows[pairs[:, side]] for side in (0, 1)]
        x, y = (self.table["luma"][side].astype(np.float32) for side in sides)
        colours = [self.table["colour"][side].astype(np.float32) for side in sides]
        colour = np.abs(colours[0] - colours[1]).mean(axis=1)
        difference = np.maximum(np.abs(x - y).mean(axis=1), colour)
        x -= x.mean(axis=1, keepdims=True)
        y -= y.mean(axis=1, keepdims=True)
        spread = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
        # Below a deviation of 2 there is nothing in a picture that could agree.
        correlation = np.where(spread < 4 * 256, 0, (x * y).sum(axis=1) / np.maximum(spread, 1))
        return correlation.astype(np.float32), difference


# --- suspects ----------------------------------------------------------------------------------------------


def _points(pixels: Pixels) -> Pixels:
    """Return 64x64 pixels of the image on an even grid, not interpolated: no colour that is not there."""
    height, width = pixels.shape[:2]
    y, x = ((2 * np.arange(64) + 1) * side // 128 for side in (height, width))
    points: Pixels = pixels[y[:, None], x[None, :]]
    return points


def _colourfulness(points: Pixels) -> Pixels:
    """Return the largest minus the smallest channel of each pixel, uint8."""
    red, green, blue = (points[..., channel] for channel in range(3))
    high = np.maximum(np.maximum(red, green), blue)
    return high - np.minimum(np.minimum(red, green), blue)


def _features(
    points: Pixels, colourful: Pixels, luma: Pixels, height: int, width: int
) -> npt.NDArray[np.float32]:
    """Return the values of FEATURES, in its order. points: uint8 [64, 64, 3]; luma: uint8 [16, 16]."""
    values = points.astype(np.float32)
    fine = points.astype(np.int64) >> 3  # 32 levels a channel
    counts = np.bincount((fine[..., 0] << 10 | fine[..., 1] << 5 | fine[..., 2]).ravel())
    shares = counts[counts > 0] / counts.sum()
    grey = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
    return np.array(
        [
            np.log2(len(shares)),
            -(shares * np.log2(shares)).sum(),
            grey.std(),
            np.log(steps + 0.5),
            np.log((luma.std() + 1) / (grey.std() + 1)),
            colourful.mean(),
            grey.mean(),
            np.log(width / height),
            np.log(width * height),
        ],
        dtype=np.float32,
    )


def robust_scores(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return how many robust deviations each value [N, F] lies from its column's median.

    The deviation is 1.4826 times the median absolute deviation, or, where that is 0, 1.2533 times the mean
    one (Iglewicz and Hoaglin, "How to Detect and Handle Outliers", 1993); a constant column scores 0.
    """
    away = values.astype(np.float64) - np.median(values, axis=0)
    scale = 1.4826 * np.median(np.abs(away), axis=0)
    scale = np.where(scale > 1e-9, scale, 1.2533 * np.abs(away).mean(axis=0))
    return np.where(scale > 1e-9, away / np.maximum(scale, 1e-9), 0.0)


def _suspects(samples: Samples, table: Table, rows: npt.NDArray[np.int64]) -> tuple[Suspect, ...]:
    """Return the images whose simple features lie furthest from the rest, at most MAX_SUSPECTS."""
    if len(rows) < 20:  # too few to say what is usual
        return ()
    scores = robust_scores(table["features"])
    excess = np.clip(np.abs(scores) * [weight for weight, _, _ in FEATURES.values()] - 1.5, 0, 6)
    rare = np.zeros((len(rows), 2))
    for column, name in enumerate(("format", "mode")):
        _, inverse, counts = np.unique(table[name], return_inverse=True, return_counts=True)
        rare[:, column] = np.where(counts[inverse] < 0.01 * len(rows), 1.5, 0)
    total = np.sqrt((excess**2).sum(axis=1) + (rare**2).sum(axis=1))
    suspects = []
    for index in np.argsort(-total, kind="stable")[:MAX_SUSPECTS]:
        if total[index] < SUSPECT_SCORE:
            break
        words = [
            (excess[index, column], low if scores[index, column] < 0 else high)
            for column, (_, low, high) in enumerate(FEATURES.values())
            if excess[index, column] > 0.5
        ]
        words += [
            (1.5, f"rare {n} {table[n][index].decode()}")
            for c, n in enumerate(("format", "mode"))
            if rare[index, c]
        ]
        reasons = tuple(word for _, word in sorted(words, key=lambda pair: -pair[0])[:4])
        suspects.append(Suspect(_image(samples, rows[index]), float(total[index]), reasons))
    return tuple(suspects)


def _tally(column: npt.NDArray[Any]) -> dict[str, int]:
    names, counts = np.unique(column, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return {names[i].decode() or "unknown": int(counts[i]) for i in order}


# --- findings ----------------------------------------------------------------------------------------------

# code -> what was found, and what to do about it
TEXTS: dict[str, tuple[str, str]] = {
    "no-images": ("There is no image that can be read.", "Check the path and the format of the data."),
    "one-class": ("Fewer than two classes have images.", "A classifier needs two or more."),
    "no-train": ("There is no train part.", "Put images under train/CLASS/."),
    "class-empty": ("No readable image at all of: {names}.", "Add images, or remove the class."),
    "class-not-in-train": (
        "No image in train of: {names}.",
        "The network cannot learn what it never sees: add images to train, or take the class out.",
    ),
    "class-missing": (
        "No image in {split} of: {names}.",
        "Nothing is measured for these classes in {split}; move some of their images there.",
    ),
    "imbalance": (
        "Classes are unequal in train: {most} has {high:,} images, {least} {low:,} ({ratio:.1f} times).",
        "Try --training.class-weights {weights} or --training.sampling oversample, and choose the best epoch "
        "by --training.best-metric macro-f1.",
    ),
    "small-class": (
        "Fewer than 20 images in train of: {names}.",
        "Add images; until then use pretrained weights with --model.finetune head.",
    ),
    "small-split": (
        "{split} has {count} images: an accuracy of 90\u00a0% on them may be off by {points:.1f} points.",
        "",
    ),
    "leakage-exact": (
        "{count} in more than one split, byte for byte.",
        "The measured accuracy will be too good. Remove the copies, or keep them together with --data.group.",
    ),
    "leakage-near": (
        "{count} in more than one split, nearly unchanged (resized, saved again, the next of a burst).",
        "The measured accuracy will be too good. Remove the copies, or keep them together with --data.group.",
    ),
    "labels-exact": (
        "{count} with different labels, byte for byte the same.",
        "One of the labels is wrong: look at them and keep one copy.",
    ),
    "labels-near": (
        "{count} with different labels, nearly the same.",
        "One of the labels may be wrong: look at them.",
    ),
    "duplicates": (
        "{count} or near copies within a split.",
        "Harmless in small numbers; they count double in training and in the figures.",
    ),
    "search-stopped": (
        "So many images are alike that not all pairs could be compared.",
        "The list of near duplicates may lack some.",
    ),
    "unreadable": (
        "{count} cannot be read.",
        "Training lists them and goes on without (--data.on-bad-image error stops instead).",
    ),
    "grey": (
        "{count} greyscale among colour images.",
        "They become three equal channels. Look whether one class has most of them.",
    ),
    "rotated": ("{count} turned by EXIF data.", "They are turned upright, here and in training."),
    "extension": (
        "{count} with an extension that is not the format's.",
        "They are read by their content; other programs may stumble.",
    ),
    "tiny": (
        "{count} far smaller than the rest (from {low} pixels).",
        "Enlarged, they are blurred; look whether they belong.",
    ),
    "conflicts": (
        "{count} with more than one label in the source.",
        "Keep one label, or make one sample of each box with --data.boxes crop.",
    ),
    "suspects": (
        "{count} unlike the rest, the oddest first.",
        "Look at them: charts, placeholders and blank pictures do not belong.",
    ),
}


def _finding(level: Level, code: str, paths: Iterable[str] = (), **values: Any) -> Finding:
    message, advice = (text.format(**values) for text in TEXTS[code])
    return Finding(level, code, message, advice, tuple(paths))


def _findings(health: Health, samples: Samples) -> Iterator[Finding]:
    if not len(health.rows):
        yield _finding("error", "no-images")
    else:
        yield from _class_findings(health)
        yield from _balance_findings(health)
    yield from _leakage_findings(health, has_boxes=samples.boxes is not None)
    yield from _file_findings(health)
    if samples.conflicts:
        lines = [f"{conflict.path}: {', '.join(conflict.labels)}" for conflict in samples.conflicts]
        yield _finding("warning", "conflicts", lines, count=_count(len(lines), "image"))
    if health.suspects:
        lines = [f"{suspect.image.path}: {', '.join(suspect.reasons)}" for suspect in health.suspects]
        yield _finding("info", "suspects", lines, count=_count(len(lines), "image"))


def _class_findings(health: Health) -> Iterator[Finding]:
    total = health.total()
    if np.count_nonzero(total) < 2:
        yield _finding("error", "one-class")
    if "train" not in health.counts:
        yield _finding("error", "no-train")
    empty = [_isolated(name) for name, whole in zip(health.classes, total, strict=True) if not whole]
    if empty:
        yield _finding("error", "class-empty", names=_some(empty))
    for split, counts in health.counts.items():
        rows = zip(health.classes, counts, total, strict=True)
        missing = [_isolated(name) for name, count, whole in rows if whole and not count]
        if missing and split == "train":
            yield _finding("error", "class-not-in-train", names=_some(missing))
        elif missing:
            yield _finding("warning", "class-missing", split=split, names=_some(missing))


def _balance_findings(health: Health) -> Iterator[Finding]:
    train = np.array(health.counts.get("train", ()), dtype=np.int64)
    present = np.flatnonzero(train)
    if len(present) > 1:
        most, least = present[np.argmax(train[present])], present[np.argmin(train[present])]
        ratio = train[most] / train[least]
        if ratio >= 2:
            yield _finding(
                "warning" if ratio >= 5 else "info",
                "imbalance",
                most=_isolated(health.classes[most]),
                high=train[most],
                least=_isolated(health.classes[least]),
                low=train[least],
                ratio=ratio,
                weights="effective" if ratio >= 50 else "inverse",
            )
    small = [f"{_isolated(health.classes[k])} ({train[k]})" for k in present if train[k] < 20]
    if small:
        yield _finding("warning", "small-class", names=_some(small))
    for split in ("val", "test"):
        count = sum(health.counts.get(split, ()))
        if 0 < count < 400:
            points = 100 * 1.96 * (0.9 * 0.1 / count) ** 0.5  # half of the normal 95 % interval
            yield _finding("info", "small-split", split=split, count=count, points=points)


def _leakage_findings(health: Health, has_boxes: bool) -> Iterator[Finding]:
    for field, code in (("split", "leakage"), ("label", "labels")):
        exact = [group for group in health.groups if group.differing(field, same_bytes=True)]
        near = [g for g in health.groups if g.differing(field, False) and not g.differing(field, True)]
        if exact and not (field == "label" and has_boxes):
            yield _finding("error", f"{code}-exact", _copies(exact), count=_count(len(exact), "picture"))
        if near and not (field == "label" and has_boxes):
            yield _finding("warning", f"{code}-near", _copies(near), count=_count(len(near), "picture"))
    inside = [g for g in health.groups if not g.differing("split", False) and not g.differing("label", False)]
    if inside:
        extra = sum(len(group.images) - 1 for group in inside)
        counted = _count(extra, "further copy", "further copies")
        yield _finding("info", "duplicates", _copies(inside), count=counted)
    if not health.complete:
        yield _finding("info", "search-stopped")


def _file_findings(health: Health) -> Iterator[Finding]:
    if health.bad:
        lines = [f"{item.image.path}: {item.reason}" for item in health.bad]
        yield _finding("warning", "unreadable", lines, count=_count(len(lines), "image"))
    listed = {"grey": health.grey, "rotated": health.rotated, "extension": health.wrong_extension}
    for code, images in listed.items():
        if images:
            paths = (image.path for image in images)
            yield _finding("info", code, paths, count=_count(len(images), "image"))
    if len(health.rows):
        short = np.minimum(health.widths, health.heights)
        tiny = np.flatnonzero(short < max(16, np.median(short) / 8))
        if 0 < len(tiny) < len(short) / 2:
            yield _finding("info", "tiny", count=_count(len(tiny), "image"), low=short.min())


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _some(names: Sequence[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _isolated(name: str) -> str:
    """Keep a right-to-left name from turning the words around it (Unicode's first strong isolate)."""
    turns = any(unicodedata.bidirectional(character) in ("R", "AL") for character in name)
    return f"\u2068{name}\u2069" if turns else name


def _copies(groups: Sequence[Group]) -> Iterator[str]:
    return (" = ".join(image.path for image in group.images[:4]) for group in groups)


# --- text --------------------------------------------------------------------------------------------------


def render(health: Health, examples: int = 5) -> str:
    """Return the health as text of 80 columns (paths are never cut), each finding with some examples."""
    count = len(health.rows) + len(health.bad)
    title = f"{health.name or health.root or 'data'}: {count:,} images, {len(health.classes)} classes"
    lines = [title, "", *_table_lines(health), ""]
    quantiles = health.quantiles()
    if quantiles:
        w, h = (quantiles[side] for side in ("width", "height"))
        lines.append(
            f"Width {w[0]:g} to {w[4]:g} (median {w[2]:g}), height {h[0]:g} to {h[4]:g} (median {h[2]:g})"
        )
        lines += textwrap.wrap("Formats: " + _pairs(health.formats) + "; modes: " + _pairs(health.modes), 80)
    for level, heading in (("error", "Errors"), ("warning", "Warnings"), ("info", "Good to know")):
        chosen = [finding for finding in health.findings if finding.level == level]
        lines += ["", heading] if chosen else []
        for finding in chosen:
            lines += textwrap.wrap(finding.message, 80, initial_indent="  - ", subsequent_indent="    ")
            lines += [f"      {path}" for path in finding.paths[:examples]]
            rest = len(finding.paths) - examples
            lines += [f"      … and {rest:,} more"] if rest > 0 else []
            lines += textwrap.wrap(finding.advice, 80, initial_indent="    → ", subsequent_indent="      ")
    if not any(finding.level != "info" for finding in health.findings):
        lines += ["", "No problems found."]
    for note in health.notes:
        lines += textwrap.wrap(note, 80, initial_indent="  * ", subsequent_indent="    ")
    return "\n".join(lines).encode("utf-8", "replace").decode("utf-8")


def _table_lines(health: Health, limit: int = 40) -> list[str]:
    """Return the counts of each class in each split; the largest and smallest where there are very many."""
    names = list(health.counts)
    total = health.total()
    chosen = np.arange(len(health.classes))
    if len(chosen) > limit:
        chosen = np.argsort(-total, kind="stable")
        chosen = np.concatenate([chosen[: limit // 2], chosen[-limit // 2 :]])
    width = min(30, max([8, *(_columns(health.classes[k]) for k in chosen)]))
    lines = [_pad("class", width) + "".join(f"{name:>10}" for name in names)]
    for place, k in enumerate(chosen):
        if len(health.classes) > limit and place == limit // 2:
            lines.append(f"… {len(health.classes) - limit:,} more classes …")
        cells = "".join(f"{health.counts[name][k]:>10,}" for name in names)
        lines.append(_pad(health.classes[k], width) + cells)
    sums = "".join(f"{sum(health.counts[name]):>10,}" for name in names)
    return [*lines, _pad("all", width) + sums]


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes: Chinese characters take two, accents none."""
    shown = (c for c in text if unicodedata.category(c) not in ("Mn", "Me", "Cf"))
    return sum(1 + (unicodedata.east_asian_width(c) in "WF") for c in shown)


def _pad(text: str, width: int) -> str:
    while _columns(text) > width:
        text = text[:-2] + "…"
    return text + " " * (width - _columns(text))


def _pairs(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
