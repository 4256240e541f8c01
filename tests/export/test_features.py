"""Features: what a hook on the last layer sees, the same from exported files, and refused where a file has none."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart import artifact, cli
from tellapart.contract import Card, Views
from tellapart.errors import ArtifactError, ExportError, ModelError, SpecError
from tellapart.export import both, formats, parity
from tellapart.export.base import Options, Tolerance
from tellapart.export.graph import GraphModel, graph_of
from tellapart.export.outcome import Case, Cases
from tellapart.models.features import Capture
from tellapart.predict import Classifier
from tellapart.preprocess import normalise
from tellapart.runtime import open_backend
from tellapart.runtime.eager import EagerBackend
from tellapart.workflow import export

from .conftest import FILES, Made, make_artifact

GOOD = ("odd", "jpeg")


def batch(made: Made, count: int = 5) -> Any:
    card = made.card.preprocessing
    return np.random.default_rng(5).integers(0, 256, (count, card.size, card.size, card.channels), np.uint8)


def hooked(made: Made, images: Any) -> tuple[Any, Any]:
    """What a hook of one's own on the last layer sees for a batch, and that layer."""
    network = artifact.open_model(made.path).model
    layer = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
    seen: list[torch.Tensor] = []
    layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        network(normalise(torch.from_numpy(images), made.card.preprocessing))
    return seen[0].numpy(), layer


def test_they_are_what_the_last_layer_gets(artifacts: dict[str, Made]) -> None:
    made, images = artifacts["squash"], batch(artifacts["squash"])
    logits, features = made.eager.with_features(images)
    np.testing.assert_allclose(features, hooked(made, images)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(logits, made.eager.logits(images))
    np.testing.assert_array_equal(features, made.eager.features(images))
    torch.testing.assert_close(
        made.eager.predictor.features(torch.from_numpy(images)), torch.from_numpy(features), rtol=0, atol=0
    )


@pytest.mark.parametrize("rule", ["crop", "letterbox"])
def test_views_of_features_are_averaged_as_those_of_logits(artifacts: dict[str, Made], rule: str) -> None:
    made, images = artifacts[rule], batch(artifacts[rule], 9)
    _, layer = hooked(made, images[:1])
    logits, features = made.eager.with_features(images)
    np.testing.assert_allclose(logits, made.eager.logits(images), rtol=1e-5, atol=1e-5)
    with torch.inference_mode():
        np.testing.assert_allclose(layer(torch.from_numpy(features)).numpy(), logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "plain", "rule"),
    [
        *((name, False, rule) for name in ("onnx", "openvino") for rule in ("squash", "crop", "letterbox")),
        *((name, False, "crop") for name in ("torch-export", "torchscript")),
        *((name, True, "crop") for name in ("onnx", "openvino", "torch-export", "torchscript")),
        ("torchscript", True, "letterbox"),
    ],
)
def test_a_file_gives_the_artifacts(
    artifacts: dict[str, Made], rule: str, name: str, plain: bool, tmp_path: Path
) -> None:
    """Also where views are averaged outside of a plain file."""
    made, entry, options = artifacts[rule], formats.find(name), Options(features=True, plain=plain)
    assert entry.file_name(options).startswith("model-plain-features." if plain else "model-features.")
    target = tmp_path / entry.file_name(options)
    entry.write(graph_of(made.path, features=True), made.card, target, options)
    backend, images = open_backend(target, trust=True), batch(made, 7)
    expected, found = made.eager.with_features(images), backend.with_features(images)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backend.logits(images), expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(backend.features(images), found[1])
    if not plain:
        _their_runtime_gives_them(made, target, name)


