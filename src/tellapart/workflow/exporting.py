"""Export: write a model in other formats, each compared with the artifact on real images before it gets its name."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tellapart
from tellapart import artifact, files, packages, runs
from tellapart.contract import BadImage, Card, Pixels
from tellapart.contract.resizing import load
from tellapart.errors import (
    ArtifactError,
    ExportError,
    MissingPackageError,
    SpecError,
    did_you_mean,
)
from tellapart.export import apart, formats, text
from tellapart.export.base import Exporter, Options
from tellapart.export.graph import graph_of
from tellapart.export.onnx import LOWEST_OPSET
from tellapart.export.outcome import Cases, Parity, Uncompared
from tellapart.references import Trust
from tellapart.runtime import environments, providers
from tellapart.tracking import Console
from tellapart.workflow import own_code
from tellapart.workflow.cases import cases_of
from tellapart.workflow.given import named, several

PARITY, PAGE = "parity.json", "parity.html"
REJECTED = ".rejected"


@dataclass(frozen=True)
class Export:
    """What `export` wrote. ``files``: those that may be used; ``rejected``: those that differ from the artifact.

    ``parities``: one for each format and precision; `Uncompared` where the file could not be run or written.
    """

    files: tuple[Path, ...]
    rejected: tuple[Path, ...]
    parities: tuple[Parity | Uncompared, ...]
    page: Path

    @property
    def passed(self) -> bool:
        """Whether every file was written and agrees with the artifact."""
        return all(one.passed for one in self.parities)

    def to_text(self) -> str:
        """Return the comparisons as a table, and the paths of what was written."""
        paths = [str(path) for path in (*self.files, *self.rejected, self.page)]
        return "\n".join([text.render(self.parities), "", *paths])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "passed": self.passed,
            "files": [str(path) for path in self.files],
            "rejected": [str(path) for path in self.rejected],
            "page": str(self.page),
            "parity": [one.to_dict() for one in self.parities],
        }


def export(
    path: str | os.PathLike[str],
    to: str | Sequence[str] = ("onnx",),
    out: str | os.PathLike[str] = "export",
    *,
    precision: str | Sequence[str] = ("fp32",),
    plain: bool = False,
    features: bool = False,
    batch: int = 0,
    opset: int = 0,
    env: str | os.PathLike[str] = "",
    data: Any = None,
    classes: Iterable[str] | None = None,
    split: str = "",
    images: int = 500,
    threads: int = 0,
    device: str = "cpu",
    quiet: bool = False,
    trust: Trust = False,
    model: Any = None,
    **data_changes: Any,
) -> Export:
    """Write a model in other formats into the folder ``out``, each compared with the artifact.

    A file that gives other answers than the artifact, or that cannot be run, is kept with ``.rejected`` after its name.
    ``parity.json`` and ``parity.html`` in the folder say what was compared. Nothing is overwritten. A format that
    cannot hold the network does not keep the others back.

    Args:
        path: run folder or artifact.
        to: a format by name, or several (docs/formats.md).
        out: the folder.
        precision: fp32, fp16 or both; a file for each.
        plain: the bare network on normalised floats, for formats that offer it.
        features: the input of the last layer as one more output, ``features``, for formats that offer it.
        batch: images of one call, for formats that fix it; 0: any, or the format's own choice.
        opset: of ONNX files, from 18 on; 0: torch's own choice.
        env: folder of the environment that litert or executorch have of their own; an error says how to make it.
        data: labelled images to compare on, a path, or as for ``train`` an object; or a section of a spec, such as
            ``{"source": "test.csv", "label_column": "kind"}``. None: those that the run was trained with (its
            validation split), or generated ones if there is no run.
        classes: names of the classes in the order of the labels' numbers, for an object whose numbers are not the
            places in the model's classes.
        split: train, val, test or all; by default val where there is one, else test, else all.
        images: how many to compare on at most, of each class alike.
        threads: what both compute with; 0: as many as torch uses.
        device: where ONNX files are run for the comparison: cpu, cuda, cuda:N, tensorrt or tensorrt:N. The artifact
            and all other files are run on the CPU.
        quiet: no progress on standard error.
        trust: packages that may be imported for a network that is not tellapart's, or True.
        model: that network itself, or what makes it.
        data_changes: fields of the data section, such as ``format="coco"``.

    Raises SpecError, ArtifactError, DataError, MissingPackageError, and ExportError where none of the formats can
    hold the network.
    """
    if images < 1 or threads < 0 or batch < 0:
        raise SpecError("images must be at least 1, threads and batch at least 0.")
    providers.parse(device)
    asked = Options(plain=plain, batch=batch, opset=opset, features=features)
    wanted = _wanted(several(to), several(precision), asked)
    folder, found = Path(out), artifact.find(path)
    _refuse_existing(folder, wanted)
    card = artifact.read_card(found)
    objects, source = named(data, classes=classes)
    _check_depth(card, wanted)
    with contextlib.ExitStack() as stack:
        stack.enter_context(environments.at(os.fspath(env)))
        stack.enter_context(own_code.opened(found, card.architecture.name, trust, model))
        console = stack.enter_context(Console(quiet=quiet))
        used = stack.enter_context(_threads(threads))
        cases = cases_of(found, card, objects, {**source, **data_changes}, split, images, console)
        stack.enter_context(runs.alone(folder))
        _refuse_existing(folder, wanted)  # what another process wrote in the meantime
        files.sweep(folder, files.EARLIER_EXPORTS)
        return _Work(os.fspath(path), found, folder, cases, used, device, console).run(wanted)


def _wanted(to: Sequence[str], precision: Sequence[str], options: Options) -> list[tuple[Exporter, Options]]:
    """Return what to write, each format in each precision. Raises SpecError."""
    wanted = []
    for name in dict.fromkeys(to):
        entry = formats.find(name)
        if options.plain and not entry.plain:
            raise SpecError(f"{name} has no plain form; leave out --plain.")
        if options.features and not entry.features:
            able = ", ".join(one.name for one in formats.FORMATS.values() if one.features)
            raise SpecError(f"{name} is not written with features; use --to with one of: {able}.")
        if options.opset:
            _check_opset(name, options.opset)
        for one in dict.fromkeys(precision):
            if one not in entry.tolerance:
                raise SpecError(f"{name} is not written in {one!r}. {did_you_mean(one, entry.tolerance)}")
            wanted.append((entry, dataclasses.replace(options, precision=one)))
    if not wanted:
        raise SpecError(f"Nothing to export to. Valid: {', '.join(formats.FORMATS)}.")
    return wanted


def _check_depth(card: Card, wanted: Sequence[tuple[Exporter, Options]]) -> None:
    """Raise SpecError for formats that take whole levels only, where the model's pixels are others."""
    unfit = [entry.name for entry, _ in wanted if not entry.floats]
    if card.preprocessing.depth == "float32" and unfit:
        able = ", ".join(one.name for one in formats.FORMATS.values() if one.floats)
        raise SpecError(
            f"{unfit[0]} is written for pixels of 8 bits, and this model's are float32 (--input.depth): use --to with "
            f"one of: {able}."
        )


