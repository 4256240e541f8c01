"""The user's own loss: by name or as an object, for each image, with its own parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tellapart
from tellapart import artifact, runs
from tellapart.errors import RunError, SpecError

Call = Callable[..., Any]


def quick(run: Path, **changes: Any) -> dict[str, Any]:
    """Return the keyword arguments of a short training."""
    training = {"epochs": 2, "batch_size": 8, **changes.pop("training", {})}
    return {
        "quiet": True,
        "model": {"name": "simple-cnn"},
        "augment": {"preset": "none"},
        "training": training,
        "run": {"dir": str(run), "tensorboard": False, "report": False},
        **changes,
    }


def plain(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """What cross-entropy is."""
    return F.cross_entropy(logits, targets, reduction="none")


def focal(logits: torch.Tensor, targets: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """The focal loss of labels."""
    log_p = F.log_softmax(logits, 1).gather(1, targets[:, None]).squeeze(1)
    return -((1 - log_p.exp()) ** gamma) * log_p


class Scaled(nn.Module):
    """A loss with a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of scaled logits."""
        return F.cross_entropy(self.scale * logits, targets, reduction="none")


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return a run's weights."""
    return artifact.read_state(run)


def same(one: Path, other: Path) -> bool:
    """Return whether two runs have the same weights, bit for bit."""
    a, b = weights(one), weights(other)
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("loss", "training"),
    [
        (plain, {}),
        (f"{__name__}:plain", {}),
        (lambda logits, targets: plain(logits, targets), {}),
        (nn.CrossEntropyLoss(reduction="none"), {}),
        ("torch.nn:CrossEntropyLoss", {"loss_arguments": {"reduction": "none"}}),
        ("torch.nn.functional:cross_entropy", {"loss_arguments": ["reduction=none"]}),
    ],
)
def test_own_cross_entropy_trains_as_ours_does(loss: Any, training: Any, data: Path, tmp_path: Path) -> None:
    """To the last bit, as a function, an object, a class or a name."""
    ours = tellapart.train(data, **quick(tmp_path / "a")).run
    own = tellapart.train(data, loss=loss, **quick(tmp_path / "b", training=training)).run
    assert same(ours, own)


def test_a_name_with_arguments_is_kept_in_the_spec(call: Call, data: Path, tmp_path: Path) -> None:
    """On the command line, with a module of the working folder."""
    (tmp_path / "their_loss.py").write_text(
        "import torch.nn.functional as F\n"
        "def loss(logits, targets, power=1.0):\n"
        "    return F.cross_entropy(logits, targets, reduction='none') ** power\n"
    )
    words = ("--training.epochs", 1, "--run.dir", "run", "--run.no-report", "--run.no-tensorboard")
    own = ("--training.loss", "their_loss:loss", "--training.loss-arguments", "power=2")
    made = call("train", data, *words, *own, "--model.name", "simple-cnn")
    assert made.code == 0, made.err
    training = runs.read_spec(tmp_path / "run" / "spec.yaml").training
    assert (training.loss, training.loss_arguments) == ("their_loss:loss", ("power=2",))


def test_own_focal_with_class_weights_is_ours(make_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Class weights multiply the losses of the images."""
    data = make_folder(tmp_path / "uneven", splits=("train", "val"), count=8)
    for path in sorted((data / "train" / "ant").iterdir())[3:]:
        path.unlink()
    training = {"class_weights": "inverse"}
    ours = tellapart.train(data, **quick(tmp_path / "a", training={**training, "loss": "focal"})).run
    own = tellapart.train(data, loss=focal, **quick(tmp_path / "b", training=training)).run
    a, b = weights(ours), weights(own)
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (nn.CrossEntropyLoss(), 'one number for the whole batch, such as its mean.*reduction="none"'),
        (lambda logits, targets: plain(logits, targets).sum(), "one number for the whole batch"),
        (lambda logits, targets: logits, r"shape \[4, 3\]"),
        (lambda logits, targets: 0.0, "returns a float"),
        (lambda logits, targets: plain(logits.detach(), targets), "no gradient"),
        (lambda logits: logits, "cannot take labels"),
    ],
)
def test_what_cannot_be_trained_by_is_refused_with_the_reason(
    loss: Any, said: str, data: Path, tmp_path: Path
) -> None:
    """Before a run folder is made."""
    with pytest.raises(SpecError, match=said):
        tellapart.train(data, loss=loss, **quick(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_loss_of_labels_alone_cannot_have_mixed_targets(data: Path, tmp_path: Path) -> None:
    """MixUp gives probabilities."""
    with pytest.raises(SpecError, match="targets of MixUp and CutMix"):
        tellapart.train(data, loss=focal, **quick(tmp_path / "run", augment={"mixup": 0.2}))


def test_a_loss_that_compares_images_is_not_computed_in_micro_batches(data: Path, tmp_path: Path) -> None:
    """Each image's loss depends on the others here."""

    def centred(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return plain(logits - logits.mean(0), targets)

    with pytest.raises(SpecError, match=r"training.accumulate is 2.*compares the images"):
        tellapart.train(data, loss=centred, **quick(tmp_path / "run", training={"accumulate": 2}))


def test_a_loss_with_parameters_is_trained_and_continues_exactly(data: Path, tmp_path: Path) -> None:
    """Its state is in the checkpoint; the object that was given stays as it was."""
    whole = tellapart.train(data, loss=Scaled(), **quick(tmp_path / "whole", training={"epochs": 3})).run

    class Cut(tellapart.Callback):
        def on_epoch_start(self, epoch: int) -> None:
            if epoch == 2:
                raise RuntimeError("the power is cut")

    given = Scaled()
    changes = quick(tmp_path / "cut", training={"epochs": 3})
    with pytest.raises(RuntimeError, match="power"):
        tellapart.train(data, loss=given, callbacks=[Cut()], **changes)
    assert given.scale.item() == 1.0
    with pytest.raises(RunError, match="loss="):
        tellapart.resume(tmp_path / "cut", quiet=True)
    tellapart.resume(tmp_path / "cut", quiet=True, loss=Scaled())
    assert same(whole, tmp_path / "cut")
    newest = max((tmp_path / "cut" / "checkpoint").glob("step-*"))
    saved = torch.load(next(newest.glob("*.pt")) if newest.is_dir() else newest, weights_only=True)
    assert saved["task"]["criterion.function.scale"].item() != 1.0


def test_an_unknown_word_names_the_nearest(call: Call, data: Path) -> None:
    """As for any other choice."""
    refused = call("train", data, "--training.loss", "crossentropy")
    assert refused.code == 2
    assert "cross-entropy" in refused.err
    assert "my_package.my_module:function" in refused.err
