"""Images of any number of channels: NumPy files, TIFF bands and opacity, against numpy and hand-made files."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tellapart.contract.decoding import bands, decode, shown, to_channels
from tellapart.contract.deep import BadImage
from tellapart.data.sources.folders.walk import walk

KINDS = {"u": 1, "i": 2, "f": 3}


def npy(values: npt.NDArray[np.generic], **how: bool) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **how)
    return stream.getvalue()


def predicted(values: npt.NDArray[np.generic]) -> bytes:
    """The floating-point predictor of TIFF's technical note 3, written down a second time."""
    height, width, count = values.shape
    rows = []
    for row in values.astype(values.dtype.newbyteorder(">")).reshape(height, width * count):
        planes = np.frombuffer(row.tobytes(), np.uint8).reshape(-1, values.dtype.itemsize).T.ravel()
        steps = planes.astype(int)
        steps[count:] -= planes[:-count]
        rows.append((steps % 256).astype(np.uint8).tobytes())
    return b"".join(rows)


def tiff(
    values: npt.NDArray[np.generic], planes: bool = False, photometric: int = 1, predictor: int = 1
) -> bytes:
    """A TIFF of bands as GDAL writes them: deflate, one strip, all further bands without a meaning."""
    height, width, count = values.shape
    parts = [values[..., band] for band in range(count)] if planes else [values]
    raw = [predicted(part) if predictor == 3 else part.tobytes() for part in parts]
    packed = [zlib.compress(part) for part in raw]
    starts = np.cumsum([8, *(len(part) for part in packed)]).tolist()
    entries = {
        256: [width], 257: [height], 258: [8 * values.dtype.itemsize] * count, 259: [8], 262: [photometric],
        273: starts[:-1], 277: [count], 278: [height], 279: [len(part) for part in packed],
        284: [2 if planes else 1], 317: [predictor],
        **({338: [0] * (count - (3 if photometric == 2 else 1))} if count > 1 else {}), 339: [KINDS[values.dtype.kind]] * count,
    }  # fmt: skip
    directory, behind = struct.pack("<H", len(entries)), b""
    beyond = starts[-1] + 2 + 12 * len(entries) + 4
    for tag, numbers in sorted(entries.items()):
        bits = struct.pack(f"<{len(numbers)}I", *numbers)
        where = bits if len(numbers) == 1 else struct.pack("<I", beyond + len(behind))
        directory += struct.pack("<HHI", tag, 4, len(numbers)) + where
        behind += bits if len(numbers) > 1 else b""
    return b"".join([b"II*\0", struct.pack("<I", starts[-1]), *packed, directory, bytes(4), behind])


def noise(*shape: int, kind: str = "u1", seed: int = 0) -> npt.NDArray[np.generic]:
    rng = np.random.default_rng(seed)
    if kind[0] == "f":
        return rng.uniform(0, 1, shape).astype(kind)
    return rng.integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


@pytest.mark.parametrize("count", [2, 4, 5, 12])
@pytest.mark.parametrize("first", [False, True], ids=["HWC", "CHW"])
@pytest.mark.parametrize("fortran", [False, True])
def test_numpy_files_give_their_own_channels(count: int, first: bool, fortran: bool) -> None:
    image = noise(40, 31, count)
    stored = image.transpose(2, 0, 1) if first else image
    content = npy(np.asfortranarray(stored) if fortran else np.ascontiguousarray(stored))
    assert bands(content) == count
    assert np.array_equal(decode(content, count), image)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        ((9, 9, 200), 200),
        ((200, 9, 9), 200),
        ((28, 28, 32), 32),
        ((64, 96, 4), 4),
        ((4, 64, 96), 4),
        ((5, 7), 1),
    ],
)
def test_the_shape_says_which_axis_the_channels_are(shape: tuple[int, ...], count: int) -> None:
    assert bands(npy(noise(*shape))) == count


@pytest.mark.parametrize("shape", [(9, 14, 12), (30, 40, 50), (8, 8, 8)])
def test_a_shape_that_does_not_say_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadImage, match=r"does not say.*--input\.channels"):
        bands(npy(noise(*shape)))


def test_numpy_files_of_grey_and_colour_are_like_others() -> None:
    grey, colour = noise(9, 14), noise(9, 14, 3)
    assert np.array_equal(decode(npy(grey), 1)[..., 0], grey)
    assert np.array_equal(decode(npy(grey), 3), np.repeat(grey[..., None], 3, axis=2))
    assert np.array_equal(decode(npy(colour), 3), colour)
    assert np.array_equal(decode(npy(colour.transpose(2, 0, 1)), 1), to_channels(colour, 1))
    assert np.array_equal(decode(npy(grey > 99), 1)[..., 0], np.where(grey > 99, 255, 0))


