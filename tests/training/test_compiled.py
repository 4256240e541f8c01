"""Compiling: the same answers, and the network itself where a compiler fails."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from tellapart.training import compiled
from tellapart.training.compiled import Compiled, Graphed, can_compile

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_a_compiler_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not can_compile(CPU)
    compiler = tmp_path / "clang++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    assert can_compile(CPU)
    monkeypatch.setenv("CXX", "my-compiler -O2")
    assert not can_compile(CPU)
    assert not can_compile(torch.device("mps"))


def test_where_the_compiler_fails_the_network_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(
        torch,
        "compile",
        lambda model, dynamic, real=torch.compile: real(model, backend=broken, dynamic=dynamic),
    )
    model = torch.nn.Linear(3, 2)
    warnings: list[str] = []
    network = Compiled(model, warnings.append)
    x = torch.randn(4, 3)
    for _ in range(2):
        assert torch.equal(network(x), model(x))
    assert len(warnings) == 1
    assert "not compiled" in warnings[0]


@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_an_error_of_the_network_itself_is_its_own() -> None:
    class Wrong(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images @ torch.zeros(7, 7)

    with pytest.raises(Exception, match=r"size|shape"):
        Compiled(Wrong(), lambda text: None)(torch.randn(2, 3))


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_a_compiled_run_is_the_eager_one_but_for_rounding(build: Any, pictures: Any, difference: Any) -> None:
    changes = {"training.epochs": 2, "training.batch_size": 9}  # the last batch is smaller: another shape
    samples = pictures((20, 20), val=(4, 4))
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(144, 2),
    )
    eager = build(samples, model=copy.deepcopy(model), **changes)
    fast = build(samples, model=copy.deepcopy(model), **changes, **{"speed.compile": "on"})
    eager.trainer.run()
    fast.trainer.run()
    assert isinstance(fast.trainer.stepper.network, Compiled)
    assert not fast.recorder.warnings
    assert difference(eager.model, fast.model) < 1e-4
    assert math.isclose(
        eager.recorder.epochs[-1][1]["val/loss"], fast.recorder.epochs[-1][1]["val/loss"], rel_tol=1e-3
    )
    assert {name.partition(".")[0] for name in fast.trainer.weights()} == {
        "0",
        "1",
        "4",
    }  # no wrapper in the names


# ------------------------------------------------------------------------------------ CUDA graphs


def test_graphs_are_for_one_part_on_cuda(build: Any, pictures: Any) -> None:
    bench = build(pictures(), **{"speed.cuda_graphs": True})
    assert not bench.trainer._can_graph()
    bench.trainer.device = torch.device("cuda")
    assert bench.trainer._can_graph()
    bench = build(pictures(), **{"speed.cuda_graphs": True, "training.accumulate": 2})
    bench.trainer.device = torch.device("cuda")
    assert not bench.trainer._can_graph()


def test_only_whole_batches_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What records is replaced: this is about which batches it is used for, and what recording leaves behind."""
    replayed: list[int] = []

    def record(shell: Any, sample: Any) -> Any:
        for _ in range(3):
            shell(*sample)  # as recording warms up
        return lambda images: replayed.append(len(images)) or shell.model(images)

    monkeypatch.setattr(compiled.torch.cuda, "make_graphed_callables", record)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
    plain = copy.deepcopy(model)
    network = Graphed(model, 4, lambda text: None)
    for count in (4, 4, 3, 4):
        x = torch.randn(count, 3, 5, 5)
        assert torch.equal(network(x), plain(x))
    assert replayed == [4, 4, 4]
    model.eval(), plain.eval()
    assert torch.equal(network(x), plain(x))
    assert len(replayed) == 3
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_where_recording_fails_the_network_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(shell: Any, sample: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(compiled.torch.cuda, "make_graphed_callables", broken)
    model = torch.nn.Linear(3, 2)
    warnings: list[str] = []
    network = Graphed(model, 4, warnings.append)
    x = torch.randn(4, 3)
    assert torch.equal(network(x), model(x))
    assert torch.equal(network(x), model(x))
    assert len(warnings) == 1
