"""What a request to /v1 holds: images as multipart, as raw bytes, or in base64 in JSON.

Knows nothing of models. Owner of python-multipart.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from tellapart.serve import strict_json
from tellapart.serve.refusal import Refusal

_FIELD_BYTES = 1000
_TYPE_CHARACTERS = 1000  # the time to parse a content type grows with its square
_FIELDS = ("top", "model")
_KEYS = ("image", "images", *_FIELDS)


@dataclass
class Asked:
    """Images as (content, declared type or ""), and the fields that came with them."""

    files: list[tuple[bytes, str]] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)


def parse(body: bytes, content_type: str, max_images: int) -> Asked:
    """Return the images in a body. Raises Refusal."""
    kind, parameters = _media_type(content_type)
    if kind == "multipart/form-data":
        asked = _multipart(body, parameters.get("boundary", ""), max_images)
    elif kind == "application/json":
        asked = _json(body, max_images)
    elif kind.startswith("image/") or kind == "application/octet-stream":
        asked = Asked([(body, kind)] if body else [])
    else:
        raise Refusal(
            415,
            "content_type",
            "the content type must be multipart/form-data, image/*, application/octet-stream or application/json",
        )
    if not asked.files:
        raise Refusal(400, "no_image", "the request holds no image")
    return asked


def _media_type(content_type: str) -> tuple[str, Mapping[str, str]]:
    """Return a content type in small letters and its parameters. Raises Refusal."""
    if len(content_type) > _TYPE_CHARACTERS:
        raise Refusal(400, "content_type", f"the content type has more than {_TYPE_CHARACTERS} characters")
    message = Message()
    message["content-type"] = content_type.replace("\n", " ").replace("\r", " ")
    if "/" not in content_type:
        return "", {}
    pairs = message.get_params() or []
    parameters = {name.lower(): value for name, value in pairs[1:] if isinstance(value, str)}
    return message.get_content_type(), parameters


def _too_many(max_images: int) -> Refusal:
    return Refusal(413, "too_many_images", f"the request holds more than {max_images} images")


def _json(body: bytes, max_images: int) -> Asked:
    content = strict_json.mapping(strict_json.loads(body, 20 * max_images + 100), "the body")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise Refusal(400, "unknown_key", f"the JSON has a key that is not one of {', '.join(_KEYS)}")
    given = content.get("images", [])
    if not isinstance(given, list):
        raise Refusal(400, "bad_json", "images must be a list of base64 strings")
    if "image" in content:
        given = [content["image"], *given]
    if len(given) > max_images:
        raise _too_many(max_images)
    fields = {name: content[name] for name in _FIELDS if name in content}
    return Asked([decode_text(text, place) for place, text in enumerate(given)], fields)


def decode_text(text: Any, place: int) -> tuple[bytes, str]:
    """Return the bytes of base64 text or of a data URL, and its declared type or "". Raises Refusal."""
    if not isinstance(text, str):
        raise Refusal(400, "bad_base64", "an image must be a base64 string", image=place)
    declared = ""
    if text[:5].lower() == "data:":
        head, comma, text = text[5:].partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise Refusal(400, "bad_base64", "a data URL must be base64", image=place)
        declared = head.partition(";")[0]
    try:
        return base64.b64decode(text, validate=True), declared
    except (binascii.Error, ValueError):
        raise Refusal(400, "bad_base64", "an image is not base64", image=place) from None


class _Form:
    """Collects the parts of a form while its parser calls back."""

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
                raise Refusal(400, "bad_form", f"the field {name} is there twice or too long")
            self.asked.fields[str(name)] = content.decode("utf-8", "replace")
            return
        if len(self.asked.files) == self._max_images:
            raise _too_many(self._max_images)
        declared = self._headers.get("content-type", "")
        self.asked.files.append((content, declared))


def _multipart(body: bytes, boundary: str, max_images: int) -> Asked:
    if not boundary:
        raise Refusal(400, "bad_form", "the content type names no boundary")
    form = _Form(max_images)
    try:
        parser = MultipartParser(boundary.encode("latin-1", "replace"), form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "bad_form", "the body is not multipart/form-data as announced") from None
    if not body.rstrip().endswith(b"--"):
        raise Refusal(400, "bad_form", "the form is cut off: its last boundary is missing")
    return form.asked
