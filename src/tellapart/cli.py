"""The command line: argv -> spec -> one call.

Loads no torch until a command needs it, so that ``--help`` and mistakes are answered at once. Results go to
standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 the input must change,
130 interrupted.
"""

from __future__ import annotations

import dataclasses
import gc
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, TypeVar

import tyro
from tyro.conf import Positional

import tellapart
from tellapart import packages
from tellapart.errors import SpecError, TellapartError, UserError, did_you_mean
from tellapart.spec import Spec, flatten, update

if TYPE_CHECKING:
    from tellapart.evaluation.metrics import Evaluation
    from tellapart.workflow import Result

T = TypeVar("T")
Json = Annotated[bool, tyro.conf.arg(name="json")]


@dataclass(frozen=True)
class _FromSpec:
    """What commands that train have in common."""

    data_source: Annotated[Positional[str | None], tyro.conf.arg(metavar="DATA", name="source")] = None
    """Folder, list, archive, annotation file or name (the same as --data.source)."""
    recipe: str | None = None
    """Start from a recipe: tutorial, tutorial-cnn, transfer, cifar10-fast, cifar10-best."""
    spec_file: Annotated[str | None, tyro.conf.arg(name="spec")] = None
    """Start from a YAML file (such as a run's spec.yaml)."""
    as_json: Json = False
    """Print one JSON object on standard output."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)


@dataclass(frozen=True)
class Train(_FromSpec):
    """Train a classifier and measure it. With no DATA it trains on the embedded handwritten digits."""

    profile: bool = False
    """Tell where a step's time goes, and write a trace for Perfetto (profile/ in the run's folder)."""


@dataclass(frozen=True)
class FindLr(_FromSpec):
    """Find a good learning rate: the range test of Smith (2015), which trains while the rate rises."""

    steps: int = 100
    """Steps of the test."""


@dataclass(frozen=True)
class Resume:
    """Go on exactly where a run was cut off."""

    run: Positional[str]
    """The run folder."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Evaluate:
    """Measure a model: accuracy with its interval, per class, confusion, loss, speed."""

    model: Positional[str]
    """Run folder or artifact."""
    source: Annotated[Positional[str | None], tyro.conf.arg(metavar="DATA")] = None
    """Labelled images; without it the data that the run was trained with."""
    split: Literal["", "train", "val", "test", "all"] = ""
    """Which part; by default test where there is one, else val, else all."""
    out: str | None = None
    """Folder for metrics.json, predictions.csv and pictures of the mistakes."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What the network computes in; with less than fp32 the answers can differ a little."""
    format: Literal["auto", "folder", "list", "voc", "createml", "yolo", "coco", "name"] = "auto"
    """How to read DATA."""
    boxes: Literal["image", "crop"] = "image"
    """Annotation files: one label for the image, or one crop for each box."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Predict:
    """Label images: files, folders, patterns, or - for one image on standard input."""

    model: Positional[str]
    """Run folder or artifact."""
    images: Positional[tuple[str, ...]]
    """What to label."""
    format: Literal["table", "jsonl", "csv"] = "table"
    """How to print."""
    top: int = 1
    """How many classes to give for each image."""
    urls: bool = False
    """Fetch http(s) addresses; nothing is fetched otherwise."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""


@dataclass(frozen=True)
class Report:
    """Write a run's report: one self-contained HTML page."""

    run: Positional[str]
    """The run folder."""
    out: str | None = None
    """Where to write it; by default RUN/report.html."""


@dataclass(frozen=True)
class Compare:
    """Compare runs: what differs in spec and result, and whether it is more than chance."""

    runs: Positional[tuple[str, ...]]
    """Two or more run folders."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Check:
    """Look at a data set's health: counts, corrupt files, duplicates, leaks, suspects, imbalance."""

    data_source: Annotated[Positional[str], tyro.conf.arg(metavar="DATA", name="source")] = "digits"
    """Folder, list, archive, annotation file or name."""
    html: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a page with pictures to FILE."""
    as_json: Json = False
    """Print one JSON object on standard output."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)


@dataclass(frozen=True)
class Models:
    """List the models by name, or look into one."""

    pattern: Positional[str] = ""
    """Part of a name, or a pattern such as 'resnet*'."""
    summary: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """Print one model's layers, shapes, parameters and FLOPs."""
    size: int = 0
    """With --summary: input size in pixels; 0: the model's own."""
    channels: int = 3
    """With --summary: input channels."""
    num_classes: int = 10
    """With --summary: classes."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Doctor:
    """Say what this machine offers, and what follows from it."""

    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Cache:
    """List the decoded images that are kept on the disk, or clear them."""

    action: Positional[Literal["list", "clear"]]
    """What to do."""
    keys: Positional[tuple[str, ...]] = ()
    """With clear: keys, or how they begin, of what to remove; without any: everything that is not in use."""
    older_than: Annotated[float | None, tyro.conf.arg(metavar="DAYS")] = None
    """With clear: only what was not used for so many days."""
    cache_dir: str = ""
    """The cache folder, as in --data.cache-dir."""
    as_json: Json = False
    """Print one JSON object on standard output."""


@dataclass(frozen=True)
class Export:
    """Write a model in another form."""

    model: Positional[str]
    """Run folder or artifact."""
    to: tuple[Literal["state-dict"], ...] = ("state-dict",)
    """Forms to write: state-dict is the tutorials' .pth."""
    out: str = "export"
    """Folder to write to."""


