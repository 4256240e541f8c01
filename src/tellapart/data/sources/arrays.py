"""Data sets stored as arrays: IDX files (MNIST and relatives), the CIFAR batches, and scikit-learn's digits.

Reads local files only, pickles without running what is in them. Knows nothing of downloads or of where to
look.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import pickle
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.sources.listing import Listing, printable
from tellapart.errors import DataError

DIGITS = tuple("0123456789")
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
_UPPER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
EMNIST = {
    "byclass": (*DIGITS, *_UPPER, *_UPPER.lower()),
    "bymerge": (*DIGITS, *_UPPER, *"abdefghnqrt"),
    "balanced": (*DIGITS, *_UPPER, *"abdefghnqrt"),
    "letters": tuple(_UPPER.lower()),
    "digits": DIGITS,
    "mnist": DIGITS,
}
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


def from_arrays(
    root: str, parts: Sequence[tuple[str, npt.NDArray[Any], Sequence[int]]], classes: Sequence[str]
) -> Listing:
    """Return the listing of arrays; ``parts``: (split, uint8 [n, H, W] or [n, H, W, 3], class indices [n]).

    Rows are named ``train/12``; without splits (""), ``image/12``.
    """
    listing = Listing(root=root, classes=tuple(classes))
    for split, pixels, labels in parts:
        indices = np.asarray(labels, dtype=np.int64).reshape(-1)
        if len(indices) != len(pixels) or (
            len(indices) and not 0 <= indices.min() <= indices.max() < len(classes)
        ):
            raise DataError(
                f"{printable(root)}: {len(pixels):,} images and {len(indices):,} labels of {len(classes)} "
                "classes do not fit together."
            )
        listing.paths += [f"{split or 'image'}/{row}" for row in range(len(pixels))]
        listing.labels += [classes[index] for index in indices.tolist()]
        listing.splits += [split] * len(pixels)
    pixels = parts[0][1] if len(parts) == 1 else np.concatenate([part[1] for part in parts])
    listing.pixels = np.ascontiguousarray(pixels)
    listing.keys = np.arange(len(listing.paths), dtype=np.int64)
    return listing


def digits() -> Listing:
    """Return scikit-learn's handwritten digits, 1,797 images of 8×8, their 0 to 16 scaled to 0 to 255."""
    rows = _digit_rows()
    pixels = np.rint(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return from_arrays("digits", [("", pixels, rows[:, 64].astype(int).tolist())], DIGITS)


def _digit_rows() -> npt.NDArray[np.float64]:
    """Return 64 pixels and the digit of each image, float64 [1797, 65].

    Read from scikit-learn's file, because importing the package takes longer than everything else with so little data.
    """
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        path = os.path.join(os.path.dirname(package.origin), "datasets", "data", "digits.csv.gz")
        if os.path.exists(path):
            with gzip.open(path, "rt", encoding="ascii") as stream:
                return np.loadtxt(stream, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


# --- IDX --------------------------------------------------------------------------------------------------


def read_idx(path: str) -> npt.NDArray[np.uint8]:
    """Return the array in an IDX file of bytes, plain or gzip (yann.lecun.com, "the IDX file format").

    Raises DataError if the header or the length is wrong.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            head = stream.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
                raise DataError(f"{printable(path)!r} is not an IDX file of bytes.")
            shape = struct.unpack(f">{head[3]}I", stream.read(4 * head[3]))
            size = math.prod(shape)
            content = stream.read(size + 1) if size < 1 << 34 else b""
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{printable(path)!r} cannot be read: {error}.") from error
    if len(content) != size:
        raise DataError(f"{printable(path)!r} is damaged: its header announces {size:,} bytes of data.")
    return np.frombuffer(content, np.uint8).reshape(shape)


def find_idx(folder: str, prefix: str = "") -> dict[str, tuple[str, str]]:
    """Return {split: (images file, labels file)} of the IDX files in a folder, {} if there are none.

    ``prefix`` is EMNIST's, such as ``emnist-letters-``, whose test split is not called t10k.
    """
    found = {}
    for split, stems in (("train", ("train",)), ("test", ("t10k", "test"))):
        for stem in stems:
            images, labels = (
                _idx_file(folder, f"{prefix}{stem}", kind) for kind in ("images-idx3", "labels-idx1")
            )
            if images and labels:
                found[split] = (images, labels)
    return found


def _idx_file(folder: str, stem: str, kind: str) -> str:
    for name in (f"{stem}-{kind}-ubyte", f"{stem}-{kind.replace('-', '.')}-ubyte"):
        for path in (os.path.join(folder, name), os.path.join(folder, f"{name}.gz")):
            if os.path.isfile(path):
                return path
    return ""


def idx_listing(
    folder: str, classes: Sequence[str], prefix: str = "", first: int = 0, turned: bool = False
) -> Listing:
    """Return the listing of a folder's IDX files.

    ``first``: the number of class 0. ``turned``: EMNIST's images are stored transposed and are made upright.
    """
    parts = []
    for split, (images, labels) in find_idx(folder, prefix).items():
        pixels, indices = read_idx(images), read_idx(labels)
        if pixels.ndim != 3:
            raise DataError(f"{printable(images)!r} has {pixels.ndim} dimensions; images have 3.")
        parts.append(
            (split, pixels.transpose(0, 2, 1) if turned else pixels, (indices.astype(int) - first).tolist())
        )
    return from_arrays(folder, parts, classes)


# --- CIFAR ------------------------------------------------------------------------------------------------


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds plain values and numpy arrays; refuses every other class or function a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three things that a pickled array needs. Raises UnpicklingError for anything else."""
        rebuild = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): rebuild,
            ("numpy._core.multiarray", "_reconstruct"): rebuild,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _encode,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a data set does not need")
        return allowed[module, name]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Stand in for ``codecs.encode`` (how protocol 2 writes bytes), for text only."""
    return str(text).encode(encoding)


def read_batch(path: str) -> dict[str, Any]:
    """Return the dictionary of a CIFAR batch file. Raises DataError for anything else than values and arrays."""
    try:
        with open(path, "rb") as stream:
            value = _ArrayUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # unpickling damaged bytes raises nearly any kind
        raise DataError(f"{printable(path)!r} is not a CIFAR batch: {error}.") from error
    if not isinstance(value, dict):
        raise DataError(f"{printable(path)!r} is not a CIFAR batch: it holds no dictionary.")
    return {key.decode() if isinstance(key, bytes) else str(key): item for key, item in value.items()}


def cifar(folder: str) -> Listing:
    """Return CIFAR-10 or CIFAR-100 (fine labels) from its folder of Python batches; pixels [60000, 32, 32, 3]."""
    hundred = os.path.isfile(os.path.join(folder, "meta"))
    files = (
        {"train": ["train"], "test": ["test"]}
        if hundred
        else {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    )
    meta = read_batch(os.path.join(folder, "meta" if hundred else "batches.meta"))
    classes = meta.get("fine_label_names" if hundred else "label_names")
    if not isinstance(classes, list):
        raise DataError(f"{printable(folder)!r} has no class names in its meta file.")
    names = [name.decode() if isinstance(name, bytes) else str(name) for name in classes]
    parts = []
    for split, batches in files.items():
        for batch in batches:
            path = os.path.join(folder, batch)
            value = read_batch(path)
            data, labels = value.get("data"), value.get("fine_labels" if hundred else "labels")
            if (
                not isinstance(data, np.ndarray)
                or data.dtype != np.uint8
                or data.shape[1:] != (3072,)
                or not labels
            ):
                raise DataError(
                    f"{printable(path)!r} is not a CIFAR batch: no images of 3072 bytes with labels."
                )
            parts.append((split, data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels))
    listing = from_arrays(folder, parts, names)
    numbers = {"train": 0, "test": 0}
    for row, split in enumerate(listing.splits):  # numbered through the batches
        listing.paths[row] = f"{split}/{numbers[split]}"
        numbers[split] += 1
    return listing
