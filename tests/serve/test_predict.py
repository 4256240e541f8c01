"""/v1: the forms that images come in, and answers that are the backend's own."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

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
