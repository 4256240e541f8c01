"""The comparison itself: what it accepts, what it rejects and why, and where it says a difference begins."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from tellapart.contract import Architecture, BadImage, Card, Preprocessing, decode
from tellapart.contract.resizing import open_pixels, resize
from tellapart.errors import DataError, ExportError
from tellapart.evaluation.metrics import wilson_interval
from tellapart.export import both, outside, parity, synthetic, text
from tellapart.export.base import Tolerance
from tellapart.export.both import Measured
from tellapart.export.onnx_layers import locate
from tellapart.export.outcome import Case, Cases
from tellapart.runtime import open_backend

CARD = Card(
    Architecture("any", 3),
    ("a", "b", "<c>"),
    Preprocessing(8, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3),
    calibration={"temperature": 2.0},
)
TOLERANCE = Tolerance(1e-4)


class Linear:
    """A backend whose answer is a matrix times the pixels, with faults to order."""

    format, card = "linear", CARD

    def __init__(self, noise: float = 0.0, shift: int = 0, bad: tuple[bytes, ...] = ()) -> None:
        rng = np.random.default_rng(0)
        self.weights = (
            rng.normal(0, 1e-3, (8 * 8 * 3, 3)) + np.random.default_rng(1).normal(0, 1e-3, (192, 3)) * noise
        )
        self.shift, self.bad = shift, bad

    def prepare(self, content: Any) -> Any:
        if content in self.bad:
            raise BadImage("to order")
        return np.clip(
            resize(open_pixels(content, CARD.preprocessing), CARD.preprocessing) + np.int16(self.shift),
            0,
            255,
        ).astype(np.uint8)

    def logits(self, images: Any) -> Any:
        return (images.reshape(len(images), -1) @ self.weights).astype(np.float32)


class Whole(Linear):
    """A backend that can also run the file as one graph, which is at fault by ``lie``."""

    lie = 0.0

    def whole(self, images: Any) -> Any:
        from tellapart.runtime import probabilities

        logits = self.logits(np.stack([resize(image, CARD.preprocessing) for image in images]))
        return probabilities(logits, CARD) + self.lie, logits


def jpegs(count: int = 6) -> Cases:
    """Smooth photographs of 64 pixels, which a contract of 8 pixels decodes at an eighth of their size."""
    made = []
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (9, 9, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(small).resize((96, 128), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        made.append(Case(f"{number}.jpg", stream.getvalue))
    return Cases(made, "a test")


def test_the_outside_view_decodes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of our decoder shows, though both sides decode with it."""
    assert compare(Whole(), jpegs()).passed
    correct = both.open_pixels
    monkeypatch.setattr("tests.export.test_parity.open_pixels", lambda *given: 255 - correct(*given))
    done = compare(Whole(), jpegs())
    assert done.max_difference == 0
    assert not done.passed
    assert "run as one graph" in done.reasons[0]


def test_reduced_decoding_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare(Whole(), jpegs()).full_difference is None
    reduced = dataclasses.replace(
        CARD, preprocessing=dataclasses.replace(CARD.preprocessing, decode="scaled")
    )
    monkeypatch.setattr("tests.export.test_parity.CARD", reduced)
    for side in (Linear, Whole):
        monkeypatch.setattr(side, "card", reduced)
    done = compare(Whole(), jpegs())
    assert done.passed, "as one graph it gets what the contract's rule gives in plain Pillow"
    assert done.full_difference is not None
    assert done.full_difference > 1e-3
    assert done.notes[0] == "A note."
    for page in (text.render([done]), text.page([done], "a run", "1")):
        assert (
            "A program that decodes them at full size gets other answers: a probability differed by up to"
            in page
        )
        assert f"{done.full_difference:.2e}" in page
    assert (
        "A program that decodes them at full size gets other answers." in compare(Linear(), jpegs()).notes[1]
    )


def test_what_plain_pillow_does_not_give_is_counted() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160).save(stream, "PNG")
    done = compare(Whole(), Cases([*jpegs(2).images, Case("deep.png", stream.getvalue)], "a test"))
    assert done.passed
    assert "1 images have more than 8 bits" in done.notes[1]