@dataclass(frozen=True)
class Import:
    """Bring in a state dict (.pth, .safetensors) from elsewhere as a model of ours."""

    weights: Positional[str]
    """The file."""
    classes: str
    """Class names in the order of the outputs, with commas between."""
    out: str
    """The artifact to write, such as model.safetensors."""
    spec: Annotated[Spec, tyro.conf.arg(name="")] = field(default_factory=Spec)


def _json(content: Any) -> str:
    """Return JSON on one line, in characters that standard output can show (backslashes of its own are no JSON)."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("-", "")
    return json.dumps(content, ensure_ascii=encoding != "utf8")


def _train(args: Train) -> int:
    from tellapart import workflow

    return _print_result(workflow.train(args.data_source, spec=args.spec, profile=args.profile), args.as_json)


def _resume(args: Resume) -> int:
    from tellapart import workflow

    return _print_result(workflow.resume(args.run), args.as_json)


def _print_result(result: Result, as_json: bool) -> int:
    if int(os.environ.get("RANK", "0")):
        return 0
    if as_json:
        content = {
            "run": str(result.run),
            "artifact": str(result.artifact),
            "split": result.split,
            "metrics": dict(result.metrics),
            "interrupted": result.interrupted,
        }
        print(_json(content))
    elif not result.interrupted:
        print(_summary(result))
    return 130 if result.interrupted else 0


def _summary(result: Result) -> str:
    lines = []
    if result.split:
        accuracy, (low, high) = result.metrics["accuracy"], result.metrics["accuracy_interval"]
        words = {
            "test": "on the test part, which played no part in choosing the epoch",
            "val": "on validation, which also chose the epoch (there is no test part): expect a little less",
        }[result.split]
        lines.append(
            f"Accuracy {accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {result.metrics['n']:,} images)"
        )
        lines.append(f"  {words}")
    else:
        lines.append("Trained on everything: there was no validation and no test part to measure.")
    lines.append(f"Model    {result.artifact}")
    if (result.run / "report.html").exists():
        lines.append(f"Report   {result.run / 'report.html'}")
    lines.append(f"Next     tellapart predict {shlex.quote(str(result.run))} IMAGE…")
    return "\n".join(lines)


def _find_lr(args: FindLr) -> int:
    from tellapart import workflow

    curve = workflow.find_lr(args.data_source, spec=args.spec, steps=args.steps)
    if args.as_json:
        print(json.dumps(dataclasses.asdict(curve), default=list))
        return 0
    print(f"{'lr':>10}  loss")
    every = max(1, len(curve.lrs) // 20)
    for lr, loss in list(zip(curve.lrs, curve.losses, strict=True))[::every]:
        print(f"{lr:10.2e}  {loss:.4f}")
    if curve.suggestion is None:
        print("The loss never fell: no suggestion.")
        return 1
    print(f"Suggestion: --training.lr {curve.suggestion:.2g}")
    return 0


def _evaluate(args: Evaluate) -> int:
    from tellapart import workflow

    changes: dict[str, Any] = {"format": args.format, "boxes": args.boxes} if args.source else {}
    evaluation = workflow.evaluate(
        args.model,
        args.source,
        split=args.split,
        out=args.out,
        device=args.device,
        precision=args.precision,
        **changes,
    )
    if args.as_json:
        print(_json(evaluation.to_dict()))
    else:
        print(_evaluation_text(evaluation))
    return 0


def _evaluation_text(evaluation: Evaluation) -> str:
    low, high = evaluation.accuracy_interval
    lines = [
        f"Accuracy {evaluation.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%})",
        f"on {evaluation.n:,} images ({evaluation.split})",
        f"balanced accuracy {evaluation.balanced_accuracy:.4f}   macro F1 {evaluation.macro.f1:.4f}   "
        f"loss {'-' if evaluation.loss is None else f'{evaluation.loss:.4f}'}"
        + ("" if evaluation.top5 is None else f"   top-5 {evaluation.top5:.2%}"),
    ]
    if evaluation.images_per_second and evaluation.latency_ms:
        times = "  ".join(f"{name} {value:.1f} ms" for name, value in evaluation.latency_ms.items())
        lines.append(f"{evaluation.images_per_second:,.0f} images/s; one image at a time: {times}")
    lines.append("")
    width = min(30, max(5, *(len(score.name) for score in evaluation.per_class)))
    lines.append(f"{'class':<{width}}  images  precision  recall      F1")
    for score in evaluation.per_class:
        figures = "".join(
            f"{'-' if value is None else f'{value:.4f}':>{space}}"
            for value, space in ((score.precision, 11), (score.recall, 8), (score.f1, 8))
        )
        lines.append(f"{score.name[:width]:<{width}}  {score.support:>6}{figures}")
    return "\n".join(lines)


def _predict(args: Predict) -> int:
    from tellapart import workflow
    from tellapart.predict import expand

    if args.top < 1:
        raise SpecError(f"--top is {args.top}; it must be at least 1.")
    if not args.images:
        raise UserError("Nothing to label: give IMAGES (files, folders, patterns, or - for standard input).")
    images = list(expand(args.images, args.urls))
    classifier = workflow.load(args.model, args.device)
    write = {"table": _write_table, "jsonl": _write_jsonl, "csv": _write_csv}[args.format]
    failed = 0

    def counted() -> Any:
        nonlocal failed
        for prediction in classifier.stream(images, args.top, lambda: sys.stdin.buffer):
            failed += bool(prediction.error)
            yield prediction

    write(counted(), sys.stdout)
    if failed:
        print(f"{failed} of {len(images)} images could not be read.", file=sys.stderr)
    return 1 if failed else 0


def _write_table(predictions: Any, out: TextIO) -> None:
    for p in predictions:
        if p.error:
            out.write(f"{p.path}: {p.error}\n")
            continue
        pairs = zip(p.labels, p.probabilities, strict=True)
        out.write(f"{p.path}: " + ", ".join(f"{label} {value:.1%}" for label, value in pairs) + "\n")


def _write_jsonl(predictions: Any, out: TextIO) -> None:
    for p in predictions:
        out.write(_json(p.to_dict()) + "\n")


def _write_csv(predictions: Any, out: TextIO) -> None:
    import csv

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "probability", "error"])
    for p in predictions:
        rows: list[Any] = [(p.path, "", "", "", p.error)] if p.error else []
        pairs = enumerate(zip(p.labels, p.probabilities, strict=True), 1)
        rows += [(p.path, rank, label, f"{value:.6f}", "") for rank, (label, value) in pairs]
        writer.writerows(rows)


def _report(args: Report) -> int:
    from tellapart import workflow

    print(workflow.report(args.run, args.out))
    return 0


def _compare(args: Compare) -> int:
    from tellapart import workflow

    comparison = workflow.compare(args.runs)
    print(_json(comparison.to_dict()) if args.as_json else comparison.to_text())
    return 0


def _check(args: Check) -> int:
    from tellapart import workflow
    from tellapart.data.health import render

    health = workflow.check(args.data_source, spec=args.spec, html=args.html)
    print(_json(health.to_dict()) if args.as_json else render(health))
    if args.html:
        print(f"Page: {args.html}", file=sys.stderr)
    return health.exit_code


def _models(args: Models) -> int:
    from tellapart import workflow

    if args.summary:
        text = workflow.model_summary(args.summary, args.size, args.channels, args.num_classes)
        print(_json({"name": args.summary, "summary": text}) if args.as_json else text)
        return 0
    found = workflow.models(args.pattern)
    if args.as_json:
        print(_json({"models": [dataclasses.asdict(info) for info in found]}))
        return 0
    for info in found:
        size = f"{info.size}px" if info.size else "any size"
        print(f"{info.name:<58}{size:>9}  {info.licence or ''}".rstrip())
    if not found:
        raise UserError(f"No model matches {args.pattern!r}.")
    return 0


def _doctor(args: Doctor) -> int:
    from tellapart import doctor

    report = doctor.examine()
    print(_json(report.to_dict()) if args.as_json else doctor.render(report))
    return 0


def _cache(args: Cache) -> int:
    from tellapart import workflow

    if args.action == "list":
        if args.keys or args.older_than is not None:
            raise UserError("cache list takes no keys and no --older-than; those are for cache clear.")
        found = workflow.cache_list(args.cache_dir)
        entries = [store.to_dict() for store in found]
        print(_json({"stores": entries}) if args.as_json else _cache_text(entries))
        return 0
    if args.older_than is not None and args.older_than < 0:
        raise UserError(f"--older-than is {args.older_than:g}; it must be at least 0 days.")
    cleared = workflow.cache_clear(args.keys, args.older_than, args.cache_dir)
    if args.as_json:
        print(_json(dataclasses.asdict(cleared)))
        return 0
    print(f"Removed {len(cleared.removed)} stores, {cleared.freed / 2**20:,.1f} MiB freed.")
    if cleared.leftovers:
        print(f"Of these, {cleared.leftovers} were leftovers of interrupted builds.")
    for key in cleared.kept:
        print(f"{key} is in use and stays.")
    return 0


def _cache_text(entries: Sequence[dict[str, Any]]) -> str:
    if not entries:
        return "No decoded images are kept."
    lines = [f"{'key':<14}{'MiB':>9}{'images':>9}  {'last use':<17}what"]
    for entry in entries:
        what = f"{entry['source'] or '?'} ({entry['purpose'] or 'unknown purpose'})"
        used = entry["last_use"][:16].replace("T", " ") + ("*" if entry["in_use"] else "")
        images = "?" if entry["images"] is None else f"{entry['images']:,}"
        lines.append(f"{entry['key'][:12]:<14}{entry['bytes'] / 2**20:>9,.1f}{images:>9}  {used:<17}{what}")
        lines.append(f"{'':<14}{entry['path']}")
    total = sum(entry["bytes"] for entry in entries) / 2**30
    lines.append(
        f"{total:,.2f} GiB in all, times in UTC" + (", * in use now" * any(e["in_use"] for e in entries))
    )
    return "\n".join(lines)


def _export(args: Export) -> int:
    from tellapart import workflow

    for path in workflow.export(args.model, args.to, args.out):
        print(path)
    return 0


def _import(args: Import) -> int:
    from tellapart import workflow

    classes = [name.strip() for name in args.classes.split(",")]
    print(workflow.import_weights(args.weights, classes, args.out, args.spec))
    return 0


COMMANDS: dict[str, tuple[type, Callable[[Any], int]]] = {
    "train": (Train, _train),
    "resume": (Resume, _resume),
    "evaluate": (Evaluate, _evaluate),
    "predict": (Predict, _predict),
    "report": (Report, _report),
    "compare": (Compare, _compare),
    "check": (Check, _check),
    "models": (Models, _models),
    "find-lr": (FindLr, _find_lr),
    "cache": (Cache, _cache),
    "export": (Export, _export),
    "import": (Import, _import),
    "doctor": (Doctor, _doctor),
}


def _overview() -> str:
    lines = ["tellapart trains, checks and ships image classifiers.", "", "Commands:"]
    for name, (kind, _) in COMMANDS.items():
        lines.append(f"  {name:<10} {(kind.__doc__ or '').split('. ')[0].split(': ')[0].rstrip('.')}")
    lines += [
        "",
        "tellapart COMMAND --help lists a command's options.",
        "A first run, on the embedded digits: tellapart train",
        "Your own images, in folders by class: tellapart train photos/",
    ]
    return "\n".join(lines)


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Return the value of ``flag`` in argv, which is needed before the rest can be parsed."""
    for place, word in enumerate(argv):
        if word == flag and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def _defaults(kind: type[T], argv: Sequence[str]) -> T | None:
    """Return the default arguments of a command that takes a spec, from --recipe and --spec."""
    recipe, spec_file = _value_of("--recipe", argv), _value_of("--spec", argv)
    if not issubclass(kind, _FromSpec) or not (recipe or spec_file):
        return None
    from tellapart import recipes

    base = recipes.recipe(recipe) if recipe else Spec()
    if spec_file:
        from tellapart import runs

        base = runs.read_spec(spec_file, base)
    return kind(spec=base)


