"""Compiling: the same answers, and the network itself where a compiler fails."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tellapart.models.whitened_cnn import WhitenedCNN
from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.resolution import Resolution, Stage, rules
from tellapart.training.speed import compiled
from tellapart.training.speed.compiled import Compiled, Graphs, can_compile

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


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_compiled_gradients_of_a_whitened_network_are_finite_in_bf16() -> None:
    """Its maximum over the maps was one whose gradient, once compiled, divided by zero."""
    torch.manual_seed(0)
    model = WhitenedCNN(3, size=8, widths=(8, 8, 8)).to(memory_format=torch.channels_last)
    images, labels = torch.randn(6, 3, 8, 8), torch.arange(6) % 3
    images = images.contiguous(memory_format=torch.channels_last)
    found = []
    for network in (copy.deepcopy(model), Compiled(copy.deepcopy(model), pytest.fail)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    eager, compiled_ = found
    assert torch.isfinite(compiled_).all()
    assert torch.nn.functional.cosine_similarity(eager, compiled_, 0) > 0.95


# ------------------------------------------------------------------------------------ CUDA graphs


@pytest.mark.parametrize(
    ("changes", "graphs", "search"),
    [
        ({}, "on", "off"),
        ({"training.epochs": 1000}, "on", "on"),
        ({"training.epochs": 2}, "off", "off"),  # too few steps
        ({"training.epochs": 2, "speed.cuda_graphs": "on"}, "on", "off"),
        ({"speed.cuda_graphs": "off", "speed.kernel_search": "on"}, "off", "on"),
    ],
)
def test_graphs_are_for_many_steps_and_a_search_for_more(
    changes: dict[str, Any],
    graphs: str,
    search: str,
    build: Any,
    pictures: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = build(pictures(), **{"training.epochs": 20, **changes})
    assert bench.plan.spec.speed.cuda_graphs == changes.get(
        "speed.cuda_graphs", "off"
    )  # nothing is for the CPU
    assert not bench.plan.graphs
    assert not bench.plan.search
    open_ = {"speed.cuda_graphs": "auto", "speed.kernel_search": "auto"}
    spec = update(bench.prepared.spec, {**open_, **changes})
    prepared = dataclasses.replace(bench.prepared, resolution=Resolution(spec, stage=Stage.PIXELS))
    cuda = Processes(0, 1, torch.device("cuda"))
    speed = setup.complete(prepared, bench.model, cuda).spec.speed
    assert (speed.cuda_graphs, speed.kernel_search) == (graphs, search)
    monkeypatch.setattr(rules, "GRAPH_FLOPS", 10)
    if "speed.cuda_graphs" not in changes:
        assert (
            setup.complete(prepared, bench.model, cuda).spec.speed.cuda_graphs == "off"
        )  # steps are too large


@pytest.mark.parametrize(
    ("changes", "can"),
    [
        ({}, True),
        ({"training.accumulate": 2}, False),
        ({"training.precision": "fp16"}, False),
        ({"distill.teacher": "runs/teacher"}, False),
        ({"training.quantize": "int8"}, False),
    ],
)
def test_graphs_are_for_plain_steps_in_one_part(changes: dict[str, Any], can: bool) -> None:
    spec = update(Spec(), {"training.accumulate": 1, **changes})
    assert setup._can_replay(spec, Processes(0, 1, torch.device("cuda"))) is can
    assert not setup._can_replay(spec, Processes(0, 1, CPU))
    assert not setup._can_replay(spec, Processes(0, 2, torch.device("cuda")))


class _Recorder:
    """Stands for CUDA's graphs: what is called while recording is called again at each replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: bool = False) -> None:
        self.replays, self._work = 0, None
        cuda = compiled.torch.cuda
        stream = SimpleNamespace(wait_stream=lambda other: None)
        monkeypatch.setattr(cuda, "Stream", lambda: stream)
        monkeypatch.setattr(cuda, "current_stream", lambda: stream)
        monkeypatch.setattr(cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: SimpleNamespace(replay=self._replay))
        monkeypatch.setattr(cuda, "graph", self._graph)
        self._fails = fails

    @contextlib.contextmanager
    def _graph(self, graph: Any) -> Iterator[None]:
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        yield

    def _replay(self) -> None:
        self.replays += 1


def test_a_recording_is_made_for_each_shape_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = _Recorder(monkeypatch)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
    before = copy.deepcopy(model.state_dict())
    calls: list[int] = []

    def work(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(len(images))
        loss = model(images).square().mean()
        loss.backward()
        return (loss,)

    graphs = Graphs(model, lambda text: None)
    for count in (4, 4, 3, 4):
        for parameter in model.parameters():
            parameter.grad = None
        (loss,) = graphs.run(work, torch.randn(count, 3, 5, 5))
        assert loss.shape == ()
        assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(graphs) == 2
    assert recorder.replays == 4
    assert calls == [4] * 4 + [3] * 4  # three passes to warm up and the recorded one
    model.eval()
    for name, tensor in before.items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_where_recording_fails_steps_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = _Recorder(monkeypatch, fails=True)
    model = torch.nn.Linear(3, 2)
    warnings: list[str] = []
    graphs = Graphs(model, warnings.append)

    def work(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = model(x).sum()
        loss.backward()
        return (loss.detach(),)

    x = torch.randn(4, 3)
    for _ in range(2):
        model.weight.grad = None
        (loss,) = graphs.run(work, x)
        assert torch.equal(loss, model(x).sum())
        torch.testing.assert_close(model.weight.grad, x.sum(0).expand(2, 3))
    assert recorder.replays == 0
    assert len(warnings) == 1
    assert "not permitted" in warnings[0]
