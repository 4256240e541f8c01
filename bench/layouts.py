"""Which of many data sets are read, refused with a reason, or read wrongly: one line for each folder.

    python bench/layouts.py SETS --truth PICTURES

SETS holds a data set in each of its folders; PICTURES the pictures that they were made of, in a folder for each class.
A picture is known by its bytes, so a wrong label shows: a set is read wrongly where a class that is named like one of
PICTURES holds another one's, or where names of two splits are classes. Exit code 1 if any is.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tellapart.data.samples import Samples
from tellapart.data.sources.folders.split_names import split_name
from tellapart.data.sources.opening import open_source
from tellapart.errors import TellapartError
from tellapart.spec import DataSpec


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def known(root: Path) -> dict[str, str]:
    """Return the class of each picture by its bytes."""
    return {digest(path.read_bytes()): path.parent.name for path in root.glob("*/*") if path.is_file()}


def faults(samples: Samples, truth: dict[str, str]) -> list[str]:
    """Return what is wrong with a table, in words."""
    names = set(truth.values())
    wrong: Counter[str] = Counter()
    for row in range(len(samples)):
        if samples.targets is None:
            labels = {samples.classes[samples.labels[row]]}
        else:  # several labels: the picture's own must be among them
            labels = {
                name for name, there in zip(samples.classes, samples.targets[row], strict=True) if there
            }
        try:
            content = samples.read(row)
        except OSError:
            continue
        shown = truth.get(digest(bytes(content)), "")
        if shown and labels & names and shown not in labels:
            wrong[f"{shown} is labelled {', '.join(sorted(labels))}"] += 1
    found = [f"{text} ({count})" for text, count in wrong.items()]
    splits = [name for name in samples.classes if split_name(name)]
    return found + ([f"splits are classes: {', '.join(splits)}"] if len(splits) > 1 else [])


def line(folder: Path, truth: dict[str, str], cache: str) -> tuple[str, str]:
    """Return (right, refused or WRONG; what was read, or why not) for one set."""
    try:
        samples = open_source(DataSpec(source=str(folder), cache_dir=cache), lambda note: None)
    except TellapartError as error:
        return "refused", str(error)
    wrong = faults(samples, truth)
    counts = " ".join(f"{split} {count}" for split, count in Counter(samples.splits.tolist()).items())
    text = f"{counts}; {', '.join(samples.classes[:6])}"
    return ("WRONG", "; ".join(wrong)) if wrong else ("read", text)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    given = parser.parse_args()
    truth, total = known(given.truth), Counter[str]()
    with tempfile.TemporaryDirectory() as cache:
        for folder in sorted(path for path in given.sets.iterdir() if path.is_dir()):
            state, text = line(folder, truth, cache)
            total[state] += 1
            print(f"{folder.name:<18} {state:<8} {text[:150]}")
    print(", ".join(f"{count} {state}" for state, count in sorted(total.items())))
    return int(total["WRONG"] > 0)


if __name__ == "__main__":
    sys.exit(main())
