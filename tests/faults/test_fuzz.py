"""Damaged and nonsensical lists, annotations and checkpoints: read, or refused in a sentence; nothing else."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tellapart.data.sources.opening import open_source
from tellapart.errors import UserError
from tellapart.spec import DataSpec
from tellapart.training import checkpoint

IMAGES = ("images/a.png", "images/b.png", "images/c.png", "images/d.png")
LABELS = ("cat", "dog", "cat", "собака")
SECONDS = 2.0  # of processor time, for a reader of a few hundred bytes
fuzz = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# --- Good files -----------------------------------------------------------------------------------------------------


def _rows(label: str = "label") -> Iterator[list[str]]:
    yield ["path", label, "split"]
    splits = ("train", "train", "val", "test")
    yield from (list(row) for row in zip(IMAGES, LABELS, splits, strict=True))


def _csv(rows: Iterator[list[Any]] | list[list[Any]], delimiter: str = ",") -> str:
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter).writerows(rows)
    return stream.getvalue()


def _voc() -> str:
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>5</xmax><ymax>7</ymax></bndbox></object>"
        for label in ("dog", "dog")
    )
    return f"<?xml version='1.0'?><annotation><filename>a.png</filename>{objects}</annotation>"


def _cvat() -> str:
    images = "".join(
        f'<image id="{n}" name="{Path(path).name}" subset="Train"><tag label="{label}"/><box label="{label}" '
        f'xtl="1" ytl="2" xbr="5" ybr="7" rotation="10"/><polygon label="{label}" points="1,2;3,4;5,1"/></image>'
        for n, (path, label) in enumerate(zip(IMAGES, LABELS, strict=True))
    )
    return f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{images}</annotations>'


def _coco() -> str:
    names = sorted(set(LABELS))
    return json.dumps(
        {
            "images": [
                {"id": n, "file_name": path, "width": 8, "height": 8} for n, path in enumerate(IMAGES)
            ],
            "categories": [{"id": n, "name": name} for n, name in enumerate(names)],
            "annotations": [
                {
                    "id": n,
                    "image_id": n,
                    "category_id": names.index(label),
                    "bbox": [1, 2, 3, 4],
                    "iscrowd": 0,
                }
                for n, label in enumerate(LABELS)
            ],
        }
    )


def _createml() -> str:
    box = {"x": 3, "y": 4, "width": 2, "height": 2}
    return json.dumps(
        [
            {"image": path, "annotations": [{"label": label, "coordinates": box}]}
            for path, label in zip(IMAGES, LABELS, strict=True)
        ]
    )


def _label_studio(form: str) -> str:
    box = {"x": 10, "y": 20, "width": 50, "height": 40, "rotation": 5, "rectanglelabels": ["cat"]}
    rows: list[dict[str, Any]] = []
    for number, (path, label) in enumerate(zip(IMAGES, LABELS, strict=True)):
        image = f"/data/upload/1/{number:08x}-{Path(path).name}"
        if form == "full":
            value = {"value": {"choices": [label]}, "from_name": "choice", "type": "choices"}
            region = {"value": box, "from_name": "choice", "type": "rectanglelabels", "original_width": 8}
            found = [{"result": [value if number % 2 else region], "was_cancelled": False}]
            rows.append({"id": number, "annotations": found, "data": {"image": image}})
        else:
            answer: Any = label if number % 2 else {"choices": [label]}
            row = {"annotation_id": number, "annotator": 1, "choice": answer, "id": number, "image": image}
            rows.append(row)
    if form == "csv":
        cells = [[v if isinstance(v, str) else json.dumps(v) for v in row.values()] for row in rows]
        return _csv([list(rows[0]), *cells])
    return json.dumps(rows)


def _labelme() -> str:
    shapes = [
        {"label": "cat", "points": [[1, 2], [5, 6]], "shape_type": "rectangle", "flags": {}},
        {"label": "dog", "points": [[1, 2], [5, 6], [3, 1]], "shape_type": "polygon", "flags": {}},
    ]
    flags = {"blurred": True, "dark": False}
    return json.dumps(
        {"version": "5.2", "flags": flags, "shapes": shapes, "imagePath": "a.png", "imageData": None}
    )


def _via(form: str) -> str:
    shapes: list[dict[str, Any]] = [
        {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
        {"name": "circle", "cx": 4, "cy": 4, "r": 2},
        {"name": "polygon", "all_points_x": [1, 3, 5], "all_points_y": [2, 4, 6]},
        {"name": "ellipse", "cx": 4, "cy": 4, "rx": 2, "ry": 1},
    ]
    if form == "csv":
        head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"
        cells = [
            [Path(path).name, 9, "{}", 1, 0, json.dumps(shape), json.dumps({"animal": label})]
            for path, label, shape in zip(IMAGES, LABELS, shapes, strict=True)
        ]
        return _csv([head.split(","), *cells])
    found = {
        f"{path}9": {
            "filename": Path(path).name,
            "size": 9,
            "file_attributes": {"kind": {"cat": True, "dog": False} if number else "cat"},
            "regions": [{"shape_attributes": shape, "region_attributes": {"animal": label}}],
        }
        for number, (path, label, shape) in enumerate(zip(IMAGES, LABELS, shapes, strict=True))
    }
    return json.dumps(found)


def _retinanet() -> str:
    return _csv([[path, 1, 2, 5, 6, label] for path, label in zip(IMAGES, LABELS, strict=True)])


def _json_lines() -> str:
    rows = zip(IMAGES, LABELS, strict=True)
    return "".join(
        json.dumps({"file_name": path, "label": label, "box": [1, 2, 5, 6]}) + "\n" for path, label in rows
    )


def _one_hot() -> str:
    names = sorted(set(LABELS))
    rows = [
        [path, *(int(label == name) for name in names)] for path, label in zip(IMAGES, LABELS, strict=True)
    ]
    return _csv([["image", *names], *rows])


GOOD: dict[str, tuple[str, str]] = {  # the file's name and text
    "csv": ("labels.csv", _csv(_rows())),
    "semicolons": ("labels.csv", "sep=;\r\n" + _csv(_rows("class"), ";")),
    "tsv": ("labels.tsv", _csv(_rows(), "\t")),
    "one-hot": ("train.csv", _one_hot()),
    "jsonl": ("metadata.jsonl", _json_lines()),
    "text": ("list.txt", "".join(f"{path} {label}\n" for path, label in zip(IMAGES, LABELS, strict=True))),
    "voc": ("images/a.xml", _voc()),
    "cvat": ("annotations.xml", _cvat()),
    "coco": ("labels.json", _coco()),
    "createml": ("labels.json", _createml()),
    "label studio": ("project.json", _label_studio("full")),
    "label studio, min": ("project.json", _label_studio("min")),
    "label studio, csv": ("project.csv", _label_studio("csv")),
    "labelme": ("images/a.json", _labelme()),
    "via": ("via.json", _via("json")),
    "via, csv": ("via.csv", _via("csv")),
    "retinanet": ("annotations.csv", _retinanet()),
    "yolo": ("images/a.txt", "0 0.5 0.5 0.25 0.25\n0 0.1 0.2 0.3 0.4 0.5 0.6\n"),
    "yolo, names": ("images/classes.txt", "cat\ndog\n"),
    "yolo, yaml": ("data.yaml", "train: images\nnc: 2\nnames:\n  0: cat\n  1: собака\n"),
}

# --- Damage ---------------------------------------------------------------------------------------------------------

TOKENS = [
    b"", b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"9" * 400, b"1" * 5000, b"[]", b"{}", b'""',
    b"[" * 2000, b"{\"a\":" * 2000, b'"', b"'", b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"\\ud800",
    b'"\\ud800"', b"\\u0000", b"&#0;", b"&#x110000;", b"&lol;", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"<![CDATA[", b"../../..",
    b"/etc/passwd", b"C:\\a\\b.png", b"\xd1", b"=cmd|' /C calc'!A0", b"\x1b[31m", b"a" * 300, b"a/" * 3000, b"images/a.png",
    b"images", b".", b"\xe2\x80\xae", b"*a", b"!!python/object:os.system", b"&a [*a]", b"1.5", b"1_0", "١".encode(),
]  # fmt: skip
_TOKEN = re.compile(rb"\w+|[^\w\s]")


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Return the good bytes after one to four mishaps."""
    content = good
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("token", "token", "token", "swap", "flip", "cut", "double", "insert")))
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        tokens = list(_TOKEN.finditer(content)) if kind in ("token", "swap") else []
        if tokens:
            one = tokens[draw(st.integers(0, len(tokens) - 1))]
            other = tokens[draw(st.integers(0, len(tokens) - 1))][0]
            put = other if kind == "swap" else draw(st.sampled_from(TOKENS))
            content = content[: one.start()] + put + content[one.end() :]
        elif kind == "flip" and content:
            start = min(start, len(content) - 1)
            content = (
                content[:start]
                + bytes([content[start] ^ 1 << draw(st.integers(0, 7))])
                + content[start + 1 :]
            )
        elif kind == "cut":
            content = content[:start] + content[end:]
        elif kind == "double":
            content = content[:end] + content[start:]
        else:
            content = content[:start] + draw(st.binary(max_size=12)) + content[start:]
    return content


