"""Which column of a table or shard is the label, the image, the split: as given, or by the rules of lists."""

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

FINE, COARSE = ("cat", "lion", "oak", "elm"), ("animal", "tree")


def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (9, 11, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


IMAGES = [picture(number) for number in range(24)]
FINES = [number % 4 for number in range(24)]


def opened(source: object, tmp_path: pathlib.Path, notes: list[str] | None = None, **options: Any) -> Samples:
    spec = DataSpec(source=str(source), cache_dir=str(tmp_path / "cache"), **options)
    return open_source(spec, (notes if notes is not None else []).append)


def answers(samples: Samples) -> dict[bytes, str]:
    return {bytes(samples.read(row)): samples.classes[samples.labels[row]] for row in range(len(samples))}


def expected(names: list[str]) -> dict[bytes, str]:
    return dict(zip(IMAGES, names, strict=True))


def table(path: pathlib.Path, features: dict[str, tuple[str, ...]], **columns: Any) -> pathlib.Path:
    """A Parquet file of the images and ``columns``, of which those in ``features`` are ClassLabels."""
    declared = {name: {"names": list(names), "_type": "ClassLabel"} for name, names in features.items()}
    given = pa.table({"image": IMAGES, **columns})
    info = json.dumps({"info": {"features": {"image": {"_type": "Image"}, **declared}}})
    pq.write_table(given.replace_schema_metadata({"huggingface": info}) if features else given, path)
    return path


def two_labels(path: pathlib.Path) -> pathlib.Path:
    features = {"fine_label": FINE, "coarse_label": COARSE}
    return table(path, features, fine_label=FINES, coarse_label=[k // 2 for k in FINES])


def shard(path: pathlib.Path, samples: list[dict[str, bytes]]) -> pathlib.Path:
    with tarfile.open(path, "w") as archive:
        for number, parts in enumerate(samples):
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{number:04d}.{suffix}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


# --- Tables -----------------------------------------------------------------------------------------------


def test_of_several_columns_of_classes_nothing_is_taken_without_being_told(tmp_path: pathlib.Path) -> None:
    path = two_labels(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"fine_label, coarse_label.*--data\.label-column"):
        opened(path, tmp_path)
    fine = opened(path, tmp_path, label_column=("fine_label",))
    assert (fine.classes, answers(fine)) == (FINE, expected([FINE[k] for k in FINES]))
    coarse = opened(path, tmp_path, label_column=("Coarse Label",))  # in any spelling, as in lists
    assert (coarse.classes, answers(coarse)) == (COARSE, expected([COARSE[k // 2] for k in FINES]))


@pytest.mark.parametrize("option", ["label_column", "split_column", "path_column"])
def test_unknown_columns_are_refused_with_the_columns_that_are_there(
    tmp_path: pathlib.Path, option: str
) -> None:
    wanted: Any = ("breed",) if option == "label_column" else "breed"
    for source in (two_labels(tmp_path / "a.parquet"), pieces(tmp_path / "a.tar")):
        words = r"breed.*(fine_label|coarse|png)"
        with pytest.raises(DataError, match=words):
            opened(
                source, tmp_path, **{"label_column": ("coarse",) * (source.suffix == ".tar"), option: wanted}
            )


def test_a_usual_name_goes_first_and_what_was_not_taken_is_reported(tmp_path: pathlib.Path) -> None:
    path = table(
        tmp_path / "a.parquet", {}, label=[FINE[k] for k in FINES], category=[COARSE[k // 2] for k in FINES]
    )
    notes: list[str] = []
    assert answers(opened(path, tmp_path, notes)) == expected([FINE[k] for k in FINES])
    assert any("'label' of 'a.parquet', not category (--data.label-column)" in note for note in notes), notes
    again: list[str] = []
    opened(path, tmp_path, again)  # unpacked already: it is still said
    assert any("not category" in note for note in again)
    assert answers(opened(path, tmp_path, label_column=("category",))) == expected(
        [COARSE[k // 2] for k in FINES]
    )


def test_of_columns_that_say_the_same_the_words_are_taken(tmp_path: pathlib.Path) -> None:
    path = table(tmp_path / "a.parquet", {}, label=FINES, class_name=[FINE[k] for k in FINES])
    assert answers(opened(path, tmp_path)) == expected([FINE[k] for k in FINES])


def test_one_hot_columns_groups_flags_and_a_label_of_any_name_are_read_as_in_lists(
    tmp_path: pathlib.Path,
) -> None:
    hot = {name: [int(k == place) for k in FINES] for place, name in enumerate(FINE)}
    assert answers(opened(table(tmp_path / "a.parquet", {}, **hot), tmp_path)) == expected(
        [FINE[k] for k in FINES]
    )
    flags = [number % 3 == 0 for number in range(24)]
    path = table(tmp_path / "b.parquet", {}, species=[FINE[k] for k in FINES], is_valid=flags, caption=IDS)
    samples = opened(path, tmp_path)
    assert answers(samples.split("val")) == {
        i: FINE[k] for i, k, f in zip(IMAGES, FINES, flags, strict=True) if f
    }
    path = table(
        tmp_path / "c.parquet", {}, label=[FINE[k] for k in FINES], patient=[n // 6 for n in range(24)]
    )
    grouped = opened(path, tmp_path, group="patient")
    assert grouped.groups is not None
    assert len(set(grouped.groups)) == 4


IDS = [f"a picture of number {number}" for number in range(24)]


def test_texts_that_hardly_repeat_and_measurements_are_no_labels(tmp_path: pathlib.Path) -> None:
    path = table(tmp_path / "a.parquet", {}, text=IDS, weight=[0.5 + n for n in range(24)], file_name=IDS)
    with pytest.raises(DataError, match="no column for the label"):
        opened(path, tmp_path)
    assert len(opened(path, tmp_path, label_column=("text",)).classes) == 24


def test_the_column_of_images_can_be_named(tmp_path: pathlib.Path) -> None:
    others = [picture(100 + number) for number in range(24)]
    path = table(tmp_path / "a.parquet", {}, thumb=others, label=[FINE[k] for k in FINES])
    assert answers(opened(path, tmp_path)) == expected([FINE[k] for k in FINES])
    assert set(answers(opened(path, tmp_path, path_column="thumb"))) == set(others)
    with pytest.raises(DataError, match="no bytes of images there, but in image, thumb"):
        opened(path, tmp_path, path_column="label")


def test_a_column_of_splits_is_read_and_can_be_left(tmp_path: pathlib.Path) -> None:
    path = table(
        tmp_path / "a.parquet", {}, label=[FINE[k] for k in FINES], split=["train"] * 12 + ["test"] * 12
    )
    assert set(answers(opened(path, tmp_path).split("test"))) == set(IMAGES[12:])
    dealt = opened(path, tmp_path, split_column="none")
    assert 0 < len(dealt.split("test")) < 12


def test_changed_names_of_classes_beside_a_table_are_seen(tmp_path: pathlib.Path) -> None:
    (tmp_path / "set").mkdir()
    table(tmp_path / "set/a.parquet", {}, label=FINES)
    for names in (FINE, tuple(reversed(FINE))):
        feature = {"label": {"names": list(names), "_type": "ClassLabel"}}
        (tmp_path / "set/dataset_info.json").write_text(json.dumps({"features": feature}))
        assert answers(opened(tmp_path / "set/a.parquet", tmp_path)) == expected([names[k] for k in FINES])


@pytest.mark.parametrize("kind", ["to_parquet", "save_to_disk"])
def test_what_datasets_writes_with_two_labels(tmp_path: pathlib.Path, kind: str) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        image=datasets.Image(),
        fine_label=datasets.ClassLabel(names=list(FINE)),
        coarse_label=datasets.ClassLabel(names=list(COARSE)),
    )
    rows = {
        "image": [{"bytes": content, "path": None} for content in IMAGES],
        "fine_label": FINES,
        "coarse_label": [k // 2 for k in FINES],
    }
    path = tmp_path / ("set.parquet" if kind == "to_parquet" else "set")
    getattr(datasets.Dataset.from_dict(rows, features=features), kind)(str(path))
    with pytest.raises(DataError, match="fine_label, coarse_label"):
        opened(path, tmp_path)
    coarse = opened(path, tmp_path, label_column=("coarse_label",))
    assert (coarse.classes, answers(coarse)) == (COARSE, expected([COARSE[k // 2] for k in FINES]))


# --- WebDataset -------------------------------------------------------------------------------------------


def pieces(path: pathlib.Path, key: str = "coarse", **more: str) -> pathlib.Path:
    """Write a shard whose `.cls` is the number of the fine class, and whose JSON has the coarse one under ``key``."""
    samples = []
    for content, k in zip(IMAGES, FINES, strict=True):
        record = json.dumps({key: COARSE[k // 2], **more}).encode()
        samples.append({"png": content, "cls": str(k).encode(), "json": record})
    return shard(path, samples)


def test_of_several_labels_of_a_sample_the_one_taken_is_said_and_another_can_be_named(
    tmp_path: pathlib.Path,
) -> None:
    notes: list[str] = []
    path = pieces(tmp_path / "a.tar", "label")
    assert answers(opened(path, tmp_path, notes)) == expected([str(k) for k in FINES])
    assert any("column 'cls' of 'a.tar', not label" in note for note in notes), notes
    coarse = [COARSE[k // 2] for k in FINES]
    assert answers(opened(path, tmp_path, label_column=("label",))) == expected(coarse)
    assert answers(opened(pieces(tmp_path / "b.tar"), tmp_path, label_column=("coarse",))) == expected(coarse)


def test_numbers_and_names_that_say_the_same_give_the_names(tmp_path: pathlib.Path) -> None:
    samples = [
        {"png": content, "cls": str(k).encode(), "json": json.dumps({"class_name": FINE[k]}).encode()}
        for content, k in zip(IMAGES, FINES, strict=True)
    ]
    assert answers(opened(shard(tmp_path / "a.tar", samples), tmp_path)) == expected([FINE[k] for k in FINES])


def test_json_with_several_usual_keys_takes_the_first_and_says_so(tmp_path: pathlib.Path) -> None:
    samples = [
        {"png": content, "json": json.dumps({"category": COARSE[k // 2], "label": FINE[k]}).encode()}
        for content, k in zip(IMAGES, FINES, strict=True)
    ]
    notes: list[str] = []
    path = shard(tmp_path / "a.tar", samples)
    assert answers(opened(path, tmp_path, notes)) == expected([FINE[k] for k in FINES])
    assert any("'label' of 'a.tar', not category" in note for note in notes), notes


def test_splits_in_json_are_read_and_class_names_beside_may_change(tmp_path: pathlib.Path) -> None:
    samples = [
        {"png": content, "cls": str(k).encode(), "json": json.dumps({"split": split}).encode()}
        for content, k, split in zip(IMAGES, FINES, ["train", "test"] * 12, strict=True)
    ]
    (tmp_path / "set").mkdir()
    path = shard(tmp_path / "set/a.tar", samples)
    for names in (FINE, tuple(reversed(FINE))):
        (tmp_path / "set/classnames.txt").write_text("\n".join(names))
        read = opened(path, tmp_path)
        assert answers(read) == expected([names[k] for k in FINES])
        assert set(answers(read.split("test"))) == set(IMAGES[1::2])


def test_the_image_of_several_in_a_sample_can_be_named(tmp_path: pathlib.Path) -> None:
    samples = [
        {"rgb.png": content, "mask.png": IMAGES[0], "cls": str(k).encode()}
        for content, k in zip(IMAGES, FINES, strict=True)
    ]
    path = shard(tmp_path / "a.tar", samples)
    with pytest.raises(DataError, match=r"several images \(rgb\.png, mask\.png\).*--data\.path-column"):
        opened(path, tmp_path)
    assert answers(opened(path, tmp_path, path_column="rgb.png")) == expected([str(k) for k in FINES])


def test_what_webdataset_writes(tmp_path: pathlib.Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, (content, k) in enumerate(zip(IMAGES, FINES, strict=True)):
            record = {"label": COARSE[k // 2], "score": 0.5}
            writer.write({"__key__": f"{number:04d}", "png": content, "cls": k, "json": record})
    assert answers(opened(tmp_path / "a.tar", tmp_path)) == expected([str(k) for k in FINES])
    coarse = opened(tmp_path / "a.tar", tmp_path, label_column=("label",))
    assert answers(coarse) == expected([COARSE[k // 2] for k in FINES])
