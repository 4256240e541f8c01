"""Training of networks that begin from images and have early parameters: setup, loop, resume, validation."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tellapart import artifact
from tellapart.contract import Card
from tellapart.errors import SpecError
from tellapart.models.whitened_cnn import WhitenedCNN, whitening_filters
from tellapart.preprocess import Views, averaged
from tellapart.spec import InputSpec
from tellapart.training import checkpoint, setup
from tellapart.training.resolution.inputs import views

CHANGES: dict[str, Any] = {
    "model.name": "whitened-cnn",
    "augment.crop": "pad",
    "augment.crop_padding": 1,
    "augment.padding_mode": "reflect",
    "augment.hflip": 0.5,
    "augment.hflip_mode": "alternating",
    "input.views": "mirror-shift",
    "training.optimizer": "muon-sgd",
    "training.lr": 0.1,
    "training.bias_lr": 1.0,
    "training.head_lr": 0.01,
    "training.momentum": 0.6,
    "training.nesterov": True,
    "training.weight_decay": 0.01,
    "training.schedule": "linear",
    "training.label_smoothing": 0.2,
    "training.precision": "bf16",
    "training.accumulate": 2,
    "training.early_epochs": 2,
    "training.epochs": 4,
    "training.batch_size": 20,
    "training.device": "cpu",
}


def test_the_filters_are_those_of_the_training_images(pictures: Any, build: Any) -> None:
    bench = build(pictures(), **CHANGES)
    images, _ = bench.inputs()
    torch.testing.assert_close(bench.start.whiten.weight, whitening_filters(images), atol=1e-4, rtol=1e-4)
    again = build(pictures(), **CHANGES)
    assert torch.equal(bench.start.whiten.weight, again.start.whiten.weight)


def test_with_many_images_the_seed_chooses_which(
    pictures: Any, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "INITIAL_IMAGES", 10)
    zero, same, one = (build(pictures(), **CHANGES, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(zero.start.whiten.weight, same.start.whiten.weight)
    assert not torch.equal(zero.start.whiten.weight, one.start.whiten.weight)


def test_images_of_other_sizes_are_resized_for_it(pictures: Any, build: Any) -> None:
    cropped = {**CHANGES, "augment.crop": "resized", "input.size": 8}
    bench = build(pictures(size=8), **cropped)
    images, _ = bench.inputs()
    torch.testing.assert_close(bench.start.whiten.weight, whitening_filters(images), atol=1e-4, rtol=1e-4)


def test_it_learns_and_early_parameters_stop(pictures: Any, build: Any) -> None:
    # A picture that is moved by a pixel is one of another class here.
    unmoved = {"training.epochs": 6, "augment.crop": "none", "input.views": "mirror"}
    bench = build(pictures(val=(8, 8, 8)), **{**CHANGES, **unmoved})
    seen: list[tuple[float, torch.Tensor, bool]] = []
    end = bench.trainer._end_epoch

    def remember() -> None:
        bias = bench.model.whiten.bias
        early = [g["lr"] for g in bench.plan.optimizer.param_groups if g.get("early_steps")]
        seen.append((early[0], bias.detach().clone(), bias.requires_grad))
        end()

    bench.trainer._end_epoch = remember
    bench.trainer.run()
    assert [trains for _, _, trains in seen] == [True, True, False, False, False, False]
    assert bench.start.whiten.bias.abs().max() == 0
    assert not torch.equal(seen[0][1], seen[1][1])
    assert torch.equal(seen[1][1], seen[5][1])
    assert seen[0][0] > seen[1][0] > 0
    assert torch.equal(bench.start.whiten.weight, bench.model.whiten.weight)
    assert bench.recorder.column("val/accuracy")[-1] > 0.8
    norms = [p.norm() for n, p in bench.model.named_parameters() if "convs" in n]
    assert all(norm > 1 for norm in norms)


def test_the_first_blocks_stop_before_the_end(pictures: Any, build: Any) -> None:
    changes = {**CHANGES, "model.freeze_blocks": 2, "model.freeze_from": 0.6}
    bench = build(pictures(), **changes)
    states: list[dict[str, torch.Tensor]] = []
    end = bench.trainer._end_epoch

    def remember() -> None:
        states.append({name: value.clone() for name, value in bench.model.state_dict().items()})
        end()

    bench.trainer._end_epoch = remember
    bench.trainer.run()
    moved = [{n for n, value in b.items() if not torch.equal(a[n], value)} for a, b in pairwise(states)]
    first = {name for name in states[0] if name.startswith("groups.0.")}
    assert len(first) == 2 + 2 * 4
    assert first <= moved[0]
    assert first <= moved[1]
    assert moved[2] == moved[1] - first - {"whiten.bias"}  # statistics of the norms stay too
    with pytest.raises(SpecError, match="has 5 blocks"):
        build(pictures(), **{**CHANGES, "model.freeze_blocks": 5})


@pytest.mark.parametrize("stop", [2, 4, 8, 10])
def test_going_on_is_exact(pictures: Any, build: Any, difference: Any, stop: int) -> None:
    """Cut while the early bias trains, at the change, after it, and when the first group has stopped too."""
    changes = {**CHANGES, "model.freeze_blocks": 2}
    whole, first, second = (build(pictures(), **changes) for _ in range(3))
    whole.trainer.run()
    log = first.trainer.stepper.take

    class CutError(Exception):
        pass

    def cut(batch: Any, step: int, measure: bool) -> Any:
        if step == stop:
            first.trainer.save()
            raise CutError
        return log(batch, step, measure)

    first.trainer.stepper.take = cut
    with pytest.raises(CutError):
        first.trainer.run()
    second.trainer.restore(checkpoint.load_newest(first.trainer.folder))
    second.trainer.run()
    assert second.trainer.progress.step == whole.trainer.progress.step == 12
    assert difference(whole.model, second.model) == 0


def test_validation_averages_the_views(pictures: Any, build: Any) -> None:
    bench = build(pictures(val=(9, 9, 9)), **{**CHANGES, "training.precision": "fp32"})
    shown: list[int] = []
    bench.model.register_forward_hook(lambda module, args, out: shown.append(len(args[0])))
    bench.plan.validate(bench.model)
    assert shown == [27] * 6
    single = build(pictures(val=(9, 9, 9)), **{**CHANGES, "input.views": "one"})
    single.model.register_forward_hook(lambda module, args, out: shown.append(len(args[0])))
    shown.clear()
    single.plan.validate(single.model)
    assert shown == [27]
    assert views(InputSpec(views="mirror", views_below=0.3)) == Views("mirror", 0.3)


def test_the_artifact_keeps_the_views_and_applies_them(pictures: Any, build: Any, tmp_path: Path) -> None:
    bench = build(pictures(val=(4, 4, 4)), **CHANGES)
    bench.trainer.run()
    architecture = setup.zoo.Architecture("whitened-cnn", 3, 3, 8)
    classes = bench.prepared.classes
    wanted = views(bench.prepared.spec.input)
    card = Card(architecture, classes, bench.prepared.contract, views=wanted)
    artifact.save(tmp_path / artifact.FILE_NAME, bench.trainer.weights(), card)
    predictor = artifact.open_model(tmp_path)
    assert predictor.card.views == Views("mirror-shift")
    assert '"format": 2' in card.to_json()
    pixels = bench.prepared.val.batch(np.arange(12)).images
    network = WhitenedCNN(3, size=8).eval()
    network.load_state_dict(bench.trainer.weights())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (card.preprocessing.mean, card.preprocessing.std))
    inputs = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = averaged(network, inputs, Views("mirror-shift"))
    torch.testing.assert_close(predictor(pixels), expected, atol=1e-4, rtol=1e-4)


def test_an_artifact_without_views_has_one(pictures: Any, build: Any) -> None:
    bench = build(pictures(), **{**CHANGES, "input.views": "one"})
    architecture = setup.zoo.Architecture("whitened-cnn", 3, 3, 8)
    text = Card(architecture, bench.prepared.classes, bench.prepared.contract).to_json()
    assert '"format": 1' in text
    old = text.replace(', "views": {"name": "one", "below": 1.0}', "")
    assert old != text
    assert Card.from_json(old).views == Views()
