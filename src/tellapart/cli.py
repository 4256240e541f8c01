"""The command line: argv -> spec -> one call.

Loads no torch until a command needs it, so that ``--help`` and mistakes are answered at once. Results go to
standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 the input must change,
128 + n stopped by signal n (130: Ctrl-C).
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import tyro

import tellapart
from tellapart import actions, clock, packages, printing, typed, values
from tellapart.actions import COMMANDS
from tellapart.commands import Check, Compress, Evaluate, Export, FindLr, Predict, Resume, Train
from tellapart.errors import Stopped, TellapartError, UserError, did_you_mean, shown

_PRINTING = {__file__, actions.__file__, printing.__file__}


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
        return _run(words, clock.process_began() if argv is None else clock.now())
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
        if error.filename is None and last is not None and last.tb_frame.f_code.co_filename in _PRINTING:
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


def _run(words: list[str], began: float) -> int:
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        raise UserError(f"There is no command {name!r}. {did_you_mean(name, COMMANDS, limit=len(COMMANDS))}")
    kind, call = COMMANDS[name]
    rest = typed.in_seconds(typed.trusted(rest))
    typed.check_choices(rest)
    if kind is Resume:
        typed.refuse_fixed(rest)
    default = typed.defaults(kind, rest)
    options: dict[str, Any] = {} if default is None else {"default": default}
    args = tyro.cli(kind, prog=f"tellapart {name}", args=rest, registry=values.named(), **options)
    typed.check_code(args, default, rest)
    if _computes(args):
        with packages.no_collection():
            from tellapart import workflow  # noqa: F401 - loads torch

        gc.freeze()  # later collections need not look through all that was imported
        from tellapart.devices import tune_allocator

        tune_allocator()
        from tellapart.training.interrupt import stop_on_signals

        stop_on_signals()
    with clock.since(began):
        code = call(args)
    _flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