# --- Lists and annotations ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bytes], Path]:
    """Return a function that puts a file beside images, alone, and returns its path."""
    root = tmp_path_factory.mktemp("fuzz")
    for number, path in enumerate(IMAGES):
        (root / path).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(root / path)
    before: list[Path] = []

    def put(name: str, content: bytes) -> Path:
        for path in before:
            path.unlink()
        before[:] = [root / name]
        (root / name).write_bytes(content)
        if name.endswith(("classes.txt", ".yaml")):
            before.append(root / "images/a.txt")
            before[-1].write_text("0 0.5 0.5 0.25 0.25\n1 0.5 0.5 0.5 0.5\n")
        return root / name

    return put


def _bare(text: str) -> str:
    """Return text without what quotes and escapes may add or leave out."""
    return re.sub(r"[\s\"'\\]", "", unicodedata.normalize("NFC", text))


def _texts(content: bytes) -> Iterator[str]:
    """Yield what a file may say, in each spelling: as it is, without entities, without JSON's escapes."""
    encodings = ["utf-8-sig"]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        encodings += ["utf-16", "utf-16-le", "utf-16-be"]
    for encoding in encodings:
        text = content.decode(encoding, "backslashreplace")
        yield text
        yield html.unescape(text)
        yield (
            re.sub(
                r"(?:\\+u[0-9a-fA-F]{4})+",
                lambda found: "".join(chr(int(one, 16)) for one in re.findall(r"u(\w{4})", found[0])),
                text,
            )
            .encode("utf-16", "surrogatepass")
            .decode("utf-16", "backslashreplace")
        )


