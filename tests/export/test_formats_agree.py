"""Every format that can be run here gives the artifact's answers, from the bytes of photographs to probabilities."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.artifact import Predictor
from tellapart.contract import Card, Preprocessing, Views
from tellapart.errors import ArtifactError, ExportError
from tellapart.export import formats
from tellapart.export.base import Options
from tellapart.export.graph import GraphModel
from tellapart.models import zoo
from tellapart.runtime import open_backend, probabilities
from tellapart.runtime.eager import EagerBackend
from tellapart.runtime.torch_program import embedded

FORMATS = ("openvino", "torch-export", "torchscript")
CASES: dict[str, dict[str, Any]] = {
    "crop": {"resize": "crop", "fraction": 0.875, "interpolation": "bicubic"},
    "letterbox": {"resize": "letterbox", "views": Views("mirror-shift", 0.5)},
    "squash": {"resize": "squash", "views": Views("mirror"), "temperature": 1.7, "decode": "scaled"},
    "grey": {"resize": "crop", "fraction": 1.0, "channels": 1},
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A small network with random weights, in the two forms that are compared."""

    graph: Callable[[], GraphModel]
    card: Card
    eager: EagerBackend


def make(
    resize: Any = "crop",
    fraction: float = 1.0,
    interpolation: Any = "bilinear",
    views: Views = Views(),  # noqa: B008 - frozen
    channels: int = 3,
    temperature: float = 0.0,
    decode: Any = "full",
    size: int = 24,
) -> Model:
    architecture = zoo.Architecture("simple-cnn", 4, size=size, batch_norm=True, channels=channels)
    torch.manual_seed(3)
    network = zoo.build(architecture).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    contract = Preprocessing(size, channels, resize, interpolation, fraction, mean, std, decode=decode)
    calibration = {"temperature": temperature} if temperature else {}
    weights = {"licence": "MIT"}
    card = Card(
        architecture,
        ("蚂蚁", "bee", "cat", "dog"),
        contract,
        weights=weights,
        views=views,
        calibration=calibration,
    )
    eager = EagerBackend(Predictor(network, card, torch.device("cpu")))
    return Model(lambda: GraphModel(network, card), card, eager)


def write(model: Model, name: str, folder: Path, **options: Any) -> Path:
    entry, chosen = formats.find(name), Options(**options)
    return entry.write(model.graph(), model.card, folder / entry.file_name(chosen), chosen).files[0]


def answers(backend: Any, files: list[bytes]) -> Any:
    return probabilities(backend.logits(np.stack([backend.prepare(file) for file in files])), backend.card)