def _check_choices(argv: Sequence[str]) -> None:
    """Answer an impossible word for a field of the spec as YAML's is answered: with the nearest valid one."""
    fields = flatten(Spec())
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or "." not in name or not isinstance(fields.get(name), str):
            continue
        if equals or place + 1 < len(argv):
            update(Spec(), {name: value if equals else argv[place + 1]})


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):  # names of files may be in no encoding that the terminal knows
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"tellapart {tellapart.__version__}")
        return 0
    try:
        return _run(words)
    except TellapartError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader went away; what is left in the buffer must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(
            f"error: {error.filename or ''}: {error.strerror or error}".replace(": :", ":"), file=sys.stderr
        )
        return 1


def _run(words: list[str]) -> int:
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise UserError(f"There is no command {name!r}. {did_you_mean(name, COMMANDS, limit=len(COMMANDS))}")
    kind, call = COMMANDS[name]
    _check_choices(rest)
    default = _defaults(kind, rest)
    options: dict[str, Any] = {} if default is None else {"default": default}
    args = tyro.cli(kind, prog=f"tellapart {name}", args=rest, **options)
    if kind in (Train, FindLr, Resume, Evaluate, Predict, Check):
        with packages.no_collection():
            from tellapart import workflow  # noqa: F401 - loads torch

        gc.freeze()  # later collections need not look through all that was imported
        from tellapart.devices import tune_allocator

        tune_allocator()
    code = call(args)
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
