"""fastai as its documentation shows it: `vision_learner(…).fine_tune(epochs)`; prints JSON lines (defaults_common).

From docs.fast.ai: `ImageDataLoaders.from_folder` with 20 % for validation, `Resize(224)`, `aug_transforms()`, batches
of 64, a pretrained network of timm by name, `fine_tune`: an epoch of the head, then all layers with one cycle.
"""

from __future__ import annotations

from pathlib import Path

import defaults_common as common
import torch
from fastai.callback.core import Callback
from fastai.vision.all import (
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    get_image_files,
    set_seed,
    vision_learner,
)

BATCH = 64


class Watch(Callback):
    """Tells the log of steps and epochs."""

    order = 70  # after the recorder

    def __init__(self, log: common.Log) -> None:
        self.log = log

    def phase(self) -> str:
        return "all" if self.learn.opt.frozen_idx == 0 else "head"

    def before_train(self) -> None:
        self.log.epoch_begins(self.phase())

    def after_batch(self) -> None:
        if self.training:
            self.log.step(self.phase())

    def after_epoch(self) -> None:
        self.log.epoch_ended(self.phase(), lambda: scores(self.learn, self.log.args))


def scores(learner, args):
    """Give the scores of the test images; they are prepared as in validation."""
    model = learner.model
    training = model.training
    model.eval()
    for batch in learner.dls.test_dl(common.tests(args.data), num_workers=args.workers):
        yield torch.as_tensor(model(batch[0]))
    model.train(training)


def part(folder, count):
    """Return a folder with links to ``count`` of the images."""
    files = get_image_files(folder).sorted(key=str)
    for path in files[:: max(1, len(files) // count)][:count]:
        link = Path("probe") / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    return Path("probe")


def main() -> None:
    args = common.options(__doc__)
    log = common.Log(args)
    set_seed(args.seed)
    folder = args.data / "train"
    count = len(get_image_files(folder))
    val = count // 5
    batch = min(BATCH, count - val)
    if args.probe:
        folder = part(folder, min(count, common.PROBE_BATCHES * batch * 5 // 4))
    loaders = ImageDataLoaders.from_folder(
        folder,
        valid_pct=0.2,
        seed=args.seed,
        item_tfms=Resize(common.SIZE),
        batch_tfms=aug_transforms(),
        num_workers=args.workers,
        bs=batch,
    )
    learner = vision_learner(
        loaders,
        common.NETWORK,
        metrics=accuracy,
        pretrained_cfg_overlay={"file": str(args.weights)},
        cbs=Watch(log),
    )
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(args.epochs)
    learner.export("model.pkl")
    log.done(lambda: scores(learner, args), count - val, val, batch, len(loaders.valid_ds))


if __name__ == "__main__":
    main()
