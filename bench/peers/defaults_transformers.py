"""Hugging Face's image-classification example (run_image_classification.py); prints JSON lines (defaults_common).

Its README on data of one's own: folders of images, 15 % split off for evaluation, `Trainer` with its defaults (AdamW,
5e-5 falling linearly, batches of 8). The network is timm's, as `TimmWrapperForImageClassification`, for which the
example takes timm's own transforms. Loading has workers, which its defaults lack.
"""

from __future__ import annotations

import defaults_common as common
import timm
import torch
from torchvision import datasets
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.models.timm_wrapper import TimmWrapperConfig, TimmWrapperForImageClassification

BATCH = 8


class Images(torch.utils.data.Dataset):
    """Images of a folder as the model takes them."""

    def __init__(self, folder, indices, transform) -> None:
        self.images, self.indices = datasets.ImageFolder(folder, transform), indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index):
        image, label = self.images[self.indices[index]]
        return {"pixel_values": image, "labels": label}


class Watch(TrainerCallback):
    """Tells the log of steps and epochs."""

    def __init__(self, log, answers) -> None:
        self.log, self.answers = log, answers

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        self.log.epoch_begins("all")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.log.step("all")

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.log.epoch_ended("all", self.answers)


class Scores(torch.nn.Module):
    """The model with the images as its only argument."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(pixel_values=images).logits


def collate(items):
    images = torch.stack([item["pixel_values"] for item in items])
    return {"pixel_values": images, "labels": torch.tensor([item["labels"] for item in items])}


def network(args):
    """Return the model with the given weights, except for the new last layer."""
    config = TimmWrapperConfig(architecture=common.NETWORK, num_labels=len(args.classes))
    model = TimmWrapperForImageClassification(config)
    state = torch.load(args.weights, weights_only=True)
    state = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    missing, unexpected = model.timm_model.load_state_dict(state, strict=False)
    if unexpected or any(not name.startswith("classifier.") for name in missing):
        raise ValueError(f"The weights do not fit: {missing}, {unexpected}")
    return model


def main() -> None:
    args = common.options(__doc__)
    log = common.Log(args)
    set_seed(args.seed)
    model = network(args)
    config = timm.data.resolve_data_config(model=model.timm_model)
    train_transform = timm.data.create_transform(**config, is_training=True)
    fixed = timm.data.create_transform(**config)
    folder = args.data / "train"
    every = len(datasets.ImageFolder(folder))
    train = common.held_out(every, 0.15, args.seed, BATCH, args.probe)[0]
    answers = common.answers(args, Scores(model), fixed)
    arguments = TrainingArguments(
        output_dir="outputs",
        num_train_epochs=args.epochs,
        remove_unused_columns=False,
        dataloader_num_workers=args.workers,
        seed=args.seed,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        logging_strategy="no",
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=collate,
        train_dataset=Images(folder, train, train_transform),
        callbacks=[Watch(log, answers)],
    )
    trainer.train()
    trainer.save_model()
    log.done(answers, every - round(0.15 * every), 0, BATCH, 0)


if __name__ == "__main__":
    main()
