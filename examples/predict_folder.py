"""Label the images in a folder, and copy each into a folder for its class if the model is sure enough.

python examples/predict_folder.py MODEL FOLDER OUT [SURE]
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import tellapart


def main(model: str, folder: str, out: str, sure: float = 0.9) -> dict[str, int]:
    """Return how many images went into each folder."""
    counts: dict[str, int] = {}
    for answer in tellapart.predict(model, folder):
        if answer.error:
            print(f"{answer.path}: {answer.error}", file=sys.stderr)
            continue
        place = answer.label if answer.probability >= sure else "unsure"
        target = Path(out, place, Path(answer.path).name)
        if target.exists():
            raise SystemExit(f"{target} exists; choose another folder.")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(answer.path, target)
        counts[place] = counts.get(place, 0) + 1
    return counts


if __name__ == "__main__":
    for label, count in main(*sys.argv[1:4], *map(float, sys.argv[4:5])).items():
        print(f"{label}: {count}")
