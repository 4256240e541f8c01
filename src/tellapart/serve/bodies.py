"""The body of a request for labels: images as multipart, as raw bytes, or in base64 in JSON.

An image's format is decided by its content, not by a declared type or a name. Knows nothing of models. Owner of
python-multipart.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from tellapart.contract import BadImage
from tellapart.contract.decoding import recognise
from tellapart.serve import strict_json
from tellapart.serve.refusal import Refusal

_FIELD_BYTES = 1000
_NUMPY = "application/x-npy"  # not a registered type, but what programs send
_TYPE_CHARACTERS = 1000  # the time to parse a content type grows with the square of its length
_FIELDS = ("top", "model")
_SINGLE = ("image", "data")  # the second is TorchServe's name
_KEYS = (*_SINGLE, "images", *_FIELDS)
_RAW = "application/octet-stream"
_UNSAID = "application/x-www-form-urlencoded"  # what curl and urllib send by default
_SPACED = re.compile(rb"\S[ \t]+\S")
_IN_PERCENTS = {
    b"%2B": b"+", b"%2b": b"+", b"%2F": b"/", b"%2f": b"/", b"%3D": b"=", b"%3d": b"=", b"%0A": b"", b"%0a": b"",
    b"%0D": b"", b"%0d": b"",
}  # fmt: skip
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass
class Asked:
    """The images as they were sent, and the fields beside them."""

    files: list[bytes] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


def parse(body: bytes, content_type: str, max_images: int) -> Asked:
    """Return the images in a body. Raises Refusal."""
    kind, parameters = _media_type(content_type)
    if not content_type.strip() or kind == _UNSAID:
        kind = _kind_by_content(body)
    if kind == "multipart/form-data":
        asked = _multipart(body, parameters.get("boundary", ""), max_images)
    elif kind == "application/json":
        asked = _json(body, max_images)
    elif kind.startswith("image/") or kind in (_RAW, _NUMPY):
        asked = Asked([body] if body else [])
    else:
        raise Refusal(
            415,
            "content_type",
            "the content type must be multipart/form-data, image/*, application/octet-stream or application/json",
        )
    if not asked.files:
        raise Refusal(400, "no_image", "the request contains no image")
    return asked


def _media_type(content_type: str) -> tuple[str, Mapping[str, str]]:
    """Return a content type in lower case and its parameters. Raises Refusal."""
    if len(content_type) > _TYPE_CHARACTERS:
        raise Refusal(400, "content_type", f"the content type has more than {_TYPE_CHARACTERS} characters")
    message = Message()
    message["content-type"] = content_type.replace("\n", " ").replace("\r", " ")
    if "/" not in content_type:
        return "", {}
    pairs = message.get_params() or []
    parameters = {name.lower(): value for name, value in pairs[1:] if isinstance(value, str)}
    return message.get_content_type(), parameters


def _kind_by_content(body: bytes) -> str:
    """Return the type of a body that came without one. Raises Refusal."""
    if body[:1000].lstrip()[:1] == b"{":
        return "application/json"
    try:
        if body:
            recognise(body)
    except BadImage:
        raise Refusal(
            415,
            "content_type",
            "the body is neither an image nor JSON, and no content type says what it is; send an image as it is "
            "(curl --data-binary @FILE, not -d) or in a form (curl -F image=@FILE)",
        ) from None
    return _RAW


def _too_many(max_images: int) -> Refusal:
    return Refusal(413, "too_many_images", f"the request contains more than {max_images} images")


def _json(body: bytes, max_images: int) -> Asked:
    content = strict_json.mapping(strict_json.loads(body, 20 * max_images + 100), "the body")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise Refusal(400, "unknown_key", f"the JSON has a key that is not one of {', '.join(_KEYS)}")
    given = content.get("images", [])
    if not isinstance(given, list):
        raise Refusal(400, "bad_json", "images must be a list of base64 strings")
    given = [*(content[key] for key in _SINGLE if key in content), *given]
    if len(given) > max_images:
        raise _too_many(max_images)
    fields = {name: content[name] for name in _FIELDS if name in content}
    return Asked([decode_text(text, place) for place, text in enumerate(given)], fields)


def decode_text(text: Any, place: int) -> bytes:
    """Return the bytes of base64 text or of a data URL. Raises Refusal.

    Line breaks (and spaces beside them), the URL-safe alphabet and missing padding are accepted; a space within a line
    is not: a "+" becomes one if it is sent as part of a form.
    """
    if not isinstance(text, str):
        raise Refusal(400, "bad_base64", "an image must be a base64 string", image=place)
    data = text.strip().encode(
        "ascii", "replace"
    )  # anything that is not ASCII becomes "?", which is not base64 either
    if data[:5].lower() == b"data:":
        head, comma, data = data[5:].partition(b",")
        if not comma or not head.lower().endswith(b";base64"):
            raise Refusal(400, "bad_base64", "a data URL must be base64", image=place)
        if b"%" in data:
            for code, character in _IN_PERCENTS.items():
                data = data.replace(code, character)
    if (b" " in data or b"\t" in data) and _SPACED.search(data):
        raise Refusal(400, "bad_base64", "a base64 string has a space; was it a + once?", image=place)
    data = data.translate(_URL_SAFE, b" \t\r\n\f\v")
    digits = data.rstrip(b"=")
    try:
        if len(data) - len(digits) > 3:
            raise ValueError
        return base64.b64decode(digits + b"=" * (-len(digits) % 4), validate=True)
    except ValueError:  # binascii.Error is one
        raise Refusal(400, "bad_base64", "an image is not base64", image=place) from None


def _file_or_text(content: bytes, place: int) -> bytes:
    """Return the image of a form's field without a file name: the file itself, or base64 of it. Raises Refusal."""
    try:
        recognise(content)
        return content
    except BadImage:
        pass
    try:
        return decode_text(content.decode("latin-1"), place)
    except Refusal:
        raise Refusal(
            400, "bad_base64", "a field is neither an image nor base64 (curl sends a file with -F image=@FILE)",
            image=place,
        ) from None  # fmt: skip


