"""Count how many near copies `tellapart check` finds, and how many that are none.

    python bench/near_copies.py --photos DIR                      plants: recall by kind, and precision
    python bench/near_copies.py --photos DIR --distractors DIR    among further pictures, enlarged to 256 pixels
    python bench/near_copies.py --pairs LIST.csv --root DIR       judged pairs: average precision
    python bench/near_copies.py --hashes 1000000                  time and memory of the search by bands

Plants are changed copies of the photographs, COUNT of each kind, each of another photograph. Every pair that is
reported and is not a plant with its photograph (or two plants of one) counts as false, but for pairs that
are reported without plants too; those are listed, for a person to look at (--sheet FILE.png shows them).

Judged pairs (a CSV with test_path and train_path):
for each picture of the test part the training picture with the highest likeness. "pairs": a picture
counts as right where that pair is in the list; "pictures": where the list has the test picture at all. What is
not in the list counts as false, so the figure is a lower bound where the list lacks true pairs; with
``--share 0.5``, of a list known to hold a random half of them, an estimate for the whole is printed too.
"""

from __future__ import annotations

import argparse
import csv
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from tellapart.data.health import alignment, duplicates, near_copies
from tellapart.data.health.measure import measure_all
from tellapart.data.samples import Samples

BICUBIC = Image.Resampling.BICUBIC


def _saved(image: Image.Image, **options: Any) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return Image.open(stream).convert("RGB")


def _inner(image: Image.Image, part: float) -> Image.Image:
    width, height = image.size
    x, y = round(width * part / 2), round(height * part / 2)
    return image.crop((x, y, width - x, height - y))


def _corner(image: Image.Image, part: float) -> Image.Image:
    width, height = image.size
    return image.crop((round(width * part), round(height * part), width, height))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": lambda image: _saved(image, quality=40),
    "halved": lambda image: image.resize((image.width // 2, image.height // 2), BICUBIC),
    "brightness x1.25": lambda image: image.point(lambda value: min(255, round(value * 1.25))),
    "brightness x0.75": lambda image: image.point(lambda value: round(value * 0.75)),
    "gamma 0.6": lambda image: image.point(lambda value: round(255 * (value / 255) ** 0.6)),
    "gamma 1.6": lambda image: image.point(lambda value: round(255 * (value / 255) ** 1.6)),
    "crop 4 %, centre": lambda image: _inner(image, 0.04),
    "crop 4 %, corner": lambda image: _corner(image, 0.04),
    "crop 8 %, centre": lambda image: _inner(image, 0.08),
    "rotation 1.5°": lambda image: image.rotate(1.5, BICUBIC),
    "mirrored": ImageOps.mirror,
    "upside down": ImageOps.flip,
    "turned by 180°": lambda image: image.rotate(180),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "all at once": lambda image: ImageOps.mirror(
        _inner(image.rotate(1.5, BICUBIC), 0.04).point(lambda value: min(255, round(value * 1.25)))
    ),
    "crop 16 %, centre": lambda image: _inner(image, 0.16),
}


def _pictures(folder: str) -> list[Path]:
    kinds = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in kinds)


def _measured(images: list[Image.Image]) -> tuple[Samples, Any]:
    count = len(images)
    samples = Samples(
        paths=np.array([f"{n}.jpg" for n in range(count)], dtype=object),
        labels=np.zeros(count, dtype=np.int64),
        splits=np.full(count, "train", dtype=object),
        classes=("picture",),
    )
    table, reasons = measure_all(
        samples, np.arange(count), lambda row: np.asarray(images[row]), None, 10**9, 0
    )
    assert not reasons
    return samples, table


def plants(options: argparse.Namespace) -> None:
    """Print recall by kind and the precision of all that is reported."""
    photos = [Image.open(path).convert("RGB") for path in _pictures(options.photos)]
    for image in photos:
        image.thumbnail((500, 500))
    generator = np.random.default_rng(options.seed)
    others: list[Image.Image] = []
    if options.distractors:
        paths = _pictures(options.distractors)
        chosen = generator.permutation(len(paths))[: options.distractor_count]
        others = [Image.open(paths[n]).convert("RGB").resize((256, 256), BICUBIC) for n in chosen]
    images, origin, kind_of = [*photos, *others], [*range(len(photos) + len(others))], {}
    for kind, change in KINDS.items():
        for n in generator.permutation(len(photos))[: options.count].tolist():
            kind_of[len(images)] = kind
            origin.append(n)
            images.append(_saved(change(photos[n]), quality=85))
    _, table = _measured(images)
    start = time.process_time()
    near = duplicates.near_copies(table, np.zeros(len(table), dtype=np.int64))
    pairs, complete = near.pairs, near.complete
    took = time.process_time() - start
    alone = [(i, j) for i, j in pairs.tolist() if i not in kind_of and j not in kind_of]
    alike = {origin[i]: {origin[i]} for i in range(len(images))}
    for i, j in alone:  # what people would call one picture already, or an error that is shown
        alike[i].add(j)
        alike[j].add(i)
    made = [(i, j) for i, j in pairs.tolist() if i in kind_of or j in kind_of]
    right = [(i, j) for i, j in made if origin[i] == origin[j]]
    wrong = [(i, j) for i, j in made if origin[j] not in alike[origin[i]]]
    found = {max(i, j) for i, j in right if min(i, j) == origin[max(i, j)]}
    for kind in KINDS:
        mine = [n for n, other in kind_of.items() if other == kind]
        print(f"{kind:20} {len(found & set(mine)):3} of {len(mine)}")
    print(f"{len(made)} pairs with a plant reported, {len(wrong)} of them false: precision ", end="")
    print(f"{1 - len(wrong) / max(1, len(made)):.4f}; {len(alone)} pairs without a plant, to be looked at")
    print(f"{len(images)} pictures, search {took:.1f} s of processor time, complete: {complete}")
    if options.sheet:
        _sheet(images, [*wrong, *alone], options.sheet)


