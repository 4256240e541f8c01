"""/v1: the forms that images come in, and answers that are the backend's own."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from .conftest import CLASSES, Running, picture


def check(answer: httpx.Response, shared: Running, files: list[bytes], name: str = "m", top: int = 5) -> None:
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content["model"] == name
    assert len(content["predictions"]) == len(files)
    for given, file in zip(content["predictions"], files, strict=True):
        expected = shared.backend(name).answer(file)
        order = np.argsort(-expected)[:top]
        assert [entry["label"] for entry in given["top"]] == [CLASSES[i] for i in order]
        assert [entry["probability"] for entry in given["top"]] == pytest.approx(expected[order], abs=1e-6)
        assert (given["label"], given["probability"]) == tuple(given["top"][0].values())


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_raw_bytes(client: httpx.Client, shared: Running, kind: str) -> None:
    file = picture(1, kind=kind)
    for declared in (f"image/{kind.lower()}", "image/*", "application/octet-stream"):
        check(client.post("/v1/predict", content=file, headers={"content-type": declared}), shared, [file])


def test_a_form_of_several(client: httpx.Client, shared: Running) -> None:
    files = [picture(seed) for seed in range(4)]
    parts = [("image", (f"图{n}.png", file, "image/png")) for n, file in enumerate(files)]
    check(client.post("/v1/predict", files=parts), shared, files)
    check(
        client.post("/v1/predict", files=parts[:1], data={"top": "2", "model": "n"}),
        shared,
        files[:1],
        "n",
        2,
    )
    check(client.post("/v1/predict?top=1&model=n", files=parts), shared, files, "n", 1)


def test_many_images_let_others_come_between(start: Callable[..., Running]) -> None:
    """While one request decodes its many images, another's only one does not wait for all of them."""
    service, order = start(decoders=1, max_images=40), []
    real = service.service.reader._decode

    def decode(content: bytes, *words: Any) -> Any:
        order.append(len(content))
        time.sleep(0.02)
        return real(content, *words)

    service.service.reader._decode = decode  # type: ignore[method-assign]
    large, small = picture(1, (40, 40)), picture(2, (9, 9))
    with service.client() as client, ThreadPoolExecutor(1) as pool:
        many = pool.submit(client.post, "/v1/predict", files=[("image", large)] * 40)
        while not order:
            time.sleep(0.001)
        assert client.post("/v1/predict", files={"image": small}).status_code == 200
        assert len(order) < 20
        assert len(many.result().json()["predictions"]) == 40
        bad = client.post("/v1/predict", files=[("image", large)] * 6 + [("image", b"GIF89a")])
        assert (bad.status_code, bad.json()["image"]) == (422, 6)


def test_base64_in_json(client: httpx.Client, shared: Running) -> None:
    files = [picture(seed) for seed in range(3)]
    texts = [base64.b64encode(file).decode() for file in files]
    check(client.post("/v1/predict", json={"images": texts, "top": 2, "model": "n"}), shared, files, "n", 2)
    check(client.post("/v1/predict", json={"image": "data:image/png;base64," + texts[0]}), shared, files[:1])


TEXTS: dict[str, Callable[[bytes], str]] = {
    "in lines": lambda file: base64.encodebytes(file).decode(),
    "in lines of Windows": lambda file: base64.encodebytes(file).decode().replace("\n", "\r\n"),
    "in indented lines": lambda file: "\n    " + base64.encodebytes(file).decode().replace("\n", " \n\t  "),
    "URL-safe": lambda file: base64.urlsafe_b64encode(file).decode(),
    "URL-safe without padding": lambda file: base64.urlsafe_b64encode(file).decode().rstrip("="),
    "without padding": lambda file: base64.b64encode(file).decode().rstrip("="),
    "with too much padding": lambda file: base64.b64encode(file).decode().rstrip("=") + "===",
    "a data URL": lambda file: "data:image/png;base64," + base64.b64encode(file).decode(),
    "a data URL in capitals": lambda file: "DATA:IMAGE/PNG;BASE64," + base64.b64encode(file).decode(),
    "a data URL with a parameter": lambda file: "data:image/png;name=a.png;base64," + base64.b64encode(file).decode(),
    "a data URL without a type": lambda file: "data:;base64," + base64.b64encode(file).decode(),
    "a data URL of another type": lambda file: "data:image/jpeg;base64," + base64.b64encode(file).decode(),
    "a data URL in percents": lambda file: "data:image/png;base64," + quote(base64.b64encode(file).decode(), safe=""),
}  # fmt: skip


