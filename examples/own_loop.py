"""The store, the loader and the batched augmentation in a plain torch loop.

python examples/own_loop.py [DATA] [EPOCHS]
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import nn

from tellapart import parts

CONTRACT = parts.Preprocessing(16, 1, "squash", "bilinear", crop_fraction=1.0, mean=(0.3,), std=(0.35,))


def main(data: str = "digits", epochs: int = 2, **changes: str) -> float:
    """Train a small network; return its accuracy on the test split."""
    torch.manual_seed(0)
    augmentation = parts.Augmentation(CONTRACT, num_classes=10, preset="light")
    images = parts.open_images(data, CONTRACT, augmentation, quiet=True, **changes)
    classes = images["train"].samples.classes
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2048, len(classes)),
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(epochs):
        order = parts.epoch_order(images["train"].samples.labels, "shuffle", seed=0, epoch=epoch)
        for _, batch in parts.batches(images["train"], order, batch_size=64, epoch=epoch):
            loss = nn.functional.cross_entropy(network(augmentation(batch, generator)), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, accuracy {accuracy(network, images['test']):.3f}")
    return accuracy(network, images["test"])


def accuracy(network: nn.Module, images: parts.ImageSet) -> float:
    """Return the share of images that are labelled right."""
    right = 0
    with torch.inference_mode():
        for _, batch in parts.batches(images, np.arange(len(images)), batch_size=256):
            logits = network(parts.normalise(batch.pixels, CONTRACT))
            right += int((logits.argmax(1) == batch.labels).sum())
    return right / len(images)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
