"""The user's own network: trained, opened again, exported, and imported only with the user's consent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tellapart
from tellapart import artifact, references, runs
from tellapart.errors import ArtifactError, RunError, SpecError, UserError

Call = Callable[..., Any]
QUICK = ("--training.epochs", "1", "--training.batch-size", "8", "--run.no-tensorboard", "--run.no-report")


def quick(run: Path, **changes: Any) -> dict[str, Any]:
    """Return the keyword arguments of a short training."""
    return {
        "quiet": True,
        "training": {"epochs": 2, "batch_size": 8},
        "run": {"dir": str(run), "tensorboard": False, "report": False},
        **changes,
    }


class Plain(nn.Module):
    """A network without a function that makes it."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
        )
        self.head = nn.Linear(64, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images to logits."""
        result: torch.Tensor = self.head(self.body(images))
        return result


def test_a_name_is_trained_and_opened_here_without_a_question(
    call: Call, module: str, data: Path, tmp_path: Path
) -> None:
    """The spec and the file keep the name and its arguments; evaluate, predict and export need no more."""
    name = f"{module}:build"
    made = call(
        "train", data, "--model.name", name, "--model.arguments", "width=6", "--run.dir", "run", *QUICK
    )
    assert made.code == 0, made.err
    spec = runs.read_spec(tmp_path / "run" / "spec.yaml")
    assert (spec.model.name, spec.model.arguments) == (name, ("width=6",))
    card = artifact.read_card("run")
    assert (card.architecture.name, card.architecture.arguments) == (name, ("width=6",))
    assert load_file("run/model.safetensors")["0.weight"].shape == (6, 3, 3, 3)
    assert call("evaluate", "run").code == 0
    assert call("predict", "run", data / "test" / "ant" / "000.png").code == 0
    assert call("resume", "run").code == 0
    done = call("export", "run", "--to", "onnx", "state-dict", "--out", "exported")
    assert done.code == 0, done.err
    assert set(torch.load("exported/model.pth", weights_only=True)) == set(load_file("run/model.safetensors"))


@pytest.mark.slow
def test_elsewhere_each_command_asks_before_anything_is_imported(
    call: Call, module: str, data: Path, tmp_path: Path, told: Path, elsewhere: Callable[[], None]
) -> None:
    """The question says what would be imported, from where, and how to say yes; --trust PACKAGE is that yes."""
    made = call("train", data, "--model.name", f"{module}:Net", "--run.dir", "run", *QUICK)
    assert made.code == 0, made.err
    elsewhere()
    told.unlink()
    picture = data / "test" / "ant" / "000.png"
    commands: list[tuple[object, ...]] = [
        ("evaluate", "run"),
        ("predict", "run", picture),
        ("resume", "run"),
        ("export", "run", "--to", "state-dict", "--out", "exported"),
        ("compress", "run", "--method", "int8", "--out", "smaller"),
        ("train", data, "--spec", "run/spec.yaml", "--run.dir", "again"),
        ("train", data, "--distill.teacher", "run", "--run.dir", "student", *QUICK),
        ("find-lr", data, "--spec", "run/spec.yaml", "--steps", "10"),
    ]
    for words in commands:
        refused = call(*words)
        assert refused.code == 2, (words, refused)
        for part in (f"{module}:Net", str(tmp_path / "their_net.py"), f"--trust {module}"):
            assert part in refused.err, words
        assert not told.exists(), words
    with pytest.raises(ArtifactError, match="trust="):
        tellapart.load("run")
    assert not told.exists()
    for words in commands[:4]:
        elsewhere()
        agreed = call(*words, "--trust", module)
        assert agreed.code == 0, (words, agreed.err)
    elsewhere()
    assert call("predict", "--trust", "run", picture).code == 0  # without a name: whatever the file says
    for trust in (module, True, [module]):
        elsewhere()
        assert tellapart.load("run", trust=trust).predict(picture)[0].labels
    elsewhere()
    with pytest.raises(ArtifactError, match=module):
        tellapart.load("run", trust="another_package")


def test_the_words_of_a_file_are_no_consent_for_another_function(
    call: Call, module: str, data: Path, told: Path, elsewhere: Callable[[], None]
) -> None:
    """Having trained with one function of a module lets no file name another one."""
    assert call("train", data, "--model.name", f"{module}:build", "--run.dir", "run", *QUICK).code == 0
    card = artifact.read_card("run")
    for name in (f"{module}:Net", "os:system", "their_other:build", "torch.hub:load"):
        text = card.to_json().replace(f"{module}:build", name)
        path = Path("changed.safetensors")
        artifact.save(path, artifact.read_state("run"), artifact.Card.from_json(text))
        with pytest.raises(ArtifactError, match=name):
            tellapart.load(path)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("their_net:nothing", "has no 'nothing'"),
        ("their_nothing:build", "no module their_nothing"),
        ("their_net:number", "int"),
        ("their_net:text", "returned str"),
        ("their_net:raises", "ValueError: no such luck"),
        ("their_net:wrong", "must give logits of [2, 3]"),
    ],
)
def test_what_is_no_network_is_refused_with_the_reason(
    call: Call, module: str, data: Path, name: str, said: str
) -> None:
    """Before a run folder is made."""
    refused = call("train", data, "--model.name", name, "--run.dir", "run", *QUICK)
    assert refused.code == 2
    assert said.lower() in refused.err.lower()
    assert not Path("run").exists()


def test_arguments_that_do_not_fit_are_refused(call: Call, module: str, data: Path) -> None:
    """Unknown to the function, badly written, or for a network of ours."""
    own = ("train", data, "--run.dir", "run", *QUICK, "--model.name")
    assert "depth" in call(*own, f"{module}:build", "--model.arguments", "depth=3").err
    assert "NAME=VALUE" in call(*own, f"{module}:build", "--model.arguments", "width").err
    assert "takes none" in call(*own, "simple-cnn", "--model.arguments", "width=3").err
    assert "model.dropout" in call(*own, f"{module}:build", "--model.dropout", "0.5").err


def test_an_instance_is_copied_and_asked_for_again(data: Path, tmp_path: Path) -> None:
    """It begins from its own weights, stays as it was, and whoever opens the artifact gives it again."""
    network = Plain()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = tellapart.train(data, model=network, **quick(tmp_path / "run"))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert artifact.read_card(result.run).architecture.name == "object:Plain"
    with pytest.raises(UserError, match="model="):
        tellapart.load(result.run)
    with pytest.raises(RunError, match="model="):
        tellapart.resume(result.run, quiet=True)
    found = tellapart.evaluate(result.run, model=Plain(), quiet=True)
    assert found.accuracy == result.metrics["accuracy"]
    picture = data / "test" / "ant" / "000.png"
    assert tellapart.load(result.run, model=network).predict(picture)[0].labels
    with pytest.raises(ArtifactError, match="do not fit"):
        tellapart.load(result.run, model=Plain(4))
    assert tellapart.resume(result.run, model=network, quiet=True).metrics["accuracy"] == found.accuracy
    assert artifact.open_model(result.run, model=network).model.head.out_features == 3


def test_an_instance_is_exported(data: Path, tmp_path: Path) -> None:
    """With the same parity as any other network."""
    from tellapart import workflow

    run = tellapart.train(data, model=Plain(), **quick(tmp_path / "run")).run
    done = workflow.export(run, ["onnx"], tmp_path / "exported", model=Plain())
    assert done.passed, done.to_text()


@pytest.mark.parametrize("kind", ["class", "lambda", "partial", "string"])
def test_what_makes_a_network_may_be_anything_that_can_be_called(
    kind: str, data: Path, tmp_path: Path
) -> None:
    """One that can be imported is named so; another is an object."""
    things: dict[str, tuple[Any, str]] = {
        "class": (Plain, f"{__name__}:Plain"),
        "lambda": (lambda classes, channels: Plain(classes, channels), "object:lambda"),
        "partial": (functools.partial(Plain), "object:Plain"),
        "string": (f"{__name__}:Plain", f"{__name__}:Plain"),
    }
    thing, name = things[kind]
    run = tellapart.train(data, model=thing, **quick(tmp_path / "run")).run
    assert artifact.read_card(run).architecture.name == name
    picture = data / "test" / "ant" / "000.png"
    assert tellapart.load(run, model=None if ":P" in name and kind != "partial" else thing).predict(picture)


def test_the_same_network_by_name_and_by_object_learns_the_same(data: Path, tmp_path: Path) -> None:
    """The seed makes the weights in both cases."""
    named = tellapart.train(data, model=Plain, **quick(tmp_path / "a"))
    made = tellapart.train(
        data, model=lambda classes, channels: Plain(classes, channels), **quick(tmp_path / "b")
    )
    one, other = artifact.read_state(named.run), artifact.read_state(made.run)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_its_own_weights_can_be_fine_tuned(data: Path, tmp_path: Path) -> None:
    """A run of the same network is a place to start from, also for the head alone."""
    first = tellapart.train(data, model=Plain, **quick(tmp_path / "a"))
    changes = {"model.weights": str(first.run), "model.finetune": "head"}
    second = tellapart.train(
        data, **{**quick(tmp_path / "b"), **changes}, **{"model.name": f"{__name__}:Plain"}
    )
    one, other = artifact.read_state(first.run), artifact.read_state(second.run)
    assert torch.equal(one["body.0.weight"], other["body.0.weight"])
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_arguments_are_read_as_values() -> None:
    """JSON, Python's literals, else text; a mapping gives the same."""
    texts = references.arguments(
        {"width": 64, "rate": 0.1, "name": "gelu", "on": True, "sizes": [1, 2], "no": None}
    )
    assert references.keywords(texts) == {
        "width": 64,
        "rate": 0.1,
        "name": "gelu",
        "on": True,
        "sizes": [1, 2],
        "no": None,
    }
    assert references.keywords(("act=gelu", "flag=True", "pair=(1, 2)")) == {
        "act": "gelu",
        "flag": True,
        "pair": (1, 2),
    }
    with pytest.raises(SpecError, match="plain values"):
        references.arguments({"width": np.zeros(2)})


def test_what_is_neither_a_network_nor_a_name_is_refused(data: Path, tmp_path: Path) -> None:
    """With the kinds that are taken."""
    with pytest.raises(SpecError, match="model is 3"):
        tellapart.train(data, model=3, **quick(tmp_path / "run"))


def test_a_state_dict_is_imported_for_it(call: Call, module: str, data: Path, tmp_path: Path) -> None:
    """And a summary is made of it; who types the name consents."""
    assert call("train", data, "--model.name", f"{module}:Net", "--run.dir", "run", *QUICK).code == 0
    torch.save(artifact.read_state("run"), tmp_path / "state.pth")
    mean = ("--input.mean", 0.5, 0.5, 0.5, "--input.std", 0.25, 0.25, 0.25, "--input.size", 16)
    own = ("--model.name", f"{module}:Net", "--classes", "ant,bee,cat", "--out", "made.safetensors")
    made = call("import", "state.pth", *own, *mean)
    assert made.code == 0, made.err
    assert call("predict", "made.safetensors", data / "test" / "ant" / "000.png").code == 0
    assert "Conv2d" in call("models", "--summary", f"{module}:Net", "--size", 16).out