def _read(path: Path, content: bytes, **options: Any) -> None:
    notes: list[str] = []
    began = time.process_time()
    try:
        samples = open_source(
            DataSpec(source=str(path), val_fraction=0, test_fraction=0, **options), notes.append
        )
    except UserError as error:
        said_why = str(error).encode().strip()  # it can be printed
        if not said_why:
            raise AssertionError("an error without a sentence") from error
        return
    finally:
        assert time.process_time() - began < SECONDS
    assert len(samples) <= len(IMAGES) * (1 + len(content))
    said = [_bare(text) for text in _texts(content)]
    for label in samples.classes:
        label.encode()
        assert label.strip()
        told = any(_bare(label) in text for text in said)
        assert told or (label.isascii() and label.isdigit()), label  # a class of YOLO's without a name
    for note in notes:
        note.encode()


@pytest.mark.parametrize("name", GOOD)
def test_the_good_ones_are_read(name: str, place: Callable[[str, bytes], Path]) -> None:
    file, text = GOOD[name]
    path = place(file, text.encode())
    samples = open_source(DataSpec(source=str(path.parents[file.count("/")]), boxes="crop"), lambda _: None)
    assert set(samples.classes) <= {*LABELS, "0", "1"}


@pytest.mark.parametrize("name", GOOD)
@settings(fuzz, max_examples=20)
@given(data=st.data())
def test_a_damaged_list_or_annotation_is_read_or_refused(
    name: str, place: Callable[[str, bytes], Path], data: st.DataObject
) -> None:
    file, text = GOOD[name]
    content = data.draw(damaged(text.encode()))
    path = place(file, content)
    whole = path.parents[file.count("/")]
    source = data.draw(st.sampled_from((path, whole))) if "yolo" not in name else whole
    _read(source, content, boxes=data.draw(st.sampled_from(("image", "crop"))))


