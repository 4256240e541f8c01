from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from tellapart.errors import RunError
from tellapart.training.methods.ema import Ema


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.norm(self.conv(x)).mean((2, 3)))
        return logits


def network(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def move(model: nn.Module, generator: torch.Generator) -> None:
    """Change the weights as a step of training does, and the statistics of batch normalisation."""
    model(torch.randn(4, 3, 6, 6, generator=generator))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def floats(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in model.state_dict().items() if v.is_floating_point()}


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_is_the_formula_with_its_warm_up(decay: float) -> None:
    model, generator = network(), torch.Generator().manual_seed(1)
    ema, expected = Ema(model, decay), floats(model)
    for n in range(200):
        move(model, generator)
        ema.update(model)
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * value for name, value in floats(model).items()}
    assert ema.averages.keys() == expected.keys()
    for name, value in ema.averages.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_swapping_in_and_back_is_exact_and_keeps_the_tensors() -> None:
    model, generator = network().to(memory_format=torch.channels_last), torch.Generator().manual_seed(1)
    ema = Ema(model, 0.9)
    for _ in range(5):
        move(model, generator)
        ema.update(model)
    own = copy.deepcopy(model.state_dict())
    places = [tensor.data_ptr() for tensor in model.state_dict().values()]
    averages = copy.deepcopy(ema.averages)
    model.eval()
    images = torch.randn(2, 3, 6, 6, generator=generator)
    with torch.no_grad(), ema.swapped_in(model):
        inside = model.state_dict()
        for name, value in averages.items():
            assert torch.equal(inside[name], value)
        assert inside["norm.num_batches_tracked"] == own["norm.num_batches_tracked"] == 5
        swapped = model(images)
    other = Net().eval()
    other.load_state_dict({**own, **averages})
    torch.testing.assert_close(swapped, other(images).detach())
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places
    for name, value in ema.averages.items():
        assert torch.equal(value, averages[name])


def test_weights_come_back_after_an_error() -> None:
    model, generator = network(), torch.Generator().manual_seed(1)
    ema = Ema(model, 0.9)
    move(model, generator)
    own = copy.deepcopy(model.state_dict())
    inside = {}
    try:
        with ema.swapped_in(model):
            inside = copy.deepcopy(model.state_dict())
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert torch.equal(inside["head.weight"], ema.averages["head.weight"])
    assert not torch.equal(inside["head.weight"], own["head.weight"])
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


def test_going_on_from_a_saved_state_is_exact() -> None:
    model, generator = network(), torch.Generator().manual_seed(2)
    whole = Ema(model, 0.99)
    stream = io.BytesIO()
    resumed: Ema | None = None
    for n in range(20):
        move(model, generator)
        whole.update(model)
        if resumed:
            resumed.update(model)
        if n == 9:
            torch.save(whole.state_dict(), stream)
            stream.seek(0)
            resumed = Ema(network(5), 0.99)
            resumed.load_state_dict(torch.load(stream, weights_only=True))
    assert resumed
    assert resumed.updates == whole.updates == 20
    assert all(torch.equal(value, resumed.averages[name]) for name, value in whole.averages.items())


def test_what_is_frozen_stays_bit_for_bit() -> None:
    model, generator = network(), torch.Generator().manual_seed(2)
    ema, before = Ema(model, 0.99), model.conv.weight.detach().clone()
    for _ in range(20):
        with torch.no_grad():
            model.head.weight.add_(torch.randn(model.head.weight.shape, generator=generator))
        ema.update(model)
    assert torch.equal(ema.averages["conv.weight"], before)
    assert not torch.equal(ema.averages["head.weight"], model.head.weight)


def test_the_average_shares_no_memory_with_the_model() -> None:
    model = network()
    ema = Ema(model, 0.9)
    before = copy.deepcopy(ema.averages)
    move(model, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[name]) for name, value in ema.averages.items())
    assert not any(value.requires_grad for value in ema.averages.values())


def test_another_models_average_is_refused() -> None:
    ema = Ema(network(), 0.9)
    with pytest.raises(RunError, match="weight"):
        ema.load_state_dict(Ema(nn.Linear(2, 2), 0.9).state_dict())
    with pytest.raises(ValueError, match="below 1"):
        Ema(network(), 1.0)
