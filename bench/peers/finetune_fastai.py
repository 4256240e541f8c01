"""fastai: full fine-tuning of ResNet-18 on a folder of photographs; prints one JSON line with images a second.

fastai's documentation for `ImageDataLoaders.from_folder`, `aug_transforms` and `vision_learner`. Runs in an
environment of its own; knows nothing of tellapart.
"""

from __future__ import annotations

import argparse
import json
import time

import beside_cpu_torch  # noqa: F401
import fastai
from fastai.callback.core import Callback, CancelFitException
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    RandomResizedCrop,
    accuracy,
    aug_transforms,
    imagenet_stats,
    resnet18,
    vision_learner,
)

WARM_UP = 3


class Clock(Callback):
    """Notes the time after the warm-up and after the last step, and ends the training there."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done, self.started, self.seconds = steps, 0, 0.0, 0.0

    def after_batch(self) -> None:
        if not self.training:
            return
        self.done += 1
        if self.done == WARM_UP:
            self.started = time.perf_counter()
        elif self.done == WARM_UP + self.steps:
            self.seconds = time.perf_counter() - self.started
            raise CancelFitException


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    loaders = ImageDataLoaders.from_folder(
        args.data,
        train="train",
        valid="val",
        bs=args.batch,
        num_workers=args.workers,
        item_tfms=RandomResizedCrop(args.size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
    )
    learner = vision_learner(loaders, resnet18, pretrained=False, metrics=accuracy)
    learner.unfreeze()
    learner.validate = lambda *_, **__: None  # what is measured is training
    clock = Clock(args.steps)
    epochs = 2 + (WARM_UP + args.steps) // max(1, len(loaders.train))
    with learner.no_bar(), learner.no_logging():
        learner.fit(epochs, lr=1e-3, cbs=clock)
    rate = args.batch * args.steps / clock.seconds
    print(json.dumps({"peer": "fastai", "version": fastai.__version__, "images_per_second": rate}))


if __name__ == "__main__":
    main()
