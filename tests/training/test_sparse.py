from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def sparse_start(tmp_path: Path) -> Path:
    from tellapart.compress import masks
    from tellapart.models import zoo

    torch.manual_seed(0)
    model = masks.prune(zoo.build(zoo.Architecture("simple-cnn", 3, size=8)), 0.6)
    file = tmp_path / "start.pth"
    torch.save(model.state_dict(), file)
    return file


def zeros(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value == 0 for name, value in model.state_dict().items() if name.endswith("weight")}


def test_zeros_stay_through_training_and_resuming(
    cut_in_the_middle: Callable[..., Any],
    pictures: Callable[..., Any],
    difference: Callable[..., float],
    tmp_path: Path,
) -> None:
    spec = {
        "model.weights": str(sparse_start(tmp_path)),
        "training.keep_zeros": True,
        "training.optimizer": "adamw",
        "training.ema": 0.5,
        "training.epochs": 3,
    }
    whole, again = cut_in_the_middle(pictures((9, 9, 9), (3, 3, 3)), 5, **spec)
    before = zeros(whole.start)
    share = torch.cat([mask.flatten() for mask in before.values()]).float().mean()
    assert abs(float(share) - 0.6) < 0.01
    after = zeros(whole.model)
    assert all(bool((after[name] == mask).all()) for name, mask in before.items())
    assert all(
        bool((value == 0)[before[name]].all())
        for name, value in whole.trainer.weights().items()
        if name in before
    )
    assert difference(again.model, whole.model) == 0


def test_without_it_zeros_are_lost(
    build: Callable[..., Any], pictures: Callable[..., Any], tmp_path: Path
) -> None:
    bench = build(pictures(), **{"model.weights": str(sparse_start(tmp_path)), "training.optimizer": "adamw"})
    before = zeros(bench.model)
    bench.trainer.run()
    assert sum(int(m.sum()) for m in zeros(bench.model).values()) < 0.5 * sum(
        int(m.sum()) for m in before.values()
    )