@pytest.mark.parametrize("how", TEXTS)
def test_base64_as_it_comes(how: str, client: httpx.Client, shared: Running) -> None:
    """In /v1 as JSON and as a field of a form, and in /v2; files of three lengths, so that padding differs."""
    files = [picture(2) + bytes(extra) for extra in range(3)]
    assert {len(file) % 3 for file in files} == {0, 1, 2}
    texts = [TEXTS[how](file) for file in files]
    check(client.post("/v1/predict", json={"images": texts}), shared, files)
    for file, text in zip(files, texts, strict=True):
        check(client.post("/v1/predict", json={"data": text}), shared, [file])
        check(client.post("/v1/predict", files={"image": (None, text)}), shared, [file])
    given = {"name": "images", "datatype": "BYTES", "shape": [3], "data": texts}
    answer = client.post("/v2/models/m/infer", json={"inputs": [given]}).json()
    expected = np.concatenate([shared.backend().answer(file) for file in files])
    assert answer["outputs"][0]["data"] == pytest.approx(expected, abs=1e-6)


def test_lines_that_a_shell_keeps(client: httpx.Client, shared: Running) -> None:
    """`-d "{\\"image\\": \\"$(base64 FILE)\\"}"`: the line breaks stand in the string as they are."""
    body = b'{"image": "' + base64.encodebytes(picture(3)) + b'"}'
    assert b"\n" in body
    for headers in ({"content-type": "application/json"}, {}):
        check(client.post("/v1/predict", content=body, headers=headers), shared, [picture(3)])


@pytest.mark.parametrize(
    "text", [picture(3)[:40], b"@", b"A", b"AA=A", b"AAAA BBBB", b"AAAA\tBBBB", "é".encode()]
)
def test_base64_that_is_none(text: bytes, client: httpx.Client) -> None:
    """Above all a space within a line: it was a "+" before it went through a form, and would shift all that follows."""
    answer = client.post("/v1/predict", json={"images": ["AAAA", text.decode("latin-1")]})
    assert (answer.status_code, answer.json()["code"], answer.json()["image"]) == (400, "bad_base64", 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_the_content_decides(kind: str, client: httpx.Client, shared: Running) -> None:
    """Programs take the type from the file's name, and the name is often wrong."""
    file = picture(4, kind=kind)
    for named, declared in (
        ("a.jpg", "image/jpeg"),
        ("a.png", "image/png"),
        ("a.tiff", "image/tiff"),
        ("a", "x"),
    ):
        check(client.post("/v1/predict", files={"image": (named, file, declared)}), shared, [file])
    for declared in ("image/jpeg", "image/png", "image/tiff", "image/x-nonsense", "IMAGE/PNG; a=b"):
        check(client.post("/v1/predict", content=file, headers={"content-type": declared}), shared, [file])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "Application/X-WWW-Form-Urlencoded; charset=UTF-8"},
    ],
    ids=["none", "empty", "curl", "others"],
)
def test_a_body_that_nobody_named(
    kind: str, headers: dict[str, str], client: httpx.Client, shared: Running
) -> None:
    file = picture(4, kind=kind)
    check(client.post("/v1/predict", content=file, headers=headers), shared, [file])
    body = b'\n {"top": 1, "image": "' + base64.b64encode(file) + b'"}'
    check(client.post("/v1/predict", content=body, headers=headers), shared, [file], top=1)


