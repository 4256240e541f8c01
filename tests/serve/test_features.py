"""``/v1/predict?features=1``: the input of the last layer beside each answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

import tellapart
from tellapart.serve.v1 import MOST_FEATURED

from .conftest import Running, picture, running


def _form(files: list[bytes]) -> Any:
    return [("image", (f"{n}.png", file, "image/png")) for n, file in enumerate(files)]


@pytest.mark.parametrize("word", ["1", "true"])
def test_they_are_the_backends_to_the_last_bit(client: httpx.Client, shared: Running, word: str) -> None:
    files = [picture(seed) for seed in range(3)]
    plain = client.post("/v1/predict", files=_form(files)).json()
    answer = client.post(f"/v1/predict?features={word}", files=_form(files))
    assert answer.status_code == 200, answer.text
    backend = shared.backend()
    for found, usual, file in zip(answer.json()["predictions"], plain["predictions"], files, strict=True):
        _, expected = backend.with_features(backend.prepare(file)[None])
        assert np.array_equal(np.array(found.pop("features"), np.float32), expected[0])
        assert found == usual
    off = client.post("/v1/predict?features=0", files=_form(files)).json()
    assert off == plain


def test_a_model_without_them_says_so(start: Callable[..., Running]) -> None:
    with start({"featureless": True}).client() as client:
        answer = client.post("/v1/predict?features=1", content=picture())
        assert (answer.status_code, answer.json()["code"]) == (400, "no_features")
        assert "does not give features" in answer.json()["error"]
        assert client.post("/v1/predict", content=picture()).status_code == 200


def test_they_are_bounded(start: Callable[..., Running]) -> None:
    with start().client() as client:
        many = _form([picture(0, (4, 4))] * (MOST_FEATURED + 1))
        answer = client.post("/v1/predict?features=1", files=many)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_many_images")
        assert len(client.post("/v1/predict", files=many).json()["predictions"]) == MOST_FEATURED + 1
        most = client.post("/v1/predict?features=1", files=many[:-1]).json()["predictions"]
        assert len(most) == MOST_FEATURED
        assert client.post("/v1/predict?features=2", content=picture()).status_code == 422


def test_the_interface_describes_them(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]
    (one,) = [entry for entry in described["parameters"] if entry["name"] == "features"]
    assert one["in"] == "query"
    assert str(MOST_FEATURED) in one["description"]
    answer = described["responses"]["200"]["content"]["application/json"]["schema"]
    for kind in answer["properties"]["predictions"]["items"]["anyOf"]:
        assert "features" in kind["properties"]
        assert "features" not in kind["required"]


def test_an_artifact_gives_what_it_gives_in_python(faked: None, trained: Any) -> None:
    model = tellapart.load(trained.run)
    path = next((trained.data / "test" / "bee").glob("*.png"))
    with running({"m": trained.run}) as service, service.client() as client:
        (found,) = client.post("/v1/predict?features=1", content=path.read_bytes()).json()["predictions"]
        np.testing.assert_allclose(found["features"], model.features([path])[0], rtol=1e-5, atol=1e-6)
        assert found["label"] == model.predict(path)[0].label
