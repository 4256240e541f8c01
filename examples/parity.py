"""Whether two callables give the same answers: here a network and its halves in bfloat16, and torch.export's program.

python examples/parity.py
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from tellapart.parts import Agreement, parity


def main() -> dict[str, Agreement]:
    """Compare a network with two versions of itself; return how far they are apart."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(14400, 10)
    )
    network.eval()
    batches = [torch.rand(8, 3, 32, 32) for _ in range(4)]
    half = copy.deepcopy(network).bfloat16()
    program = torch.export.export(network, (batches[0],)).module()
    found = {
        "torch.export": parity(network, program, batches, tolerance=1e-4),
        "bfloat16": parity(network, lambda images: half(images.bfloat16()), batches, tolerance=1e-4),
    }
    for name, one in found.items():
        says = "passed" if one.passed else "; ".join(one.reasons)
        print(f"{name}: {one.n} images, largest difference {one.max_difference:.1e}: {says}")
    return found


if __name__ == "__main__":
    main()
