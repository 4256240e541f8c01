from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tellapart.errors import SpecError
from tellapart.training.methods import qat


def test_weights_are_rounded_by_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, 2, 2, generator=generator).requires_grad_()
    got = qat.rounded_weight(weight)
    values = weight.detach().numpy().reshape(5, -1)
    scale = np.abs(values).max(1, keepdims=True) / 127
    wanted = np.clip(np.round(values / scale), -127, 127) * scale
    np.testing.assert_allclose(got.detach().numpy().reshape(5, -1), wanted, rtol=1e-5, atol=1e-7)
    got.backward(torch.full_like(got, 2.0))
    assert torch.equal(weight.grad, torch.full_like(weight, 2.0))


def test_folding_a_norm_does_not_change_the_rounding() -> None:
    weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    factor = torch.tensor([0.5, -2.0, 7.0, 0.01])[:, None]
    torch.testing.assert_close(qat.rounded_weight(weight * factor), qat.rounded_weight(weight) * factor)


def test_inputs_are_rounded_to_unsigned_bits() -> None:
    scale, zero = qat.grid(-0.5, 2.05)
    assert (zero, round(scale, 4)) == (50, 0.01)
    values = torch.tensor([-3.0, -0.5, 0.0, 0.0149, 1.0, 9.0], requires_grad=True)
    got = qat.rounded_input(values, scale, zero)
    torch.testing.assert_close(got, torch.tensor([-0.5, -0.5, 0.0, 0.01, 1.0, 2.05]))
    got.sum().backward()
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 0]  # what is clipped has no gradient
    assert qat.grid(0.3, 0.5)[1] == 0  # the range holds 0


def test_a_layer_computes_with_rounded_values_and_keeps_its_own() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    images = torch.rand(6, 3, 4, 4)
    with torch.no_grad():
        inner = model[:3](images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    qat.install(model, images)
    assert model.state_dict().keys() == before.keys()
    got = model(images)
    scale, zero = qat.grid(float(images.min()), float(images.max()))
    first = nn.functional.conv2d(
        qat.rounded_input(images, scale, zero), qat.rounded_weight(model[0].weight), model[0].bias
    )
    scale, zero = qat.grid(float(inner.min()), float(inner.max()))
    wanted = nn.functional.linear(
        qat.rounded_input(first.relu().flatten(1), scale, zero),
        qat.rounded_weight(model[3].weight),
        model[3].bias,
    )
    torch.testing.assert_close(got, wanted)
    assert not torch.equal(got, nn.functional.linear(inner, before["3.weight"], before["3.bias"]))
    got.sum().backward()
    assert model[0].weight.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        model[0](torch.rand(1, 7, 4, 4))
    assert isinstance(model[0].weight, nn.Parameter)  # also after an error


def test_it_needs_weights_and_no_compiling(build: Callable[..., Any], pictures: Callable[..., Any]) -> None:
    with pytest.raises(SpecError, match="fine-tunes a trained network"):
        build(pictures(), **{"training.quantize": "int8"})


def test_compiling_is_refused(
    build: Callable[..., Any], pictures: Callable[..., Any], saved_weights: Callable[..., Any]
) -> None:
    weights = str(saved_weights("simple-cnn", num_classes=3))
    with pytest.raises(SpecError, match="switch them off"):
        build(pictures(), **{"training.quantize": "int8", "model.weights": weights, "speed.compile": "on"})


def test_training_continues_exactly(
    build: Callable[..., Any],
    cut_in_the_middle: Callable[..., Any],
    pictures: Callable[..., Any],
    saved_weights: Callable[..., Any],
    difference: Callable[..., float],
) -> None:
    spec = {
        "model.name": "fast-cnn",
        "model.weights": str(saved_weights("fast-cnn", num_classes=3)),
        "training.quantize": "int8",
        "training.epochs": 3,
        "augment.preset": "cifar",
    }
    samples = pictures((9, 9, 9), (3, 3, 3))
    whole, again = cut_in_the_middle(samples, 5, **spec)
    assert difference(again.model, whole.model) == 0
    plain = build(samples, **{**spec, "training.quantize": "none"})
    plain.trainer.run()
    assert difference(plain.model, whole.model) > 0
