"""/v2: the protocol as Triton's own client speaks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from .conftest import CLASSES, SIZE, Running, picture

triton = pytest.importorskip("tritonclient.http")


@pytest.fixture
def remote(shared: Running) -> Iterator[Any]:
    client = triton.InferenceServerClient(f"{shared.host}:{shared.port}")
    yield client
    client.close()


def pixels(shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def tensor(values: np.ndarray[Any, Any], kind: str, binary: bool) -> Any:
    result = triton.InferInput("images", list(values.shape), kind)
    result.set_data_from_numpy(values, binary_data=binary)
    return result


def test_health_and_description(remote: Any) -> None:
    assert remote.is_server_live()
    assert remote.is_server_ready()
    assert remote.is_model_ready("m")
    assert remote.is_model_ready("m", "1")
    assert not remote.is_model_ready("none")
    assert not remote.is_model_ready("m", "9")
    assert remote.get_server_metadata()["name"] == "tellapart"
    about = remote.get_model_metadata("m", "1")
    assert about["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert [(output["name"], output["shape"]) for output in about["outputs"]] == [
        ("probabilities", [-1, 3]), ("logits", [-1, 3]), ("labels", [-1]),
    ]  # fmt: skip
    assert remote.get_model_config("m")["input"][0]["data_type"] == "TYPE_UINT8"
    assert [model["state"] for model in remote.get_model_repository_index()] == ["READY", "READY"]
    assert remote.get_inference_statistics("m")["model_stats"][0]["name"] == "m"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shape", [(3, SIZE, SIZE, 3), (2, 11, 17, 3), (1, 5, 5, 1)])
def test_pixels(remote: Any, shared: Running, shape: tuple[int, ...], binary: bool) -> None:
    images = pixels(shape)
    answer = remote.infer("m", [tensor(images, "UINT8", binary)], request_id="seven")
    expected = np.stack([shared.backend().answer(image) for image in images])
    assert answer.as_numpy("probabilities") == pytest.approx(expected, abs=1e-6)
    assert answer.as_numpy("probabilities").dtype == np.float32
    labels = [CLASSES[index] for index in expected.argmax(axis=1)]
    assert [text.decode() for text in answer.as_numpy("labels")] == labels
    assert answer.get_response()["id"] == "seven"
    assert answer.get_response()["model_version"] == "1"


def test_image_files(remote: Any, shared: Running) -> None:
    files = [picture(1), picture(2, kind="JPEG")]
    asked = tensor(np.array(files, dtype=np.object_), "BYTES", True)
    wanted = [triton.InferRequestedOutput("logits"), triton.InferRequestedOutput("labels", binary_data=False)]
    answer = remote.infer("n", [asked], outputs=wanted, model_version="1")
    backend = shared.backend("n")
    expected = np.concatenate([backend.logits(backend.prepare(file)[None]) for file in files])
    assert answer.as_numpy("logits") == pytest.approx(expected, abs=1e-5)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["logits", "labels"]


@pytest.mark.parametrize("binary", [True, False])
def test_classification(remote: Any, shared: Running, binary: bool) -> None:
    images = pixels((2, SIZE, SIZE, 3))
    wanted = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    rows = remote.infer("m", [tensor(images, "UINT8", True)], outputs=wanted).as_numpy("probabilities")
    for row, image in zip(rows, images, strict=True):
        expected = shared.backend().answer(image)
        for text, index in zip(row, np.argsort(-expected)[:2], strict=True):
            value, place, label = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(place), label) == (index, CLASSES[index])
            assert float(value) == pytest.approx(expected[index], abs=1e-5)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shape", [(0, SIZE, SIZE, 3), (0, 11, 17, 3), (0, 5, 5, 1)])
def test_a_batch_of_no_images(remote: Any, shape: tuple[int, ...], binary: bool) -> None:
    """Gets outputs of no rows, as from Triton, and the next request its own answer."""
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary)
        for name in ("probabilities", "logits", "labels")
    ]
    answer = remote.infer("m", [tensor(pixels(shape), "UINT8", binary)], outputs=wanted)
    assert [answer.as_numpy(name).shape for name in ("probabilities", "logits", "labels")] == [
        (0, 3),
        (0, 3),
        (0,),
    ]
    best = [triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)]
    answer = remote.infer("m", [tensor(pixels(shape), "UINT8", binary)], outputs=best)
    assert answer.get_response()["outputs"][0]["shape"] == [0, 2]
    assert remote.infer("m", [tensor(pixels((1, 5, 5, 3)), "UINT8", True)]).as_numpy("logits").shape == (1, 3)


@pytest.mark.parametrize("binary", [True, False])
def test_no_image_files(remote: Any, binary: bool) -> None:
    answer = remote.infer("m", [tensor(np.zeros(0, np.object_), "BYTES", binary)])
    assert answer.as_numpy("probabilities").shape == (0, 3)


def test_asynchronous(remote: Any, shared: Running) -> None:
    images = [pixels((1, SIZE, SIZE, 3), seed) for seed in range(5)]
    asked = [remote.async_infer("m", [tensor(image, "UINT8", True)]) for image in images]
    for image, waiting in zip(images, asked, strict=True):
        expected = shared.backend().answer(image[0])
        assert waiting.get_result().as_numpy("probabilities")[0] == pytest.approx(expected, abs=1e-6)


def test_errors_reach_the_client(remote: Any) -> None:
    images = tensor(pixels((1, SIZE, SIZE, 3)), "UINT8", True)
    with pytest.raises(
        triton.InferenceServerException if hasattr(triton, "InferenceServerException") else Exception
    ):
        remote.infer("none", [images])
    with pytest.raises(Exception, match="shape"):
        remote.infer("m", [tensor(pixels((4, 4)), "UINT8", True)])
    with pytest.raises(Exception, match="own files only"):
        remote.load_model("m", files={"file:1/model.onnx": b"x"}, config="{}")
    with pytest.raises(Exception, match="chosen when the server is started"):
        remote.unload_model("m")


def test_timeout_is_a_deadline(remote: Any) -> None:
    with pytest.raises(Exception, match="deadline"):
        remote.infer("m", [tensor(pixels((1, 30, 30, 3)), "UINT8", True)], timeout=1)


def test_floats_are_for_models_of_that_depth(client: httpx.Client) -> None:
    """A model of 8-bit pixels refuses them, also where nothing would have to be sized."""
    for side in (SIZE, 5):
        tensor = {
            "name": "images",
            "datatype": "FP32",
            "shape": [1, side, side, 3],
            "data": [0.5] * (side * side * 3),
        }
        answer = client.post("/v2/models/m/infer", json={"inputs": [tensor]})
        assert answer.status_code == 400
        assert "the model takes pixels of 8 bits: datatype UINT8" in answer.text
