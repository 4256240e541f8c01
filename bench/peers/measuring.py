"""What the peers' scripts share: their options, a clock over steps, the usual photographs, and the line they print.

Runs in the peers' environment; knows nothing of tellapart.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

WARM_UP = 3


def options(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every script has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with train/CLASS and val/CLASS")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=15, help="that are measured, after the warm-up")
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--model", default="resnet18", help="as torchvision calls it")
    parser.add_argument("--bf16", action="store_true", help="autocast to bf16, and channels-last")
    return parser


def reference_speed(tf32: bool = False) -> torch.device:
    """Return the device, a GPU where there is one, set as the reference scripts of timm (``tf32``), torchvision do."""
    torch.backends.cudnn.benchmark = torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = tf32
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def placed(model: torch.nn.Module, bf16: bool) -> torch.nn.Module:
    """Return the network, in channels-last order with ``bf16``."""
    return model.to(memory_format=torch.channels_last if bf16 else torch.preserve_format)


class Clock:
    """Notes the end of each step; the rate is that of ``steps`` steps after the warm-up."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.times: list[float] = []

    def tick(self) -> bool:
        """Note that a step ended; return whether it was the last that counts."""
        if torch.cuda.is_available() and len(self.times) + 1 in (WARM_UP, WARM_UP + self.steps):
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
        return len(self.times) == WARM_UP + self.steps

    def rate(self, batch: int) -> float:
        """Return images a second."""
        return batch * self.steps / (self.times[WARM_UP + self.steps - 1] - self.times[WARM_UP - 1])


def photographs(folder: str, size: int) -> Any:
    """Return torchvision's ImageFolder with its usual changes for training."""
    import beside_cpu_torch  # noqa: F401
    from torchvision import datasets
    from torchvision import transforms as T

    normalise = T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    changes = [T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.ToTensor(), normalise]
    return datasets.ImageFolder(folder, T.Compose(changes))


def tell(peer: str, version: str, rate: float) -> None:
    """Print the result as the caller reads it."""
    print(json.dumps({"peer": peer, "version": version, "images_per_second": rate}))
