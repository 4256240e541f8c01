"""Requests that a service must refuse, as raw bytes: broken, hostile and merely mistaken ones.

Used by the tests and by `serving_soak.py`. `all_kinds` fits a service whose limits are those given; every case names
the statuses that are right. Slow senders need time and are in `slow_kinds`.
"""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

# uvicorn's own words, whole or in chunks, for what is not HTTP; every other answer is JSON with a reason.
NOT_HTTP = re.compile(rb"(1e\r\n)?Invalid HTTP request received\.(\r\n0\r\n\r\n)?")


@dataclass(frozen=True)
class Bad:
    """A request on a connection of its own, and the statuses that answer it; 0: closed without an answer."""

    name: str
    request: bytes
    statuses: tuple[int, ...]
    send: Callable[[socket.socket, bytes], None] | None = None


def ask(host: str, port: int, bad: Bad, timeout: float = 15.0) -> tuple[int, bytes]:
    """Send a request and return the answer's status and body; 0 where the connection was closed without one."""
    with socket.create_connection((host, port), timeout) as connection:
        try:
            if bad.send is None:
                connection.sendall(bad.request)
            else:
                bad.send(connection, bad.request)
        except OSError:
            pass  # the answer may come before all is sent
        content = b""
        try:
            while part := connection.recv(65536):
                content += part
        except ConnectionResetError:
            pass
    head, _, body = content.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    return (int(head.split(b" ", 2)[1]) if head.startswith(b"HTTP/1.1 ") else 0), body


