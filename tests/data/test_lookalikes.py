from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart.data.sources.lookalikes import look_alike, missing_values, spelt, warnings
from tellapart.data.sources.opening import open_source
from tellapart.spec import DataSpec

ALIKE = [
    ("Daisy", "daisy"),
    ("0", "0.0"),
    ("1", "01"),
    ("1", "1.00"),
    ("1000", "1e3"),
    ("10", "１０"),
    ("nan", "NaN"),
    ("N/A", "n/a"),
    ("nan", "N/A"),
    ("cat", "cat "),
    ("cat", "cat\u200b"),
    ("cat", "\ufeffcat"),
    ("hot dog", "hot  dog"),
    ("hot dog", "hot\u00a0dog"),
    ("hot dog", "hot_dog"),
    ("hot-dog", "hot\u2013dog"),
    ("hot-dog", "hot\u2011dog"),
    ("hot_dog", "hot\uff3fdog"),
    ("hot dog", "hotdog"),
    ("T-shirt", "t shirt"),
    ("café", "cafe\u0301"),
    ("CAFÉ", "café"),
    ("cat", "ｃａｔ"),
    ("ｶﾞ犬", "ガ犬"),
    ("cat", "c\u0430t"),
    ("o'neil", "o\u2019neil"),
    ("STRASSE", "straße"),
    ("ﬁsh", "fish"),
    ("class 1", "class_1"),
    ("class1", "class 1"),
    ("猫 狗", "猫狗"),
]
DIFFERENT = [
    ("A", "a"), ("A-", "A"), ("A+", "A"), ("A+", "A-"), ("1", "-1"), ("1-2", "12"), ("1_2", "12"), ("1", "1.5"),
    ("cat", "cats"), ("cafe", "café"), ("1st", "2nd"), ("v1.0", "v10"), ("C#", "C"), ("c++", "c"), ("一", "二"),
    ("犬", "猫"), ("0", "00x"), ("は", "ば"), ("a.b", "ab"), ("infinity", "inf"), ("о", "о́"), ("一", "-"),
]  # fmt: skip


@pytest.mark.parametrize("pair", ALIKE, ids=ascii)
def test_names_that_look_alike(pair: tuple[str, str]) -> None:
    assert look_alike(["zebra", *pair]) == [pair]


@pytest.mark.parametrize("pair", DIFFERENT, ids=ascii)
def test_names_that_differ(pair: tuple[str, str]) -> None:
    assert look_alike(["zebra", *pair]) == []


def test_names_of_usual_sets_do_not_look_alike() -> None:
    from tellapart.data.sources import known

    for names in (list("0123456789ABCDEFabcdef"), [f"n{n:08}" for n in range(500)], known.names()):
        assert look_alike(names) == []
        assert missing_values(names) == []


def test_missing_values() -> None:
    names = ["nan", "N/A", "None", "cat", "NULL", "?", "nannies", "#N/A", "ＮＡ"]
    assert missing_values(names) == ["nan", "N/A", "None", "NULL", "?", "#N/A", "ＮＡ"]


def test_what_cannot_be_seen_is_spelt() -> None:
    assert spelt(("Daisy", "daisy")) == "'Daisy' and 'daisy'"
    assert "U+0430" in spelt(("cat", "c\u0430t"))
    assert "U+200B" in spelt(("cat", "cat\u200b"))
    assert spelt(("a", "A", "ａ")).startswith("'a', 'A' and 'ａ' (U+FF41")


def test_many_groups_are_counted() -> None:
    names = [name for n in range(9) for name in (f"class{chr(97 + n)}", f"Class{chr(97 + n)}")]
    (said,) = warnings(names)
    assert "and 5 more" in said


def _folders(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        for n in range(12):
            (root / name).mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(100 * number + n).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{n}.png")
    return root


def test_opening_a_source_warns(tmp_path: Path) -> None:
    said: list[str] = []
    open_source(DataSpec(source=str(_folders(tmp_path, "Rose", "rose", "nan"))), said.append)
    assert any("look alike: 'Rose' and 'rose'" in text for text in said)
    assert any("missing value: 'nan'" in text for text in said)


def test_ordinary_classes_warn_of_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    open_source(DataSpec(source=str(_folders(tmp_path, "rose", "daisy"))), said.append)
    assert not any("alike" in text or "missing value" in text for text in said)


def test_a_list_of_numbers_that_became_floats_warns(tmp_path: Path) -> None:
    _folders(tmp_path, "x", "y")
    lines = [
        f"{c}/{n}.png,{'0' if n % 2 else '0.0'}" if c == "x" else f"{c}/{n}.png,1"
        for c in "xy"
        for n in range(12)
    ]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    said: list[str] = []
    open_source(DataSpec(source=str(tmp_path / "list.csv")), said.append)
    assert any("'0' and '0.0'" in text for text in said)
