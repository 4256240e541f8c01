"""Text in the encodings that people's files have: read as it is, or refused with file, line and bytes."""

from __future__ import annotations

import io
import pathlib
import zipfile

import pytest
from PIL import Image

from tellapart.data.sources import text
from tellapart.data.sources.opening import open_source
from tellapart.data.sources.text_guess import guess
from tellapart.errors import DataError
from tellapart.spec import DataSpec

NAMES = {
    "gbk": "雏菊\n玫瑰\n月季\n",
    "big5": "雛菊\n玫瑰\n月季\n",
    "shift_jis": "薔薇\n表ソ\n菊花\n",  # with bytes that are backslashes in ASCII
    "euc_kr": "장미\n국화\n",
    "cp1251": "роза\nмак\nлён\n",
    "cp1252": "Löwe\nLäwe\nBär\n",
    "latin-1": "cat\xe9\n",
    "koi8-r": "роза\n",
    "cp037": "rose é\n",
}


@pytest.mark.parametrize("codec", sorted(NAMES))
def test_a_named_encoding_is_obeyed_and_nothing_else_is_taken_for_utf8(
    tmp_path: pathlib.Path, codec: str
) -> None:
    file = tmp_path / "classes.txt"
    file.write_bytes(
        b"first\n" + NAMES[codec].encode(codec) if codec != "cp037" else NAMES[codec].encode(codec)
    )
    content = file.read_bytes()
    said: list[str] = []
    assert text.read_text(str(file), codec, said.append) == content.decode(codec)
    assert said == []
    with pytest.raises(DataError, match=r"classes\.txt.*--data\.encoding") as caught:
        text.read_text(str(file))
    if codec != "cp037":
        assert "line 2: the bytes " in str(caught.value)
    assert NAMES[codec].encode(codec)[:1].hex() in str(caught.value) or codec in (
        "cp1252",
        "latin-1",
        "cp037",
    )


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("option", ["utf-8", "gbk", "auto"])
def test_a_byte_order_mark_goes_before_the_option(codec: str, option: str) -> None:
    assert text.decode_text("雏菊\n玫瑰\n".encode(codec), "x", option) == "雏菊\n玫瑰\n"
    for codec, mark in (("utf-16-be", b"\xfe\xff"), ("utf-32-be", b"\0\0\xfe\xff")):
        assert text.decode_text(mark + "猫".encode(codec), "x", option) == "猫"


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("words", ["cat\ndog\n", "雏菊\n玫瑰\n", "Löwe\r\nBär"])
def test_wide_text_without_a_mark_is_recognised(codec: str, words: str) -> None:
    content = words.encode(codec)
    with pytest.raises(DataError, match=f"without a byte-order mark; --data.encoding {codec} "):
        text.decode_text(content, "classes.txt")
    assert text.decode_text(content, "classes.txt", codec) == words
    said: list[str] = []
    assert text.decode_text(content, "classes.txt", "auto", said.append) == words
    assert codec in said[0]


def test_zero_bytes_are_no_text() -> None:
    with pytest.raises(DataError, match=r"line 2: a zero byte"):
        text.decode_text(b"cat\ndo\0g\n", "classes.txt")


def test_a_mark_in_the_middle_of_joined_files_is_not_in_a_name() -> None:
    assert text.decode_text(b"\xef\xbb\xbfcat\n\xef\xbb\xbfdog\n", "x") == "cat\ndog\n"
    assert text.decode_text(b"\xef\xbb\xbf\xef\xbb\xbfcat\r\n\xef\xbb\xbfdog", "x") == "cat\r\ndog"


def test_lines_end_at_line_ends_only() -> None:
    assert text.lines("a\x85b\r\nc\u2028d\re\n\nf") == ["a\x85b", "c\u2028d", "e", "", "f"]
    assert text.lines("") == []


@pytest.mark.parametrize(
    ("narrow", "word", "wide"),
    [
        ("gb2312", "镕", "gbk"),
        ("shift_jis", "①", "cp932"),
        ("iso-8859-1", "naïve “x”", "cp1252"),
        ("euc-kr", "똠", "cp949"),
    ],
)
def test_what_programs_write_under_a_narrower_name(narrow: str, word: str, wide: str) -> None:
    assert text.decode_text(word.encode(wide), "x", narrow) == word


def xml(name: str, codec: str, declared: str = "") -> bytes:
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    return f"{head}<annotation><name>{name}</name></annotation>".encode(codec)


@pytest.mark.parametrize(
    "codec", ["gbk", "big5", "shift_jis", "euc-jp", "cp1251", "iso-8859-15", "utf-8", "cp500"]
)
def test_an_xml_declaration_is_obeyed(codec: str) -> None:
    name = {"big5": "玫瑰", "cp1251": "роза", "iso-8859-15": "€", "cp500": "é"}.get(codec, "花")
    assert f"<name>{name}<" in text.decode_xml(xml(name, codec, codec), "a.xml")


@pytest.mark.parametrize("declared", ["utf-8", "utf-16", "no-such-code", ""])
def test_a_wrong_xml_declaration_is_an_error_and_the_option_the_way_out(declared: str) -> None:
    content = xml("雏菊", "gbk", declared)
    with pytest.raises(DataError, match=r"a\.xml', line 1: the bytes b3 .*--data\.encoding"):
        text.decode_xml(content, "a.xml")
    assert "雏菊" in text.decode_xml(content, "a.xml", "gbk")
    assert "雏菊" in text.decode_xml(xml("雏菊", "utf-8", "utf-16"), "a.xml")


def test_wide_xml_needs_no_mark() -> None:
    for codec in ("utf-16-le", "utf-16-be", "utf-16"):
        assert "雏菊" in text.decode_xml(xml("雏菊", codec, "utf-16"), "a.xml")