@settings(fuzz, max_examples=200)
@given(name=st.sampled_from(sorted({name for name, _ in GOOD.values()})), content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(
    name: str, content: bytes, place: Callable[[str, bytes], Path]
) -> None:
    path = place(name, content)
    _read(path, content)
    _read(path.parents[name.count("/")], content)


# --- Checkpoints ----------------------------------------------------------------------------------------------------


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and list(one) == list(other) and all(_same(one[k], other[k]) for k in one)
        )
    return type(one) is type(other) and one == other


def _content(step: int) -> dict[str, Any]:
    weights = {"a": torch.arange(50.0) + step, "b": torch.arange(50.0) * step, "c": torch.tensor(step)}
    return {"step": step, "weights": weights, "name": "x", "best": None}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (12, 24):
        checkpoint.save(folder, step, _content(step))
    return folder


def _taken(folder: Path, content: bytes, good: bytes) -> None:
    newest = folder / "step-000000024.pt"
    newest.write_bytes(content)
    began = time.process_time()
    found = checkpoint.load_newest(folder)
    assert time.process_time() - began < SECONDS
    newest.write_bytes(good)
    assert found is not None
    assert _same(found, _content(found["step"]))
    assert found["step"] in (12, 24)


@settings(fuzz, max_examples=200)
@given(data=st.data())
def test_a_damaged_checkpoint_is_never_loaded_as_good(checkpoints: Path, data: st.DataObject) -> None:
    good = (checkpoints / "step-000000024.pt").read_bytes()
    _taken(checkpoints, data.draw(damaged(good)), good)


@settings(fuzz, max_examples=100)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_no_checkpoint(checkpoints: Path, content: bytes) -> None:
    good = (checkpoints / "step-000000024.pt").read_bytes()
    _taken(checkpoints, content, good)


def test_every_byte_of_a_checkpoint_may_be_wrong(checkpoints: Path) -> None:
    good = (checkpoints / "step-000000024.pt").read_bytes()
    for place in range(0, len(good), 7):
        _taken(checkpoints, good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :], good)


def test_a_part_of_a_checkpoint_that_is_marked_as_a_folder(checkpoints: Path) -> None:
    """torch would read nothing for it, and leave the tensor as the memory happens to be; no check sum tells."""
    good = (checkpoints / "step-000000024.pt").read_bytes()
    start = good.index(b"archive/data/1", good.index(b"PK\x01\x02")) - 46
    place = start + 38  # the outer attributes
    content = good[:place] + b"\x10" + good[place + 1 :]
    _taken(checkpoints, content, good)
    (checkpoints / "step-000000024.pt").write_bytes(content)
    found = checkpoint.load_newest(checkpoints)
    (checkpoints / "step-000000024.pt").write_bytes(good)
    assert found is not None
    assert found["step"] == 12


def test_a_checkpoint_with_another_before_or_behind_it(checkpoints: Path) -> None:
    old, good = (checkpoints / f"step-{step:09d}.pt" for step in (12, 24))
    content, before = good.read_bytes(), old.read_bytes()
    for mixed in (
        content + content,
        before + content,
        content + before,
        content + b"x" * 99,
        b"x" * 99 + content,
    ):
        good.write_bytes(mixed)
        told: list[str] = []
        found = checkpoint.load_newest(checkpoints)
        good.write_bytes(content)
        assert found is not None
        assert _same(found, _content(found["step"])), told
