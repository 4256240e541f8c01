"""ultralytics: full training of ResNet-18 as a classifier; prints one JSON line with images a second.

ultralytics' documentation: `YOLO` models for classification train with `model.train(data=FOLDER, imgsz, batch, …)`,
callbacks come by `add_callback`, and a torchvision network can stand in a model's YAML as a `TorchVision` layer. For
measurement only, in an environment of its own: its licence is AGPL, and nothing of it is used by tellapart.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import beside_cpu_torch  # noqa: F401
import ultralytics
from ultralytics import YOLO

WARM_UP = 3
# ResNet-18 without its last two layers gives [B, 512, h, w], for the classification head.
MODEL = """nc: {classes}
backbone:
  - [-1, 1, TorchVision, [512, "resnet18", None, True, 2]]
head:
  - [-1, 1, Classify, [nc]]
"""


class EnoughError(Exception):
    """Enough steps were taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    classes = len([path for path in (Path(args.data) / "train").iterdir() if path.is_dir()])
    config = Path("resnet18-cls.yaml").absolute()
    config.write_text(MODEL.format(classes=classes))
    times: list[float] = []

    def count(trainer: Any) -> None:
        times.append(time.perf_counter())
        if len(times) == WARM_UP + args.steps:
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
            device="cpu",
            optimizer="SGD",
            lr0=0.001,
            pretrained=False,
            val=False,
            plots=False,
            save=False,
            project=str(Path.cwd()),
        )
    seconds = times[-1] - times[WARM_UP - 1]
    rate = args.batch * args.steps / seconds
    print(json.dumps({"peer": "ultralytics", "version": ultralytics.__version__, "images_per_second": rate}))


if __name__ == "__main__":
    main()
