"""Prediction: any spelling of an image, the same bits as evaluation, and bad ones answered beside the others."""

from __future__ import annotations

import csv
import functools
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tellapart
from tellapart import artifact, predict, workflow
from tellapart.contract import Card
from tellapart.errors import UserError
from tellapart.models import zoo
from tellapart.predict import Classifier, Prediction, expand
from tellapart.preprocess import Preprocessing, load
from tellapart.runtime.eager import EagerBackend

from .pictures import photograph

CLASSES = ("ant", "bee", "cat")
POLICIES = [("squash", "bilinear", 1.0), ("crop", "bicubic", 0.875), ("letterbox", "bilinear", 1.0)]


@functools.cache
def classifier(policy: str = "crop", interpolation: Any = "bilinear", fraction: float = 0.875) -> Classifier:
    """A network with random weights: whatever it says, it must say the same by every way."""
    architecture = zoo.Architecture("simple-cnn", len(CLASSES), size=24, batch_norm=True)
    torch.manual_seed(1)
    network = zoo.build(architecture)
    contract = Preprocessing(24, 3, policy, interpolation, fraction, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3))  # type: ignore[arg-type]
    card = Card(architecture, CLASSES, contract)
    return Classifier(EagerBackend(artifact.Predictor(network, card, torch.device("cpu"))))


@pytest.mark.parametrize(("policy", "interpolation", "fraction"), POLICIES)
def test_predicting_agrees_with_evaluating(
    policy: str, interpolation: str, fraction: float, tmp_path: Path
) -> None:
    """From the file's bytes to the probability, for photographs of odd sizes and every EXIF orientation."""
    model = classifier(policy, interpolation, fraction).backend.predictor
    path = tmp_path / artifact.FILE_NAME
    artifact.save(path, model.model.state_dict(), model.card)
    for number in range(60):
        file = tmp_path / "in" / CLASSES[number % 3] / f"{number:02}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(photograph(number, 15 + number * 7 % 53, 11 + number * 5 % 47, number % 8 + 1))
    evaluation = workflow.evaluate(path, tmp_path / "in", out=tmp_path / "out", quiet=True)
    with open(tmp_path / "out/evaluation/all/predictions.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == evaluation.n == 60
    answers = tellapart.load(path).predict([tmp_path / "in" / row["path"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert answer.label == row["predicted"]
        assert f"{answer.probability:.6g}" == row["confidence"]
        assert (answer.label == row["label"]) == (row["correct"] == "1")
    assert evaluation.accuracy == np.mean([answer.path.split("/")[-2] == answer.label for answer in answers])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_every_spelling_of_an_image_gives_the_same(kind: str, orientation: int, tmp_path: Path) -> None:
    content = photograph(3, 41, 29, orientation, kind)
    path = tmp_path / "图 1.img"
    path.write_bytes(content)
    ours = classifier()
    with Image.open(path) as opened:
        upright = np.asarray(Image.open(io.BytesIO(photograph(3, 41, 29, 1, kind))).convert("RGB"))
        if orientation == 6:
            upright = np.rot90(upright, 3)
        spellings = [path, str(path), content, opened, np.ascontiguousarray(upright)]
        expected = ours.predict(path, top=3)[0]
        assert expected.path == str(path)
        for spelling in spellings:
            answer = ours.predict(spelling, top=3)
            assert len(answer) == 1
            assert (answer[0].labels, answer[0].probabilities) == (expected.labels, expected.probabilities)
        for answer in ours.predict(spellings, top=3):
            assert answer.labels == expected.labels
            np.testing.assert_allclose(answer.probabilities, expected.probabilities, rtol=1e-5)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "I;16", "1", "YCbCr", "HSV"])
def test_pillow_images_of_any_mode(mode: str) -> None:
    """As the file that they would be stored in without loss."""
    picture = Image.open(io.BytesIO(photograph(1, 30, 22)))
    picture = (
        Image.fromarray(np.asarray(picture.convert("I")).astype(np.uint16) * 256)
        if mode == "I;16"
        else picture.convert(mode)
    )
    assert picture.mode == mode
    answer = classifier().predict(picture)[0]
    assert answer.error == ""
    assert answer.label in CLASSES


def test_arrays() -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (4, 33, 28, 3), dtype=np.uint8)
    ours = classifier()
    several = ours.predict(colour)
    assert len(several) == 4
    for image, answer in zip(colour, several, strict=True):
        np.testing.assert_allclose(ours.predict(image)[0].probabilities, answer.probabilities, rtol=1e-5)
    grey = colour[0, :, :, 0]
    assert ours.predict(grey) == ours.predict(np.stack([grey] * 3, -1))
    assert ours.predict(colour[0].astype(np.float32) / 255) == ours.predict(colour[0])  # nothing is lost
    wrong = ours.predict(colour[0].astype(np.float32) / 256)[0]
    assert "not the 256 levels of 8 bits" in wrong.error
    with pytest.raises(TypeError, match="path, bytes, a Pillow image, an array or a tensor, not int"):
        ours.predict([3])


def test_probabilities_are_the_softmax_of_the_logits() -> None:
    ours = classifier()
    contents = [photograph(n, 20 + n, 30) for n in range(9)]
    whole = ours.probabilities(contents)
    assert whole.shape == (9, 3)
    np.testing.assert_allclose(whole.sum(1), 1, atol=1e-6)
    pixels = np.stack([load(content, ours.card.preprocessing) for content in contents])
    logits = ours.backend.predictor(torch.from_numpy(pixels)).double().numpy()
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(whole, expected, rtol=1e-5)
    for row, answer in enumerate(ours.predict(contents, top=99)):
        assert len(answer.labels) == 3, "no more than there are classes"
        assert sum(answer.probabilities) == pytest.approx(1, abs=1e-6)
        order = np.argsort(-expected[row])
        assert answer.labels == tuple(CLASSES[k] for k in order)
        np.testing.assert_allclose(answer.probabilities, expected[row][order], rtol=1e-5)
        assert (answer.label, answer.probability) == (answer.labels[0], answer.probabilities[0])
    with pytest.raises(predict.BadImage):
        ours.probabilities([contents[0], b"no image"])


def test_bad_images_are_answered_in_their_place(tmp_path: Path) -> None:
    good = photograph(0, 30, 30)
    (tmp_path / "good.jpg").write_bytes(good)
    inputs = [b"", tmp_path / "good.jpg", b"<html>", tmp_path / "missing.jpg", tmp_path, good, good[:300]]
    answers = classifier().predict(inputs)
    assert [bool(answer.error) for answer in answers] == [True, False, True, True, True, False, True]
    assert "No such file" in answers[3].error
    assert "directory" in answers[4].error
    assert "truncated" in answers[6].error
    assert answers[1].probabilities == answers[5].probabilities
    assert answers[3].to_dict() == {"path": str(tmp_path / "missing.jpg"), "error": answers[3].error}
    assert (answers[0].label, answers[0].probability) == ("", 0.0)
    assert answers[1].to_dict() == {
        "path": str(tmp_path / "good.jpg"),
        "label": answers[1].label,
        "probability": answers[1].probability,
        "top": [{"label": answers[1].label, "probability": answers[1].probability}],
    }
    assert all(answer.error for answer in classifier().predict([b"", b""]))


def test_more_images_than_a_batch_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "_BATCH", 4)
    contents = [photograph(n, 30, 24) for n in range(5)]
    chosen = [contents[n % 5] for n in range(13)]
    taken = 0

    def lazily() -> Iterator[bytes]:
        nonlocal taken
        for content in chosen:
            taken += 1
            yield content

    ours, alone = classifier(), [classifier().predict(content)[0] for content in contents]
    stream = ours.stream(lazily())
    first = next(stream)
    assert taken == 4, "one batch is held at a time"
    answers = [first, *stream]
    assert len(answers) == 13
    for n, answer in enumerate(answers):
        assert answer.label == alone[n % 5].label
        assert answer.probability == pytest.approx(alone[n % 5].probability, rel=1e-5)
    assert list(ours.stream([])) == []


