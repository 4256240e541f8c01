"""The user's text files, decoded strictly: no byte is ever replaced, so no two names become one.

A byte-order mark takes precedence; then the encoding that was given, or UTF-8. XML files may declare theirs. If the
bytes do not fit, the error names file, line and bytes. Knows no format but XML's first line.
"""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Callable, Iterable
from encodings.aliases import aliases

from tellapart.data.sources.listing import Guess, Note, printable
from tellapart.data.sources.text_guess import guess
from tellapart.errors import DataError, did_you_mean

DEFAULT = "utf-8"
AUTO = "auto"
_BOMS = (  # the longer first: UTF-32's mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WIDER = {  # what programs write under the narrower name
    "gb2312": ("gbk", "gb18030"),
    "gbk": ("gb18030",),
    "shift_jis": ("cp932",),
    "euc_kr": ("cp949",),
    "big5": ("cp950", "big5hkscs"),
    "iso8859-1": ("cp1252",),
    "iso8859-9": ("cp1254",),
}
_NOT_OF_FILES = ("idna", "punycode", "unicode-escape", "raw-unicode-escape", "unicode_escape", "undefined")
_USUAL = "gb18030, big5, shift_jis, euc-kr, windows-1251, windows-1252"
_DECLARATION = re.compile(r"""\s*<\?xml[^>]*?\bencoding\s*=\s*["']([A-Za-z0-9._:-]+)["']""")
_SURVEYED = 2000  # files
_FEW = 4  # characters that can be UTF-8 by chance: 猫 in GBK is è
_XML_STARTS = (
    (b"<\0\0\0", "utf-32-le"),
    (b"\0\0\0<", "utf-32-be"),
    (b"<\0", "utf-16-le"),
    (b"\0<", "utf-16-be"),
)


def _silent(_: str) -> None:
    pass


class EncodingError(DataError):
    """Text is not in the expected encoding: most likely in other files as well."""


def check_encoding(name: str) -> str:
    """Return Python's name of an encoding of text files, or "auto". Raises DataError for an unknown one."""
    if name.strip().lower() == AUTO:
        return AUTO
    try:
        found = codecs.lookup(name.strip())
        text = getattr(found, "_is_text_encoding", True) and found.name not in _NOT_OF_FILES
    except (LookupError, ValueError):
        text = False
    if not text:
        names = sorted({AUTO, *map(_spelt, aliases.values()), *(f"windows-125{n}" for n in range(9))})
        hint = did_you_mean(name.strip().lower(), names).split(" Valid")[0]
        hint = hint if hint.startswith("Did") else f"Usual ones: {_USUAL}; auto guesses."
        raise DataError(f"data.encoding is {name!r}, which is not a text encoding that Python knows. {hint}")
    return DEFAULT if found.name == "utf-8-sig" else found.name


def _spelt(codec: str) -> str:
    return codec.replace("_", "-") if codec.startswith(("utf", "iso", "koi", "euc")) else codec


def read_text(path: str, encoding: str = DEFAULT, note: Note = _silent) -> str:
    """Return a file's text, line ends as they are. Raises DataError.

    ``encoding``: the one of a file without a byte-order mark, or "auto", which detects it if the file is not UTF-8, and
    ``note``s its choice.
    """
    return decode_text(read_bytes(path), path, encoding, note)


def read_xml(path: str, encoding: str = DEFAULT, note: Note = _silent) -> str:
    """Return an XML file's text as `read_text` does, decoded as its declaration says. Raises DataError."""
    return decode_xml(read_bytes(path), path, encoding, note)


def read_bytes(path: str) -> bytes:
    """Return a file's bytes. Raises DataError."""
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{printable(path)!r} cannot be read: {reason}.") from error


def lines(text: str) -> list[str]:
    """Return the lines of a text. Only line feeds and carriage returns end them: `str.splitlines` also splits
    at characters that a name may hold.
    """
    found = re.split(r"\r\n|\r|\n", text)
    return found[:-1] if found[-1] == "" else found


def decode_text(content: bytes, name: str, encoding: str = DEFAULT, note: Note = _silent) -> str:
    """Return the text of a file's bytes; ``name`` is for messages. As `read_text`."""
    codec, start = _marked(content)
    if codec:
        return _checked(_strict(content[start:], codec, name, "its byte-order mark says"), content, name)
    wanted = check_encoding(encoding)
    if wanted == AUTO:
        return _detected(content, name, note)
    if wanted == DEFAULT or _is_narrow(content, wanted):
        return _checked(_strict(content, DEFAULT, name, ""), content, name)
    text = _checked(_strict(content, wanted, name, "--data.encoding says"), content, name)
    if not content.isascii() and not wanted.startswith("utf-") and _fits(content, DEFAULT) is not None:
        note(f"{printable(name)!r} is also valid UTF-8, but was read as {wanted}, as --data.encoding says.")
    return text


