"""Compression: a trained model in, smaller and faster ones out, and a table that compares them all."""

from __future__ import annotations

import dataclasses
import os
import platform
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tellapart import artifact, numerals, runs
from tellapart.compress import channels, masks, measuring, page
from tellapart.compress.measuring import Candidate
from tellapart.compress.subject import Subject, open_subject
from tellapart.compress.table import Comparison
from tellapart.contract import Architecture
from tellapart.doctor import host
from tellapart.errors import RunError, SpecError, Stopped, did_you_mean
from tellapart.models import shrink, zoo
from tellapart.references import Trust
from tellapart.runtime import open_backend
from tellapart.spec import Spec, update
from tellapart.tracking import Console
from tellapart.training.resolution import rules
from tellapart.workflow import own_code, quantising
from tellapart.workflow.given import named, several
from tellapart.workflow.run import train

METHODS = ("int8", "qat", "prune", "sparse", "distill")
RUNTIMES = ("onnx", "openvino")
BASE = "model"


@dataclass(frozen=True)
class Options:
    """How to compress.

    ratios: parts of the operations (prune) or weights (sparse) to take away. rounds: prunings, each followed by
    fine-tuning, on the way to a ratio. epochs: of fine-tuning after each, or of the student; 0: a quarter of the
    run's, for a student as many as the run's. student: the smaller network's name. alone: whether the student is
    also trained without a teacher. images: training images by which
    channels are judged and ranges are measured. max_drop: points of accuracy (of several labels: mAP) on validation
    that INT8 may cost. runtimes: for which INT8 is made: onnx, openvino. reduce_range: ONNX Runtime's INT8 weights
    have seven bits, for x86 processors without VNNI.
    """

    ratios: tuple[float, ...] = (0.5,)
    rounds: int = 3
    epochs: int = 0
    student: str = ""
    alone: bool = False
    images: int = 256
    max_drop: float = 0.5
    reduce_range: bool = False
    runtimes: tuple[str, ...] = RUNTIMES
    threads: int = 0

    def __post_init__(self) -> None:
        for name in self.runtimes:
            if name not in RUNTIMES:
                raise SpecError(f"There is no INT8 for {name!r}. {did_you_mean(name, RUNTIMES)}")
        for ratio in self.ratios:
            if not 0 < ratio < 1:
                raise SpecError(f"--ratio is {ratio:g}; it must be above 0 and below 1.")
        for name, low in (("rounds", 1), ("epochs", 0), ("images", 1), ("max_drop", 0), ("threads", 0)):
            if getattr(self, name) < low:
                raise SpecError(
                    f"--{name.replace('_', '-')} is {getattr(self, name):g}; it must be at least {low}."
                )


