"""Parquet, Arrow and WebDataset: every image with its label, its split and its very bytes; the rest by name."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tellapart.data.samples import Samples
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError
from tellapart.spec import DataSpec

NAMES = ("кошка", "ant", "bee 2")  # not in alphabetical order, which a set's own order must survive


def picture(label: int, number: int) -> bytes:
    rng = np.random.default_rng([label, number])
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (9, 11, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


ROWS = [(picture(label, number), label) for label in range(3) for number in range(8)]


def opened(source: object, tmp_path: pathlib.Path, notes: list[str] | None = None, **options: Any) -> Samples:
    spec = DataSpec(source=str(source), cache_dir=str(tmp_path / "cache"), **options)
    return open_source(spec, (notes if notes is not None else []).append)


def answers(samples: Samples) -> set[tuple[bytes, str]]:
    """Return (bytes, class name) of every row, as a trainer would read them."""
    return {(bytes(samples.read(row)), samples.classes[samples.labels[row]]) for row in range(len(samples))}


def expected(rows: list[tuple[bytes, int]] = ROWS) -> set[tuple[bytes, str]]:
    return {(content, NAMES[label]) for content, label in rows}


def huggingface(
    rows: list[tuple[bytes, int]], label: str = "label", names: tuple[str, ...] = NAMES
) -> pa.Table:
    """A table as `datasets` writes it: structs of bytes and path, and class names in the schema."""
    features = {"image": {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": content, "path": f"a/{n}.png"} for n, (content, _) in enumerate(rows)]
    table = pa.table({"image": pa.array(images, kind), label: pa.array([k for _, k in rows], pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save_to_disk(folder: pathlib.Path, table: pa.Table) -> None:
    """The files of `Dataset.save_to_disk`: an Arrow stream, its state and what its columns are."""
    folder.mkdir(parents=True)
    path = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(path, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (folder / "dataset_info.json").write_text('{"features": {}}')


def tar(path: pathlib.Path, members: list[tuple[str, bytes]]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shard(rows: list[tuple[bytes, int]], label: str = "cls", start: int = 0) -> list[tuple[str, bytes]]:
    members = []
    for number, (content, k) in enumerate(rows, start):
        text = json.dumps({"label": NAMES[k], "width": 11}) if label == "json" else str(k)
        members += [(f"data/{number:05d}.png", content), (f"data/{number:05d}.{label}", text.encode())]
    return members


# --- Parquet and Arrow ------------------------------------------------------------------------------------


def test_parquet_files_with_splits_in_their_names_keep_names_order_splits_and_bytes(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "set/data").mkdir(parents=True)
    for split, rows in (("train", ROWS[::2]), ("validation", ROWS[1::4]), ("test", ROWS[3::4])):
        pq.write_table(
            huggingface(rows), tmp_path / f"set/data/{split}-00000-of-00001.parquet", row_group_size=3
        )
    samples = opened(tmp_path / "set", tmp_path)
    assert samples.classes == NAMES
    for split, rows in (("train", ROWS[::2]), ("val", ROWS[1::4]), ("test", ROWS[3::4])):
        assert answers(samples.split(split)) == expected(rows)


def test_folders_saved_by_datasets_are_read_with_and_without_splits(tmp_path: pathlib.Path) -> None:
    save_to_disk(tmp_path / "both/train", huggingface(ROWS[::2]))
    save_to_disk(tmp_path / "both/test", huggingface(ROWS[1::2]))
    (tmp_path / "both/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    samples = opened(tmp_path / "both", tmp_path, val_fraction=0.0)
    assert answers(samples.split("train")) == expected(ROWS[::2])
    assert answers(samples.split("test")) == expected(ROWS[1::2])
    save_to_disk(tmp_path / "one", huggingface(ROWS))
    assert answers(opened(tmp_path / "one", tmp_path)) == expected()


def test_a_plain_parquet_of_bytes_and_texts_needs_no_schema_of_a_library(tmp_path: pathlib.Path) -> None:
    table = pa.table(
        {"png": [c for c, _ in ROWS], "Class": [NAMES[k] for _, k in ROWS], "split": ["train", "val"] * 12}
    )
    pq.write_table(table, tmp_path / "plain.parquet")
    samples = opened(tmp_path / "plain.parquet", tmp_path)
    assert answers(samples) == expected()
    assert samples.classes == tuple(sorted(NAMES))
    assert answers(samples.split("val")) == expected(ROWS[1::2])


def test_rows_without_a_label_are_counted_and_never_a_class(tmp_path: pathlib.Path) -> None:
    notes: list[str] = []
    pq.write_table(huggingface([*ROWS, (picture(7, 7), -1), (picture(7, 8), -1)]), tmp_path / "a.parquet")
    samples = opened(tmp_path / "a.parquet", tmp_path, notes)
    assert answers(samples) == expected()
    assert any("Left out 2 images: no label (-1)." in note for note in notes)
    again: list[str] = []
    opened(tmp_path / "a.parquet", tmp_path, again)  # from the cache: it is still said
    assert any("Left out 2 images" in note for note in again)


def test_a_changed_file_is_read_anew(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(huggingface(ROWS[::2]), path)
    assert len(opened(path, tmp_path)) == 12
    pq.write_table(huggingface(ROWS), path)
    assert len(opened(path, tmp_path)) == 24


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pa.table({"image": ["a.png"], "label": ["x"]}), "None of the images"),
        (pa.table({"image": [b"1"], "weight": [1.0]}), "no column for the label"),
        (pa.table({"left": [b"1"], "right": [b"2"], "label": ["x"]}), "several columns of images"),
        (pa.table({"image": [b"1"], "label": [["x", "y"]]}), "expected one class"),
        (huggingface([(ROWS[0][0], 3)]), "there are names for 0 to 2"),
        (pa.table({"image": [b"1"], "label": ["x"], "split": ["extra"]}), "expected train, val or test"),
    ],
)
def test_tables_that_cannot_be_meant_are_refused(tmp_path: pathlib.Path, table: pa.Table, words: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=words):
        opened(tmp_path / "a.parquet", tmp_path)
    assert not list((tmp_path / "cache/archives").glob("*")), "nothing half-unpacked may stay"


def test_damaged_and_mixed_tables_are_refused_by_name(tmp_path: pathlib.Path) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(huggingface(ROWS), whole)
    (tmp_path / "cut.parquet").write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"cut\.parquet.*cannot be read as parquet"):
        opened(tmp_path / "cut.parquet", tmp_path)
    for name in ("fine", "coarse"):
        (tmp_path / "set" / name).mkdir(parents=True)
        pq.write_table(huggingface(ROWS), tmp_path / "set" / name / "train-0.parquet")
    with pytest.raises(DataError, match=r"several data sets .*coarse, fine"):
        opened(tmp_path / "set", tmp_path)


# --- WebDataset -------------------------------------------------------------------------------------------


def test_shards_give_every_sample_its_split_and_its_name(tmp_path: pathlib.Path) -> None:
    for split, rows in (("train", ROWS[::2]), ("val", ROWS[1::2])):  # the keys of the shards are the same
        tar(tmp_path / f"set/photos-{split}-000000.tar", shard(rows[:7]))
        tar(tmp_path / f"set/photos-{split}-000001.tar", shard(rows[7:]))
    (tmp_path / "set/classnames.txt").write_text("\n".join(NAMES), encoding="utf-8")
    samples = opened(tmp_path / "set", tmp_path)
    assert samples.classes == NAMES
    assert answers(samples.split("train")) == expected(ROWS[::2])
    assert answers(samples.split("val")) == expected(ROWS[1::2])
    only = opened(tmp_path / "set/photos-val-{000000..000001}.tar", tmp_path)
    assert answers(only) == expected(ROWS[1::2])


def test_labels_in_json_members_are_read(tmp_path: pathlib.Path) -> None:
    path = tar(tmp_path / "all.tar.gz", shard(ROWS, "json"))
    assert answers(opened(path, tmp_path)) == expected()


def test_an_archive_of_class_folders_is_no_shard(tmp_path: pathlib.Path) -> None:
    members = [(f"set/{NAMES[k]}/{n}.png", content) for n, (content, k) in enumerate(ROWS)]
    assert answers(opened(tar(tmp_path / "plain.tar", members), tmp_path)) == expected()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", ROWS[0][0]), ("a.jpg", ROWS[1][0]), ("a.cls", b"0")], "several images"),
        ([("a.png", ROWS[0][0]), ("a.cls", b"0"), ("a.cls", b"1")], "twice in one sample"),
    ],
)
def test_ambiguous_samples_are_refused(
    tmp_path: pathlib.Path, members: list[tuple[str, bytes]], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        opened(tar(tmp_path / "a.tar", members), tmp_path)


def test_a_missing_or_damaged_shard_is_named(tmp_path: pathlib.Path) -> None:
    tar(tmp_path / "train-0.tar", shard(ROWS))
    with pytest.raises(DataError, match=r"train-1\.tar"):
        opened(tmp_path / "train-{0..1}.tar", tmp_path)
    whole = (tmp_path / "train-0.tar").read_bytes()
    for cut in range(5 * 512, 20 * 512, 256):  # in headers, in members, between them
        (tmp_path / "train-1.tar").write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"train-1\.tar.*damaged"):
            opened(tmp_path / "train-{0..1}.tar", tmp_path)


def test_members_cannot_choose_where_they_are_written(tmp_path: pathlib.Path) -> None:
    path = tar(tmp_path / "a.tar", [("../../evil.png", ROWS[0][0]), ("../../evil.cls", b"0"), *shard(ROWS)])
    samples = opened(path, tmp_path)
    assert len(samples) == len(ROWS) + 1
    assert not list(tmp_path.rglob("evil*"))
    assert not list(tmp_path.parent.glob("evil*"))


# --- What is not read -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train.tfrecord", b"", "TFRecord"),
        ("train-00000-of-01024", b"", "TFRecord"),
        ("a.h5", b"", "HDF5"),
        ("unknown", b"\x89HDF\r\n\x1a\n", "HDF5"),
        ("arrays.npz", b"PK", "NumPy"),
        ("set.pkl", b"\x80\x04.", "pickle, which can run code"),
        ("data.mdb", b"", "LMDB"),
        ("set.beton", b"", "FFCV"),
        ("set.rar", b"Rar!\x1a\x07", "RAR archive"),
        ("scan", b"\0" * 128 + b"DICM", "DICOM"),
        ("film.mp4", b"", "ffmpeg"),
    ],
)
def test_formats_that_are_not_read_are_named_with_the_way_out(
    tmp_path: pathlib.Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(content)
    for source in (tmp_path / "set" / name, tmp_path / "set"):
        with pytest.raises(DataError, match=words):
            opened(source, tmp_path)


# --- Parquet as a list ------------------------------------------------------------------------------------


def written(folder: pathlib.Path) -> list[str]:
    """The rows' images as files below img/; return their names."""
    (folder / "img").mkdir(parents=True)
    for number, (content, _) in enumerate(ROWS):
        (folder / f"img/{number:03d}.png").write_bytes(content)
    return [f"{number:03d}.png" for number in range(len(ROWS))]


@pytest.mark.parametrize("given", ["set", "set/list.parquet"])
def test_a_parquet_file_of_paths_and_labels_is_a_list(tmp_path: pathlib.Path, given: str) -> None:
    names = written(tmp_path / "set")
    table = pa.table({"file_name": names, "label": [NAMES[k] for _, k in ROWS], "weight": [0.5] * len(names)})
    pq.write_table(table, tmp_path / "set/list.parquet")
    assert answers(opened(tmp_path / given, tmp_path)) == expected()


def test_a_parquet_file_beside_images_that_says_nothing_of_them_is_named(tmp_path: pathlib.Path) -> None:
    written(tmp_path / "set")
    pq.write_table(pa.table({"x": [1], "y": [2]}), tmp_path / "set/other.parquet")
    with pytest.raises(DataError, match=r"other\.parquet"):
        opened(tmp_path / "set", tmp_path)
