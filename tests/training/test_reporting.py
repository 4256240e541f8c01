"""The warning after training without augmentation, and what a device cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart import cli
from tellapart.errors import SpecError
from tellapart.spec import Spec, update
from tellapart.training import reporting
from tellapart.training.resolution.checks import check_device


@pytest.mark.parametrize(
    ("train", "val", "images", "changes", "warns"),
    [
        (0.99, 0.73, 430, {}, True),
        (0.99, 0.90, 430, {}, False),  # nine points
        (0.99, 0.73, 10, {}, False),  # ten images say nothing
        (0.99, 0.73, 430, {"augment.preset": "light"}, False),
        (0.60, 0.73, 430, {}, False),
    ],
)
def test_training_far_above_validation_is_reported(
    train: float, val: float, images: int, changes: dict[str, Any], warns: bool, pictures: Any, build: Any
) -> None:
    plan = build(pictures((3, 3), (1, 1)), **changes).plan
    plan.val_counts = np.array([images // 2, images - images // 2])
    text = reporting.overfitted(plan, train, {"accuracy": val})
    assert bool(text) == warns
    if warns:
        assert "99.00 % on its own images and 73.00 % on validation" in text
        assert "--augment.preset" in text
    assert reporting.overfitted(plan, train, {}) == ""


def test_a_run_that_learns_noise_by_heart_says_so(pictures: Any, build: Any) -> None:
    samples = pictures((16, 16), (200, 200), noise=400)
    bench = build(samples, **{"training.epochs": 30, "training.lr": 0.01})
    bench.trainer.run()
    assert any("memorised its images" in text for text in bench.recorder.warnings)


def test_synchronised_batch_norm_is_refused_without_cuda(
    tmp_path: Path, make_folder: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = update(Spec(), {"training.sync_batch_norm": True})
    check_device(spec, torch.device("cuda"))
    check_device(Spec(), torch.device("cpu"))
    with pytest.raises(SpecError, match="on mps"):
        check_device(spec, torch.device("mps"))
    data = make_folder(tmp_path / "data", count=4, splits=("train",), size=8)
    where = ["--run.dir", str(tmp_path / "run"), "--data.cache-dir", str(tmp_path / "cache")]
    words = ["train", str(data), *where, "--training.sync-batch-norm", "--training.device", "cpu"]
    assert cli.main(words) == 2
    assert "torch has synchronised batch norm for CUDA only" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"], "nothing is made"