@pytest.mark.parametrize("kind", [">u2", "<u2"])
def test_sixteen_bits_are_rounded_or_taken_by_their_range(kind: str) -> None:
    image = noise(8, 9, 5, kind="u2")
    for content in (npy(image.astype(kind)), tiff(image)):
        assert np.array_equal(decode(content, 5), np.rint(image / 257).astype(np.uint8))
        wanted = np.floor(np.clip(image / 4095, 0, 1) * 255 + 0.5)
        assert np.abs(decode(content, 5, levels=(0, 4095)).astype(float) - wanted).max() <= 0


@pytest.mark.parametrize("predictor", [1, 3])
@pytest.mark.parametrize("kind", ["f4", "f2", "f8"])
@pytest.mark.parametrize("count", [1, 4])
def test_floating_point_needs_a_range(kind: str, predictor: int, count: int) -> None:
    image = noise(7, 11, count, kind=kind)
    wanted = np.floor(image.astype(np.float64) * 255 + 0.5)
    for content in (npy(image), tiff(image, predictor=predictor)):
        with pytest.raises(BadImage, match=r"no defined range.*--input.range"):
            decode(content, count)
        assert np.array_equal(decode(content, count, levels=(0, 1)), wanted)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize(("count", "photometric"), [(4, 1), (4, 2), (5, 2), (12, 1)])
def test_bands_of_a_tiff_keep_their_order(count: int, photometric: int, kind: str, planes: bool) -> None:
    image = noise(13, 17, count, kind=kind)
    content = tiff(image, planes, photometric)
    wanted = image if kind == "u1" else np.rint(image / 257).astype(np.uint8)
    assert np.array_equal(decode(content, count), wanted)


def test_a_tiff_of_unnamed_bands_says_how_to_take_them() -> None:
    with pytest.raises(BadImage, match=r"which bands are red.*--input.channels 5"):
        decode(tiff(noise(6, 7, 5)), 3)
    with pytest.raises(BadImage, match=r"5 bands.*the input has 12 channels"):
        decode(tiff(noise(6, 7, 5)), 12)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opacity_is_kept_where_it_is_a_channel(mode: str) -> None:
    image = noise(10, 12, len(mode))
    stream = io.BytesIO()
    Image.fromarray(image, mode).save(stream, "PNG")
    assert np.array_equal(decode(stream.getvalue(), len(mode)), image)
    assert decode(stream.getvalue(), 3).shape == (10, 12, 3)
    assert bands(stream.getvalue()) == 0


@pytest.mark.parametrize(("mode", "has"), [("RGB", 3), ("L", 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_file_of_other_channels_is_refused(mode: str, has: int, kind: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (8, 8)).save(stream, kind)
    with pytest.raises(BadImage, match=f"has {has} channels?; the input has 4"):
        decode(stream.getvalue(), 4)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(noise(4, 9, 4)), "both the first and the last axis"),
        (npy(noise(2, 3, 4, 5)), "shape"),
        (npy(noise(7)), "shape"),
        (npy(np.zeros((3, 3), complex)), "complex128"),
        (npy(np.array([[{}]]), allow_pickle=True), "object"),
        (npy(noise(9, 9, 4))[:-1], "truncated"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "damaged"),
        (npy(noise(9, 9, 5)), "has 5 channels; the input has 4"),
    ],
)
def test_what_is_no_image_of_these_channels_is_refused(content: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        decode(content, 4)


def test_four_unnamed_channels_are_not_taken_for_opacity() -> None:
    with pytest.raises(BadImage, match="has 4 channels; the input has 3"):
        decode(npy(noise(9, 11, 4)), 3)


@pytest.mark.parametrize("count", [2, 4, 12])
def test_pictures_show_the_first_channels(count: int) -> None:
    image = noise(29, 44, count)
    picture = np.repeat(image[..., :1], 3, axis=2) if count == 2 else image[..., :3]
    assert np.array_equal(shown(npy(image)), picture)


def test_only_arrays_of_one_image_are_found_in_folders(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for name, shape in (("cat/one.npy", (40, 50, 5)), ("x_train.npy", (9, 40, 50, 3)), ("y_train.npy", (9,))):
        np.save(tmp_path / name, noise(*shape))
    np.save(tmp_path / "cat" / "mask.npy", noise(40, 50))  # of the picture beside it
    Image.new("RGB", (40, 50)).save(tmp_path / "cat" / "mask.png")
    (tmp_path / "cat" / "broken.npy").write_bytes(b"\x93NUMPY")
    tree = walk(str(tmp_path), lambda text: None)
    assert tree.images == ["cat/broken.npy", "cat/mask.png", "cat/one.npy"]
    assert tree.others == ["cat/mask.npy", "x_train.npy", "y_train.npy"]
