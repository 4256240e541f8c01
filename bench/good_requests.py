"""Requests that a service must answer, in every form, and the comparison of each answer with the model's own.

Used by `serving_soak.py`. A `Judge` knows the models and what they give for its pictures; `ask` sends one request of a
random form and returns what it was, or why it was wrong.
"""

from __future__ import annotations

import base64
import io
import json
import random
import struct
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tellapart.runtime import Backend, probabilities

TOLERANCE = 2e-5  # of a probability: a runtime's sums differ a little with the size of the batch
FORMS = ("raw", "form", "json", "tensor files", "tensor pixels", "heat map")
GRID = 4


class WrongError(Exception):
    """An answer that is not as it must be."""


class Judge:
    """Knows which of two models answers under which version, and what each gives for each picture."""

    def __init__(self, backends: list[Backend]) -> None:
        self.classes = backends[0].card.classes
        assert all(backend.card.classes == self.classes for backend in backends)
        self.images = [picture(seed) for seed in range(12)]
        self.right = [[own(backend, image) for image in self.images] for backend in backends]
        self.of_version: dict[int, int] = {1: 0}
        apart = [float(np.abs(one - other).max()) for one, other in zip(*self.right, strict=True)]
        # Else an answer by the wrong one of the two, or for another picture, would pass.
        assert min(apart) > 20 * TOLERANCE, f"the models agree too well to be told apart: {apart}"
        for answers in self.right:
            pairs = [np.abs(one - other).max() for n, one in enumerate(answers) for other in answers[:n]]
            assert np.median(pairs) > 20 * TOLERANCE, "the model gives nearly the same for all pictures"

    def check(self, version: int, places: list[int], given: list[dict[str, float]]) -> None:
        """Compare probabilities by label with the model's own. Raises WrongError."""
        which = self.of_version.get(version)
        if which is None:
            raise WrongError(f"nobody knows version {version}")
        if len(given) != len(places):
            raise WrongError(f"{len(given)} answers for {len(places)} images")
        for place, answer in zip(places, given, strict=True):
            expected = self.right[which][place]
            if set(answer) != set(self.classes):
                raise WrongError(f"other classes: {answer}")
            off = max(abs(value - expected[self.classes.index(label)]) for label, value in answer.items())
            best = max(answer, key=lambda name: answer[name])
            if off > TOLERANCE or best != self.classes[int(expected.argmax())]:
                raise WrongError(f"image {place}, version {version}: off by {off}: {answer}")


def picture(seed: int) -> bytes:
    """Return a smooth picture of some format and size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: int(rng.integers(30, 250)), : int(rng.integers(30, 250))]  # a BMP of 190 KB at most
    waves = [
        128 + 120 * np.sin(x * rng.uniform(0, 0.2) + y * rng.uniform(0, 0.2) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    buffer = io.BytesIO()
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    image.save(buffer, ("PNG", "JPEG", "WEBP", "BMP")[seed % 4])
    return buffer.getvalue()


def own(backend: Backend, content: bytes) -> np.ndarray[Any, Any]:
    return probabilities(backend.logits(backend.prepare(content)[None]), backend.card)[0]


def ask(judge: Judge, client: httpx.Client, draw: random.Random) -> str:
    """Ask once, in one of the forms, check the answer, and return the form. Raises WrongError, httpx.HTTPError."""
    form = draw.choices(FORMS, (5, 5, 5, 5, 5, 1))[0]
    single = form in ("raw", "tensor pixels", "heat map")  # a tensor's images have one size
    places = [draw.randrange(len(judge.images)) for _ in range(1 if single else draw.randrange(1, 5))]
    files = [judge.images[place] for place in places]
    if form.startswith("tensor"):
        version, given = _tensor(judge, client, form, files)
    elif form == "heat map":
        version, given = _heat_map(client, files[0])
        if not given:
            return "heat map, refused because there was another"
    else:
        version, given = _images(client, form, files, draw)
    judge.check(version, places, given)
    return form


def _content(answer: httpx.Response) -> Any:
    if answer.status_code != 200:
        raise WrongError(f"{answer.request.url}: {answer.status_code} {answer.text}")
    return answer.json()


def _by_label(top: list[dict[str, Any]]) -> dict[str, float]:
    return {one["label"]: one["probability"] for one in top}


def _images(
    client: httpx.Client, form: str, files: list[bytes], draw: random.Random
) -> tuple[int, list[dict[str, float]]]:
    url = draw.choice(("/v1/predict", "/predict", "/predictions/m")) + "?top=1000"
    if form == "raw":
        declared = draw.choice(("image/*", "image/gif", "", "application/x-www-form-urlencoded"))
        content = _content(client.post(url, content=files[0], headers={"content-type": declared}))
    elif form == "form":
        content = _content(client.post(url, files=[("image", file) for file in files]))
    else:
        encode = draw.choice((base64.b64encode, base64.encodebytes, base64.urlsafe_b64encode))
        texts = [encode(file).decode() for file in files]
        content = _content(client.post("/v1/predict", json={"images": texts, "top": 1000}))
    return content["version"], [_by_label(row["top"]) for row in content["predictions"]]


def _heat_map(client: httpx.Client, file: bytes) -> tuple[int, list[dict[str, float]]]:
    answer = client.post(f"/v1/explain?top=1000&grid={GRID}", files={"image": file})
    if answer.status_code == 503 and "another heat map" in answer.text:
        return 0, []
    content = _content(answer)
    if np.shape(content["heat"]) != (GRID, GRID) or not np.isfinite(content["heat"]).all():
        raise WrongError(f"no heat map: {content['heat']}")
    return content["version"], [_by_label(content["top"])]


def _tensor(
    judge: Judge, client: httpx.Client, form: str, files: list[bytes]
) -> tuple[int, list[dict[str, float]]]:
    if form == "tensor files":
        data = b"".join(struct.pack("<I", len(file)) + file for file in files)
        tensor: dict[str, Any] = {"datatype": "BYTES", "shape": [len(files)]}
    else:
        pixels = np.asarray(Image.open(io.BytesIO(files[0])).convert("RGB"))
        data, tensor = pixels.tobytes(), {"datatype": "UINT8", "shape": [1, *pixels.shape]}
    given = {"name": "images", **tensor, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [given], "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    content = _content(client.post("/v2/models/m/infer", content=head + data, headers=headers))
    values = np.array(content["outputs"][0]["data"]).reshape(-1, len(judge.classes))
    rows = [dict(zip(judge.classes, row.tolist(), strict=True)) for row in values]
    return int(content["model_version"]), rows