def _check_opset(name: str, opset: int) -> None:
    """Raise SpecError if a format has no choice of opset, or not this one."""
    if name != "onnx":
        raise SpecError(f"--opset is for onnx; {name} has no choice of opset.")
    highest = packages.require("onnx", "onnx", "Export to ONNX").defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= highest:
        raise SpecError(f"--opset is {opset}; valid are {LOWEST_OPSET} to {highest} here.")


def _refuse_existing(folder: Path, wanted: Sequence[tuple[Exporter, Options]]) -> None:
    """Raise ArtifactError if something would be overwritten."""
    names = [entry.file_name(options) for entry, options in wanted]
    for name in (*names, *(name + REJECTED for name in names), PARITY, PAGE):
        if os.path.lexists(folder / name):
            raise ArtifactError(f"{folder / name} exists; choose another --out.")
    if os.path.lexists(folder) and not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder; choose another --out.")


@contextlib.contextmanager
def _threads(wanted: int) -> Iterator[int]:
    """Within this context torch computes with this many threads (0: as before); yields the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield wanted or before
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class _Work:
    """Writes files of one model into a folder, and compares each. ``model``: as it was named; ``found``: its file."""

    model: str
    found: Path
    folder: Path
    cases: Cases
    threads: int
    device: str
    console: Console

    def run(self, wanted: Sequence[tuple[Exporter, Options]]) -> Export:
        """Write all. Raises the first error where none can be written."""
        results: list[tuple[list[Path], Parity | Uncompared]] = []
        errors: list[Exception] = []
        for entry, options in wanted:
            try:
                results.append(self._one(entry, options))
            except (ExportError, MissingPackageError, environments.MissingEnvironmentError) as error:
                errors.append(error)
                failed = (str(error),)
                name = entry.file_name(options)
                results.append(([], Uncompared(entry.name, options.precision, name, failed, written=False)))
            if len(errors) < len(results):  # after each format, before one that takes hours, or Ctrl-C
                self._write_comparisons([one for _, one in results])
        if len(errors) == len(wanted):
            raise errors[0]
        good = [file for files, one in results for file in files if one.passed]
        bad = [file for files, one in results for file in files if not one.passed]
        return Export(tuple(good), tuple(bad), tuple(one for _, one in results), self.folder / PAGE)

    def _one(self, entry: Exporter, options: Options) -> tuple[list[Path], Parity | Uncompared]:
        """Write one file, compare it, and move it to its name, or to its rejected one; return files and comparison.

        Raises what its exporter raises.
        """
        name, found, cases = entry.file_name(options), self.found, self.cases
        with files.workplace(self.folder, self.folder / name) as workplace:
            with self.console.busy(f"Writing {name}"):
                card = artifact.read_card(found)
                asked = dataclasses.replace(options, examples=_examples(cases, card, options.precision))
                written = entry.write(graph_of(found, options.features), card, workplace / name, asked)
            chosen = environments.chosen()
            job = apart.Job(entry.name, options, written, found, cases, self.threads, self.device, chosen)
            with self.console.busy(f"Comparing {name}", len(cases.images)) as busy:
                outcome = _compared(job, name, busy.advance)
            ending = "" if outcome.passed else REJECTED
            targets = [self.folder / (path.name + ending) for path in written.files]
            for target in targets:
                if os.path.lexists(target):
                    raise ArtifactError(f"{target} exists; choose another --out.")
            files.move(list(zip(written.files, targets, strict=True))[::-1])  # the model itself last
        return targets, outcome

    def _write_comparisons(self, parities: Sequence[Parity | Uncompared]) -> None:
        """Write ``parity.json`` and the page, replacing earlier ones."""
        content = {
            "model": self.model,
            "tellapart": tellapart.__version__,
            "formats": [one.to_dict() for one in parities],
        }
        runs.write_json(self.folder / PARITY, content)
        files.write_text(self.folder / PAGE, text.page(parities, self.model, tellapart.__version__))


def _examples(cases: Cases, card: Card, precision: str) -> Pixels | None:
    """Return the images needed to make a file in fp16, preprocessed by the contract; None if none are needed."""
    if precision != "fp16":
        return None
    found = []
    for case in cases.images:
        with contextlib.suppress(BadImage, OSError):
            found.append(load(case.read(), card.preprocessing))
    return np.stack(found) if found else None


def _compared(job: apart.Job, name: str, advance: Callable[[int], None]) -> Parity | Uncompared:
    try:
        return apart.compare(job, advance)
    except ExportError as error:
        reason = f"the file could not be compared: {error}"
        written = job.written
        return Uncompared(
            job.format, job.options.precision, name, (reason,), True, written.facts, written.notes
        )