def test_standard_input_is_an_image() -> None:
    content = photograph(0, 30, 30)
    answers = list(classifier().stream(["-"], stdin=lambda: io.BytesIO(content)))
    assert answers == [
        Prediction("-", *(getattr(classifier().predict(content)[0], n) for n in ("labels", "probabilities")))
    ]


# --- What is named ------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.PNG",
        "a.jpg",
        "deep/er/图 1.webp",
        "deep/[1].png",
        ".hidden.png",
        ".git/x.png",
        "notes.txt",
        "__MACOSX/._a.jpg",
    ):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_files_and_patterns(tree: Path) -> None:
    inside = ["in/a.jpg", "in/b.PNG", "in/deep/[1].png", "in/deep/er/图 1.webp"]
    assert list(expand(["in"])) == inside
    assert list(expand([f"{tree}/in"])) == [f"{tree}/{name}" for name in inside]
    assert list(expand(["in/notes.txt", "-", "in/a.jpg"])) == ["in/notes.txt", "-", "in/a.jpg"]
    assert list(expand(["in/**/*.webp", "in/?.jpg"])) == ["in/deep/er/图 1.webp", "in/a.jpg"]
    assert list(expand(["in/*"])) == ["in/a.jpg", "in/b.PNG", "in/notes.txt"]
    assert list(expand(["in/deep/[1].png"])) == ["in/deep/[1].png"], "a name that is there is no pattern"
    (tree / "dangling.png").symlink_to("nowhere")
    assert list(expand(["dangling.png"])) == ["dangling.png"], "answered as an image that cannot be read"


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("in/none.png", "no file or folder 'in/none.png'"),
        ("in/*.tiff", r"No file matches 'in/\*.tiff'"),
        ("empty", "no images in the folder empty"),
        ("http://127.0.0.1/a.png", "is a URL; nothing is fetched unless --urls is given"),
        ("https://127.0.0.1/a.png", "--urls"),
    ],
)
def test_what_is_not_there_is_named(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        list(expand([given]))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "cat.jpg").write_bytes(photograph(5, 40, 30))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def do_GET(self) -> None:
            if self.path != "/cut.jpg":
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "9999")
            self.end_headers()
            self.wfile.write(b"half of it")
            return None

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_addresses_are_fetched_where_allowed(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"{server}/cat.jpg", f"{server}/dog.jpg", "http://127.0.0.1:9/cat.jpg"]
    assert list(expand(given, urls=True)) == given
    answers = classifier().predict(given)
    np.testing.assert_allclose(
        answers[0].probabilities, classifier().predict(tmp_path / "cat.jpg")[0].probabilities, rtol=1e-5
    )
    assert "File not found" in answers[1].error
    assert "refused" in answers[2].error
    monkeypatch.setattr(predict, "_URL_BYTES", 100)
    assert "is larger than" in classifier().predict(given[0])[0].error


def test_an_answer_that_breaks_off_does_not_stop_the_others(server: str) -> None:
    answers = classifier().predict([f"{server}/cut.jpg", f"{server}/cat.jpg"])
    assert [bool(answer.error) for answer in answers] == [True, False]


@pytest.mark.parametrize(
    "address", ["http://", "http://[::1", "http://127.0.0.1:notaport/", "https://host name/x"]
)
def test_broken_addresses_are_bad_images(address: str) -> None:
    assert classifier().predict(address)[0].error != ""
