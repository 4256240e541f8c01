"""ultralytics: full training of a ResNet as a classifier; prints one JSON line with images a second.

ultralytics' documentation: `YOLO` models for classification train with `model.train(data=FOLDER, imgsz, batch, …)`,
callbacks come by `add_callback`, and a torchvision network can stand in a model's YAML as a `TorchVision` layer. For
measurement only, in an environment of its own: its licence is AGPL, and nothing of it is used by tellapart.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import beside_cpu_torch  # noqa: F401
import measuring
import torch
import ultralytics
from ultralytics import YOLO

# A ResNet without its last two layers gives [B, width, h, w], for the classification head.
MODEL = """nc: {classes}
backbone:
  - [-1, 1, TorchVision, [{width}, "{model}", None, True, 2]]
head:
  - [-1, 1, Classify, [nc]]
"""


class EnoughError(Exception):
    """Enough steps were taken."""


def main() -> None:
    args = measuring.options(__doc__).parse_args()
    classes = len([path for path in (Path(args.data) / "train").iterdir() if path.is_dir()])
    config = Path("resnet18-cls.yaml").absolute()
    config.write_text(
        MODEL.format(classes=classes, model=args.model, width=512 if args.model == "resnet18" else 2048)
    )
    clock = measuring.Clock(args.steps)

    def count(trainer: Any) -> None:
        if clock.tick():
            raise EnoughError

    model = YOLO(str(config), task="classify")
    model.add_callback("on_train_batch_end", count)
    with contextlib.redirect_stdout(sys.stderr), contextlib.suppress(EnoughError):
        model.train(
            data=args.data,
            imgsz=args.size,
            batch=args.batch,
            epochs=1000,
            workers=args.workers,
            device=0 if torch.cuda.is_available() else "cpu",
            optimizer="SGD",
            lr0=0.001,
            pretrained=False,
            val=False,
            plots=False,
            save=False,
            project=str(Path.cwd()),
        )
    measuring.tell("ultralytics", ultralytics.__version__, clock.rate(args.batch))


if __name__ == "__main__":
    main()
