"""The files of a run folder before the first step, and the check that a resumed run sees the same images.

Knows nothing of training; `runs` knows the files' names.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tellapart import files, runs, tables
from tellapart.data.samples import Samples, write_samples
from tellapart.data.stores import images as decoded
from tellapart.doctor import examine
from tellapart.errors import RunError
from tellapart.spec import Spec, update
from tellapart.training import setup
from tellapart.training.resolution import Choice


def write_choices(folder: Path, choices: Iterable[Choice]) -> None:
    """Write what options that were left open became, and why; before the spec, which no longer tells the two apart."""
    runs.write_choices(folder, [dataclasses.asdict(choice) for choice in choices])


def write_start(folder: Path, prepared: setup.RunData, samples: Samples) -> None:
    """Write the resolved spec, the table of samples, what was left out, and the environment (`runs.COMPLETE`)."""
    runs.write_spec(anywhere(prepared.spec), folder / runs.SPEC_FILE)
    write_samples(_all_samples(prepared), folder / runs.SAMPLES_FILE)
    decoded.write_bad_images(prepared.bad, folder / "bad-images.csv")
    if samples.conflicts:
        listed = folder / "conflicts.csv"
        with files.writing(listed, text=True, errors="surrogateescape") as stream:
            writer = tables.Writer(stream, "\r\n")
            writer.writerow(["path", "labels"])
            writer.writerows((item.path, " | ".join(item.labels)) for item in samples.conflicts)
    environment = examine(quick=True).to_dict()
    runs.write_json(folder / runs.COMPLETE, environment)


def anywhere(spec: Spec) -> Spec:
    """Return a spec with absolute paths, since a run may be resumed from another folder."""
    paths = {
        "data.source": spec.data.source,
        "model.weights": spec.model.weights,
        "distill.teacher": spec.distill.teacher,
    }
    for name, path in paths.items():
        if path not in ("", "none", "pretrained") and os.path.exists(path):
            spec = update(spec, {name: os.path.abspath(path)})
    if spec.data.cache_dir:
        spec = update(spec, {"data.cache_dir": os.path.abspath(os.path.expanduser(spec.data.cache_dir))})
    return spec


def check_same_samples(folder: Path, prepared: setup.RunData) -> None:
    """Raise RunError if the images are not those that the run began with."""
    path = folder / runs.SAMPLES_FILE
    if not path.is_file():
        raise RunError(
            f"{path} is missing, so it cannot be checked whether the data of {folder} has changed."
        )
    with tempfile.TemporaryDirectory() as place:  # not in the run folder, which may be on a full disk
        now = Path(place) / path.name
        write_samples(_all_samples(prepared), now)
        with open(now, "rb") as new, open(path, "rb") as old:
            for number, (ours, theirs) in enumerate(itertools.zip_longest(new, old, fillvalue=b"")):
                if ours != theirs:
                    raise RunError(
                        f"The data of {folder} has changed: line {number + 1} of samples.csv was "
                        f"{theirs.decode(errors='replace').strip()!r} and would be "
                        f"{ours.decode(errors='replace').strip()!r}. Restore the data, or start a new run."
                    )


def _all_samples(prepared: setup.RunData) -> Samples:
    """Return the samples of all splits that are used, as one table."""
    parts = [s.samples for s in (prepared.train, prepared.val, prepared.test) if s is not None]
    columns = ("paths", "labels", "splits", "groups", "boxes", "hashes", "targets")
    joined: dict[str, Any] = {
        name: None
        if getattr(parts[0], name) is None
        else np.concatenate([getattr(part, name) for part in parts])
        for name in columns
    }
    return dataclasses.replace(parts[0], pixels=None, keys=None, **joined)