def _their_runtime_gives_them(made: Made, target: Path, name: str) -> None:
    """Run the file as it is, without tellapart; its own description says that it has features."""
    image = np.random.default_rng(1).integers(0, 256, (1, 40, 31, made.card.preprocessing.channels), np.uint8)
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(target))
        assert [one.name for one in session.get_outputs()] == ["probabilities", "logits", "features"]
        assert "features" in session.get_modelmeta().custom_metadata_map
        (features,) = session.run(["features"], {"images": image})
    elif name == "torchscript":
        with pytest.warns(DeprecationWarning, match="torch.jit.load"):
            _, _, features = torch.jit.load(target)(torch.from_numpy(image))
    elif name == "torch-export":
        _, _, features = torch.export.load(target).module()(torch.from_numpy(image))
    else:
        import openvino

        model = openvino.Core().read_model(target)
        assert model.get_rt_info(["tellapart", "features"]).value
        features = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(image)[
            "features"
        ]
    sized = made.eager.prepare(image[0])
    np.testing.assert_allclose(features, made.eager.features(sized[None]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["onnx", "torchscript"])
def test_a_file_without_features_says_how_to_get_them(
    artifacts: dict[str, Made], name: str, tmp_path: Path
) -> None:
    made, entry = artifacts["squash"], formats.find(name)
    target = tmp_path / entry.file_name(Options())
    entry.write(made.graph(), made.card, target, Options())
    with pytest.raises(
        ArtifactError, match=f"This {name} file does not give features.*export MODEL --features"
    ):
        open_backend(target, trust=True).features(batch(made))


def test_exports_compare_features(artifacts: dict[str, Made], tmp_path: Path) -> None:
    done = export(artifacts["squash"].path, ["onnx"], tmp_path / "out", features=True, images=4)
    assert done.passed
    assert [path.name for path in done.files] == ["model-features.onnx"]
    found = json.loads((tmp_path / "out" / "parity.json").read_text())["formats"][0]["features_difference"]
    assert 0 <= found <= 1e-4
    assert "features  " in done.to_text()
    for name in ("litert", "executorch", "tensorrt-ready", "atlas-ready", "state-dict"):
        with pytest.raises(
            SpecError, match=rf"{name} is not written with features.*onnx, openvino, torch-export"
        ):
            export(artifacts["squash"].path, [name], tmp_path / "b", features=True)
    plain = export(
        artifacts["squash"].path, ["torchscript"], tmp_path / "c", features=True, plain=True, images=4
    )
    assert plain.passed
    assert 0 <= plain.to_dict()["parity"][0]["features_difference"] <= 1e-4


class Lying(EagerBackend):
    """A file whose features are not the artifact's."""

    def __init__(self, predictor: artifact.Predictor, change: Any) -> None:
        super().__init__(predictor)
        self.change = change

    def with_features(self, images: Any) -> Any:
        logits, features = super().with_features(images)
        return logits, self.change(features)


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda f: f * 1.0005, True),
        (lambda f: f * 1.01, False),
        (lambda f: f * np.nan, False),
        (lambda f: f[:, ::-1], False),
    ],
)
def test_features_that_differ_are_refused(artifacts: dict[str, Made], change: Any, passes: bool) -> None:
    eager = artifacts["squash"].eager
    cases = Cases([Case(name, lambda name=name: FILES[name]) for name in GOOD], "made up", real=False)  # type: ignore[misc]
    measured = both.measure(eager, Lying(eager.predictor, change), cases, lambda n: None, features=True)
    _, _, reasons = parity.judge(measured, Tolerance(1e-4))
    assert (not reasons) == passes
    assert passes or "features differ by" in reasons[0]
    with pytest.raises(ExportError, match="its features are"):
        both.measure(eager, Lying(eager.predictor, lambda f: f[:, 1:]), cases, lambda n: None, features=True)


