"""A network of your own: its constructor takes the number of classes and of channels.

On the command line: tellapart train --model.name my_module:Net --model.arguments width=32
"""

import sys

import torch
from torch import nn

import tellapart


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, num_classes: int, channels: int, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        )
        self.head = nn.Linear(32 * width, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


if __name__ == "__main__":
    run = {"dir": sys.argv[1] if len(sys.argv) > 1 else ""}
    result = tellapart.train(model=Net, training={"epochs": 2, "lr": 0.005}, run=run, quiet=True)
    print(f"accuracy {result.metrics['accuracy']:.3f}, in {result.run}")
    # Net is defined in this script, so no file can name it: whoever opens the model passes it.
    print("classes", *tellapart.load(result.run, model=Net).classes)