def decode_xml(content: bytes, name: str, encoding: str = DEFAULT, note: Note = _silent) -> str:
    """Return the text of an XML file's bytes; a declaration takes precedence over ``encoding`` unless it proves wrong.

    A declared UTF-16 that can be read byte by byte is what some libraries write at the head of UTF-8.
    """
    codec, _ = _marked(content)
    codec = codec or next((found for start, found in _XML_STARTS if content.startswith(start)), "")
    if codec:
        start = _marked(content)[1]
        return _checked(_strict(content[start:], codec, name, "its first bytes say"), content, name)
    declared = declared_encoding(content)
    if not declared:
        return decode_text(content, name, encoding, note)
    wanted = check_encoding(encoding)
    if (
        wanted in (DEFAULT, AUTO)
        or _is_narrow(content, wanted)
        or (declared == DEFAULT and _fits(content, DEFAULT) is not None)
    ):
        if wanted == AUTO and _fits(content, declared) is None:
            return _detected(content, name, note)
        return _checked(_strict(content, declared, name, "its first line says"), content, name)
    if wanted != declared and not content.isascii() and declared != DEFAULT:
        note(f"{printable(name)!r} declares {declared}, and was read as {wanted}, as --data.encoding says.")
    return _checked(_strict(content, wanted, name, "--data.encoding says"), content, name)


def declared_encoding(content: bytes) -> str:
    """Return Python's name of the encoding that an XML file declares, "" for none or one that is not known."""
    for code in ("latin-1", "cp037"):  # ASCII's letters, and EBCDIC's
        found = _DECLARATION.match(content[:400].decode(code))
        if found:
            try:
                codec = check_encoding(found[1])
            except DataError:
                return ""
            return "" if codec == AUTO or codec.startswith(("utf-16", "utf-32")) else codec
    return ""


def _is_narrow(content: bytes, codec: str) -> bool:
    """Return whether bytes are UTF-8 where a wider form of Unicode is named, as for other files of the source."""
    return (
        codec.startswith(("utf-16", "utf-32"))
        and b"\0" not in content
        and _fits(content, DEFAULT) is not None
    )


def _marked(content: bytes) -> tuple[str, int]:
    return next(((codec, len(mark)) for mark, codec in _BOMS if content.startswith(mark)), ("", 0))


def _fits(content: bytes, codec: str) -> str | None:
    """Return the bytes as text of ``codec``, or of what is written under its name; None where they are not."""
    for attempt in (codec, *_WIDER.get(codec, ())):
        try:
            text = content.decode(attempt)
        except (UnicodeError, ValueError):
            continue
        if codec.startswith("iso8859") and attempt == codec and re.search("[\x80-\x9f]", text):
            continue  # control characters that no text has
        if not codec.startswith("utf") and re.search("[\ue000-\uf8ff]", text):
            continue  # "private use": what decoders return for bytes that are not characters
        return text
    return None


def _strict(content: bytes, codec: str, name: str, says: str) -> str:
    text = _fits(content, codec)
    if text is not None:
        return text
    if codec == DEFAULT and (wide := _without_mark(content)):
        raise EncodingError(
            f"{printable(name)!r} is {wide.upper()} text without a byte-order mark; --data.encoding {wide} reads it."
        )
    try:
        content.decode(codec)
        start = 0
    except UnicodeDecodeError as error:
        start = error.start
    except (UnicodeError, ValueError):
        start = 0
    place, bytes_ = _place(content, start)
    but = f", as {says}" if says else ""
    raise EncodingError(
        f"{printable(name)!r}, line {place}: the bytes {bytes_} are not {codec.upper()} text{but}. Name the file's "
        f"encoding with --data.encoding ({_USUAL}, …; auto guesses it and reports its guess), or save it as "
        "UTF-8."
    )


def _place(content: bytes, start: int) -> tuple[int, str]:
    """Return the line of a byte, and it with its like beside it, in hexadecimal."""
    before = content[:start]
    end = b"\n" if b"\n" in content else b"\r"
    first = start
    while first and content[first - 1] > 0x7F and start - first < 8:
        first -= 1
    last = start + 1
    while last < len(content) and content[last] > 0x7F and last - first < 12:
        last += 1
    return before.count(end) + 1, content[first:last].hex(" ")


def _without_mark(content: bytes) -> str:
    """Return "utf-16-le" and so on for text of two or four bytes a character without a mark, else ""."""
    head = content[: 1 << 16]
    if b"\0" not in head or len(content) % 2:
        return ""
    for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = _fits(content, codec)
        if text and "\0" not in text and "\ufffe" not in text and re.search("[ -~\n\r]", text):
            zeros = head.count(0) / len(head)
            if codec.startswith("utf-16") or zeros > 0.4:
                even = head[::2].count(0)
                if codec.startswith("utf-32") or (even * 2 < head.count(0)) == codec.endswith("le"):
                    return codec
    return ""