@pytest.mark.parametrize("name", ["PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG", "JPEG2000"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_outside_view_and_ours_agree(name: str, mode: str, orientation: int) -> None:
    """Two implementations of one set of rules, of which one is not ours."""
    picture = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 60).convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize((40, 30)))
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    try:
        picture.convert(mode).save(stream, name, exif=exif)
    except (OSError, KeyError, ValueError):
        pytest.skip("the format has no such pixels")
    for channels in (1, 3):
        contract = Preprocessing(8, channels, "squash", "bilinear", 1.0, (0.5,) * channels, (0.5,) * channels)
        found = outside.pixels(stream.getvalue(), contract)
        np.testing.assert_array_equal(found, decode(stream.getvalue(), channels))


def cases(count: int = 40, labels: bool = True) -> Cases:
    made = synthetic.synthetic(count).images
    return Cases(
        [dataclasses.replace(case, label=row % 3 if labels else None) for row, case in enumerate(made)],
        "a test",
    )


def compare(export: Any, of: Cases | None = None, **options: Any) -> parity.Parity:
    about = {
        "format": "linear",
        "precision": "fp32",
        "file": "model.<b>",
        "facts": {"opset": {"x": 1}},
        "notes": ("A note.",),
    }
    return parity.compare(
        Linear(),
        export,
        of or cases(),
        TOLERANCE,
        about=about,
        sizes=(1000, 500),
        threads=1,
        batches=(1, 4),
        **options,
    )


def test_the_same_answers_pass() -> None:
    done = compare(Linear())
    assert done.passed
    assert (done.agreement, done.max_difference, done.mean_difference, done.ties) == (1.0, 0.0, 0.0, 0)
    assert (done.n, done.unreadable, done.where, done.pixels) == (40, 0, "", {"share": 0.0, "levels": 0.0})
    assert set(done.export.latency_ms) == {1, 4}
    assert 0 < done.export.latency_ms[1]["p50"] <= done.export.latency_ms[1]["p95"]
    truth = np.arange(40) % 3
    backend = Linear()
    pixels = np.stack([backend.prepare(case.read()) for case in cases().images])
    correct = int((backend.logits(pixels).argmax(1) == truth).sum())
    assert done.artifact.accuracy == done.export.accuracy == correct / 40
    assert done.export.interval == wilson_interval(correct, 40)
    assert compare(Linear(), cases(labels=False)).artifact.accuracy is None


def test_differences_are_those_of_the_calibrated_probabilities() -> None:
    done, ours, theirs = compare(Linear(noise=1e-3)), Linear(), Linear(noise=1e-3)
    pixels = np.stack([ours.prepare(case.read()) for case in cases().images])
    powers = [np.exp(side.logits(pixels).astype(float) / 2) for side in (ours, theirs)]
    expected = np.abs(
        powers[0] / powers[0].sum(1, keepdims=True) - powers[1] / powers[1].sum(1, keepdims=True)
    )
    assert done.max_difference == pytest.approx(expected.max())
    assert done.mean_difference == pytest.approx(expected.mean())
    assert [one.difference for one in done.largest] == pytest.approx(sorted(expected.max(1))[::-1][:5])


def test_other_weights_are_rejected_and_the_place_is_asked_for() -> None:
    asked: list[Any] = []

    def where(pixels: Any) -> str:
        asked.append(pixels)
        return "It starts here."

    done = compare(Linear(noise=0.5), locate=where)
    assert not done.passed
    assert "a probability differs by" in done.reasons[0]
    assert done.where == "It starts here."
    assert asked[0].shape == (8, 8, 8, 3)
    assert done.to_dict()["passed"] is False
    json.dumps(done.to_dict(), allow_nan=False)


def test_other_preprocessing_is_named() -> None:
    done = compare(Linear(shift=6), locate=lambda pixels: "the wrong place")
    assert not done.passed
    assert "before the network" in done.where
    assert "6 of 255" in done.where


def test_a_file_that_is_wrong_as_a_whole_is_rejected() -> None:
    export = Whole()
    assert compare(export).whole_difference == pytest.approx(0, abs=1e-12)
    export.lie = 3e-4
    done = compare(export)
    assert not done.passed
    assert "as one graph" in done.reasons[0]


def test_no_number_is_no_agreement() -> None:
    export = Linear()
    export.weights = export.weights * np.nan
    done = compare(export)
    assert not done.passed
    json.dumps(done.to_dict(), allow_nan=False)


