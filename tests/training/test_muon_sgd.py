from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tellapart.training.methods.muon_sgd import COEFFICIENTS, MuonSgd, orthogonalise


def _reference(matrix: torch.Tensor, rounds: int) -> torch.Tensor:
    """The iteration on the singular values alone: each goes through the quintic, the vectors stay."""
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    s = s / s.norm()
    a, b, c = COEFFICIENTS
    for _ in range(rounds):
        s = a * s + b * s**3 + c * s**5
    return u * s @ v


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5), st.integers(0, 1000))
def test_singular_values_go_through_the_quintic(rows: int, columns: int, rounds: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    result = orthogonalise(matrix, rounds, torch.float64)
    # The Frobenius norm is taken in float32.
    torch.testing.assert_close(result, _reference(matrix, rounds), atol=1e-5, rtol=1e-4)


def test_well_conditioned_matrices_become_almost_orthogonal() -> None:
    matrix = torch.linalg.qr(torch.randn(40, 24, generator=torch.Generator().manual_seed(0))).Q
    matrix = matrix * torch.linspace(0.5, 2, 24)
    values = torch.linalg.svdvals(orthogonalise(matrix, 5))
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))
    batch = torch.stack([matrix, 3 * matrix])
    torch.testing.assert_close(orthogonalise(batch)[1], orthogonalise(matrix))


def test_bfloat16_is_close() -> None:
    matrix = torch.randn(32, 48, generator=torch.Generator().manual_seed(2))
    half = orthogonalise(matrix, dtype=torch.bfloat16)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.flatten(), orthogonalise(matrix).flatten(), 0) > 0.999


def _model(channels_last: bool) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 4, 3, bias=True), nn.Flatten())
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _groups(model: nn.Module, nesterov: bool = True, momentum: float = 0.6) -> list[dict[str, Any]]:
    filters = [p for p in model.parameters() if p.ndim == 4]
    biases = [p for p in model.parameters() if p.ndim == 1]
    return [
        {
            "params": filters,
            "lr": 0.2,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": 0.0,
            "muon": True,
        },
        {
            "params": biases,
            "lr": 0.05,
            "momentum": 0.85,
            "nesterov": True,
            "weight_decay": 0.01,
            "muon": False,
        },
    ]


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        model(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("nesterov", "momentum"), [(True, 0.6), (False, 0.6), (False, 0.0)])
def test_steps_are_the_formula_in_float64(channels_last: bool, nesterov: bool, momentum: float) -> None:
    model = _model(channels_last).double()
    optimizer = MuonSgd(_groups(model, nesterov, momentum), torch.float64)
    weights = [p.detach().clone() for p in model.parameters()]
    speeds = [torch.zeros_like(p) for p in weights]
    for step in range(3):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step)).double()
        optimizer.zero_grad(set_to_none=True)
        model(images).square().sum().backward()
        for place, parameter in enumerate(model.parameters()):
            w, m, g = weights[place], speeds[place], parameter.grad.clone()
            if parameter.ndim == 4:
                m.mul_(momentum).add_(g)
                direction = g + momentum * m if nesterov else m
                w *= len(w) ** 0.5 / w.norm()
                w -= 0.2 * _reference(direction.flatten(1), 3).view(w.shape)
            else:
                g = g + 0.01 * w
                m.mul_(0.85).add_(g)
                w -= 0.05 * (g + 0.85 * m)
        optimizer.step()
        for weight, parameter in zip(weights, model.parameters(), strict=True):
            torch.testing.assert_close(parameter.detach(), weight, atol=1e-4, rtol=1e-4)


def test_the_sgd_part_is_torchs() -> None:
    ours, theirs = _model(True), _model(True)
    groups = [{**group, "muon": False, "lr": 1e-4} for group in _groups(ours)]
    _train(ours, MuonSgd(groups), range(4))
    wanted = [{k: v for k, v in {**group, "lr": 1e-4}.items() if k != "muon"} for group in _groups(theirs)]
    _train(theirs, torch.optim.SGD(wanted, lr=0.1), range(4))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_going_on_from_a_saved_state_is_exact() -> None:
    whole = _model(True)
    optimizer = MuonSgd(_groups(whole), torch.bfloat16)
    _train(whole, optimizer, range(3))
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    again = copy.deepcopy(whole)
    other = MuonSgd(_groups(again), torch.bfloat16)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    _train(whole, optimizer, range(3, 6))
    _train(again, other, range(3, 6))
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    model = _model(False)
    optimizer = MuonSgd(_groups(model))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 1.0)