# Which cases each format is tried on: those that differ in what its file holds.
TRIED = [
    ("openvino", "crop"),
    ("openvino", "letterbox"),
    ("torch-export", "crop"),
    ("torch-export", "squash"),
]
TRIED += [("torchscript", case) for case in CASES] + [("openvino", "grey")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case"), TRIED)
def test_answers_are_the_artifacts(name: str, case: str, photographs: list[bytes], tmp_path: Path) -> None:
    model, files = make(**CASES[case]), photographs
    backend: Any = open_backend(write(model, name, tmp_path), threads=1)
    assert backend.format == name
    assert backend.card == model.card
    ours, theirs = (np.stack([side.prepare(file) for file in files]) for side in (model.eager, backend))
    expected, found = (probabilities(side.logits(ours), model.card) for side in (model.eager, backend))
    np.testing.assert_allclose(found, expected, rtol=0, atol=formats.find(name).tolerance["fp32"].probability)
    assert (expected.argmax(1) == found.argmax(1)).all()
    one = probabilities(backend.logits(ours[4:5]), model.card)  # a batch of another size
    np.testing.assert_allclose(one, expected[4:5], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(theirs, ours)  # resizing gives the same bits everywhere
    for row, file in enumerate(files[:5]):  # the file as it is, on the decoded image
        calibrated, logits = backend.whole(tellapart_pixels(file, model.card)[None])
        np.testing.assert_allclose(calibrated, expected[row : row + 1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(calibrated, probabilities(logits, model.card), rtol=0, atol=1e-5)


def tellapart_pixels(file: bytes, card: Card) -> Any:
    from tellapart.contract.resizing import open_pixels

    return open_pixels(file, card.preprocessing)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_plain_networks_are_opened_too(name: str, photographs: list[bytes], tmp_path: Path) -> None:
    model, files = make(**CASES["squash"]), photographs
    path = write(model, name, tmp_path, plain=True)
    backend = open_backend(path, threads=1)
    pixels = np.stack([model.eager.prepare(file) for file in files])
    expected, found = (probabilities(side.logits(pixels), model.card) for side in (model.eager, backend))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(backend.prepare(files[0]), pixels[0])


@pytest.mark.slow
def test_openvino_in_half_precision(photographs: list[bytes], tmp_path: Path) -> None:
    """Weights of half the size, answers within the wider tolerance but not within rounding."""
    model, files = make(), photographs
    full, half = (write(model, "openvino", tmp_path, precision=p) for p in ("fp32", "fp16"))
    sizes = [path.with_suffix(".bin").stat().st_size for path in (full, half)]
    assert 0.49 < sizes[1] / sizes[0] < 0.53
    difference = np.abs(answers(open_backend(half), files) - answers(model.eager, files)).max()
    assert 1e-7 < difference < 5e-3


@pytest.mark.slow
def test_a_changed_layer_is_named(tmp_path: Path) -> None:
    """The file has the weights of before; the graph that it is compared with has others in one layer."""
    model = make()
    for name in ("openvino", "torch-export", "torchscript", "tensorrt-ready", "atlas-ready"):
        path, entry = write(model, name, tmp_path), formats.find(name)
        assert entry.locate is not None
        graph = model.graph()
        pixels = graph.example_pixels(3).numpy()
        assert "agree when looked at one by one" in entry.locate(path, graph, pixels)
        weight = graph.network.hidden.weight
        before = weight.clone()
        weight.mul_(1.5)
        said = entry.locate(path, graph, pixels)
        weight.copy_(before)
        assert "starts in the layer hidden" in said


def test_openvino_is_opened_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model = make()
    path = write(model, "openvino", tmp_path)
    program = (
        "import sys, numpy as np\n"
        "from tellapart.runtime import open_backend\n"
        f"backend = open_backend({str(path)!r}, threads=1)\n"
        "image = backend.prepare(np.full((40, 31, 3), 99, np.uint8))\n"
        "print(backend.logits(image[None]).shape, 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "(1, 4) False"


def test_openvino_computes_what_the_contract_says_for_odd_sizes() -> None:
    """Very long, tiny and large images, every policy: the same bits."""
    openvino = pytest.importorskip("openvino")
    from tellapart.export.openvino import resize
    from tellapart.preprocess import load
    from tellapart.runtime.openvino import compiled

    generator = np.random.default_rng(0)
    for policy, interpolation, fraction in (("crop", "bicubic", 0.9), ("letterbox", "bilinear", 1.0)):
        contract = Preprocessing(20, 3, policy, interpolation, fraction, (0.5,) * 3, (0.2,) * 3)  # type: ignore[arg-type]
        images = openvino.opset13.parameter([-1, -1, -1, 3], np.uint8)
        graph = openvino.Model([resize(openvino, images, contract)], [images])
        network = compiled(openvino, graph, {"INFERENCE_PRECISION_HINT": "f32"})
        for height, width in ((1, 1), (20, 20), (3, 400), (400, 3), (19, 21), (333, 501)):
            image = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            found, expected = network([image[None]])[0][0], load(image, contract)
            np.testing.assert_array_equal(found, expected, err_msg=f"{policy} {height}x{width}")


def test_a_sized_image_goes_through_unchanged() -> None:
    """What `embedded` promises: the contract's resizing gives the very pixels back."""
    from tellapart.preprocess import load

    for fraction in (0.5, 0.7, 0.875, 0.9, 1.0):
        for size in (7, 24, 32):
            contract = Preprocessing(size, 3, "crop", "bicubic", fraction, (0.5,) * 3, (0.2,) * 3)
            pixels = np.random.default_rng(size).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
            np.testing.assert_array_equal(load(embedded(pixels, contract)[0], contract), pixels[0])


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    model = make()
    for name in ("torch-export", "torchscript"):
        path = write(model, name, tmp_path)
        broken = path.with_name("broken" + path.suffix)
        broken.write_bytes(path.read_bytes()[:4000])
        with pytest.raises(ArtifactError, match=r"damaged|cannot be read"):
            open_backend(broken, trust=True)
    path = write(model, "openvino", tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(ArtifactError, match="needs its weights beside it"):
        open_backend(path)
    (tmp_path / "other.xml").write_text("<note/>")
    (tmp_path / "other.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match="not an OpenVINO file that tellapart wrote"):
        open_backend(tmp_path / "other.xml")


def test_aot_without_a_compiler_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ExportError, match="there is no compiler"):
        write(make(), "aot-inductor", tmp_path)
