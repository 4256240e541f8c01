from __future__ import annotations

import pytest
import torch

from tellapart.compress import masks
from tellapart.models import zoo
from tellapart.models.zoo import Architecture


@pytest.mark.parametrize("amount", [0.3, 0.9])
def test_the_smallest_weights_are_zero(amount: float) -> None:
    torch.manual_seed(0)
    model = zoo.build(Architecture("simple-cnn", 4, size=16))
    model = model.to(memory_format=torch.channels_last)
    sparse = masks.prune(model, amount)
    assert abs(masks.zeros(sparse) - amount) < 1e-4
    assert masks.zeros(model) == 0
    assert sparse.state_dict().keys() == model.state_dict().keys()
    weights = [name for name, value in model.state_dict().items() if value.ndim > 1]
    old, new = (torch.cat([m.state_dict()[name].flatten() for name in weights]) for m in (model, sparse))
    assert float(old[new == 0].abs().max()) <= float(old[new != 0].abs().min())
    assert torch.equal(old[new != 0], new[new != 0])


def test_zeros_save_room_in_a_compressed_file_only() -> None:
    model = zoo.build(Architecture("simple-cnn", 4, size=16))
    before, after = model.state_dict(), masks.prune(model, 0.8).state_dict()
    assert sum(t.numel() for t in before.values()) == sum(t.numel() for t in after.values())
    assert masks.compressed_size(after) < 0.5 * masks.compressed_size(before)