def compress(
    path: str | os.PathLike[str],
    data: Any = None,
    *,
    val: Any = None,
    test: Any = None,
    classes: Iterable[str] | None = None,
    method: str | Sequence[str] = ("int8",),
    out: str | os.PathLike[str] = "compressed",
    ratio: float | Sequence[float] = (0.5,),
    rounds: int = 3,
    epochs: int = 0,
    student: str = "",
    alone: bool = False,
    images: int = 256,
    max_drop: float = 0.5,
    reduce_range: bool = False,
    runtime: str | Sequence[str] = RUNTIMES,
    threads: int = 0,
    spec: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    trust: Trust = False,
    model: Any = None,
    loss: Any = None,
    **changes: Any,
) -> Comparison:
    """Make smaller models of a trained one, and compare all with it: accuracy (of several labels: mAP), size, latency.

    Args:
        path: run folder or artifact.
        data: labelled images, a path, or as for ``train`` an object; or a section of a spec, such as
            ``{"source": "photos.csv", "label_column": "kind"}``. None: the data that the run was trained with (path is
            then a run folder).
        val: validation images where ``data`` is an object; without them, part of those that train.
        test: the same for the test; candidates are compared on these, else on validation.
        classes: names of the classes in the order of the labels' numbers, for an object whose numbers are not the
            places in the model's classes.
        method: what to do: int8, qat (with training), prune (channels), sparse (weights), distill; or several.
        out: a new folder: a run folder or file for each candidate, compress.json and compress.html.
        ratio: parts of the operations (prune) or weights (sparse) to take away.
        rounds: prunings, each followed by fine-tuning, on the way to a ratio.
        epochs: of each fine-tuning, or of the student; 0: a quarter of the run's, for a student as many.
        student: distill: the smaller network's name.
        alone: distill: train the student once more without the teacher.
        images: training images by which channels are judged and ranges are measured.
        max_drop: points of accuracy (of several labels: mAP) on validation that INT8 may cost.
        reduce_range: INT8 for ONNX Runtime with weights of seven bits, for x86 processors without VNNI.
        runtime: for which INT8 is made: onnx, openvino, or both.
        threads: of the measurement; 0: one for each core.
        spec: YAML file whose fields go over the spec of fine-tuning, which is the run's but for small steps.
        quiet: no progress on standard error.
        trust: packages that may be imported for a network that is not tellapart's, or True.
        model: that network itself, or what makes it.
        loss: the loss of your own that the run was trained with, where it was an object.
        changes: fields of that spec, such as ``training={"lr": 1e-4}``.

    Raises: errors of ``tellapart.errors``.
    """
    options = Options(
        ratios=(float(ratio),) if isinstance(ratio, (int, float)) else tuple(ratio),
        rounds=rounds,
        epochs=epochs,
        student=student,
        alone=alone,
        images=images,
        max_drop=max_drop,
        reduce_range=reduce_range,
        runtimes=several(runtime),
        threads=threads,
    )
    methods = several(method)
    _check(methods, student)
    _new_folder(out)  # refused before images are read
    objects, source = named(data, val, test, classes)
    with Console(quiet=quiet) as console:
        subject = open_subject(path, objects, source, changes, spec, console)
    own = own_code.opened(subject.file, subject.card.architecture.name, trust, model, subject.spec, loss)
    with own:
        return _compress(subject, methods, out, options, quiet)


def _compress(
    subject: Subject, methods: Sequence[str], out: str | os.PathLike[str], options: Options, quiet: bool
) -> Comparison:
    with runs.alone(Path(out)):
        folder = _new_folder(out)  # another process may have filled it in the meantime
        work = _Work(subject, folder, options, quiet)
        candidates = [work.base()]
        for name in dict.fromkeys(methods):
            candidates += work.methods[name]()
        with Console(quiet=quiet) as console:
            comparison = _compare(subject, folder, candidates, options, console)
        comparison.write()
        page.write_page(comparison)
    return comparison


def _check(methods: Sequence[str], student: str) -> None:
    """Refuse what cannot be done. Raises SpecError."""
    for method in methods:
        if method not in METHODS:
            raise SpecError(f"There is no method {method!r}. {did_you_mean(method, METHODS)}")
    if "distill" in methods and not student:
        raise SpecError("distill needs a smaller network: --student NAME (see: tellapart models).")


def _new_folder(out: str | os.PathLike[str]) -> Path:
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists and is not empty; choose another --out.")
    return folder


