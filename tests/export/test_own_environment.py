"""LiteRT and ExecuTorch, where their environments are: the artifact's answers from files that their runtimes run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart.artifact import Predictor
from tellapart.contract import Card, Preprocessing, Views
from tellapart.export import formats
from tellapart.export.base import Options
from tellapart.export.graph import GraphModel
from tellapart.models import zoo
from tellapart.runtime import open_backend, probabilities
from tellapart.runtime.eager import EagerBackend
from tellapart.runtime.environments import EXECUTORCH, LITERT, MissingEnvironmentError


@pytest.mark.slow
@pytest.mark.parametrize("environment", [LITERT, EXECUTORCH], ids=lambda one: one.name)
def test_answers_are_the_artifacts(environment: Any, tmp_path: Path) -> None:
    try:
        environment.python()
    except MissingEnvironmentError as error:
        pytest.skip(f"no environment for {environment.name} ({environment.variable}): {str(error)[:60]}")
    architecture = zoo.Architecture("simple-cnn", 4, size=20, batch_norm=True)
    torch.manual_seed(5)
    network = zoo.build(architecture).eval().requires_grad_(False)
    contract = Preprocessing(20, 3, "crop", "bilinear", 0.9, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    card = Card(
        architecture, ("ant", "bee", "猫", "dog"), contract, views=Views("mirror-shift", 0.5),
        calibration={"temperature": 1.3},
    )  # fmt: skip
    entry = formats.find(environment.name)
    target = tmp_path / entry.file_name(Options())
    written = entry.write(GraphModel(network, card), card, target, Options())
    assert list(tmp_path.iterdir()) == [target]
    backend: Any = open_backend(written.files[0], threads=1)
    assert backend.card == card
    images = np.random.default_rng(1).integers(0, 256, (35, 20, 20, 3), dtype=np.uint8)
    eager = EagerBackend(Predictor(network, card, torch.device("cpu")))
    expected, found = (probabilities(side.logits(images), card) for side in (eager, backend))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    backend.close()
