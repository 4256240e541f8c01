"""PyTorch's "Transfer Learning for Computer Vision Tutorial", both variants; prints JSON lines (defaults_common).

ImageFolder, RandomResizedCrop(224) and flips, Resize(256) and CenterCrop(224) for validation, batches of 4, SGD 0.001
with momentum 0.9, StepLR(7, 0.1) over 25 epochs, and the weights of the best epoch. --variant finetune trains all
layers, fixed the new last layer alone. The network is the one that all sides have, with its own mean and deviation. The
tutorial's data has a validation split; here a fifth of train is held out. With fewer epochs than 25 the learning rate
falls as much earlier.
"""

from __future__ import annotations

import copy
import functools

import defaults_common as common
import timm
import torch
from torchvision import datasets, transforms

BATCH, EPOCHS = 4, 25


def transform(train: bool):
    """Return the tutorial's changes."""
    normalise = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    if train:
        return transforms.Compose(
            [transforms.RandomResizedCrop(common.SIZE), transforms.RandomHorizontalFlip(), *normalise]
        )
    return transforms.Compose([transforms.Resize(256), transforms.CenterCrop(common.SIZE), *normalise])


def loaders(args):
    """Return the loaders of both splits, and how many images each has without --probe."""
    made, counts = {}, {}
    every = len(datasets.ImageFolder(args.data / "train"))
    both = zip(("train", "val"), common.held_out(every, 0.2, args.seed, BATCH, args.probe), strict=True)
    for phase, indices in both:
        images = datasets.ImageFolder(args.data / "train", transform(phase == "train"))
        subset = torch.utils.data.Subset(images, indices)
        made[phase] = torch.utils.data.DataLoader(subset, BATCH, shuffle=True, num_workers=args.workers)
    counts["val"] = round(0.2 * every)
    counts["train"] = every - counts["val"]
    return made, counts


def network(args):
    model = timm.create_model(common.NETWORK)
    model.load_state_dict(torch.load(args.weights, weights_only=True))
    for parameter in model.parameters():
        parameter.requires_grad = args.variant != "fixed"
    model.classifier = torch.nn.Linear(model.classifier.in_features, len(args.classes))
    return model.to(common.device())


def main() -> None:
    args = common.options(__doc__)
    log = common.Log(args)
    data, counts = loaders(args)
    model = network(args)
    give = common.answers(args, model, transform(False))
    criterion = torch.nn.CrossEntropyLoss()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.001, momentum=0.9)
    step_size = max(1, round(7 * args.epochs / EPOCHS))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=step_size, gamma=0.1)
    best, kept = -1.0, copy.deepcopy(model.state_dict())
    for _ in range(args.epochs):
        for phase in ("train", "val"):
            model.train(phase == "train")
            right = 0
            if phase == "train":
                log.epoch_begins("all")
            for inputs, labels in data[phase]:
                inputs, labels = inputs.to(common.device()), labels.to(common.device())
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                        log.step("all")
                right += int((outputs.argmax(1) == labels).sum())
            if phase == "train":
                scheduler.step()
        if right / max(1, counts["val"]) > best:
            best, kept = right / max(1, counts["val"]), copy.deepcopy(model.state_dict())
        log.epoch_ended("all", functools.partial(give))
    model.load_state_dict(kept)
    torch.save(kept, "best.pt")
    log.done(give, counts["train"], counts["val"], BATCH, len(data["val"].dataset))


if __name__ == "__main__":
    main()