def test_a_file_that_is_utf8_too_is_reported() -> None:
    said: list[str] = []
    assert text.decode_text("猫".encode("gbk"), "c.txt", "gbk", said.append) == "猫"  # "è" in UTF-8
    assert "also valid UTF-8" in said[0]
    assert text.decode_xml(xml("雏", "utf-8", "utf-8"), "a.xml", "cp1252").count("雏") == 1


@pytest.mark.parametrize("name", ["gb18031", "base64", "rot13", "unicode_escape", "", "a\0b"])
def test_unknown_encodings_are_named(name: str) -> None:
    with pytest.raises(DataError, match=r"data\.encoding is .* not a text encoding"):
        open_source(DataSpec(source="digits", encoding=name), lambda _: None)


def test_the_nearest_encoding_is_suggested() -> None:
    with pytest.raises(DataError, match=r"Did you mean.*'windows-1251'"):
        text.check_encoding("window-1251")
    with pytest.raises(DataError, match=r"Did you mean.*'gb18030'"):
        text.check_encoding("gb1830")


def test_auto_takes_utf8_without_a_word_and_says_what_it_guessed() -> None:
    said: list[str] = []
    assert text.decode_text("猫\n狗\n".encode(), "x", "auto", said.append) == "猫\n狗\n"
    assert said == []
    words = "кот\nсобака\nлошадь\nовца\nкорова\nкурица\nутка\nгусь\nтигр\nлев\nслон\n"
    assert text.decode_text(words.encode("cp1251"), "x.txt", "auto", said.append) == words
    assert "x.txt" in said[0]
    assert "cp1251" in said[0]
    assert "кот" in said[0]


GUESSES = [
    ("gb18030", "雏菊 玫瑰 月季"),
    ("gb18030", "正常 异常"),
    ("gb18030", "猫 狗"),
    ("gb18030", "塑料 纸张 玻璃 金属"),
    ("big5", "雛菊 玫瑰 月季"),
    ("big5", "塑膠 紙類 玻璃"),
    ("cp932", "薔薇 菫草 菊花"),
    ("cp932", "バラ スミレ 菊"),
    ("cp932", "可燃ごみ プラスチック 瓶"),
    ("euc_jp", "バラ スミレ 菊"),
    ("cp949", "장미 국화"),
    ("cp949", "플라스틱 종이 유리 금속"),
    ("cp1251", "роза мак лён"),
    ("cp1251", "Кошка Собака"),
    ("koi8_r", "роза мак лён"),
    ("cp1250", "róża żonkil słonecznik"),
    ("cp1252", "chien chât éléphant forêt"),
    ("cp1252", "Löwe Läwe Bär"),
    ("cp1252", "Äpfel Birnen"),
    ("cp1253", "γάτα σκύλος"),
    ("cp1256", "قطة كلب"),
    ("cp874", "แมว สุนัข กุหลาบ"),
]


@pytest.mark.parametrize(("codec", "words"), GUESSES)
def test_a_few_class_names_suffice_to_guess(codec: str, words: str) -> None:
    content = words.replace(" ", "\n").encode(codec)
    assert content.decode(guess(content)) == words.replace(" ", "\n")


@pytest.mark.parametrize("kind", ["list", "names", "zip"])
def test_a_guess_is_a_warning_with_the_names_that_came_of_it_each_time(
    tmp_path: pathlib.Path, kind: str
) -> None:
    classes = ("кошка", "собака")
    (tmp_path / "set").mkdir()
    rows = ["image,label"]
    for number in range(24):
        Image.new("L", (8, 8), number).save(tmp_path / f"set/{number}.png")
        rows.append(f"{number}.png,{number % 2 if kind == 'names' else classes[number % 2]}")
    encoding = "cp1251"
    (tmp_path / "set/list.csv").write_bytes("\n".join(rows).encode(encoding))
    if kind == "names":
        (tmp_path / "set/classes.txt").write_bytes("\n".join(classes).encode(encoding))
    source = tmp_path / "set"
    if kind == "zip":
        source = tmp_path / "packed.zip"
        raw_zip(
            source, [(f"{classes[n % 2]}/{n}.png", tmp_path / f"set/{n}.png") for n in range(24)], encoding
        )
    for _ in range(2):
        said: list[str] = []
        warned: list[str] = []
        spec = DataSpec(source=str(source), encoding="auto", cache_dir=str(tmp_path / "cache"))
        samples = open_source(spec, said.append, warned.append)
        assert samples.classes == classes
        assert len(warned) == 1, (said, warned)
        assert "cp1251" in warned[0]
        assert "The classes are then: кошка, собака." in warned[0]
        assert "--data.encoding" in warned[0]
        assert warned[0] in samples.notes


def raw_zip(path: pathlib.Path, members: list[tuple[str, pathlib.Path]], encoding: str) -> None:
    """Write a zip as programs do that put their system's encoding into it without a mark."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, (name, file) in enumerate(members):
            archive.writestr(f"@{number:02d}".ljust(len(name.encode(encoding)), "@"), file.read_bytes())
    content = stream.getvalue()
    for number, (name, _) in enumerate(members):
        raw = name.encode(encoding)
        content = content.replace(f"@{number:02d}".ljust(len(raw), "@").encode(), raw)
    path.write_bytes(content)


def test_a_guess_is_reported_where_reading_fails(tmp_path: pathlib.Path) -> None:
    (tmp_path / "list.csv").write_bytes("image,label\nx.png,кошка\ny.png,собака\n".encode("cp1251"))
    warned: list[str] = []
    with pytest.raises(DataError, match="None of the images"):
        open_source(
            DataSpec(source=str(tmp_path / "list.csv"), encoding="auto"), lambda text: None, warned.append
        )
    assert len(warned) == 1
