"""A DataLoader of your own that continues exactly where training was interrupted, in the middle of an epoch.

python examples/exact_resume.py
"""

from __future__ import annotations

import io

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from tellapart.parts import ResumableSampler

DIGITS = load_digits()
IMAGES = TensorDataset(torch.tensor(DIGITS.data / 16, dtype=torch.float32), torch.tensor(DIGITS.target))


def train(steps: int, checkpoint: bytes = b"") -> tuple[list[float], bytes]:
    """Take this many steps, from a checkpoint if one is given; return their losses and a new checkpoint."""
    torch.manual_seed(0)
    network = torch.nn.Linear(64, 10)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    sampler = ResumableSampler(DIGITS.target, batch_size=128, seed=1)
    if checkpoint:
        state = torch.load(io.BytesIO(checkpoint))
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        sampler.load_state_dict(state["sampler"])
    losses: list[float] = []
    while len(losses) < steps:
        for images, labels in DataLoader(IMAGES, batch_sampler=sampler):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sampler.done()  # after the step: batches that the loader has read ahead do not count
            losses.append(loss.item())
            if len(losses) == steps:
                break
    kept = io.BytesIO()
    states = {"network": network, "optimizer": optimizer, "sampler": sampler}
    torch.save({name: one.state_dict() for name, one in states.items()}, kept)
    return losses, kept.getvalue()


def main() -> bool:
    """Train for 40 steps at once, and in two runs; return whether every loss is the same to the last bit."""
    whole, _ = train(40)
    first, checkpoint = train(23)
    second, _ = train(17, checkpoint)
    print(f"40 steps end at {whole[-1]:.6f}; 23 and 17 steps at {second[-1]:.6f}")
    return first + second == whole


if __name__ == "__main__":
    print("the same to the last bit:", main())
