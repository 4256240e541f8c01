"""The image formats: the bytes that a file begins with, its readers, and the usual file names.

One table for finding files in a folder and for decoding, so that only files that can be decoded are found. Standard
library only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A format. pillow: its name there; readers: (module, class) of which the first that is installed reads it."""

    name: str
    begins: re.Pattern[bytes]
    extensions: tuple[str, ...]
    pillow: str
    readers: tuple[tuple[str, str], ...]
    package: str = ""  # what to install where there is no reader


def _pil(name: str, kind: str) -> tuple[tuple[str, str], ...]:
    return ((f"PIL.{name}ImagePlugin", f"{kind}ImageFile"),)


_ISO = rb"....ftyp"  # ISO base media files: the brand follows, then four bytes, then more brands
_AVIF = _ISO + rb"(?:avi[fs]|(?:mif1|msf1|miaf)....(?:(?!hei|hev)....){0,16}?avi[fs])"
_HEIF = _ISO + rb"(?:hei[cxms]|hev[cmxs]|mif1|msf1)"

FORMATS: tuple[Format, ...] = (
    Format(
        "JPEG",
        re.compile(rb"\xff\xd8\xff(?!\xf7)"),
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        "JPEG",
        _pil("Jpeg", "Jpeg"),
    ),
    Format("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), (".png", ".apng"), "PNG", _pil("Png", "Png")),
    Format("GIF", re.compile(rb"GIF8[79]a"), (".gif",), "GIF", _pil("Gif", "Gif")),
    Format("WebP", re.compile(rb"RIFF....WEBP", re.DOTALL), (".webp",), "WEBP", _pil("WebP", "WebP")),
    Format("BMP", re.compile(rb"BM"), (".bmp", ".dib"), "BMP", _pil("Bmp", "Bmp")),
    Format("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), (".tif", ".tiff"), "TIFF", _pil("Tiff", "Tiff")),
    Format(
        "PPM",
        re.compile(rb"P[1-6f]\s|Py[1-7]|PyP|P0CMYK"),
        (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        "PPM",
        _pil("Ppm", "Ppm"),
    ),
    Format("ICO", re.compile(rb"\x00\x00\x01\x00[^\x00]"), (".ico",), "ICO", _pil("Ico", "Ico")),
    Format(
        "JPEG 2000",
        re.compile(rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  "),
        (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
        "JPEG2000",
        _pil("Jpeg2K", "Jpeg2K"),
    ),
    Format("AVIF", re.compile(_AVIF, re.DOTALL), (".avif", ".avifs"), "AVIF", _pil("Avif", "Avif")),
    Format(
        "HEIF",
        re.compile(_HEIF, re.DOTALL),
        (".heic", ".heif", ".hif"),
        "HEIF",
        (("pi_heif.as_plugin", "HeifImageFile"), ("pillow_heif.as_plugin", "HeifImageFile")),
        "tellapart[heif]",
    ),
    Format("SGI", re.compile(rb"\x01\xda[\x00\x01][\x01\x02]"), (".sgi",), "SGI", _pil("Sgi", "Sgi")),
    Format(
        "PCX",
        re.compile(rb"\x0a[\x00\x02-\x05][\x00\x01][\x01\x02\x04\x08]"),
        (".pcx",),
        "PCX",
        _pil("Pcx", "Pcx"),
    ),
    Format("NumPy", re.compile(rb"\x93NUMPY"), (".npy",), "NumPy", ()),
    Format("QOI", re.compile(rb"qoif"), (".qoi",), "QOI", _pil("Qoi", "Qoi")),
    # The last, because its first bytes say little: colour map, kind, 14 bytes of places and sizes, depth, order.
    Format(
        "TGA",
        re.compile(
            rb"(?=.(?:\x01[\x01\x09]|[\x00\x01][\x02\x03\x0a\x0b])).{12}(?!\x00\x00)..(?!\x00\x00)..[\x01\x08\x10\x18\x20][\x00-\x3f]",
            re.DOTALL,
        ),
        (".tga",),
        "TGA",
        _pil("Tga", "Tga"),
    ),
)
BY_EXTENSION = {extension: one for one in FORMATS for extension in one.extensions}
BY_NAME = {one.name: one for one in FORMATS}

# How files that are no supported image begin, and what they are.
NOT_IMAGES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"\W*(<\?xml.*)?<(!doctype\s+html|html|head|body)\b", re.I | re.S),
     "is a HTML/text page, not an image"),
    (re.compile(rb"\W*(<\?xml.*)?<svg\b", re.I | re.S), "is an SVG drawing, which has no pixels"),
    (re.compile(rb"version https://git-lfs"), "is a Git LFS pointer; the image itself was not fetched"),
    (re.compile(rb"%PDF-"), "is a PDF document, not an image"),
    (re.compile(rb"%!PS|\xc5\xd0\xd3\xc6"), "is a PostScript document, not an image"),
    (re.compile(rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf"), "is an archive, not an image"),
    (re.compile(rb".{128}DICM", re.S), "is a DICOM file; convert it to PNG or TIFF with the window that you want"),
    (re.compile(rb"\x89HDF\r\n"), "is an HDF5 file; save its images as PNG or TIFF"),
    (re.compile(rb"SIMPLE  ="), "is a FITS file, which is not supported; convert it to PNG or TIFF"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "is JPEG XL, which is not supported; convert it to PNG"),
    (re.compile(rb"\xff\xd8\xff\xf7"), "is JPEG-LS, which is not supported; convert it to PNG"),
    (re.compile(rb"P7\s"), "is PAM, which is not supported; convert it to PNG"),
    (re.compile(rb"PF\s"), "is a colour PFM, whose numbers have no defined range; convert it to PNG"),
    (re.compile(rb"v/1\x01"), "is OpenEXR, whose numbers have no defined range; convert it to PNG"),
    (re.compile(rb"#\?RADIANCE|#\?RGBE"), "is Radiance HDR, whose numbers have no defined range; convert it to PNG"),
    (re.compile(rb"8BPS"), "is a Photoshop document; save it as PNG"),
    (re.compile(rb"DDS "), "is a DDS texture, which is not supported; convert it to PNG"),
    (re.compile(rb"FUJIFILMCCD-RAW|IIRO|IIU\0|....ftypcrx", re.S), "is a camera's raw file; develop it to JPEG"),
    (re.compile(rb"....ftyp", re.S), "is a video, not an image"),
)  # fmt: skip
