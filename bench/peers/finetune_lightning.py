"""lightning: full fine-tuning of a ResNet with its Trainer; prints one JSON line with images a second.

The shape of lightning's own introduction: a `LightningModule` around torchvision's network, torchvision's transforms
and DataLoader, `Trainer.fit`. Runs in an environment of its own; knows nothing of tellapart.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import beside_cpu_torch  # noqa: F401
import lightning
import measuring
import torch
from torchvision import models


class Classifier(lightning.LightningModule):
    def __init__(self, name: str, classes: int, bf16: bool) -> None:
        super().__init__()
        self.model = measuring.placed(getattr(models, name)(num_classes=classes), bf16)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        images, labels = batch
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.001, momentum=0.9)


class Tick(lightning.Callback):
    def __init__(self, clock: measuring.Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.clock.tick()


def main() -> None:
    args = measuring.options(__doc__).parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    measuring.reference_speed()
    images = measuring.photographs(f"{args.data}/train", args.size)
    loader = torch.utils.data.DataLoader(
        images,
        args.batch,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    clock = measuring.Clock(args.steps)
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision="bf16-mixed" if args.bf16 else "32-true",
        max_steps=measuring.WARM_UP + args.steps,
        max_epochs=-1,
        callbacks=[Tick(clock)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(args.model, len(images.classes), args.bf16), loader)
    measuring.tell("lightning", lightning.__version__, clock.rate(args.batch))


if __name__ == "__main__":
    main()
