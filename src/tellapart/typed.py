"""The words of a command line before they are parsed: what decides how to parse them, and better errors.

Loads no torch. Knows nothing of what a command does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from tellapart import clock, references
from tellapart.commands import FromSpec
from tellapart.sections import choices, durations
from tellapart.spec import Spec, flatten, own_names, update

T = TypeVar("T")


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Return the value of ``flag`` in argv, which is needed before the rest can be parsed."""
    for place, word in enumerate(argv):
        if word == flag and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None


def defaults(kind: type[T], argv: Sequence[str]) -> T | None:
    """Return the default arguments of a command that takes a spec, from --recipe and --spec."""
    recipe, spec_file = value_of("--recipe", argv), value_of("--spec", argv)
    if not issubclass(kind, FromSpec) or not (recipe or spec_file):
        return None
    from tellapart import recipes

    base = recipes.recipe(recipe) if recipe else Spec()
    if spec_file:
        from tellapart import runs

        base = runs.read_spec(spec_file, base)
    return kind(spec=base)


def trusted(argv: Sequence[str]) -> list[str]:
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


def in_seconds(argv: Sequence[str]) -> list[str]:
    """Write durations as seconds, which the parser reads: ``--time-limit 10m``. Raises SpecError."""
    fields, words = durations(Spec()), list(argv)
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in fields:
            continue
        if equals:
            words[place] = f"{flag}={clock.seconds(value, flag)!r}"
        elif place + 1 < len(words) and not words[place + 1].startswith("--"):
            words[place + 1] = repr(clock.seconds(words[place + 1], flag))
    return words


def check_code(args: Any, default: Any, argv: Sequence[str]) -> None:
    """Ask for consent to import what a file given by --spec names. Raises ArtifactError."""
    file = value_of("--spec", argv)
    if default is not None and file and isinstance(args, FromSpec):
        for kind, name in own_names(args.spec):
            if (kind, name) in own_names(default.spec):
                references.require(name, file, kind)


def check_choices(argv: Sequence[str]) -> None:
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


def refuse_fixed(argv: Sequence[str]) -> None:
    """Say that a run cannot be resumed with another value of a field of the spec, and why."""
    fields = flatten(Spec())
    for word in argv:
        name = word.partition("=")[0].removeprefix("--").replace("-", "_").replace(".no_", ".")
        if word.startswith("--") and name in fields:
            from tellapart.workflow import extending

            extending.refuse(name)
