"""Names and images that were made to do harm, as the commands meet them: on a terminal, in a table, in a decoder."""

from __future__ import annotations

import csv
import io
import json
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tellapart import artifact, printing
from tellapart.contract import Architecture, BadImage, Card, Preprocessing, decode
from tellapart.data.stores.images import Bad, write_bad_images
from tellapart.models import zoo
from tellapart.predict import Prediction
from tellapart.tracking import Console

ESCAPE = "\x1b]0;owned\x07\x1b[2J"
CLASSES = ("=cmd|' /C calc'!A0", f"bee{ESCAPE}\r\n", "\u202ecat\x9b31m")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose classes have such names: a card may hold them."""
    card = Card(
        Architecture("tutorial-net", 3, size=16),
        CLASSES,
        Preprocessing(16, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.2,) * 3),
    )
    path = tmp_path_factory.mktemp("model") / artifact.FILE_NAME
    artifact.save(path, zoo.build(card.architecture).state_dict(), card)
    return path


def steers(text: str) -> bool:
    """Return whether a terminal would obey something in a text."""
    return any(
        (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" or "\u202a" <= c <= "\u202e" for c in text
    )


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    names = [f"a{ESCAPE}.png", "=1+1.png", "b\x9b2J.png", "c\nd.png", "e\rf.png", "-1.png"]
    for name in names:
        Image.new("RGB", (20, 20), (9, 99, 200)).save(tmp_path / name, "PNG")
    (tmp_path / f"bad{ESCAPE}.png").write_bytes(b"")
    return [tmp_path / name for name in names]


def test_predict_steers_no_terminal(model: Path, pictures: list[Path], call: Callable[..., Any]) -> None:
    names = [path.name for path in pictures]
    for form in ("table", "jsonl"):
        answer = call("predict", model, *(f"./{name}" for name in names), "--format", form, "--top", 3)
        assert answer.code == 0, answer.err
        assert not steers(answer.out), form
        assert len(answer.out.splitlines()) == len(names)
    for line, name in zip(answer.out.splitlines(), names, strict=True):
        found = json.loads(line)
        assert found["path"] == f"./{name}"  # JSON gives back the very name
        assert sorted(one["label"] for one in found["top"]) == sorted(CLASSES)
    answer = call("predict", model, f"nothing{ESCAPE}")
    assert answer.code == 2
    assert not steers(answer.err)
    assert "\\x1b" in answer.err


def test_predicts_table_has_no_formulas(model: Path, pictures: list[Path], call: Callable[..., Any]) -> None:
    answer = call(
        "predict",
        model,
        *(path.name for path in pictures if path.name[0] != "-"),
        "--format",
        "csv",
        "--top",
        3,
    )
    rows = list(csv.DictReader(io.StringIO(answer.out, newline="")))
    assert len(rows) == 3 * (len(pictures) - 1)
    assert {row["label"] for row in rows} == {"'" + CLASSES[0], *CLASSES[1:]}
    assert "'=1+1.png" in {row["path"] for row in rows}
    assert "e\rf.png" in {row["path"] for row in rows}


def test_tables_of_a_run_have_no_formulas(tmp_path: Path) -> None:
    write_bad_images([Bad("=1+1.png", "a\rb")], tmp_path / "bad.csv")
    with open(tmp_path / "bad.csv", newline="", encoding="utf-8") as stream:
        assert list(csv.reader(stream)) == [["path", "reason"], ["'=1+1.png", "a\rb"]]


def test_warnings_steer_no_terminal() -> None:
    stream = io.StringIO()
    with Console(stream) as console:
        console.warn(f"{CLASSES[1]} has no images")
        console.message(CLASSES[2])
    assert not steers(stream.getvalue())


def test_a_table_of_errors_is_one_line_each() -> None:
    stream = io.StringIO()
    printing.write_table([Prediction("a\nb", error="x\ny"), Prediction("a", ("b\nc",), (0.5,))], stream)
    assert stream.getvalue() == "a\\nb: x\\ny\na: b\\nc 50.0 %\n"


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        stream, "JPEG", progressive=True
    )
    content = stream.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:-2] + content[last:-2] * scans + content[-2:]


def many_chunks(chunks: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"\0" + bytes(3 * 8)) if not chunks else zlib.compress((b"\0" + bytes(3 * 8)) * 8)
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    return head + chunk(b"tEXt", b"a\0b") * chunks + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "name"),
    [(many_scans(3000), "JPEG"), (many_chunks(20_000), "PNG"), (many_scans(0)[:2] + b"\xff\xfe\0\2" * 2000 + many_scans(0)[2:], "JPEG")],
    ids=["scans", "chunks", "segments"],
)  # fmt: skip
def test_images_with_very_many_segments_are_refused_everywhere(
    content: bytes, name: str, model: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    started = time.process_time()
    with pytest.raises(BadImage, match=f"{name} of very many parts"):
        decode(content, 3)
    assert time.process_time() - started < 0.5
    (tmp_path / "slow").write_bytes(content)
    answer = call("predict", model, "slow")
    assert answer.code == 1
    assert "very many parts" in answer.out
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            Image.effect_noise((16, 16), 50).convert("RGB").save(tmp_path / "data" / label / f"{number}.png")
    (tmp_path / "data/cat/slow.png").write_bytes(content)
    answer = call("check", "data")
    assert "very many parts" in answer.out


def test_usual_images_have_few_segments() -> None:
    assert decode(many_scans(0), 3).shape == (64, 64, 3)
    assert decode(many_scans(80), 3).shape == (64, 64, 3)
    assert decode(many_chunks(9000), 3).shape == (8, 8, 3)
    film = many_scans(0) + b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\2" * 5000
    assert decode(film, 3).shape == (64, 64, 3)


def test_a_csv_on_a_terminal_steers_it_not() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    printing.write_csv([Prediction(f"a{ESCAPE}", CLASSES, (0.5, 0.3, 0.2))], stream)
    assert not steers(stream.getvalue())
    assert "\\x1b" in stream.getvalue()