class _Form:
    """Collects the fields of a form in the parser's callbacks."""

    def __init__(self, max_images: int) -> None:
        self.asked = Asked()
        self._max_images = max_images
        self._headers: dict[str, str] = {}
        self._name, self._value = b"", b""
        self._data: list[bytes] = []
        self._parts = 0

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self.begin, "on_header_field": self.header_name, "on_header_value": self.header_value,
            "on_header_end": self.header_end, "on_part_data": self.data, "on_part_end": self.end,
        }  # fmt: skip

    def begin(self) -> None:
        self._parts += 1
        if self._parts > self._max_images + len(_FIELDS):
            raise _too_many(self._max_images)
        self._headers, self._data = {}, []

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._name, self._value = b"", b""

    def data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def end(self) -> None:
        disposition = Message()
        disposition["content-disposition"] = self._headers.get("content-disposition", "").replace("\n", " ")
        name = disposition.get_param("name", header="content-disposition")
        is_file = disposition.get_filename() is not None
        content = self._data[0] if len(self._data) == 1 else b"".join(self._data)
        if not is_file and name not in _KEYS:
            raise Refusal(400, "unknown_key", f"the form has a field that is not one of {', '.join(_KEYS)}")
        if not is_file and name in _FIELDS:
            if name in self.asked.fields or len(content) > _FIELD_BYTES:
                raise Refusal(400, "bad_form", f"the field {name} appears twice or is too long")
            self.asked.fields[str(name)] = content.decode("utf-8", "replace")
            return
        if len(self.asked.files) == self._max_images:
            raise _too_many(self._max_images)
        self.asked.files.append(content if is_file else _file_or_text(content, len(self.asked.files)))


def _multipart(body: bytes, boundary: str, max_images: int) -> Asked:
    if not boundary:
        raise Refusal(400, "bad_form", "the content type has no boundary")
    form = _Form(max_images)
    try:
        parser = MultipartParser(boundary.encode("latin-1", "replace"), form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Refusal(
            400, "bad_form", "the body is not multipart/form-data, which its content type announces"
        ) from None
    if not body.rstrip().endswith(b"--"):
        raise Refusal(400, "bad_form", "the form is truncated: its last boundary is missing")
    return form.asked
