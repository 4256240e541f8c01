"""What each command does: its arguments in, one call, the result printed, an exit code out.

Loads no torch until a command needs it. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tellapart import printing
from tellapart.commands import (
    Cache,
    Check,
    Compare,
    Compress,
    Doctor,
    Evaluate,
    Export,
    FindLr,
    Import,
    Models,
    Predict,
    Report,
    Resume,
    Serve,
    Train,
)
from tellapart.errors import SpecError, UserError, shown
from tellapart.spec import Spec

if TYPE_CHECKING:
    from tellapart.workflow import Result


def _train(args: Train) -> int:
    from tellapart import workflow

    names = ("recipe", "spec", "verbose", "profile")
    asked: dict[str, Any] = {name: getattr(args, name) for name in names}
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
            "advice": result.advice.to_dict() if result.advice else None,
        }
        if result.time:
            content["time"] = dict(result.time)
        if isinstance(result, workflow.Series):
            del content["artifact"], content["advice"]
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

    columns = ("path_column", "label_column", "split_column", "root", "suffix")
    names = ("format", "boxes", "encoding", "levels", *columns)
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
    from tellapart.contract.levels import above
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
    levels = len(above(classifier.classes, classifier.card.levels))
    write_csv = functools.partial(printing.write_csv, grades=classifier.card.ordered, levels=levels)
    writers: dict[str, Callable[..., None]] = {"table": printing.write_table, "jsonl": printing.write_jsonl}
    write = writers.get(args.format, write_csv)
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

    if args.for_data is not None or args.spec != Spec():
        return _candidates(args)
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


def _candidates(args: Models) -> int:
    from tellapart import workflow

    if args.summary and args.for_data is not None:
        raise SpecError("--summary and --for cannot be combined: give one of them.")
    spec = dataclasses.replace(args.spec, time_limit=0.0)
    limit = args.spec.time_limit or ""
    found = workflow.models(args.pattern, for_data=args.for_data, time_limit=limit, spec=spec)
    print(printing.as_json_line(found.to_dict()) if args.as_json else shown(printing.candidates_text(found)))
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