def post(path: str, content_type: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a POST request as bytes; its announced length may lie."""
    lines = [
        f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", f"Content-Type: {content_type}",
        f"Content-Length: {len(body) if length is None else length}", *headers,
    ]  # fmt: skip
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def put(path: str, content_type: str, body: bytes) -> bytes:
    """Return a PUT request as bytes."""
    return post(path, content_type, body).replace(b"POST", b"PUT", 1)


def image(kind: str = "PNG", size: tuple[int, int] = (24, 24)) -> bytes:
    """Return a small good image."""
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def _png(width: int, height: int, rows: bytes, more: bytes = b"", depth: int = 8, colour: int = 0) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", head)
        + more
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _many_scans(scans: int) -> bytes:
    """Return a progressive JPEG whose last scan, which goes over all pixels in a few bytes, comes again and again."""
    buffer = io.BytesIO()
    Image.new("L", (600, 600), 128).save(buffer, "JPEG", progressive=True)
    head, last = buffer.getvalue().removesuffix(b"\xff\xd9").rsplit(b"\xff\xda", 1)
    return head + (b"\xff\xda" + last) * scans + b"\xff\xd9"


def _large_frame(side: int) -> bytes:
    """Return a GIF of 10 x 10 pixels by its header, whose first picture is larger."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0xF0, 0, 0) + bytes(6)
    return screen + b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"


def _zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("payload.js", "alert(1)")
    return buffer.getvalue()


def _form(parts: Sequence[tuple[str, bytes]], boundary: str = "x1x", end: bool = True) -> bytes:
    body = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
    return body + (f"--{boundary}--\r\n".encode() if end else b"")


def _file(name: str = "image", kind: str = "image/png") -> str:
    return f'Content-Disposition: form-data; name="{name}"; filename="a.png"\r\nContent-Type: {kind}'


def _images(max_pixels: int) -> list[Bad]:
    """Bodies that are no acceptable image."""
    good, jpeg = image(), image("JPEG", (64, 64))
    side = int(max_pixels**0.5) + 10
    rows, zeros = bytes(51 * 50), zlib.compress(bytes(50 << 20), 9)
    bomb = _png(30_000, 30_000, bytes(200_000))
    raw = {
        "empty body": (b"", "image/png", (400,)),
        "decompression bomb by header": (bomb, "image/png", (422,)),
        "more pixels than allowed": (_png(side, side, bytes(side * (side + 1))), "image/png", (422,)),
        "absurd proportions": (_png(1, 30_000, bytes(60_000)), "image/png", (422,)),
        "pixels of a size of zero": (_png(0, 5, b""), "image/png", (422,)),
        "truncated PNG": (good[: len(good) // 2], "image/png", (422,)),
        "truncated JPEG": (jpeg[: len(jpeg) // 3], "image/jpeg", (422,)),
        "header of a PNG only": (good[:20], "image/png", (422,)),
        "damaged PNG": (good[:60] + bytes(30) + good[90:], "image/png", (422,)),
        "PNG of very many chunks": (_png(50, 50, rows, _chunk(b"abCd", b"") * 20_000), "image/png", (422,)),
        "PNG with a bomb as text": (
            _png(50, 50, rows, _chunk(b"zTXt", b"k\0\0" + zeros)),
            "image/png",
            (422,),
        ),
        "PNG with a bomb as profile": (
            _png(50, 50, rows, _chunk(b"iCCP", b"k\0\0" + zeros)),
            "image/png",
            (422,),
        ),
        "JPEG of very many scans": (_many_scans(2000), "image/jpeg", (422,)),
        "JPEG of very many segments": (
            jpeg[:2] + b"\xff\xe1\x00\x04ab" * 5000 + jpeg[2:],
            "image/jpeg",
            (422,),
        ),
        "GIF with a picture larger than itself": (_large_frame(side), "image/gif", (422,)),
        "PNG without pixels": (_png(50, 50, b""), "image/png", (422,)),
        "HTML": (b"<!doctype html><html><script>alert(1)</script>", "image/png", (422,)),
        "SVG with a script": (
            b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>",
            "image/png",
            (422,),
        ),
        "SVG as such": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", (422,)),
        "PDF": (b"%PDF-1.7\n" + bytes(100), "image/png", (422,)),
        "PostScript": (b"%!PS-Adobe-3.0\n(x) show", "image/png", (422,)),
        "ZIP": (_zipped(), "image/png", (422,)),
        "pickle": (b"cos\nsystem\n(S'echo pwned'\ntR.", "application/octet-stream", (422,)),
        "zeros": (bytes(5000), "image/png", (422,)),
        "ELF program": (b"\x7fELF\x02\x01\x01" + bytes(200), "image/png", (422,)),
        "polyglot of GIF and JavaScript": (b"GIF89a/*" + bytes(9) + b"*/=1;alert(1)//", "image/gif", (422,)),
        "polyglot of JPEG and ZIP": (jpeg + _zipped(), "image/jpeg", (422,)),
        "polyglot of PNG and HTML": (good[:8] + b"<html><script>" + good[8:], "image/png", (422,)),
        "text as a form of curl": (b"hello=world", "application/x-www-form-urlencoded", (415,)),
        "base64 as a form": (b"image=" + base64.b64encode(good), "application/x-www-form-urlencoded", (415,)),
        "HTML as a form": (b"<html><script>", "application/x-www-form-urlencoded; charset=utf-8", (415,)),
        "half a JPEG as a form": (jpeg[: len(jpeg) // 3], "application/x-www-form-urlencoded", (422,)),
        "JSON that is none as a form": (b" {nope", "application/x-www-form-urlencoded", (400,)),
        "an empty body as a form": (b"", "application/x-www-form-urlencoded", (400,)),
        "text without a type": (b"hello world", "", (415,)),
        "a program without a type": (b"\x7fELF\x02\x01\x01" + bytes(200), "", (415,)),
        "a format that is not accepted": (image("TIFF"), "image/tiff", (415,)),
        "text as content type": (good, "text/plain", (415,)),
        "no known content type": (good, "nonsense", (415,)),
    }
    return [Bad(name, post("/v1/predict", kind, body), right) for name, (body, kind, right) in raw.items()]


def _json(max_images: int) -> list[Bad]:
    good = base64.b64encode(image()).decode()
    bodies: dict[str, bytes] = {
        "JSON that is none": b"{nope",
        "JSON nested deeply": b'{"image":' + b"[" * 5000 + b"]" * 5000 + b"}",
        "JSON nested very deeply": b"[" * 500_000,
        "JSON with a key twice": b'{"image":"' + good.encode() + b'","image":"AAAA"}',
        "JSON with NaN": b'{"image":NaN}',
        "JSON with an infinite number": b'{"top":1e999,"image":"AAAA"}',
        "JSON with a number of many digits": b'{"top":' + b"9" * 100_000 + b"}",
        "JSON in Latin-1": '{"image":"é"}'.encode("latin-1"),
        "JSON with a lone surrogate": b'{"image":"\\ud800"}',
        "JSON that is a list": b"[1,2,3]",
        "JSON with very many items": b'{"images":[' + b"0," * 50_000 + b"0]}",
        "base64 that is none": b'{"image":"@@@@"}',
        "base64 with a space": json.dumps({"image": good[:50] + " " + good[50:]}).encode(),
        "base64 with a space and lines": json.dumps(
            {"image": good[:50] + "\n" + good[50:80] + " " + good[80:]}
        ).encode(),
        "base64 of very many spaces": b'{"image":"A' + b" " * 500_000 + b'A"}',
        "base64 of an impossible length": b'{"image":"AAAAA"}',
        "base64 with padding in the middle": b'{"image":"AA==AAAA"}',
        "base64 of padding": b'{"image":"===="}',
        "base64 with a letter of another script": '{"image":"AAAа"}'.encode(),
        "base64 and a zero byte": b'{"image":"AAAA\0"}',
        "two images by two names, one bad": json.dumps({"image": good, "data": "@"}).encode(),
        "base64 of text": b'{"image":"aGVsbG8gd29ybGQ="}',
        "an image that is a number": b'{"image":5}',
        "an unknown key": json.dumps({"image": good, "path": "/etc/passwd"}).encode(),
        "no image": b"{}",
        "top that is negative": json.dumps({"image": good, "top": -1}).encode(),
        "top that is true": json.dumps({"image": good, "top": True}).encode(),
        "a model that is a list": json.dumps({"image": good, "model": ["m"]}).encode(),
        "a model that is a path": json.dumps({"image": good, "model": "../../etc/passwd"}).encode(),
        "a data URL that is not base64": b'{"image":"data:text/html,<script>"}',
        "too many images in JSON": json.dumps({"images": ["AAAA"] * (max_images + 1)}).encode(),
    }
    right = (400, 404, 413, 422)
    return [Bad(name, post("/v1/predict", "application/json", body), right) for name, body in bodies.items()]


def _forms(max_images: int) -> list[Bad]:
    good = image()
    kind, field = "multipart/form-data; boundary=x1x", 'Content-Disposition: form-data; name="%s"'
    many = "\r\n".join(f"X{number}: 1" for number in range(999))
    cases: dict[str, tuple[str, bytes, tuple[int, ...]]] = {
        "a form without boundary": ("multipart/form-data", _form([(_file(), good)]), (400,)),
        "a form with another boundary": ("multipart/form-data; boundary=zzz", _form([(_file(), good)]), (400,)),
        "a form that is cut off": (kind, _form([(_file(), good)], end=False)[:-20], (400,)),
        "a form without images": (kind, _form([]), (400,)),
        "a form with too many images": (kind, _form([(_file(), good)] * (max_images + 1)), (413,)),
        "a form with a very long header": (kind, _form([("X: " + "a" * 100_000, good)]), (400,)),
        "a form with very many headers": (kind, _form([(many, good)]), (400,)),
        "a form with very many fields": (kind, _form([(field % "image", b"")] * 9999), (413,)),
        "a form with an unknown field": (kind, _form([(_file(), good), (field % "path", b"/etc")]), (400,)),
        "a form with a bad top": (kind, _form([(_file(), good), (field % "top", b"x")]), (400,)),
        "a form with a name instead of a file": (kind, _form([(field % "image", b"cat.png")]), (400,)),
        "a form with an empty field": (kind, _form([(field % "data", b"")]), (422,)),
        "a form whose second image is bad": (kind, _form([(_file(), good), (_file(), b"GIF89a")]), (415, 422)),
        "a content type of very many quotes": ('multipart/form-data;"' + ";a" * 25_000, b"", (400,)),
        "a boundary of many characters": ("multipart/form-data; boundary=" + "b" * 3000, b"", (400,)),
    }  # fmt: skip
    return [Bad(name, post("/v1/predict", kind, body), right) for name, (kind, body, right) in cases.items()]


def _tensor(
    shape: list[object], size: int | None, data: bytes = b"", model: str = "m", **more: object
) -> bytes:
    given: dict[str, object] = {"name": "images", "datatype": "UINT8", "shape": shape, **more}
    if size is not None:
        given["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": [given]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    return post(f"/v2/models/{model}/infer", "application/octet-stream", head + data, length)


def _tensors(model: str) -> list[Bad]:
    cases: dict[str, bytes] = {
        "a tensor shorter than its shape": _tensor([1, 9, 9, 3], 10, bytes(10), model),
        "a tensor longer than the body": _tensor([1, 9, 9, 3], 243, bytes(100), model),
        "a tensor with a huge shape": _tensor([2**40, 2**40, 2**40, 3], 3, bytes(3), model),
        "a tensor with an overflowing shape": _tensor([1, 2**32, 2**32, 3], 0, b"", model),
        "a tensor with a negative shape": _tensor([1, -1, -9, 3], 27, bytes(27), model),
        "a tensor with a shape of zero": _tensor([1, 0, 5, 3], 0, b"", model),
        "no images of no size": _tensor([0, 0, 5, 3], 0, b"", model),
        "no images of a huge size": _tensor([0, 2**40, 2**40, 3], 0, b"", model),
        "no images, and bytes": _tensor([0, 2, 2, 3], 12, bytes(12), model),
        "no images, and numbers": _json_tensor(model, [1, 2, 3], shape=[0, 1, 1, 3]),
        "no images, and files": _tensor([0], 8, struct.pack("<I", 4) + b"abcd", model, datatype="BYTES"),
        "a tensor with five channels": _tensor([1, 2, 2, 5], 20, bytes(20), model),
        "a tensor one pixel high": _tensor([1, 1, 900, 3], 2700, bytes(2700), model),
        "a tensor of floats": _tensor([1, 2, 2, 3], 48, bytes(48), model, datatype="FP32"),
        "a tensor by another name": _tensor([1, 2, 2, 3], 12, bytes(12), model, name="input_0"),
        "a tensor of 300": _json_tensor(model, [300, 1, 1]),
        "a tensor of minus one": _json_tensor(model, [-1, 1, 1]),
        "a tensor that is ragged": _json_tensor(model, [[1, 2], [3]]),
        "a tensor with text": _json_tensor(model, ["a", "b", "c"]),
        "a tensor with fractions": _json_tensor(model, [0.5, 1.0, 2.0]),
        "a tensor with huge numbers": _json_tensor(model, [10**30, 1, 1]),
        "bytes that are cut off": _tensor([1], 8, struct.pack("<I", 2**31) + b"abcd", model, datatype="BYTES"),
        "bytes of another number": _tensor([2], 8, struct.pack("<I", 4) + b"abcd", model, datatype="BYTES"),
        "bytes that are no image": _tensor([1], 8, struct.pack("<I", 4) + b"abcd", model, datatype="BYTES"),
        "a tensor of one long text among many": _json_tensor(model, ["a" * 20_000, *["b"] * 20_000]),
        "a tensor of empty lists": _json_tensor(model, [[[[]]]] * 50_000),
        "a tensor nested deeply": post(
            f"/v2/models/{model}/infer", "application/json",
            json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": "DATA"}]})
            .replace('"DATA"', "[" * 800 + "]" * 800).encode(),
        ),
        "a tensor of truths": _json_tensor(model, [True, 1, 2]),
        "very many empty bytes": _tensor([1], 500_000, bytes(500_000), model, datatype="BYTES"),
        "shared memory": _json_tensor(model, [1, 2, 3], parameters={"shared_memory_region": "/etc/passwd"}),
        "a header length beyond the body": post(
            f"/v2/models/{model}/infer", "application/octet-stream", b"{}", "Inference-Header-Content-Length: 999"
        ),
        "a header length that is no number": post(
            f"/v2/models/{model}/infer", "application/octet-stream", b"{}", "Inference-Header-Content-Length: -1"
        ),
        "no inputs": post(f"/v2/models/{model}/infer", "application/json", b"{}"),
        "an unknown version": post(f"/v2/models/{model}/versions/99999/infer", "application/json", b"{}"),
        "a file to be loaded": post(
            f"/v2/repository/models/{model}/load", "application/json", b'{"parameters":{"file:1/m.onnx":"AAAA"}}'
        ),
    }  # fmt: skip
    return [Bad(name, request, (400, 404, 413, 422)) for name, request in cases.items()]


def _json_tensor(model: str, data: list[object], **more: object) -> bytes:
    given = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": data, **more}
    return post(f"/v2/models/{model}/infer", "application/json", json.dumps({"inputs": [given]}).encode())


def _head(method: str, path: str, *headers: str, host: str = "127.0.0.1") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def _http(model: str, max_bytes: int) -> list[Bad]:
    """What is wrong with the request itself."""
    good, predict, kind = image(), "/v1/predict", "image/png"
    text = base64.b64encode(good).decode()
    chunks = [b"10000\r\n" + bytes(65536) + b"\r\n"] * (max_bytes // 65536 + 2)
    chunked = _head("POST", predict, "Content-Type: image/png", "Transfer-Encoding: chunked")
    cases: dict[str, tuple[bytes, tuple[int, ...]]] = {
        "a body larger than allowed": (post(predict, kind, bytes(max_bytes + 1)), (413,)),
        "a length beyond everything": (post(predict, kind, b"", length=10**18), (413,)),
        "chunks without end": (chunked + b"".join(chunks) + b"0\r\n\r\n", (413,)),
        "chunks that are none": (chunked + b"zz\r\nabc\r\n0\r\n\r\n", (0, 400)),
        "a compressed body": (post(predict, kind, zlib.compress(good), "Content-Encoding: gzip"), (415,)),
        "two lengths": (post(predict, kind, good, "Content-Length: 5"), (400,)),
        "a length and chunks": (
            _head("POST", predict, "Content-Length: 4", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
            (400,),
        ),
        "chunks twice": (_head("POST", predict, *["Transfer-Encoding: chunked"] * 2) + b"0\r\n\r\n", (400,)),
        "chunks of another coding": (
            _head("POST", predict, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
            (400,),
        ),
        "chunks in HTTP/1.0": (
            chunked.replace(b"HTTP/1.1", b"HTTP/1.0") + b"3\r\nabc\r\n0\r\n\r\n",
            (400,),
        ),
        "chunks whose end is missing": (chunked + b"3\r\nabcXX0\r\n\r\n", (0, 400)),
        "a chunk of a negative size": (chunked + b"-3\r\nabc\r\n0\r\n\r\n", (0, 400)),
        "very many trailers": (chunked + b"3\r\nabc\r\n0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n", (0, 400)),
        "a space before a colon": (
            post(predict, kind, good).replace(b"Content-Length:", b"Content-Length :"),
            (400,),
        ),
        "two hosts": (_head("GET", "/v1/models", "Host: 127.0.0.1"), (400,)),
        "no host": (b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n", (400,)),
        "a form on the page of another": (post(predict, kind, good, "Sec-Fetch-Site: cross-site"), (403,)),
        "a form on the page of another, by its origin": (
            post(predict, kind, good, "Origin: http://a.example"),
            (403,),
        ),
        "a negative length": (post(predict, kind, b"", length=-5), (400,)),
        "not HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5 + b"\r\n\r\n", (400,)),
        "a head of very many bytes": (_head("GET", "/", "X: " + "a" * 300_000), (0, 400, 431)),
        "a path that leads outside": (_head("GET", "/../../../etc/passwd"), (404,)),
        "an encoded path that leads outside": (_head("GET", "/v2/models/..%2f..%2fetc%2fpasswd"), (404,)),
        "a path with a zero byte": (_head("GET", "/v2/models/%00"), (404,)),
        "a method that is none": (_head("BREW", predict), (405,)),
        "GET where POST is right": (_head("GET", predict), (405,)),
        "a name that is not ours": (_head("GET", "/v1/models", host="evil.example"), (421,)),
        "whether another's page may post": (
            _head("OPTIONS", predict, "Origin: http://a.example", "Access-Control-Request-Method: POST"),
            (405,),
        ),
        "a model of TorchServe's that is not there": (put("/predictions/none", kind, good), (404,)),
        "a version of TorchServe's that is not there": (put(f"/predictions/{model}/9.9", kind, good), (404,)),
        "an address that leads outside": (put("/predictions/..%2f..%2fetc", kind, good), (404,)),
        "a body of another model than the address": (
            post(
                f"/predictions/{model}",
                "application/json",
                json.dumps({"data": text, "model": "other"}).encode(),
            ),
            (400,),
        ),
        "DELETE at TorchServe's address": (_head("DELETE", f"/predictions/{model}"), (405,)),
        "a query that is no number": (post(predict + "?top=%F0%9F%92%A9", kind, good), (422,)),
        "a deadline that is none": (post(predict, kind, good, "Deadline-Ms: soon"), (400,)),
        "an unknown model": (post(predict + "?model=none", kind, good), (404,)),
    }
    return [Bad(name, request, right) for name, (request, right) in cases.items()]


def all_kinds(
    model: str = "m", max_bytes: int = 1 << 20, max_pixels: int = 100_000, max_images: int = 5
) -> list[Bad]:
    """Return every kind that is answered at once."""
    return [
        *_images(max_pixels),
        *_json(max_images),
        *_forms(max_images),
        *_tensors(model),
        *_http(model, max_bytes),
    ]


def _drip(connection: socket.socket, content: bytes) -> None:
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def slow_kinds() -> list[Bad]:
    """Return senders that take their time; the service's timeouts should be short."""
    good = image()
    head = post("/v1/predict", "image/png", b"", length=len(good))
    return [
        Bad("a head that drips", head, (408,), _drip),
        Bad(
            "a body that drips", head + good, (408,), lambda c, content: (c.sendall(head), _drip(c, good))[1]
        ),
        Bad("a body that never comes", head, (408,), lambda c, content: c.sendall(head)),
        Bad("nothing at all", b"", (408,), lambda c, content: None),
    ]
