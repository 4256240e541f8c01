"""The wire format of the Open Inference Protocol v2: JSON, and tensors in binary behind it.

The protocol: https://github.com/kserve/open-inference-protocol, and the binary tensor data extension of Triton's
server. One input, ``images``: UINT8 [B, H, W, C] of any size, of models of that depth also FP32 (levels of 0 to 255,
not rounded), or BYTES [B] with encoded files. Outputs: ``probabilities`` and ``logits``, FP32 [B, K], and ``labels``,
BYTES [B]. Knows nothing of models or of HTTP.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.contract import Pixels, answers
from tellapart.serve import strict_json
from tellapart.serve.bodies import decode_text
from tellapart.serve.refusal import Refusal, dumps

# of JSON: 13 images of 224 pixels; parsing them delays everything else for some tenths of a second
_ITEMS = 2_000_000
INPUT = "images"
OUTPUTS = {"probabilities": "FP32", "logits": "FP32", "labels": "BYTES"}


@dataclass(frozen=True)
class Wanted:
    """A requested output. ``classes`` > 0: as strings "value:index:label" of that many best classes."""

    name: str
    binary: bool
    classes: int = 0


@dataclass(frozen=True)
class Inference:
    """A request: images as an array [B, H, W, C], or as files; ``timeout`` in seconds where it sets one."""

    images: Pixels | list[bytes]
    outputs: tuple[Wanted, ...]
    id: str | None = None
    timeout: float | None = None


def parse(body: bytes, header_bytes: int | None, max_images: int, max_pixels: int) -> Inference:
    """Read a request. ``header_bytes``: length of the JSON part where tensors follow it. Raises Refusal."""
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise _bad("Inference-Header-Content-Length does not fit the body")
    end = len(body) if header_bytes is None else header_bytes
    content = strict_json.mapping(strict_json.loads(body[:end], _ITEMS), "the request")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1:
        raise _bad(f"inputs must be a list with the one input {INPUT!r}")
    given = strict_json.mapping(inputs[0], "an input")
    if given.get("name") != INPUT:
        raise _bad(f"the input must be named {INPUT!r}")
    images = _images(given, memoryview(body)[end:], max_images, max_pixels)
    parameters = strict_json.mapping(content.get("parameters", {}), "parameters")
    identifier = content.get("id")
    if identifier is not None and (not isinstance(identifier, str) or len(identifier) > 1000):
        raise _bad("id must be a string of at most 1000 characters")
    timeout = parameters.get("timeout")
    if timeout is not None and (not _is_count(timeout) or timeout < 1):
        raise _bad("the parameter timeout must be a whole number of microseconds")
    return Inference(
        images,
        _outputs(content.get("outputs"), parameters),
        identifier,
        None if timeout is None else timeout / 1e6,
    )


def _bad(reason: str) -> Refusal:
    return Refusal(400, "bad_tensor", reason)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


def _flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise _bad(f"{what} must be true or false")
    return value


def _images(
    given: dict[str, Any], binary: memoryview, max_images: int, max_pixels: int
) -> Pixels | list[bytes]:
    shape = given.get("shape")
    if (
        not isinstance(shape, list)
        or not shape
        or len(shape) > 4
        or not all(_is_count(side) for side in shape)
    ):
        raise _bad("shape must be a list of whole numbers")
    if shape[0] > max_images:
        raise Refusal(413, "too_many_images", f"a request must hold at most {max_images} images")
    parameters = strict_json.mapping(given.get("parameters", {}), "parameters")
    if any(name.startswith("shared_memory") for name in parameters):
        raise _bad("shared memory is not supported")
    data: memoryview | None = None
    if "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        if not _is_count(size) or size != len(binary) or "data" in given:
            raise _bad("binary_data_size does not fit the body")
        data = binary
    elif len(binary):
        raise _bad("bytes follow the JSON, but no input says that they are its own")
    elif not isinstance(given.get("data"), list):
        raise _bad("the input has no data")
    if given.get("datatype") in ("UINT8", "FP32"):
        return _pixels(given, data, tuple(shape), max_pixels)
    if given.get("datatype") == "BYTES":
        return _files(given, data, shape)
    raise _bad("datatype must be UINT8 (pixels), FP32 (of models of that depth) or BYTES (image files)")


def _pixels(
    given: dict[str, Any], data: memoryview | None, shape: tuple[int, ...], max_pixels: int
) -> Pixels:
    if len(shape) != 4 or shape[3] not in (1, 3, 4) or 0 in shape[1:]:
        raise _bad("pixels must have the shape [images, height, width, 1, 3 or 4]")
    if shape[1] * shape[2] > max_pixels:
        raise Refusal(422, "bad_image", f"an image has more than {max_pixels} pixels")
    kind = np.dtype(np.uint8 if given["datatype"] == "UINT8" else "<f4")
    if data is not None:
        if len(data) != math.prod(shape) * kind.itemsize:
            raise _bad("the tensor's bytes do not fit its shape")
        return np.frombuffer(data, kind).astype(kind.newbyteorder("="), copy=False).reshape(shape)
    numbers = _flattened(given["data"])
    if kind.kind == "f":
        return _floats(numbers, math.prod(shape)).reshape(shape)
    return np.frombuffer(_numbers(numbers, math.prod(shape)), np.uint8).reshape(shape)


def _flattened(data: list[Any]) -> list[Any]:
    """Return what lies in lists in lists. Raises Refusal.

    Without NumPy, which would turn one long string among many short ones into an array of long ones.
    """
    while data and isinstance(data[0], list):
        if not all(isinstance(row, list) and len(row) == len(data[0]) for row in data):
            raise _bad("the data is not rectangular")
        data = list(itertools.chain.from_iterable(data))
    return data


def _floats(data: list[Any], count: int) -> Pixels:
    """Return numbers as float32; which of them are levels is seen later. Raises Refusal."""
    if len(data) != count or not set(map(type, data)) <= {int, float}:
        raise _bad("the data must be as many numbers as the shape says")
    try:
        return np.array(data, np.float64).astype(np.float32)
    except (OverflowError, ValueError):
        raise _bad("the data must be of 0 to 255") from None


def _numbers(data: list[Any], count: int) -> bytes:
    """Return ``count`` numbers of 0 to 255 as bytes. Raises Refusal."""
    if len(data) != count or not set(map(type, data)) <= {int}:
        raise _bad("the data must be whole numbers, as many as the shape says")
    try:
        return bytes(data)
    except ValueError:
        raise _bad("the data must be from 0 to 255") from None


def _files(given: dict[str, Any], data: memoryview | None, shape: Sequence[int]) -> list[bytes]:
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        raise _bad("image files must have the shape [images]")
    if data is not None:
        files = _elements(data, shape[0])
    else:
        rows = [row[0] if isinstance(row, list) and len(row) == 1 else row for row in given["data"]]
        if len(rows) != shape[0]:
            raise _bad("the data does not fit its shape")
        files = [decode_text(text, place) for place, text in enumerate(rows)]
    if len(files) != shape[0]:
        raise _bad("the data does not fit its shape")
    return files


def _elements(data: memoryview, count: int) -> list[bytes]:
    """Split ``count`` byte strings, each behind its length as 4 bytes, little end first. Raises Refusal."""
    files: list[bytes] = []
    start = 0
    while start < len(data):
        if len(files) == count:
            raise _bad("the data does not fit its shape")
        if len(data) - start < 4:
            raise _bad("the tensor is cut off")
        (size,) = struct.unpack_from("<I", data, start)
        start += 4
        if size > len(data) - start:
            raise _bad("the tensor is cut off")
        files.append(bytes(data[start : start + size]))
        start += size
    return files


def _outputs(given: Any, parameters: dict[str, Any]) -> tuple[Wanted, ...]:
    default = _flag(parameters.get("binary_data_output", False), "binary_data_output")
    if given is None or given == []:
        return tuple(Wanted(name, default) for name in OUTPUTS)
    if not isinstance(given, list) or len(given) > len(OUTPUTS):
        raise _bad(f"outputs must be a list of {', '.join(OUTPUTS)}")
    wanted: list[Wanted] = []
    for entry in given:
        output = strict_json.mapping(entry, "an output")
        own = strict_json.mapping(output.get("parameters", {}), "parameters")
        name = output.get("name")
        if not isinstance(name, str) or name not in OUTPUTS or name in [one.name for one in wanted]:
            raise _bad(f"outputs must be a list of {', '.join(OUTPUTS)}")
        if any(key.startswith("shared_memory") for key in own):
            raise _bad("shared memory is not supported")
        best = own.get("classification", 0)
        if not _is_count(best) or (best and OUTPUTS[name] != "FP32"):
            raise _bad("classification must be a number of classes, and only of numeric outputs")
        binary = _flag(own.get("binary_data", default), "binary_data")
        wanted.append(Wanted(name, binary, best))
    return tuple(wanted)


Values = npt.NDArray[np.float32] | list[list[bytes]]


def render(
    head: dict[str, Any], wanted: Sequence[Wanted], values: dict[str, Any], classes: Sequence[str]
) -> tuple[bytes, int | None]:
    """Return an answer's body, and the length of its JSON part where tensors follow it.

    ``values``: float32 [B, K] of probabilities and logits, and labels as a list of str.
    """
    outputs, tails = [], []
    for one in wanted:
        value = values[one.name]
        if one.classes:
            value = _best(value, min(one.classes, len(classes)), classes)
        numeric = isinstance(value, np.ndarray)
        shape = (
            list(value.shape)
            if numeric
            else [len(value), *([min(one.classes, len(classes))] if one.classes else [])]
        )
        output: dict[str, Any] = {
            "name": one.name,
            "datatype": "FP32" if numeric else "BYTES",
            "shape": shape,
        }
        flat = value.ravel().tolist() if numeric else _flat(value)
        if one.binary:
            tail = np.ascontiguousarray(value, "<f4").tobytes() if numeric else _joined(flat)
            output["parameters"] = {"binary_data_size": len(tail)}
            tails.append(tail)
        else:
            output["data"] = flat
        outputs.append(output)
    front = dumps({**head, "outputs": outputs})
    return (b"".join([front, *tails]), len(front)) if tails else (front, None)


def _flat(value: list[Any]) -> list[str]:
    return [text for row in value for text in (row if isinstance(row, list) else [row])]


def _joined(texts: list[str]) -> bytes:
    encoded = [text.encode("utf-8") for text in texts]
    return b"".join(struct.pack("<I", len(text)) + text for text in encoded)


def _best(values_BK: npt.NDArray[np.float32], count: int, classes: Sequence[str]) -> list[list[str]]:
    order = answers.ranked(values_BK, count)
    return [
        [f"{values_BK[row, index]:f}:{index}:{classes[index]}" for index in best]
        for row, best in enumerate(order)
    ]
