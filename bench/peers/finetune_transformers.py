"""transformers: full fine-tuning of a ResNet with its Trainer; prints one JSON line with images a second.

The shape of the library's own image-classification example: torchvision transforms for each image, a collator, and
`Trainer` with accelerate. The network is `ResNetForImageClassification` with the configuration
of ResNet-18 or -50. Runs in an
environment of its own; knows nothing of tellapart.
"""

from __future__ import annotations

from typing import Any

import beside_cpu_torch  # noqa: F401
import measuring
import torch
import transformers
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

SHAPES = {  # by torchvision's names
    "resnet18": ([64, 128, 256, 512], [2, 2, 2, 2], "basic"),
    "resnet50": ([256, 512, 1024, 2048], [3, 4, 6, 3], "bottleneck"),
}


class Photographs(torch.utils.data.Dataset):
    def __init__(self, folder: str, size: int) -> None:
        self.images = measuring.photographs(folder, size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images[index]
        return {"pixel_values": image, "labels": label}


class Tick(TrainerCallback):
    def __init__(self, clock: measuring.Clock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.tick()


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    images = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": images, "labels": torch.tensor([item["labels"] for item in items])}


def main() -> None:
    args = measuring.options(__doc__).parse_args()
    images = Photographs(f"{args.data}/train", args.size)
    measuring.reference_speed()
    # As their paper has them.
    widths, depths, block = SHAPES[args.model]
    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=widths,
        depths=depths,
        layer_type=block,
        num_labels=len(images.images.classes),
    )
    arguments = TrainingArguments(
        output_dir="run",
        per_device_train_batch_size=args.batch,
        max_steps=measuring.WARM_UP + args.steps,
        learning_rate=1e-3,
        dataloader_num_workers=args.workers,
        dataloader_persistent_workers=True,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=args.bf16,
        disable_tqdm=True,
    )
    clock = measuring.Clock(args.steps)
    trainer = Trainer(
        model=measuring.placed(ResNetForImageClassification(config), args.bf16),
        args=arguments,
        train_dataset=images,
        data_collator=collate,
        callbacks=[Tick(clock)],
    )
    trainer.train()
    measuring.tell("transformers", transformers.__version__, clock.rate(args.batch))


if __name__ == "__main__":
    main()