def test_images_that_cannot_be_read() -> None:
    first = cases().images[0].read()
    assert isinstance(first, bytes)
    more = Cases(
        [
            *cases(5).images,
            Case("broken", lambda: b"no image"),
            Case("gone", lambda: Path("/none").read_bytes()),
        ],
        "a test",
    )
    done = compare(Linear(), more)
    assert (done.n, done.unreadable) == (5, 2)
    with pytest.raises(ExportError, match=r"cannot take the image synthetic-0000: to order"):
        compare(Linear(bad=(first,)))
    with pytest.raises(DataError, match="None of the images"):
        compare(Linear(), Cases([Case("broken", lambda: b"")], "a test"))


@pytest.mark.parametrize(
    ("lead", "difference", "ties", "passed"),
    [(5e-5, 4e-5, 1, True), (2e-4, 1.5e-4, 0, False), (5e-5, 3e-4, 1, False)],
)
def test_ties(lead: float, difference: float, ties: int, passed: bool) -> None:
    """Two classes within the tolerance of each other may change places; all else may not."""
    ours = np.array([[0.4 + lead, 0.4, 0.2 - lead], [0.9, 0.05, 0.05]])
    theirs = ours + np.array([[-difference, difference, 0], [0, 0, 0]])
    measured = Measured(ours, theirs, None, [], [], {}, np.zeros((1, 1, 1, 1), np.uint8), 0)
    agreement, counted, reasons = parity.judge(measured, TOLERANCE)
    assert (agreement, counted, not reasons) == (0.5, ties, passed)


def test_made_up_images_are_the_same_each_time_and_of_many_kinds() -> None:
    first, again = ([case.read() for case in synthetic.synthetic(24).images] for _ in range(2))
    assert first == again
    assert len(set(first)) == 24
    assert len({decode(content, 3).shape for content in first}) > 20  # type: ignore[arg-type]
    assert {content[:2] for content in first} == {b"\xff\xd8", b"\x89P"}
    assert not synthetic.synthetic(3).real


def test_text_and_page() -> None:
    results = [compare(Linear()), compare(Linear(noise=0.5), locate=lambda pixels: "In <this> layer.")]
    shown = text.render(results)
    assert "model.<b>: agrees with the artifact" in shown
    assert "REJECTED" in shown
    assert "In <this> layer." in shown
    page = text.page(results, "runs/<x>", "1.2")
    tags: list[tuple[str, Any]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append((tag, dict(attrs)))

    Reader().feed(page)
    assert {tag for tag, _ in tags}.isdisjoint({"b", "x", "this", "script", "link", "img"})
    assert "runs/&lt;x&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("A note.") == 2


@pytest.mark.parametrize("layer", ["block1.conv", "hidden", "head"])
@pytest.mark.parametrize(("rule", "plain"), [("crop", False), ("letterbox", False), ("crop", True)])
def test_a_damaged_onnx_file_is_rejected_and_the_layer_named(
    layer: str,
    rule: str,
    plain: bool,
    artifacts: Any,
    onnx_file: Callable[..., Path],
    files: Any,
    tmp_path: Path,
) -> None:
    """With one view, with two of which one may decide, and with six."""
    made, path = artifacts[rule], onnx_file(rule, plain=plain)
    images = Cases([Case(name, lambda content=content: content) for name, content in files.items()], "a test")

    def check(file: Path) -> parity.Parity:
        about = {"format": "onnx", "precision": "fp32", "file": file.name}
        return parity.compare(
            made.eager,
            open_backend(file),
            images,
            TOLERANCE,
            about=about,
            sizes=(1, 1),
            threads=1,
            batches=(1,),
            locate=lambda pixels: locate(file, made.graph(), pixels),
        )

    assert check(path).passed
    model = onnx.load(path)
    (weight,) = (one for one in model.graph.initializer if one.name.endswith(f"{layer}.weight"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values.ravel()[::7] += values.std() * 3
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    damaged = tmp_path / "damaged.onnx"
    onnx.save(model, damaged)
    done = check(damaged)
    assert not done.passed
    named = done.where.partition("starts in the layer ")[2].split()[0]
    assert named == layer or (layer, named) == (
        "block1.conv",
        "block1.norm",
    )  # where the file has both as one
    assert "All" in locate(path, made.graph(), made.eager.prepare(files["odd"])[None])
