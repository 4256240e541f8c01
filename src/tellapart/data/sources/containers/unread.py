"""Formats that tellapart does not read, recognised by their name or first bytes, each with a remedy.

So that the error is never "no images were found" if there is data in another format. Reads only the head of a file.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence

from tellapart.data.sources.listing import many, printable

_CONVERT = "Write the images as files into CLASS folders, or as Parquet with image bytes, with the program that made it"
_UNPACK = "Unpack it and give the folder"

_KINDS: dict[str, tuple[str, str]] = {
    "tfrecord": ("TFRecord", f"{_CONVERT} (tensorflow_datasets: as_numpy, then save each image)"),
    "lmdb": ("an LMDB database", _CONVERT),
    "hdf5": ("HDF5", f"{_CONVERT} (h5py reads it)"),
    "matlab": ("MATLAB's format", f"{_CONVERT} (scipy.io.loadmat reads it)"),
    "numpy": ("NumPy arrays", f"{_CONVERT} (numpy.load reads it)"),
    "pickle": ("a Python pickle, which can run code when it is opened, so it never is here", _CONVERT),
    "ffcv": ("FFCV's .beton", _CONVERT),
    "recordio": ("MXNet's RecordIO", _CONVERT),
    "mds": ("MosaicML's streaming format (MDS)", _CONVERT),
    "litdata": ("LitData's chunks", _CONVERT),
    "rar": ("a RAR archive", _UNPACK),
    "7z": ("a 7z archive", _UNPACK),
    "dicom": (
        "DICOM",
        "Convert it to PNG, with the window that shows the difference between the classes (pydicom)",
    ),
    "nifti": ("NIfTI", "Write the slices as PNG (nibabel)"),
    "video": ("video", "Write frames as images: ffmpeg -i FILE -vf fps=1 CLASS/%06d.jpg"),
    "pdf": ("PDF", "Write its pages as images: pdftoppm -png FILE"),
    "sqlite": ("an SQLite database", _CONVERT),
    "svg": ("SVG drawings", "Render them to PNG"),
    "psd": ("Photoshop files", "Save them as PNG"),
    "raw": ("a camera's raw images", "Develop them to JPEG or TIFF (rawpy, darktable-cli)"),
}
_BY_EXTENSION = {
    **dict.fromkeys((".tfrecord", ".tfrecords", ".tfrec"), "tfrecord"),
    **dict.fromkeys((".mdb", ".lmdb"), "lmdb"),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), "hdf5"),
    **dict.fromkeys((".npz", ".npy"), "numpy"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), "pickle"),
    **dict.fromkeys((".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"), "video"),
    **dict.fromkeys((".dcm", ".dicom"), "dicom"),
    **dict.fromkeys((".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"), "raw"),
    **dict.fromkeys((".db", ".sqlite", ".sqlite3"), "sqlite"),
    ".mat": "matlab",
    ".beton": "ffcv",
    ".rec": "recordio",
    ".mds": "mds",
    ".rar": "rar",
    ".7z": "7z",
    ".nii": "nifti",
    ".pdf": "pdf",
    ".svg": "svg",
    ".psd": "psd",
}
_SHARD = re.compile(
    r"\.(?:tfrecords?|tfrec)(?:[-.]\d+.*)?$|^(?:train|validation|val|test)-\d{5}-of-\d{5}$", re.I
)
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", "hdf5"),
    (0, b"MATLAB 5.0 MAT-file", "matlab"),
    (0, b"\x93NUMPY", "numpy"),
    (0, b"Rar!\x1a\x07", "rar"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"%PDF-", "pdf"),
    (0, b"SQLite format 3\0", "sqlite"),
    (128, b"DICM", "dicom"),
    (4, b"ftypisom", "video"),
    (4, b"ftypmp4", "video"),
    (16, b"\xde\xc0\xef\xbe", "lmdb"),
)


def kind_of(path: str) -> str:
    """Return the key of the format that a file is of, "" if it is none of them."""
    name = posixpath.basename(path.replace(os.sep, "/"))
    if _SHARD.search(name):
        return "tfrecord"
    known = _BY_EXTENSION.get(os.path.splitext(name)[1].lower(), "")
    if known or not os.path.isfile(path):
        return known
    try:
        with open(path, "rb") as stream:
            head = stream.read(256)
    except OSError:
        return ""
    return next((kind for at, magic, kind in _MAGIC if head[at : at + len(magic)] == magic), "")


def explain_file(path: str) -> str:
    """Return what a file is and what to do, one sentence or two; "" where it is not known."""
    kind = kind_of(path)
    if not kind:
        return ""
    title, remedy = _KINDS[kind]
    return f"{printable(path)!r} is {title}, which is not read. {remedy}."


def explain_folder(root: str, others: Sequence[str]) -> str:
    """Return what a folder without images contains, and what to do; "" if that is not known."""
    names = {posixpath.basename(path) for path in others}
    kinds = Counter(filter(None, (kind_of(os.path.join(root, path)) for path in others[:2000])))
    if "index.json" in names and any(name.startswith("chunk-") for name in names):
        kinds["litdata"] += len(others)
    elif "index.json" in names and any(".mds" in name for name in names):
        kinds["mds"] += len(others)
    if not kinds:
        return ""
    kind, count = kinds.most_common(1)[0]
    title, remedy = _KINDS[kind]
    return f"{many(min(count, len(others)), 'file')} there: {title}, which is not read. {remedy}."
