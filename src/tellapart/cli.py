"""The command line: argv -> spec -> one call.

Loads no torch until a command needs it, so that ``--help`` and mistakes are answered at once. Results go to
standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 the input must change,
128 + n stopped by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import dataclasses
import gc
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

import tellapart
from tellapart import packages, printing, references, values
from tellapart.commands import (
    Cache,
    Check,
    Compare,
    Compress,
    Doctor,
    Evaluate,
    Export,
    FindLr,
    FromSpec,
    Import,
    Models,
    Predict,
    Report,
    Resume,
    Serve,
    Train,
)
from tellapart.errors import SpecError, Stopped, TellapartError, UserError, did_you_mean, shown
from tellapart.sections import choices
from tellapart.spec import Spec, flatten, own_names, update

if TYPE_CHECKING:
    from tellapart.workflow import Result

T = TypeVar("T")


def _train(args: Train) -> int:
    from tellapart import workflow

    asked: dict[str, Any] = {"recipe": args.recipe, "spec": args.spec, "profile": args.profile}
    if args.folds and args.repeat:
        raise SpecError("--folds and --repeat cannot be combined: give one of them.")
    if args.folds:
        result: Result = workflow.cross_validate(args.data_source, folds=args.folds, **asked)
    elif args.repeat:
        result = workflow.repeat(args.data_source, times=args.repeat, **asked)
    else:
        result = workflow.train(args.data_source, **asked)
    return _print_result(result, args.as_json)


def _resume(args: Resume) -> int:
    from tellapart import workflow

    return _print_result(workflow.resume(args.run, **args.changes), args.as_json)


def _print_result(result: Result, as_json: bool) -> int:
    from tellapart import workflow

    if int(os.environ.get("RANK", "0")):
        return 0
    if as_json:
        content: dict[str, Any] = {
            "run": str(result.run),
            "artifact": str(result.artifact),
            "split": result.split,
            "metrics": dict(result.metrics),
            "interrupted": result.interrupted,
        }
        if isinstance(result, workflow.Series):
            del content["artifact"]
            names = ("kind", "count", "runs", "summary", "test")
            content |= {name: getattr(result, name) for name in names}
        print(printing.as_json_line(content))
    elif not result.interrupted:
        print(
            printing.series_summary(result)
            if isinstance(result, workflow.Series)
            else printing.summary(result)
        )
    return 128 + (result.signal or signal.SIGINT) if result.interrupted else 0


def _find_lr(args: FindLr) -> int:
    from tellapart import workflow

    curve = workflow.find_lr(args.data_source, spec=args.spec, steps=args.steps)
    if args.as_json:
        print(printing.as_json_line(dataclasses.asdict(curve)))
        return 0
    print(f"{'lr':>10}  loss")
    every = max(1, len(curve.lrs) // 20)
    for lr, loss in list(zip(curve.lrs, curve.losses, strict=True))[::every]:
        print(f"{lr:10.2e}  {loss:.4f}")
    if curve.suggestion is None:
        print(
            f"Found no reliable learning rate, so there is no suggestion: {curve.doubt}. Try more --steps, a larger "
            "--training.batch-size, or weights that still have something to learn."
        )
        return 1
    print(f"Suggestion: --training.lr {curve.suggestion:.2g}")
    return 0


def _evaluate(args: Evaluate) -> int:
    from tellapart import workflow

    names = ("format", "boxes", "encoding", "path_column", "label_column", "split_column", "root", "suffix")
    changes: dict[str, Any] = {name: getattr(args, name) for name in names} if args.source else {}
    evaluation = workflow.evaluate(
        args.model,
        args.source,
        split=args.split,
        out=args.out,
        device=args.device,
        precision=args.precision,
        trust=args.trust,
        epoch=args.epoch,
        **changes,
    )
    if args.as_json:
        print(printing.as_json_line(evaluation.to_dict()))
    else:
        print(printing.evaluation_text(evaluation))
    return 0


def _predict(args: Predict) -> int:
    from tellapart.predict import Features, check_features_file, expand, load

    if args.top < 1:
        raise SpecError(f"--top is {args.top}; it must be at least 1.")
    if not args.images:
        raise UserError("No images given: name IMAGE… (files, folders, patterns, or - for standard input).")
    if args.features:
        check_features_file(args.features)
    images = list(expand(args.images, args.urls))
    classifier = load(args.model, args.device, args.trust)
    kept = Features() if args.features else None
    write = {"table": printing.write_table, "jsonl": printing.write_jsonl, "csv": printing.write_csv}[
        args.format
    ]
    failed = 0

    def counted() -> Any:
        nonlocal failed
        for prediction in classifier.stream(images, args.top, lambda: sys.stdin.buffer, kept):
            failed += bool(prediction.error)
            yield prediction

    write(counted(), sys.stdout)
    if kept is not None:
        kept.write(args.features, classifier.classes)
    if failed:
        print(f"{failed} of {len(images)} images could not be read.", file=sys.stderr)
    return 1 if failed else 0


def _report(args: Report) -> int:
    from tellapart import workflow

    print(workflow.report(args.run, args.out))
    return 0


def _compare(args: Compare) -> int:
    from tellapart import workflow

    if len(args.runs) < 2:
        raise UserError("A comparison needs two run folders or more: give RUN RUN….")
    comparison = workflow.compare(args.runs)
    print(printing.as_json_line(comparison.to_dict()) if args.as_json else shown(comparison.to_text()))
    return 0


def _check(args: Check) -> int:
    from tellapart import workflow
    from tellapart.data.health import render

    health = workflow.check(args.data_source, spec=args.spec, html=args.html)
    print(printing.as_json_line(health.to_dict()) if args.as_json else shown(render(health)))
    if args.html:
        print(f"Page: {args.html}", file=sys.stderr)
    return health.exit_code


def _models(args: Models) -> int:
    from tellapart import workflow

    if args.summary:
        text = workflow.models(
            summary=args.summary, size=args.size, channels=args.channels, num_classes=args.num_classes
        )
        print(printing.as_json_line({"name": args.summary, "summary": text}) if args.as_json else text)
        return 0
    found = workflow.models(args.pattern)
    if args.as_json:
        print(printing.as_json_line({"models": [dataclasses.asdict(info) for info in found]}))
        return 0
    if not found:
        raise UserError(f"No model matches {args.pattern!r}.")
    print(printing.models_text(found))
    print(printing.MODELS_NOTE, file=sys.stderr)
    return 0


def _doctor(args: Doctor) -> int:
    from tellapart.doctor import examine, render

    report = examine()
    print(printing.as_json_line(report.to_dict()) if args.as_json else render(report))
    return 0


def _cache(args: Cache) -> int:
    from tellapart import workflow

    if args.action == "list":
        found = workflow.cache("list", args.keys, older_than=args.older_than, cache_dir=args.cache_dir)
        entries = [store.to_dict() for store in found]
        print(printing.as_json_line({"stores": entries}) if args.as_json else printing.cache_text(entries))
        return 0
    cleared = workflow.cache("clear", args.keys, older_than=args.older_than, cache_dir=args.cache_dir)
    if args.as_json:
        print(printing.as_json_line(dataclasses.asdict(cleared)))
        return 0
    count = sum(key != "measured" for key in cleared.removed)
    what = f"{count} stores" + " and what was measured" * ("measured" in cleared.removed)
    print(f"Removed {what}, {cleared.freed / 2**20:,.1f} MiB freed.")
    if cleared.leftovers:
        print(f"Of these, {cleared.leftovers} were leftovers of interrupted builds.")
    for key in cleared.kept:
        print(f"{key} is in use and stays.")
    return 0


def _export(args: Export) -> int:
    from tellapart import workflow

    done = workflow.export(
        args.model,
        args.to,
        args.out,
        precision=args.precision,
        plain=args.plain,
        features=args.features,
        batch=args.batch,
        opset=args.opset,
        env=args.env,
        data=args.data,
        split=args.split,
        images=args.images,
        threads=args.threads,
        device=args.device,
    )
    print(printing.as_json_line(done.to_dict()) if args.as_json else shown(done.to_text()))
    return 0 if done.passed else 1


def _serve(args: Serve) -> int:
    from tellapart.serve import by_name, serve  # not by way of workflow, which loads torch

    def ready(where: dict[str, Any]) -> None:
        if args.as_json:
            print(printing.as_json_line(where), flush=True)

    serve(by_name(args.path, args.models), args.options, ready=ready)
    return 0


def _compress(args: Compress) -> int:
    from tellapart import workflow

    comparison = workflow.compress(
        args.model,
        args.data_source,
        method=args.method,
        out=args.out,
        ratio=args.ratio,
        rounds=args.rounds,
        epochs=args.epochs,
        student=args.student,
        alone=args.alone,
        images=args.images,
        max_drop=args.max_drop,
        reduce_range=args.reduce_range,
        runtime=args.runtime,
        threads=args.threads,
        spec=args.spec_file,
    )
    print(printing.as_json_line(comparison.to_dict()) if args.as_json else shown(comparison.to_text()))
    return 0


def _import(args: Import) -> int:
    from tellapart import workflow

    print(workflow.import_weights(args.weights, args.out, classes=args.classes, spec=args.spec))
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
    "compress": (Compress, _compress),
    "export": (Export, _export),
    "serve": (Serve, _serve),
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
        "A first run, on the built-in digits: tellapart train",
        "Your own images, one folder per class: tellapart train photos/",
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
    if not issubclass(kind, FromSpec) or not (recipe or spec_file):
        return None
    from tellapart import recipes

    base = recipes.recipe(recipe) if recipe else Spec()
    if spec_file:
        from tellapart import runs

        base = runs.read_spec(spec_file, base)
    return kind(spec=base)


def _trusted(argv: Sequence[str]) -> list[str]:
    """Take ``--trust PACKAGE`` as consent to import it, and leave it out; ``--trust`` alone is the command's own."""
    left, words = [], list(argv)
    while words:
        word = words.pop(0)
        flag, equals, package = word.partition("=")
        if flag != "--trust" or package.lower() in ("true", "false"):
            left.append(word)
        elif equals:
            references.trust(package)
        elif words and references.is_package(words[0]):
            references.trust(words.pop(0))
        else:
            left.append(word)
    return left