def test_what_is_accepted_holds_for_a_body_that_nobody_named(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", content=picture(kind="TIFF"))
    assert (answer.status_code, answer.json()["code"]) == (415, "format")
    answer = client.post(
        "/v1/predict", content=b"a=b", headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert (answer.status_code, answer.json()["code"]) == (415, "content_type")
    assert "--data-binary @FILE" in answer.json()["error"]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl is installed")
@pytest.mark.parametrize(
    "words",
    [
        ["--data-binary", "@FILE", "/v1/predict"],
        ["--data-binary", "@FILE", "/predict"],
        ["-F", "image=@FILE", "/v1/predict"],
        ["-F", "data=@FILE", "/predictions/m"],
        ["-F", "data=<TEXT", "/predictions/m"],
        ["-T", "FILE", "/predictions/m"],
        ["-X", "PUT", "--data-binary", "@FILE", "/predictions/m"],
        ["-X", "POST", "-T", "FILE", "/predictions/m/1"],
        ["-T", "-", "/predictions/m"],
        ["-d", "@JSON", "/v1/predict"],
        ["--data-binary", "@JSON", "/predict"],
    ],
    ids=" ".join,
)
def test_curl(words: list[str], shared: Running, tmp_path: Path) -> None:
    """As people type it; the file is a PNG that is named .jpg."""
    file, content = tmp_path / "a.jpg", picture(6)
    file.write_bytes(content)
    (tmp_path / "TEXT").write_bytes(base64.encodebytes(content))
    (tmp_path / "JSON").write_bytes(b'{"data": "' + base64.encodebytes(content) + b'"}')
    *rest, address = [word.replace("FILE", "a.jpg") for word in words]
    done = subprocess.run(
        ["curl", "-s", "--noproxy", "*", *rest, shared.url + address],
        capture_output=True, cwd=tmp_path, timeout=20, input=content, check=True,
    )  # fmt: skip
    check(httpx.Response(200, content=done.stdout), shared, [content])


def test_urllib(shared: Running) -> None:
    """It says that what it sends is a form, where nobody says what it is."""
    request = urllib.request.Request(shared.url + "/v1/predict", data=picture(6))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20) as answer:
        check(httpx.Response(answer.status, content=answer.read()), shared, [picture(6)])
    assert request.get_header("Content-type") == "application/x-www-form-urlencoded"


@pytest.mark.parametrize("method", ["PUT", "POST"])
@pytest.mark.parametrize("version", ["", "/1"])
def test_torchserves_address(method: str, version: str, client: httpx.Client, shared: Running) -> None:
    file, text = picture(7), base64.b64encode(picture(7)).decode()
    for name in ("m", "n"):
        address = f"/predictions/{name}{version}"
        check(client.request(method, address + "?top=2", content=file), shared, [file], name, 2)
        check(client.request(method, address, files={"data": file}), shared, [file], name)
        check(client.request(method, address, files={"data": (None, file)}), shared, [file], name)
        check(client.request(method, address, json={"data": text, "model": name}), shared, [file], name)
        check(client.request(method, address + "?model=other", content=file), shared, [file], name)


@pytest.mark.parametrize(
    ("address", "model", "status", "code"),
    [
        ("/predictions/m", "n", 400, "bad_model"),
        ("/predictions/m", 5, 400, "bad_model"),
        ("/predictions/m/2", "m", 404, "no_version"),
        ("/predictions/m/1.0", "m", 404, "no_version"),
        ("/predictions/x", "m", 404, "no_model"),
    ],
)
def test_torchserves_address_of_another_model(
    address: str, model: Any, status: int, code: str, client: httpx.Client
) -> None:
    text = base64.b64encode(picture()).decode()
    answer = client.put(address, json={"data": text, "model": model})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_litserves_address(client: httpx.Client, shared: Running) -> None:
    file = picture(8)
    check(client.post("/predict", files={"request": file}), shared, [file])
    check(client.post("/predict?model=n&top=1", content=file), shared, [file], "n", 1)
    assert client.get("/predict").status_code == 405


def test_a_body_without_length(client: httpx.Client, shared: Running) -> None:
    file = picture(5)
    parts = iter([file[:100], file[100:]])
    check(client.post("/v1/predict", content=parts, headers={"content-type": "image/png"}), shared, [file])


def test_orientation_is_obeyed(client: httpx.Client, shared: Running) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(3))).save(buffer, "JPEG", exif=exif, quality=95)
    check(client.post("/v1/predict", files={"image": buffer.getvalue()}), shared, [buffer.getvalue()])


def test_models(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()["models"]
    assert [(model["name"], model["version"], model["classes"]) for model in models] == [
        ("m", 1, list(CLASSES)),
        ("n", 1, list(CLASSES)),
    ]


def test_explain(client: httpx.Client, shared: Running) -> None:
    """The heat map is what computing every covered image by hand gives."""
    file, grid = picture(7), 4
    answer = client.post("/v1/explain?grid=4&label=bee", files={"image": file}).json()
    backend = shared.backend()
    image = backend.prepare(file)
    whole = backend.answer(image)[1]
    drops = np.zeros((grid, grid))
    covers: dict[tuple[int, int], list[float]] = {}
    for row in range(grid):
        for column in range(grid):
            rows = slice(max(0, 2 * row - 1), 2 * row + 3)
            columns = slice(max(0, 2 * column - 1), 2 * column + 3)
            covered = image.copy()
            covered[rows, columns] = image.mean(axis=(0, 1)).round()
            drop = whole - backend.answer(covered)[1]
            for y in range(grid):
                for x in range(grid):
                    if rows.start <= 2 * y + 1 < rows.stop and columns.start <= 2 * x + 1 < columns.stop:
                        covers.setdefault((y, x), []).append(drop)
    for place, values in covers.items():
        drops[place] = np.mean(values)
    assert answer["explained"] == "bee"
    assert np.array(answer["heat"]) == pytest.approx(drops, abs=2e-6)
    shown = base64.b64decode(answer["image"].partition(",")[2])
    assert np.array_equal(np.array(Image.open(io.BytesIO(shown))), image)


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [("?grid=40", 400, "grid"), ("?label=cow", 404, "no_class"), ("?grid=1", 422, "bad_parameter")],
)
def test_explain_is_bounded(client: httpx.Client, query: str, status: int, code: str) -> None:
    answer = client.post(f"/v1/explain{query}", files={"image": picture()})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_one_heat_map_has_one_image(client: httpx.Client) -> None:
    parts: Any = [("image", picture(1)), ("image", picture(2))]
    assert client.post("/v1/explain", files=parts).status_code == 413