def _sheet(images: list[Image.Image], pairs: list[tuple[int, int]], path: str) -> None:
    sheet = Image.new("RGB", (5 * 300, max(1, -(-len(pairs) // 5)) * 165), "white")
    draw = ImageDraw.Draw(sheet)
    for place, pair in enumerate(pairs):
        x, y = place % 5 * 300, place // 5 * 165
        for side, n in enumerate(pair):
            small = images[n].copy()
            small.thumbnail((142, 142))
            sheet.paste(small, (x + 145 * side, y))
            draw.text((x + 145 * side, y + 145), str(n), fill="red")
    sheet.save(path)


def judged(options: argparse.Namespace) -> None:
    """Print the average precision of judged pairs."""
    root = Path(options.root)
    test, train = (
        sorted(str(p.relative_to(root)) for p in _pictures(str(root / s))) for s in ("test", "train")
    )
    with open(options.pairs, newline="", encoding="utf-8") as stream:
        partner = {row["test_path"]: row["train_path"] for row in csv.DictReader(stream)}
    _, table = _measured_files(root, [*test, *train])
    start = time.process_time()
    candidates = near_copies.find_candidates(table["luma"])
    across = (candidates.pairs[:, 0] < len(test)) & (candidates.pairs[:, 1] >= len(test))
    pairs, flips = candidates.pairs[across], candidates.flips[across]
    fit = alignment.align(table["luma"], pairs, flips).score
    score = duplicates.likeness_of(table, pairs, flips, fit)
    print(f"{len(pairs):,} candidates; {time.process_time() - start:.0f} s of processor time")
    listed = np.array([partner.get(path, "") for path in test], dtype=object)
    for name, kept in (("all", flips >= 0), ("unmirrored only (the list has no mirrored pairs)", flips == 0)):
        best = np.full(len(test), -1.0)
        nearest = np.full(len(test), -1)
        for n in np.flatnonzero(kept)[np.argsort(score[kept], kind="stable")]:
            best[pairs[n, 0]], nearest[pairs[n, 0]] = score[n], pairs[n, 1] - len(test)
        is_pair = np.array([n >= 0 and train[n] == p for n, p in zip(nearest, listed, strict=True)])
        for rule, right in (("pairs", is_pair), ("pictures", listed != "")):
            value, estimate = _average_precision(best, right, len(partner), options.share)
            more = f", for the whole list about {estimate:.3f}" if options.share < 1 else ""
            print(f"{name}, by {rule}: average precision {value:.3f}{more}")


def _measured_files(root: Path, paths: list[str]) -> tuple[Samples, Any]:
    count = len(paths)
    samples = Samples(
        paths=np.array(paths, dtype=object),
        labels=np.zeros(count, dtype=np.int64),
        splits=np.full(count, "train", dtype=object),
        classes=("picture",),
        root=str(root),
    )
    table, reasons = measure_all(samples, np.arange(count), samples.read, None, 10**9, 0)
    assert not reasons
    return samples, table


def _average_precision(score: Any, right: Any, positives: int, share: float) -> tuple[float, float]:
    """Return the mean over the listed pairs of the precision at each; and with what the list lacks added."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(right[order]) / np.arange(1, len(right) + 1)
    at = right[order]
    return float(hits[at].sum() / positives), float(np.minimum(1, hits[at] / share).sum() / positives)


def bands(options: argparse.Namespace) -> None:
    """Print what the search by bands takes, on random hashes with a planted near copy for every hundredth."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (options.hashes, near_copies.BITS // 8), dtype=np.uint8)
    copies = np.arange(0, options.hashes - 1, 100)
    flipped = np.zeros((len(copies), near_copies.BITS), dtype=bool)
    for row in flipped:  # 6 of the 64 lowest and 24 of the others
        row[generator.choice(64, 6, replace=False)] = True
        row[64 + generator.choice(near_copies.BITS - 64, 24, replace=False)] = True
    hashes[copies + 1] = hashes[copies] ^ np.packbits(flipped, axis=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, clock = time.process_time(), time.perf_counter()
    pairs, _, complete = near_copies.banded_pairs(hashes)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = np.isin(copies * options.hashes + copies + 1, pairs[:, 0] * options.hashes + pairs[:, 1]).mean()
    print(
        f"{options.hashes:,} hashes: {time.process_time() - start:.0f} s of processor time "
        f"({time.perf_counter() - clock:.0f} s), at most {used / 1024:.0f} MiB ({(used - before) / 1024:.0f} "
        f"of them for the search), {len(pairs):,} candidates, {found:.1%} of the planted pairs, {complete=}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos")
    parser.add_argument("--distractors")
    parser.add_argument("--distractor-count", type=int, default=782)
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet")
    parser.add_argument("--pairs")
    parser.add_argument("--root")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--hashes", type=int, default=0)
    options = parser.parse_args()
    if options.photos:
        plants(options)
    if options.pairs:
        judged(options)
    if options.hashes:
        bands(options)


if __name__ == "__main__":
    main()