def _check_code(args: Any, default: Any, argv: Sequence[str]) -> None:
    """Ask for consent to import what a file given by --spec names. Raises ArtifactError."""
    file = _value_of("--spec", argv)
    if default is not None and file and isinstance(args, FromSpec):
        for kind, name in own_names(args.spec):
            if (kind, name) in own_names(default.spec):
                references.require(name, file, kind)


def _check_choices(argv: Sequence[str]) -> None:
    """Answer an impossible word for a field of the spec as YAML's is answered: with the nearest valid one."""
    fields = choices(Spec())
    for place, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in fields:
            continue
        # None too, where it may be
        if (value if equals else "".join(argv[place + 1 : place + 2])) in fields[name]:
            continue
        if equals or place + 1 < len(argv):
            update(Spec(), {name: value if equals else argv[place + 1]})


def _refuse_fixed(argv: Sequence[str]) -> None:
    """Say that a run cannot be resumed with another value of a field of the spec, and why."""
    fields = flatten(Spec())
    for word in argv:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_").replace(".no_", ".")
        if word.startswith("--") and name in fields:
            from tellapart.workflow import extending

            extending.refuse(name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed()
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
        print(shown(f"error: {error}"), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stopped:
        print(stopped if isinstance(stopped, Stopped) else "interrupted", file=sys.stderr)
        return 128 + (stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        print(
            "error: this command needs torch, which is not installed; type: pip install torch",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # the reader went away
        _drop_output()
        return 1
    except _OutputError as error:
        return _without_output(error)
    except OSError as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        if error.filename is None and last is not None and last.tb_frame.f_code.co_filename == __file__:
            return _without_output(_OutputError(error.strerror or str(error)))  # it was print that failed
        print(
            shown(f"error: {error.filename or ''}: {error.strerror or error}".replace(": :", ":")),
            file=sys.stderr,
        )
        return 1


class _OutputError(Exception):
    """Standard output cannot be written, for another reason than a closed pipe."""


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _OutputError(error.strerror or str(error)) from error


def _without_output(error: Exception) -> int:
    _drop_output()
    print(f"error: Standard output cannot be written: {error}.", file=sys.stderr)
    return 1


def _drop_output() -> None:
    """Let what is left in the buffer of standard output go nowhere: it must not fail at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed() -> None:
    """Open what a caller has closed of standard input, output and error (``>&-``): no file may get their numbers."""
    for number, name, flags in (
        (0, "stdin", os.O_RDONLY),
        (1, "stdout", os.O_WRONLY),
        (2, "stderr", os.O_WRONLY),
    ):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115 - until the end


def _computes(args: Any) -> bool:
    """Return whether a command needs torch for its work."""
    if isinstance(args, Predict):
        from tellapart import runtime

        return not runtime.is_export(args.model)
    return isinstance(args, (Train, FindLr, Resume, Evaluate, Check, Compress, Export))


def _run(words: list[str]) -> int:
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise UserError(f"There is no command {name!r}. {did_you_mean(name, COMMANDS, limit=len(COMMANDS))}")
    kind, call = COMMANDS[name]
    rest = _trusted(rest)
    _check_choices(rest)
    if kind is Resume:
        _refuse_fixed(rest)
    default = _defaults(kind, rest)
    options: dict[str, Any] = {} if default is None else {"default": default}
    args = tyro.cli(kind, prog=f"tellapart {name}", args=rest, registry=values.named(), **options)
    _check_code(args, default, rest)
    if _computes(args):
        with packages.no_collection():
            from tellapart import workflow  # noqa: F401 - loads torch

        gc.freeze()  # later collections need not look through all that was imported
        from tellapart.devices import tune_allocator

        tune_allocator()
        from tellapart.training.interrupt import stop_on_signals

        stop_on_signals()
    code = call(args)
    _flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
