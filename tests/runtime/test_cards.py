"""Cards of strangers, in every kind of file: each is opened and answers in full, or is refused with a sentence."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import strategies as st

from tellapart import artifact, printing
from tellapart.contract import Architecture, Card, Preprocessing, Views
from tellapart.contract.card import CardError
from tellapart.errors import ArtifactError, UserError
from tellapart.export import formats
from tellapart.export.base import Options
from tellapart.export.graph import graph_of
from tellapart.models import zoo
from tellapart.predict import Classifier
from tellapart.runtime import open_backend

GOOD = Card(
    Architecture("simple-cnn", 3, size=16),
    ("ant", "bee", "cat"),
    Preprocessing(16, 3, "crop", "bilinear", 0.875, (0.5,) * 3, (0.2,) * 3),
    scores={"val": {"accuracy": 0.5, "predicted": [1, 2, 3]}},
    weights={"source": "none", "licence": "MIT"},
    versions={"tellapart": "0.1.0"},
    views=Views("mirror", 0.5),
    calibration={"temperature": 1.5},
)
Change = Callable[[dict[str, Any]], Any]
DEEP = "[" * 100_000 + "]" * 100_000


def put(path: str, value: Any) -> Change:
    """Return a change that sets one field, by its dotted path."""

    def change(content: dict[str, Any]) -> None:
        *folders, name = path.split(".")
        for folder in folders:
            content = content[folder]
        content[name] = value

    return change


def drop(path: str) -> Change:
    def change(content: dict[str, Any]) -> None:
        *folders, name = path.split(".")
        for folder in folders:
            content = content[folder]
        del content[name]

    return change


def text(old: str, new: str) -> Change:
    """Return a change of the JSON text itself."""

    def change(content: dict[str, Any]) -> str:
        found = json.dumps(content)
        assert old in found
        return found.replace(old, new, 1)

    return change


NAN, INF = math.nan, math.inf
WRONG: dict[str, list[Any]] = {  # by field: values that no good card has
    "format": [0, -1, 99, "1", 1.0, True, None, NAN, 2**70],
    "architecture": [None, [], "simple-cnn", {}],
    "architecture.name": ["", "nothing", 5, None, ["simple-cnn"], "hf-hub:someone/model", "../../x", "simple-cnn\0", "x" * 5000],
    "architecture.num_classes": [0, -3, 2, 4, "3", 3.0, 3.5, True, None, NAN, INF, 10**9, 10**30],
    "architecture.channels": [0, 1, 2, -3, "3", 3.0, None, 10**6],
    "architecture.size": [0, -16, 17, "16", 16.0, None, 10**9, INF, [16]],
    "architecture.dropout": [-0.1, 1.0, 2, NAN, INF, "0", None, True],
    "architecture.drop_path": [-1, 0.5, NAN, "x"],
    "architecture.batch_norm": [1, "no", None, True],
    "architecture.stem": ["", "large", 5, None, "small"],
    "architecture.pruned": [5, [], {"x": [1]}, {"hidden": "12"}, {"hidden": [1.5, 2]}, {"hidden": [-1, 2]}, {"hidden": [10**12, 10**12]}, {"": [1]}],
    "architecture.unknown": [1],
    "classes": [None, "ant", {}, [], ["ant", "bee"], ["ant", "bee", "cat", "dog"], ["ant", "ant", "bee"], ["ant", "bee", ""],
                ["ant", "bee", " \t"], ["ant", "bee", 3], ["ant", "bee", None], ["ant", "bee", ["cat"]], ["ant", "bee", "\ud800"],
                ["ant", "bee", "x" * 100_000], ["ant", "bee", NAN]],
    "preprocessing": [None, [], 5, {}],
    "preprocessing.size": [0, -1, 17, "16", 16.5, True, None, NAN, 10**6, 10**12],
    "preprocessing.channels": [0, 1, 2, "3", None, 3.0],
    "preprocessing.resize": ["stretch", "", None, 5, ["crop"], {}],
    "preprocessing.interpolation": ["nearest", None, 1],
    "preprocessing.crop_fraction": [0, -1, 1.5, NAN, INF, 1e-300, 1e-9, "1", None, True],
    "preprocessing.mean": [[], [0.5], [0.5] * 4, 0.5, None, "0.5", [NAN, 0, 0], [INF, 0, 0], ["0", 0, 0], [1e30, 0, 0], [None, 0, 0], [True, 0, 0]],
    "preprocessing.std": [[], [0.5], [0, 1, 1], [-1, 1, 1], [NAN, 1, 1], [INF, 1, 1], [1e-300, 1, 1], ["1", 1, 1], [1e-30, 1, 1], None],
    "preprocessing.fill": [-1, 256, 1.5, "7", None, NAN, True],
    "preprocessing.decode": ["fast", None, 0],
    "preprocessing.unknown": [1],
    "scores": [None, 5, [], "x", {"val": NAN}, {"val": INF}, {"a": "\ud800"}, {"\udfff": 1},
        {"epoch": -1}, {"epoch": "x"}, {"epoch": True}, {"val": {"n": -1}}, {"val": {"n": 1.5}},
        {"val": {"accuracy": "x"}}, {"val": {"accuracy": 1.5}}, {"test": {"macro_f1": -0.1}},
        {"test": {"accuracy_interval": 0.5}}, {"test": {"accuracy_interval": [0.5, 2.0]}},
        {"val": {"predicted": 3}}, {"val": {"predicted": [1, "2"]}}, {"val": {"predicted": [-1, 2]}},
    ],
    "weights": [None, 5, [], {"licence": 5}, {"licence": ["MIT"]}, {"source": {}}],
    "versions": [None, [], {"torch": 2}, {"torch": None}],
    "views": [None, [], {"name": "many"}, {"name": 5}, {"below": 2}, {"below": -1}, {"below": NAN}, {"below": "1"}, {"other": 1}],
    "calibration": [None, 5, []],
    "calibration.temperature": [0, -1, NAN, INF, -INF, "1", None, True, [1], 1e-30, 1e30, 10**400],
}  # fmt: skip
RIGHT: dict[str, Change] = {
    "as it is": lambda content: None,
    "without views": drop("views"),
    "without calibration": drop("calibration"),
    "without scores": drop("scores"),
    "a field of a later version": put("colour", {"of": ["the", "sky"]}),
    "other scores": put("scores", {"val": {"confusion": [[1]], "deep": [[[[]]]]}, "x": None}),
    "other weights": put("weights", {"note": ["anything"], "licence": None}),
    "whole numbers for fractions": put("preprocessing.mean", [0, 0, 1]),
    "odd but different names": put("classes", ["=cmd|' /C calc'!A0", "a\nb\x1b[31m", 'é"\\</script>']),
    "names of other scripts": put("classes", ["蚂蚁", "🐝", "x" * 1000]),
}
BAD_TEXTS: dict[str, Change] = {
    "nothing": lambda content: "",
    "a word": lambda content: "null",
    "a number": lambda content: "7",
    "a list": lambda content: "[]",
    "half": lambda content: json.dumps(content)[:99],
    "deep": lambda content: DEEP,
    "deep scores": text('"scores": {', f'"scores": {{"x": {DEEP}, '),
    "deep but readable": put("scores", json.loads("[" * 500 + "]" * 500)),
    "a field twice": text('"classes": [', '"classes": ["a", "b", "c"], "classes": ['),
    "a field twice inside": text('"size": 16', '"size": 16, "size": 16'),
    "too large a number": text('"temperature": 1.5', '"temperature": 1e999'),
    "an endless number": text('"temperature": 1.5', '"temperature": ' + "9" * 100_000),
    "a minus alone": text('"temperature": 1.5', '"temperature": -'),
    "half a pair": text('"cat"', '"\\ud83d"'),
    "no format": drop("format"),
    "no classes": drop("classes"),
    "no architecture": drop("architecture"),
    "no contract": drop("preprocessing"),
    **{f"no {name}": drop(name) for name in ("architecture.name", "architecture.num_classes")},
    **{f"no contract's {name}": drop(f"preprocessing.{name}") for name in ("size", "channels", "resize", "interpolation", "crop_fraction", "mean", "std")},
}  # fmt: skip


def cases() -> list[Any]:
    wrong = [
        pytest.param(put(field, value), id=f"{field}={ascii(value)[:30]}")
        for field, values in WRONG.items()
        for value in values
    ]
    return wrong + [pytest.param(change, id=name) for name, change in BAD_TEXTS.items()]


def changed(change: Change) -> str:
    content = json.loads(GOOD.to_json())
    found = change(content)
    return found if isinstance(found, str) else json.dumps(content)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: value.contiguous() for name, value in zoo.build(GOOD.architecture).state_dict().items()}


def answers_in_full(path: Path) -> None:
    """Everything that follows from opening: probabilities, and valid JSON and a table of them."""
    classifier = Classifier(open_backend(path))
    images = list(np.random.default_rng(0).integers(0, 256, (2, 30, 20, 3), dtype=np.uint8))
    for prediction in classifier.predict(images, top=10):
        assert not prediction.error
        assert sorted(prediction.labels) == sorted(classifier.classes)
        assert sum(prediction.probabilities) == pytest.approx(1)
        line = printing.as_json_line(prediction.to_dict())
        assert json.loads(line, parse_constant=pytest.fail)["top"]
        line.encode("utf-8")
    assert Card.from_json(classifier.card.to_json()) == classifier.card


def refused(path: Path) -> str:
    """Return the sentence that a file is refused with; empty where it answers in full."""
    try:
        answers_in_full(path)
    except UserError as error:
        return str(error)
    return ""


def test_there_are_many_cases() -> None:
    assert len(cases()) > 200


@pytest.mark.parametrize("change", cases())
def test_a_wrong_card_is_refused(change: Change, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / artifact.FILE_NAME
    safetensors.torch.save_file(state, path, metadata={"tellapart": changed(change)})
    with pytest.raises(UserError) as caught:
        answers_in_full(path)
    assert len(str(caught.value)) < 2000
    str(caught.value).encode("utf-8")


@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_card_is_opened(kind: str, state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / artifact.FILE_NAME
    safetensors.torch.save_file(state, path, metadata={"tellapart": changed(RIGHT[kind])})
    answers_in_full(path)


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", ["one weight", "a bias", "everything"])
def test_weights_that_are_no_numbers_are_refused(
    kind: str, place: str, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    broken = copy.deepcopy(state)
    weight, bias = (next(name for name in state if name.endswith(end)) for end in ("weight", "bias"))
    if place == "everything":
        broken = {name: torch.full_like(value, float(kind)) for name, value in broken.items()}
    else:
        broken[weight if place == "one weight" else bias].flatten()[3] = float(kind)
    path = tmp_path / artifact.FILE_NAME
    safetensors.torch.save_file(broken, path, metadata={"tellapart": GOOD.to_json()})
    with pytest.raises(ArtifactError, match="not numbers"):
        open_backend(path)


def test_values_that_overflow_are_no_answer(
    state: dict[str, torch.Tensor], tmp_path: Path, call: Any
) -> None:
    """Every weight is finite, the answer is not: an error, and not ``nan%``."""
    path = tmp_path / artifact.FILE_NAME
    huge = {name: torch.full_like(value, 3e38) for name, value in state.items()}
    safetensors.torch.save_file(huge, path, metadata={"tellapart": GOOD.to_json()})
    from PIL import Image

    Image.new("RGB", (20, 20), (9, 99, 200)).save(tmp_path / "cat.png")
    for form in ("table", "jsonl", "csv"):
        answer = call("predict", path, "cat.png", "--format", form)
        assert answer.code == 2
        assert "not a number" in answer.err
        assert "nan" not in answer.out.lower()


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", 4000), ("num_classes", 90_000), ("name", "timm/vit_base_patch16_224")],
)
def test_a_card_cannot_ask_for_memory(
    field: str, value: Any, state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """What its weights do not fill is refused before memory is taken for it."""
    content = json.loads(GOOD.to_json())
    content["architecture"][field] = value
    if field == "size":
        content["preprocessing"]["size"] = value
    if field == "num_classes":
        content["classes"] = [str(number) for number in range(value)]
    path = tmp_path / artifact.FILE_NAME
    safetensors.torch.save_file(state, path, metadata={"tellapart": json.dumps(content)})
    if field == "name":
        pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"do not fit|cannot"):
        open_backend(path)


# The same cards in exported files: the reader is one, so a part of the matrix shows that each format uses it.
SOME = {
    **{f"{field}": put(field, values[-1]) for field, values in WRONG.items()},
    **{f"first {field}": put(field, values[0]) for field, values in WRONG.items()},
    **{
        name: BAD_TEXTS[name]
        for name in ("nothing", "deep", "a field twice", "half a pair", "too large a number")
    },
}


@pytest.fixture(scope="module")
def exported(state: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    source = folder / artifact.FILE_NAME
    artifact.save(source, state, GOOD)
    found = {}
    for name in ("onnx", "openvino"):
        pytest.importorskip(name)
        entry = formats.find(name)
        target = folder / entry.file_name(Options())
        found[name] = entry.write(graph_of(source), GOOD, target, Options()).files[0]
    return found


@pytest.mark.slow
def test_wrong_cards_in_an_onnx_file(exported: dict[str, Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported["onnx"])
    (entry,) = (one for one in model.metadata_props if one.key == "tellapart")
    path = tmp_path / "model.onnx"
    for kind, change in SOME.items():
        try:
            entry.value = changed(change)
        except ValueError:  # protobuf itself refuses half of a pair
            continue
        onnx.save(model, path)
        # What only torch looks at, or what the file's own graph does without, may pass: then it answers in full.
        assert refused(path) or "architecture" in kind, kind
    entry.value = changed(put("classes", ["a", "b", "c", "d"]))
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="4 where the architecture says 3"):
        open_backend(path)
    both = json.loads(GOOD.to_json())
    both["classes"], both["architecture"]["num_classes"] = ["a", "b", "c", "d"], 4
    entry.value = json.dumps(both)
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="4 classes"):
        open_backend(path)


@pytest.mark.slow
def test_wrong_cards_in_an_openvino_file(exported: dict[str, Path], tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    import shutil
    from xml.sax import saxutils

    source = exported["openvino"].read_text("utf-8")
    assert openvino
    shutil.copy(exported["openvino"].with_suffix(".bin"), tmp_path / "model.bin")
    start = source.index('value="', source.index("<card")) + len('value="')
    end = source.index('"', start)
    path = tmp_path / "model.xml"
    for kind, change in {"good": lambda content: None, **SOME}.items():
        card = saxutils.escape(changed(change), {'"': "&quot;", "\n": "&#10;"})
        path.write_text(source[:start] + card + source[end:], "utf-8", "surrogatepass")
        assert bool(refused(path)) == (kind != "good") or "architecture" in kind, kind


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_exported_weights_that_are_no_numbers_are_refused(
    name: str, exported: dict[str, Path], state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    if name == "onnx":
        onnx = pytest.importorskip("onnx")
        model = onnx.load(exported[name])
        largest = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(largest.raw_data, np.float32).copy()
        values[5] = np.nan
        largest.raw_data = values.tobytes()
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
    else:
        path = tmp_path / "model.xml"
        path.write_bytes(exported[name].read_bytes())
        content = exported[name].with_suffix(".bin").read_bytes()
        weight = max(state.values(), key=torch.numel).numpy().tobytes()
        assert weight in content
        path.with_suffix(".bin").write_bytes(content.replace(weight, weight[:8] + b"\xff" * 8 + weight[16:]))
    with pytest.raises(ArtifactError, match="not numbers"):
        open_backend(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
FIELDS = [field for field in WRONG if field not in ("architecture.unknown", "preprocessing.unknown")]


@hypothesis.settings(max_examples=400)
@hypothesis.given(st.sampled_from(FIELDS), JSON)
def test_any_value_in_any_field(field: str, value: Any) -> None:
    """A card is refused as a card, or is one: it survives its own JSON, and its numbers make an answer."""
    try:
        card = Card.from_json(changed(put(field, value)))
    except CardError:
        return
    assert Card.from_json(card.to_json()) == card
    json.loads(card.to_json(), parse_constant=pytest.fail)
    assert 1e-3 <= card.temperature <= 1e3
    assert len(set(card.classes)) == card.architecture.num_classes
    "".join(card.classes).encode("utf-8")


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.binary(max_size=40), st.integers(0, 2000), st.integers(0, 60))
def test_any_text_is_refused_or_a_card(piece: bytes, place: int, cut: int) -> None:
    good = GOOD.to_json().encode()
    content = good[: place % len(good)] + piece + good[place % len(good) + cut :]
    try:
        card = Card.from_json(content.decode("utf-8", "replace"))
    except CardError:
        return
    assert Card.from_json(card.to_json()) == card


def test_scores_that_are_no_numbers_are_written_as_null() -> None:
    """A loss may be NaN in training; the card is JSON all the same."""
    import dataclasses

    card = dataclasses.replace(GOOD, scores={"val": {"loss": NAN, "list": [1.0, INF]}})
    assert Card.from_json(card.to_json()).scores == {"val": {"loss": None, "list": [1.0, None]}}


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--input.size", "5000"], "size"), (["--input.std", "1e-9"], "std"), (["--input.mean", "1e9", "--input.std", "1"], "mean"),
     (["--input.crop-fraction", "1e-5", "--input.resize", "crop"], "crop_fraction")],
)  # fmt: skip
def test_what_no_card_may_say_is_refused_before_training(options: list[str], word: str, call: Any) -> None:
    answer = call("train", "digits", "--model.name", "simple-cnn", *options, "--training.epochs", "1")
    assert answer.code == 2
    assert word in answer.err
    assert "Traceback" not in answer.err
    assert not Path("runs").exists() or not list(Path("runs").iterdir())
