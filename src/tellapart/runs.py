"""Run folders: their names, and the small files that describe a run.

Knows nothing of training itself.
"""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tellapart.errors import RunError, SpecError
from tellapart.spec import Spec, to_dict, update

SPEC_FILE = "spec.yaml"
SAMPLES_FILE = "samples.csv"
CHECKPOINTS = "checkpoint"


def create(directory: str, model_name: str) -> Path:
    """Make and return a new run folder: ``directory``, or ``runs/DATE-TIME-MODEL``.

    Raises RunError where the folder is not empty: nothing that is there is ever overwritten.
    """
    if directory:
        folder = Path(directory)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            hint = f" To go on with the run in it: tellapart resume {folder}" if is_run(folder) else ""
            raise RunError(
                f"The run folder {folder} exists and is not empty; choose another --run.dir.{hint}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    short = re.sub(r"[^\w.-]+", "-", model_name.rpartition("/")[2])
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{short}"
    for number in range(1, 1000):
        folder = Path("runs") / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise RunError(f"No free name like runs/{stem}")


def is_run(folder: Path) -> bool:
    """Return whether ``folder`` is a run of ours."""
    return (folder / SPEC_FILE).is_file()


def require(path: str | os.PathLike[str]) -> Path:
    """Return the run folder at ``path``. Raises RunError where there is none."""
    folder = Path(path)
    if not folder.exists():
        raise RunError(f"There is no run folder {folder}.")
    if not is_run(folder):
        raise RunError(f"{folder} is not a run folder: it has no {SPEC_FILE}.")
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a file, complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON, complete or not at all."""
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def write_spec(spec: Spec, path: Path) -> None:
    """Write a spec as YAML."""
    write_text(path, yaml.safe_dump(to_dict(spec), sort_keys=False, allow_unicode=True))


def read_spec(path: str | os.PathLike[str], base: Spec | None = None) -> Spec:
    """Read a spec from YAML over ``base`` (the defaults where None). Raises SpecError."""
    try:
        content = yaml.safe_load(Path(path).read_bytes())  # UTF-8, or by its mark UTF-16; strictly
    except OSError as error:
        raise SpecError(f"The spec {os.fspath(path)} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecError(f"The spec {os.fspath(path)} is not valid YAML: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise SpecError(f"The spec {os.fspath(path)} must be a mapping such as 'training: {{epochs: 3}}'.")
    return update(base or Spec(), content)