class _Work:
    """The methods, each of which writes files below the folder and returns candidates."""

    def __init__(self, subject: Subject, folder: Path, options: Options, quiet: bool) -> None:
        self.subject, self.folder, self.options, self.quiet = subject, folder, options, quiet
        self.whole = artifact.open_model(subject.file).model
        self.cost = channels.cost(self.whole, subject.example())
        self.methods = {
            "int8": self.quantise,
            "qat": self.train_quantised,
            "prune": self.prune,
            "sparse": self.sparsen,
            "distill": self.distil,
        }
        self.floats: list[Candidate] | None = None

    def base(self) -> Candidate:
        """Return the model itself."""
        return Candidate(
            BASE,
            "none",
            self.subject.file,
            against=BASE,
            parameters=self.cost.parameters,
            flops=self.cost.flops,
        )

    def quantise(self) -> list[Candidate]:
        """Write the model's exports in float, and INT8 files made from them."""
        new = self._floats()
        return new + self._int8(self.subject, self.floats or [], "int8")

    def train_quantised(self) -> list[Candidate]:
        """Fine-tune with the rounding of INT8, and write INT8 files from the result."""
        new = self._floats()  # the reference for size, speed and drop
        file = self._train(self.folder / "qat", {"training.quantize": "int8"})
        subject = dataclasses.replace(self.subject, file=file, card=artifact.read_card(file))
        place = self.folder / "exports" / "qat"
        floats = quantising.exports(subject, place, self.options.runtimes, ("fp32",), self.options.threads)
        return new + self._int8(subject, floats, "qat")

    def _floats(self) -> list[Candidate]:
        """Write the model's exports in float on the first call, and return them."""
        if self.floats is not None or not self.options.runtimes:
            return []
        place, both = self.folder / "exports" / BASE, ("fp32", "fp16")
        self.floats = quantising.exports(
            self.subject, place, self.options.runtimes, both, self.options.threads
        )
        return list(self.floats)

    def _int8(self, subject: Subject, floats: list[Candidate], label: str) -> list[Candidate]:
        options, found = self.options, []
        with Console(quiet=self.quiet) as console:
            for name in options.runtimes:
                wanted = f"fp32 {quantising.SHORT[name]}"
                (source,) = [one.file for one in floats if one.name == wanted]
                (first,) = [one.file for one in self.floats or floats if one.name == wanted]
                with console.busy(f"INT8 for {quantising.SHORT[name]}"):
                    found += quantising.quantise(
                        subject,
                        self.folder,
                        name,
                        source,
                        first,
                        options.images,
                        options.max_drop,
                        console.message,
                        label,
                        options.reduce_range,
                    )
        return found

    def prune(self) -> list[Candidate]:
        """Remove channels in rounds with fine-tuning in between, for the ratios from small to large."""
        found, current, kept = self._floats(), self.subject.file, 1.0
        for ratio in sorted(set(self.options.ratios)):
            name = f"prune-{100 * ratio:g}"
            for turn in range(1, self.options.rounds + 1):
                left = kept * ((1 - ratio) / kept) ** (turn / self.options.rounds)
                last = turn == self.options.rounds
                place = self.folder / name if last else self.folder / "rounds" / f"{name}-{turn}"
                current = self._prune_once(current, left, place)
            kept = 1 - ratio
            found += self._candidates(name, "prune", current)
        return found

    def _prune_once(self, source: Path, left: float, place: Path) -> Path:
        """Prune to the share ``left`` of the operations, fine-tune into the run folder ``place``; return the file."""
        model = artifact.open_model(source).model
        flops = channels.cost(model, self.subject.example()).flops
        ratio = 1 - left * self.cost.flops / flops
        with Console(quiet=self.quiet) as console, console.busy(f"Choosing channels for {place.name}"):
            narrow = (
                channels.prune(model, self.subject.batches(self.options.images), ratio)
                if ratio > 0
                else model
            )
        architecture = dataclasses.replace(self.subject.card.architecture, pruned=())
        pruned = shrink.describe(zoo.build(architecture), narrow)
        start = self._start(place.name, narrow, dataclasses.replace(architecture, pruned=pruned))
        return self._train(place, {"model.weights": str(start)})

    def sparsen(self) -> list[Candidate]:
        """Set weights to zero and fine-tune what is left."""
        found = self._floats()
        for ratio in sorted(set(self.options.ratios)):
            name = f"sparse-{100 * ratio:g}"
            sparse = masks.prune(self.whole, ratio)
            start = self._start(name, sparse, self.subject.card.architecture)
            file = self._train(self.folder / name, {"model.weights": str(start), "training.keep_zeros": True})
            packed = masks.compressed_size(artifact.read_state(file))
            before = masks.compressed_size(artifact.read_state(self.subject.file))
            zeros = masks.zeros(artifact.open_model(file).model)
            facts = {"zeros": zeros, "compressed_bytes": packed, "compressed_ratio": packed / before}
            note = (
                f"{name}: {numerals.percent(zeros, 0)} of the weights are zero. Dense kernels compute "
                f"with zeros as with any number, so it is no faster and its file no smaller; "
                f"zipped, the weights take {packed / before:.2f} of the room."
            )
            found += self._candidates(name, "sparse", file, note, facts)
        return found

    def distil(self) -> list[Candidate]:
        """Train a smaller network to follow the model's answers, and if wanted also from the labels alone."""
        found = self._floats()
        canonical, tag = zoo.split_tag(self.options.student)
        bare = canonical.rpartition("/")[2]
        changes: dict[str, Any] = {
            "model.name": canonical,
            "model.weights": tag or "none",
            "model.stem": "auto",
        }
        for field in ("arguments", "dropout", "drop_path", "batch_norm"):
            changes[f"model.{field}"] = getattr(Spec().model, field)
        changes["training.lr"] = 2e-3
        for kind in ("distill", "alone") if self.options.alone else ("distill",):
            own = {} if kind == "distill" else {"distill.teacher": "", "distill.fingerprint": ""}
            file = self._train(self.folder / f"{kind}-{bare}", {**changes, **own}, student=True)
            found += self._candidates(f"{kind}-{bare}", kind, file)
        return found

    def _start(self, name: str, model: torch.nn.Module, architecture: Architecture) -> Path:
        """Write the initial weights of a fine-tuning; its run needs them to be resumed."""
        file = self.folder / "starts" / f"{name}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        card = dataclasses.replace(self.subject.card, architecture=architecture, scores={}, calibration={})
        artifact.save(file, model.state_dict(), card)
        return file.resolve()

    def _train(self, place: Path, changes: dict[str, Any], student: bool = False) -> Path:
        spec = self.subject.spec
        whole = spec.training.epochs or rules.EPOCHS
        epochs = self.options.epochs or (whole if student else max(1, whole // 4))
        changes = {**changes, "training.epochs": epochs, "run.dir": str(place)}
        result = train(self.subject.objects, spec=update(spec, changes), quiet=self.quiet)
        if result.interrupted:
            text = f"Interrupted. Results so far: {self.folder}; to finish this run: tellapart resume {place}"
            raise Stopped(result.signal or signal.SIGINT, text)
        return result.artifact

    def _candidates(
        self, name: str, method: str, file: Path, note: str = "", facts: dict[str, Any] | None = None
    ) -> list[Candidate]:
        """Return candidates for an artifact and its ONNX file, which is what would be shipped."""
        cost = channels.cost(artifact.open_model(file).model, self.subject.example())
        known: dict[str, Any] = {"parameters": cost.parameters, "flops": cost.flops, "facts": facts or {}}
        found = [Candidate(name, method, file, BASE, note=note, **known)]
        if "onnx" in self.options.runtimes:
            subject = dataclasses.replace(self.subject, file=file, card=artifact.read_card(file))
            place = self.folder / "exports" / name
            (one,) = quantising.exports(subject, place, ("onnx",), ("fp32",), self.options.threads)
            found.append(
                Candidate(f"{name} {quantising.SHORT['onnx']}", method, one.file, one.against, **known)
            )
        return found


def _compare(
    subject: Subject,
    folder: Path,
    candidates: list[Candidate],
    options: Options,
    console: Console,
) -> Comparison:
    """Measure all candidates side by side."""
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    opened = [(one, open_backend(one.file, threads=threads)) for one in candidates]
    images = subject.parts[subject.split]
    total = len(candidates) * len(images) + measuring.rounds(len(candidates))
    with console.busy("Measuring", total) as busy:
        rows = measuring.measure(opened, images, busy.advance)
    machine = {
        "processor": host.about_cpu([]).model,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    notes = [one.note for one in candidates if one.note]
    return Comparison(folder, str(subject.file), subject.split, machine, tuple(rows), tuple(notes))
