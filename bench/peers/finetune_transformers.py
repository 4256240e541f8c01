"""transformers: full fine-tuning of ResNet-18 with its Trainer; prints one JSON line with images a second.

The shape of the library's own image-classification example: torchvision transforms for each image, a collator, and
`Trainer` with accelerate. The network is `ResNetForImageClassification` with ResNet-18's configuration. Runs in an
environment of its own; knows nothing of tellapart.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import beside_cpu_torch  # noqa: F401
import torch
import transformers
from torchvision import datasets
from torchvision import transforms as T
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

WARM_UP = 3


class Photographs(torch.utils.data.Dataset):
    def __init__(self, folder: str, size: int) -> None:
        change = T.Compose(
            [
                T.RandomResizedCrop(size),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        self.images = datasets.ImageFolder(folder, change)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.images[index]
        return {"pixel_values": image, "labels": label}


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.perf_counter())


def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    images = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": images, "labels": torch.tensor([item["labels"] for item in items])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    images = Photographs(f"{args.data}/train", args.size)
    # ResNet-18 as its paper has it: basic blocks, two for each of four stages.
    config = ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
        layer_type="basic",
        num_labels=len(images.images.classes),
    )
    arguments = TrainingArguments(
        output_dir="run",
        per_device_train_batch_size=args.batch,
        max_steps=WARM_UP + args.steps,
        learning_rate=1e-3,
        dataloader_num_workers=args.workers,
        dataloader_persistent_workers=True,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    clock = Clock()
    trainer = Trainer(
        model=ResNetForImageClassification(config),
        args=arguments,
        train_dataset=images,
        data_collator=collate,
        callbacks=[clock],
    )
    trainer.train()
    seconds = clock.times[-1] - clock.times[WARM_UP - 1]
    rate = args.batch * args.steps / seconds
    print(
        json.dumps({"peer": "transformers", "version": transformers.__version__, "images_per_second": rate})
    )


if __name__ == "__main__":
    main()
