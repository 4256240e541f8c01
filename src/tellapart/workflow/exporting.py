"""Export: write a model in other formats, each compared with the artifact on real images before it gets its name."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tellapart
from tellapart import artifact, files, packages, runs
from tellapart.contract import BadImage, Card, Pixels
from tellapart.contract.resizing import load
from tellapart.data.samples import Samples
from tellapart.data.sources import opening
from tellapart.errors import (
    ArtifactError,
    DataError,
    ExportError,
    MissingPackageError,
    SpecError,
    UserError,
    did_you_mean,
)
from tellapart.export import apart, formats, synthetic, text
from tellapart.export.base import Exporter, Options
from tellapart.export.graph import graph_of
from tellapart.export.onnx import LOWEST_OPSET
from tellapart.export.parity import Case, Cases, Parity, Uncompared
from tellapart.references import Trust
from tellapart.runtime import environments, providers
from tellapart.spec import DataSpec, update
from tellapart.tracking import Console
from tellapart.workflow import own_code
from tellapart.workflow.exported import content_of
from tellapart.workflow.given import several
from tellapart.workflow.measure import with_classes, with_kind

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
    data: str | os.PathLike[str] | None = None,
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
        data: labelled images to compare on; None: those that the run was trained with (its validation part), or
            made-up ones where there is no run.
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
    wanted = _wanted(
        several(to), several(precision), Options(plain=plain, batch=batch, opset=opset, features=features)
    )
    folder, found = Path(out), artifact.find(path)
    _refuse_existing(folder, wanted)
    card = artifact.read_card(found)
    with contextlib.ExitStack() as stack:
        stack.enter_context(environments.at(os.fspath(env)))
        stack.enter_context(own_code.opened(found, card.architecture.name, trust, model))
        console = stack.enter_context(Console(quiet=quiet))
        used = stack.enter_context(_threads(threads))
        cases = _cases(found, card, data, split, images, data_changes, console)
        stack.enter_context(runs.alone(folder))
        _refuse_existing(folder, wanted)  # what another process wrote in the meantime
        files.sweep(folder, files.EARLIER_EXPORTS)
        results, errors = [], []
        for entry, options in wanted:
            try:
                results.append(_export_one(entry, options, found, folder, cases, used, device, console))
            except (ExportError, MissingPackageError, environments.MissingEnvironmentError) as error:
                errors.append(error)
                name = entry.file_name(options)
                results.append(
                    ([], Uncompared(entry.name, options.precision, name, (str(error),), written=False))
                )
            if len(errors) < len(results):  # after each format, before one that takes hours, or Ctrl-C
                _write_comparisons(folder, path, [one for _, one in results])
    if len(errors) == len(wanted):
        raise errors[0]
    parities = tuple(one for _, one in results)
    good = [file for files, one in results for file in files if one.passed]
    bad = [file for files, one in results for file in files if not one.passed]
    return Export(tuple(good), tuple(bad), parities, folder / PAGE)


def _write_comparisons(
    folder: Path, model: str | os.PathLike[str], parities: Sequence[Parity | Uncompared]
) -> None:
    """Write ``parity.json`` and the page, replacing earlier ones."""
    content = {
        "model": str(model),
        "tellapart": tellapart.__version__,
        "formats": [one.to_dict() for one in parities],
    }
    runs.write_json(folder / PARITY, content)
    files.write_text(folder / PAGE, text.page(parities, os.fspath(model), tellapart.__version__))


def _wanted(to: Sequence[str], precision: Sequence[str], options: Options) -> list[tuple[Exporter, Options]]:
    """Return what to write, each format in each precision. Raises SpecError."""
    wanted = []
    if options.features and options.plain:
        raise SpecError("--features and --plain exclude each other: a plain file has only logits.")
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


def _export_one(
    entry: Exporter,
    options: Options,
    found: Path,
    folder: Path,
    cases: Cases,
    threads: int,
    device: str,
    console: Console,
) -> tuple[list[Path], Parity | Uncompared]:
    """Write one file, compare it, and move it to its name, or to its rejected one; return files and comparison.

    Raises what its exporter raises.
    """
    name = entry.file_name(options)
    with files.workplace(folder, folder / name) as workplace:
        with console.busy(f"Writing {name}"):
            card = artifact.read_card(found)
            asked = dataclasses.replace(options, examples=_examples(cases, card, options.precision))
            written = entry.write(graph_of(found, options.features), card, workplace / name, asked)
        job = apart.Job(entry.name, options, written, found, cases, threads, device, environments.chosen())
        with console.busy(f"Comparing {name}", len(cases.images)) as busy:
            outcome = _compared(job, name, busy.advance)
        ending = "" if outcome.passed else REJECTED
        targets = [folder / (path.name + ending) for path in written.files]
        for target in targets:
            if os.path.lexists(target):
                raise ArtifactError(f"{target} exists; choose another --out.")
        files.move(list(zip(written.files, targets, strict=True))[::-1])  # the model itself last
    return targets, outcome


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


def _cases(
    found: Path,
    card: Card,
    data: str | os.PathLike[str] | None,
    split: str,
    count: int,
    changes: Mapping[str, Any],
    console: Console,
) -> Cases:
    """Return the images to compare on: those of DATA, or the run's own, or generated ones."""
    if data is not None:
        base = DataSpec(source=os.fspath(data), val_fraction=0.0, test_fraction=0.0)
        return _of_source(update(base, dict(changes)), card, split, count, console)
    if not runs.is_run(found.parent):
        console.warn(
            f"{found} is not in a run folder, so its images are not known; give them with --data DATA."
        )
        return synthetic.synthetic(min(count, 200), channels=card.preprocessing.channels)
    spec = update(runs.read_spec(found.parent / runs.SPEC_FILE).data, dict(changes))
    try:
        return _of_source(spec, card, split, count, console)
    except UserError as error:
        if split or changes:
            raise
        console.warn(f"The run's own images cannot be used ({error}); give others with --data DATA.")
        return synthetic.synthetic(min(count, 200), channels=card.preprocessing.channels)