def _checked(text: str, content: bytes, name: str) -> str:
    """Return the text without the marks that joined files leave at the starts of lines; refuse zero bytes."""
    if "\0" in text:
        wide = _without_mark(content)
        if wide:
            raise EncodingError(
                f"{printable(name)!r} is {wide.upper()} text without a byte-order mark; --data.encoding {wide} "
                "reads it."
            )
        place = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{printable(name)!r}, line {place}: a zero byte, which no text has.")
    if "\ufeff" in text:
        text = re.sub("(?m)^\ufeff+", "", text)
    return text


def _detected(content: bytes, name: str, note: Note) -> str:
    """Return the text of bytes whose encoding is not given: UTF-8 if they are valid, otherwise as detected."""
    text = _fits(content, DEFAULT)
    if text is not None and "\0" not in text:
        return _checked(text, content, name)
    codec = _without_mark(content) or guess(content)
    text = _fits(content, codec) if codec else None
    if text is None:
        _strict(content, DEFAULT, name, "")  # raises, with the place
        raise DataError(f"{printable(name)!r} is not text.")
    note(_telling(name, codec, text))
    return _checked(text, content, name)


def _telling(name: str, codec: str, text: str) -> Guess:
    return Guess(
        f"{printable(name)!r} was read as {codec} text, which was guessed: it begins {_begins(text)}."
    )


def _begins(text: str) -> str:
    words = [word for word in re.findall(r"\w+", text) if not word.isascii()]
    return repr(", ".join(words[:3])[:60])


class Texts:
    """Reads the text files of one source in one encoding, with one message for what holds for many.

    With "auto", the encoding found for one file is used for the next that is not UTF-8, if it fits.
    """

    def __init__(self, encoding: str = DEFAULT, note: Note = lambda text: None) -> None:
        self._encoding, self._note = check_encoding(encoding), note
        self._said: list[str] = []
        self._guessed = ""
        self._doubtful: list[tuple[str, bytes]] = []  # UTF-8, and perhaps by chance

    def survey(self, paths: Iterable[str]) -> None:
        """With "auto": guess from many files at once, as a single file of few words says little."""
        if self._encoding != AUTO:
            return
        parts = []
        for path in itertools.islice(paths, _SURVEYED):
            try:
                with open(path, "rb") as stream:
                    content = stream.read(1 << 16)
            except OSError:
                continue
            plain = content.isascii() or b"\0" in content or _marked(content)[0] or declared_encoding(content)
            if not plain:
                parts.append(content)
        if any(_fits(part, DEFAULT) is None for part in parts):
            self._guessed = guess(b"\n".join(part for part in parts if _fits(part, DEFAULT) is None))

    def read(self, path: str) -> str:
        """Return a text file's content. Raises DataError."""
        return self._take(path, decode_text)

    def xml(self, path: str) -> str:
        """Return an XML file's content, decoded as it declares. Raises DataError."""
        return self._take(path, decode_xml)

    def _take(self, path: str, decode: Callable[[bytes, str, str, Note], str]) -> str:
        content = read_bytes(path)
        if self._encoding != AUTO or content.isascii() or b"\0" in content or _marked(content)[0]:
            return decode(content, path, self._encoding, self._said.append)
        if decode is decode_xml and declared_encoding(content):
            return decode(content, path, self._encoding, self._said.append)
        text = _fits(content, DEFAULT)
        if text is not None:
            if len({c for c in text if not c.isascii()}) <= _FEW and len(self._doubtful) < _SURVEYED:
                self._doubtful.append((path, content))
            return _checked(text, content, path)
        text = _fits(content, self._guessed) if self._guessed else None
        if text is None:
            self._guessed = self._guessed or guess(content)
            return decode(content, path, AUTO, self._said.append)
        self._said.append(_telling(path, self._guessed, text))
        return _checked(text, content, path)

    def finish(self) -> None:
        """Give the messages about the files read so far. Raises DataError if "auto" cannot decide."""
        for path, content in self._doubtful if self._guessed else ():
            other, utf8 = _fits(content, self._guessed), content.decode()
            single = self._guessed.startswith(("cp12", "koi8"))  # nearly any bytes are valid in these
            if other is not None and not (single and sum(not c.isascii() for c in utf8) > 1):
                raise EncodingError(
                    f"{printable(path)!r} can be UTF-8 ({_begins(utf8)}) and {self._guessed} ({_begins(other)}), as "
                    f"files beside it are. Name the encoding: --data.encoding {self._guessed}, or utf-8."
                )
        kinds: dict[str, list[str]] = {}
        for text in self._said:
            kinds.setdefault(
                re.sub(r"^.*? (?=was read|is valid|declares)|: it begins.*", "", text), []
            ).append(text)
        for texts in kinds.values():
            more = f" The same holds for {len(texts) - 1:,} more." if len(texts) > 1 else ""
            self._note(type(texts[0])(texts[0] + more))
        self._said, self._doubtful = [], []
