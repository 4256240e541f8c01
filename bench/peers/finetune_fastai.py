"""fastai: full fine-tuning of a ResNet on a folder of photographs; prints one JSON line with images a second.

fastai's documentation for `ImageDataLoaders.from_folder`, `aug_transforms` and `vision_learner`. Runs in an
environment of its own; knows nothing of tellapart.
"""

from __future__ import annotations

import beside_cpu_torch  # noqa: F401
import fastai
import measuring
from fastai.callback.core import Callback, CancelFitException
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    RandomResizedCrop,
    accuracy,
    aug_transforms,
    imagenet_stats,
    models,
    vision_learner,
)


class Stop(Callback):
    """Ticks the clock after each step, and ends the training with the last that counts."""

    def __init__(self, clock: measuring.Clock) -> None:
        self.clock = clock

    def after_batch(self) -> None:
        if self.training and self.clock.tick():
            raise CancelFitException


def main() -> None:
    args = measuring.options(__doc__).parse_args()
    loaders = ImageDataLoaders.from_folder(
        args.data,
        train="train",
        valid="val",
        bs=args.batch,
        num_workers=args.workers,
        item_tfms=RandomResizedCrop(args.size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
    )
    learner = vision_learner(loaders, getattr(models, args.model), pretrained=False, metrics=accuracy)
    learner.unfreeze()
    learner.validate = lambda *_, **__: None  # what is measured is training
    clock = measuring.Clock(args.steps)
    epochs = 2 + (measuring.WARM_UP + args.steps) // max(1, len(loaders.train))
    with learner.no_bar(), learner.no_logging():
        learner.fit(epochs, lr=1e-3, cbs=Stop(clock))
    measuring.tell("fastai", fastai.__version__, clock.rate(args.batch))


if __name__ == "__main__":
    main()