def _of_source(spec: DataSpec, card: Card, split: str, count: int, console: Console) -> Cases:
    spec = update(spec, with_kind({"labels": spec.labels}, card))
    samples = with_classes(opening.open_source(spec, lambda note: None), card.classes)
    if samples.targets is not None and not card.several:
        raise DataError(
            f"Images of {spec.source} can have several labels, and the model gives one for each. --data.labels single "
            "leaves out those with several."
        )
    present = set(samples.splits.tolist())
    chosen = split or next((name for name in ("val", "test") if name in present), "all")
    part = samples if chosen == "all" else samples.split(chosen)
    if not len(part):
        raise DataError(f"{spec.source} has no {chosen} images.")
    used = _only(part, stratified(part.labels, count))
    cases = [
        Case(
            str(used.paths[row]),
            functools.partial(content_of, used, row, card.preprocessing, spec.max_pixels),
            None if card.several else int(used.labels[row]),
        )
        for row in range(len(used))
    ]
    words = "all of" if len(cases) == len(part) else f"{len(cases)} of the {len(part)} images of"
    where = spec.source if chosen == "all" else f"{spec.source}, {chosen}"
    return Cases(cases, where if words == "all of" else f"{where} ({words} it)")


def _only(samples: Samples, rows: Any) -> Samples:
    """Return the table of only some rows and their pixels, to be sent to another process."""
    chosen = samples.select(rows)
    if chosen.pixels is None:
        return chosen
    keys = rows if chosen.keys is None else chosen.keys
    return dataclasses.replace(chosen, pixels=np.asarray(chosen.pixels[keys]), keys=None)


def stratified(labels: Any, count: int, seed: int = 0) -> Any:
    """Return the rows of at most ``count`` samples, evenly from the classes as far as they go: int64, sorted."""
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    place: dict[int, int] = {}
    ranks = np.empty(len(labels), np.int64)  # each sample's index within its class
    for row in shuffled:
        label = int(labels[row])
        ranks[row] = place[label] = place.get(label, -1) + 1
    order = shuffled[np.argsort(ranks[shuffled], kind="stable")]
    return np.sort(order[:count])
