"""ResNet-18 on CIFAR-10 as timm's and torchvision's training scripts run it; prints one JSON line with images a second.

Both: ResNet-18 whose first layer is a 3x3 convolution of stride 1 and which has no first pooling (the stem that all
published recipes for 32 px use), fp32 (--bf16: autocast and channels-last), SGD with momentum, cross-entropy, images
from a folder of files by DataLoader; on a GPU where there is one.

- timm: `create_loader` with the augmentation that train.py has by default (random resized crop, flip, colour jitter
  of 0.4), `create_optimizer_v2`, and train.py's weight decay.
- torchvision: a random crop with 4 pixels of border and a flip, as in all recipes for CIFAR-10 with its networks, and
  the loop of its classification reference.

Runs in an environment of its own; knows nothing of tellapart.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import beside_cpu_torch  # noqa: F401
import measuring
import timm
import timm.data
import timm.optim
import torch
import torchvision
from torchvision import datasets
from torchvision import transforms as T

CLASSES = 10
Side = tuple[torch.nn.Module, torch.optim.Optimizer, Iterable[Any]]


def with_stem(model: torch.nn.Module) -> torch.nn.Module:
    """Return a ResNet of either library with the first layers for images of 32 pixels."""
    model.conv1 = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    model.maxpool = torch.nn.Identity()
    return model.train()


def timm_side(args: Any) -> Side:
    device = measuring.reference_speed(tf32=True)
    loader = timm.data.create_loader(
        timm.data.create_dataset("", root=f"{args.data}/train", is_training=True),
        input_size=(3, args.size, args.size),
        batch_size=args.batch,
        is_training=True,
        use_prefetcher=torch.cuda.is_available(),
        interpolation="random",
        color_jitter=0.4,
        hflip=0.5,
        num_workers=args.workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=True,
        device=device,
    )
    model = with_stem(timm.create_model("resnet18", num_classes=CLASSES)).to(device)
    optimizer = timm.optim.create_optimizer_v2(model, opt="sgd", lr=0.05, momentum=0.9, weight_decay=2e-5)
    return model, optimizer, loader


def torchvision_side(args: Any) -> Side:
    device = measuring.reference_speed()
    normalise = T.Normalize((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
    steps = [T.RandomCrop(args.size, padding=4), T.RandomHorizontalFlip()]
    change = T.Compose([*steps, T.PILToTensor(), T.ConvertImageDtype(torch.float), normalise])
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(f"{args.data}/train", change),
        batch_size=args.batch,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )
    model = with_stem(torchvision.models.resnet18(num_classes=CLASSES)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return model, optimizer, loader


SIDES: dict[str, tuple[Callable[[Any], Side], str]] = {
    "timm": (timm_side, timm.__version__),
    "torchvision": (torchvision_side, torchvision.__version__),
}


def main() -> None:
    parser = measuring.options(__doc__)
    parser.add_argument("--side", choices=list(SIDES), required=True)
    parser.set_defaults(batch=128, size=32, steps=20)
    args = parser.parse_args()
    build, version = SIDES[args.side]
    model, optimizer, loader = build(args)
    device = next(model.parameters()).device
    model = measuring.placed(model, args.bf16)
    layout = torch.channels_last if args.bf16 else torch.preserve_format
    criterion, clock = torch.nn.CrossEntropyLoss(), measuring.Clock(args.steps)
    for images, targets in itertools.chain.from_iterable(itertools.repeat(loader)):
        images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = criterion(model(images.contiguous(memory_format=layout)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()  # both scripts keep a running mean
        if clock.tick():
            break
    measuring.tell(args.side, version, clock.rate(args.batch))


if __name__ == "__main__":
    main()