def test_predict_writes_them(
    artifacts: dict[str, Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = artifacts["squash"]
    for name in GOOD:
        (tmp_path / f"{name}.png").write_bytes(FILES[name])
    (tmp_path / "broken.png").write_bytes(FILES["odd"][:60])
    out = tmp_path / "out.npz"
    command = ["predict", str(made.path), *(str(tmp_path / f"{n}.png") for n in (GOOD[0], "broken", GOOD[1]))]
    assert cli.main([*command, "--features", str(out)]) == 1
    answer = capsys.readouterr().out
    kept = np.load(out, allow_pickle=False)
    assert kept["paths"].tolist() == [str(tmp_path / f"{name}.png") for name in GOOD]
    assert tuple(kept["classes"]) == made.card.classes
    classifier = Classifier(made.eager)
    wanted = classifier.features([FILES[name] for name in GOOD])
    np.testing.assert_allclose(kept["features"], wanted, rtol=1e-4, atol=1e-5)
    best = kept["logits"].argmax(axis=1)
    labels = [one.label for one in classifier.predict([FILES[name] for name in GOOD])]
    assert [made.card.classes[k] for k in best] == labels
    assert all(label in answer for label in labels)
    before = out.read_bytes()
    assert cli.main([*command, "--features", str(out)]) == 2
    assert "is not overwritten" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert cli.main([*command, "--features", str(tmp_path / "x.csv")]) == 2
    assert cli.main([*command, "--features", str(tmp_path / "no" / "x.npz")]) == 2


def test_predict_says_that_a_file_has_none(
    artifacts: dict[str, Made], onnx_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(FILES["odd"])
    out = tmp_path / "out.npz"
    assert (
        cli.main(["predict", str(onnx_file("squash")), str(tmp_path / "a.png"), "--features", str(out)]) == 2
    )
    assert "--features --to onnx" in capsys.readouterr().err
    assert not out.exists()


def test_threads_do_not_get_each_others(artifacts: dict[str, Made]) -> None:
    eager = artifacts["squash"].eager
    many = [batch(artifacts["squash"], count) for count in range(1, 9)]
    expected = [eager.features(images) for images in many]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(eager.features, many * 3))
    for place, features in enumerate(found):
        np.testing.assert_allclose(features, expected[place % 8], rtol=1e-5, atol=1e-6)


class Convolution(torch.nn.Module):
    """Ends in a convolution, as SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = torch.nn.Conv2d(3, 6, 3), torch.nn.Conv2d(6, 4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(images)).mean(dim=(2, 3))


class Two(torch.nn.Module):
    """Two heads, as distilled networks have; and a layer that counts as the last."""

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": names}
        self.first, self.second = torch.nn.Linear(5, 4), torch.nn.Linear(3, 4)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.first(rows[:, :5]) + self.second(rows[:, 5:])


def test_other_ends_of_networks() -> None:
    images, rows, network = torch.randn(3, 3, 8, 8), torch.randn(3, 8), Convolution()
    logits, features = Capture(network)(images)
    torch.testing.assert_close(features, network.stem(images).mean(dim=(2, 3)))
    torch.testing.assert_close(logits, network.head(network.stem(images)).mean(dim=(2, 3)))
    torch.testing.assert_close(Capture(Two(("first", "second")))(rows)[1], rows)
    tokens = torch.nn.Sequential(torch.nn.Linear(8, 4))
    torch.testing.assert_close(Capture(tokens)(torch.randn(2, 7, 8))[1].shape, torch.Size([2, 8]))
    with pytest.raises(ModelError, match="no linear layer"):
        Capture(torch.nn.ReLU())
    twice = torch.nn.Sequential(shared := torch.nn.Linear(8, 8), shared)
    with pytest.raises(ModelError, match="2 times"):
        Capture(twice)(rows)


def test_a_graph_without_features_is_as_before(tmp_path: Path) -> None:
    made = make_artifact(tmp_path, "squash")
    assert len(made.graph()(made.graph().example())) == 2
    card: Card = dataclasses.replace(made.card, views=Views("mirror", 0.4))
    network = artifact.open_model(made.path).model
    images = GraphModel(network, card).example()
    plain, more = GraphModel(network, card)(images), GraphModel(network, card, features=True)(images)
    torch.testing.assert_close(more[0], plain[0])
    torch.testing.assert_close(more[1], plain[1])
    assert len(more[2]) == len(images)
