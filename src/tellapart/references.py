"""Code that is not tellapart's: names such as ``my_package.my_module:build``, objects given in Python, and consent.

Importing code runs it. So a name is imported only if the user gave it (``allow``), trusts its package, or gave it
on this machine before (``remember``); a file's own word is never enough. An object that is given in Python needs no
import: a spec has its name if it can be imported, otherwise ``object:NAME``, and whoever opens the file passes the
object again (`providing`). Knows nothing of what the code is for. Loads no torch.
"""

from __future__ import annotations

import ast
import contextlib
import contextvars
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tellapart import packages, places
from tellapart.errors import ArtifactError, SpecError, UserError, did_you_mean

MARK = "object:"
Trust = bool | str | Sequence[str]
"""True: whatever the file names; otherwise the packages that may be imported."""
KINDS = {
    "model": "network",
    "loss": "loss",
    "transform": "augmentation",
    "metrics": "metric",
    "optimizer": "optimizer",
    "schedule": "schedule",
}
_WORD = r"[^\W\d]\w*"
_GIVEN = {"transform": 'augment={"transform": …}'}
_REFERENCE = re.compile(rf"{_WORD}(\.{_WORD})*:{_WORD}(\.{_WORD})*")
_DOTTED = re.compile(rf"{_WORD}(\.{_WORD})*")

_allowed: set[str] = set()  # names and packages, for this process
_NOTHING: Mapping[tuple[str, str], Any] = types.MappingProxyType({})
_provided: contextvars.ContextVar[Mapping[tuple[str, str], Any]] = contextvars.ContextVar(
    "provided", default=_NOTHING
)


def is_object(name: str) -> bool:
    """Return whether ``name`` stands for a Python object that no file can name."""
    return name.startswith(MARK)


def is_reference(name: str) -> bool:
    """Return whether ``name`` is of the form module:function."""
    return not is_object(name) and _REFERENCE.fullmatch(name) is not None


def is_own(name: str) -> bool:
    """Return whether ``name`` stands for code that is not tellapart's."""
    return is_object(name) or is_reference(name)


def what(kind: str) -> str:
    """Return what a kind of code is called; a metric's kind is ``metrics.NAME``."""
    return KINDS[kind.partition(".")[0]]


def as_given(kind: str) -> str:
    """Return how an object is given in Python."""
    if kind.startswith("metrics."):
        return f'metrics={{"{kind.partition(".")[2]}": …}}'
    return _GIVEN.get(kind, f"{kind}=…")


def package_of(name: str) -> str:
    """Return the package that a name is imported from: ``my_package`` of ``my_package.my_module:build``."""
    return name.partition(":")[0].partition(".")[0]


def name_of(thing: Any) -> str:
    """Return the name by which a function or class can be imported, otherwise ``object:NAME``."""
    module, qualified = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if isinstance(module, str) and isinstance(qualified, str) and module != "__main__":
        found: Any = sys.modules.get(module)
        for part in qualified.split("."):
            found = getattr(found, part, None)
        if found is thing and is_reference(f"{module}:{qualified}"):
            return f"{module}:{qualified}"
    function = getattr(thing, "func", thing)  # of a functools.partial
    bare = getattr(function, "__name__", None) or type(thing).__name__
    return MARK + (re.sub(r"\W+", "", bare) or "function")


# Consent


def allow(*names: str) -> None:
    """A person gave these names, or trusts these packages: they may be imported in this process."""
    _allowed.update(names)


def allowed() -> tuple[str, ...]:
    """Return what was allowed so far."""
    return tuple(sorted(_allowed))


def trust(given: Trust, *names: str) -> None:
    """Allow what ``trust=`` of a Python call says; ``names``: what the file names. Raises SpecError."""
    if given is True:
        allow(*names)
    elif given:
        packages = (given,) if isinstance(given, str) else tuple(given)
        for package in packages:
            if not _DOTTED.fullmatch(package):
                raise SpecError(
                    f"trust is {package!r}; it must be True or a package's name, such as my_package."
                )
        allow(*packages)


def _may(name: str) -> bool:
    module = name.partition(":")[0].split(".")
    above = {".".join(module[:end]) for end in range(1, len(module) + 1)}
    return name in _allowed or not _allowed.isdisjoint(above) or _line(name) in _remembered()


def require(name: str, where: str, kind: str = "model") -> None:
    """Raise ArtifactError where ``name``, which ``where`` names, may not be imported."""
    if _may(name):
        return
    package = package_of(name)
    instead = f", or the {what(kind)} itself: {kind}=…" if kind in ("model", "loss") else ""
    raise ArtifactError(
        f"{where} is not opened: its {what(kind)} is {name}, and to import that would run "
        f"{_origin(package) or 'a package that is not installed here'}. If you trust that code, give --trust {package} "
        f'(in Python: trust="{package}"{instead}).'
    )


def _record_file() -> Path:
    return places.data_folder() / "own-code.sha256"


def _line(name: str) -> str:
    """Return what is noted of a name: the hash of it and of the file that its package is."""
    return hashlib.sha256(f"{name} {_origin(package_of(name))}".encode()).hexdigest()


def _remembered() -> set[str]:
    try:
        return {line[:64] for line in _record_file().read_text("ascii", "replace").splitlines()}
    except OSError:
        return set()


def remember(name: str) -> None:
    """Record that the user gave this name, so that files with it can be opened on this machine."""
    line = _line(name)
    if line in _remembered():
        return
    notes = _record_file()
    with contextlib.suppress(OSError):  # then it is asked for
        notes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, f"{line} {name}\n".encode("ascii", "replace"))
        finally:
            os.close(handle)


@contextlib.contextmanager
def _working_folder() -> Iterator[None]:
    """Let modules of the working folder be found, after all others."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _origin(package: str) -> str:
    """Return the file that importing a package would run, without importing it; "" if there is none."""
    with _working_folder():
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError, AttributeError):
            loaded = sys.modules.get(package)
            return os.path.realpath(getattr(loaded, "__file__", None) or "") if loaded else ""
    if found is None:
        return ""
    places = [*(found.submodule_search_locations or ())]
    return os.path.realpath(found.origin if found.origin and found.has_location else (places or [""])[0])


def is_package(word: str) -> bool:
    """Return whether a word of the command line is the name of a module or package that can be imported here."""
    if not _DOTTED.fullmatch(word):
        return False
    with _working_folder():
        try:
            found = importlib.util.find_spec(word.partition(".")[0])
        except (ImportError, ValueError):
            return False
    return found is not None and found.origin is not None


# Loading


def entry_points(group: str) -> dict[str, str]:
    """Return what installed packages offer under ``tellapart.models`` or ``tellapart.losses``, by name."""
    return {
        entry.name: f"{entry.module}:{entry.attr}"
        for entry in importlib.metadata.entry_points(group=f"tellapart.{group}")
    }


def load(name: str, kind: str, where: str) -> Any:
    """Return what ``name`` stands for: the object that was given, or what is imported.

    ``where`` names it, for messages. Raises ArtifactError without consent, UserError if it cannot be imported.
    """
    provided = _provided.get()
    if (kind, name) in provided:
        return provided[kind, name]
    if is_object(name):
        raise UserError(
            f"{where} was made with a {what(kind)} of your own, {name.removeprefix(MARK)}, that has no name by which "
            f"it could be imported. Give it again, in Python: {as_given(kind)}"
        )
    require(name, where, kind)
    return _imported(name)


def _imported(name: str) -> Any:
    module_name, _, path = name.partition(":")
    packages.prepare_torchvision()
    with _working_folder():
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not (
                module_name == error.name or module_name.startswith(f"{error.name}.")
            ):
                raise UserError(f"{module_name} cannot be imported: it needs {error.name}.") from error
            raise UserError(
                f"There is no module {error.name} for {name}; it must be installed, on PYTHONPATH, or in the working "
                "folder."
            ) from None
        except Exception as error:
            raise UserError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            valid = (
                [word for word in vars(found) if not word.startswith("_")]
                if hasattr(found, "__dict__")
                else []
            )
            raise UserError(f"{module_name} has no {path!r}. {did_you_mean(part, valid, 10)}")
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def providing(things: Mapping[tuple[str, str], Any]) -> Iterator[None]:
    """Let names stand for these objects inside the block; a key is (kind, name)."""
    before = _provided.set({**_provided.get(), **things})
    try:
        yield
    finally:
        _provided.reset(before)


def is_provided(kind: str, name: str) -> bool:
    """Return whether a name stands for an object that was given."""
    return (kind, name) in _provided.get()


# Arguments


def arguments(given: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Return arguments as a spec keeps them: ``("width=64", "act=gelu")``. Raises SpecError."""
    if isinstance(given, Mapping):
        try:
            given = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        except TypeError as error:
            raise SpecError(f"arguments must be plain values, as JSON has them: {error}.") from None
    for text in given:
        key, equals, _ = text.partition("=")
        if not equals or not key.isidentifier():
            raise SpecError(f"The argument {text!r} must be NAME=VALUE, such as width=64.")
    return tuple(given)


def keywords(given: Sequence[str]) -> dict[str, Any]:
    """Return arguments as Python takes them; a value is JSON or a Python literal, otherwise text."""
    return {key: _value(text) for key, _, text in (one.partition("=") for one in given)}


def _value(text: str) -> Any:
    readers: tuple[Callable[[str], Any], ...] = (json.loads, ast.literal_eval)
    for read in readers:
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return read(text)
    return text


def called(what: Callable[..., Any], given: Sequence[str], name: str, *positional: Any, **named: Any) -> Any:
    """Call the user's own code; what it raises becomes a UserError that says where."""
    try:
        return what(*positional, **named, **keywords(given))
    except UserError:
        raise
    except Exception as error:
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        place = f" ({last.tb_frame.f_code.co_filename}, line {last.tb_lineno})" if last else ""
        raise UserError(f"{name} raised {type(error).__name__}: {error}{place}") from error


def bound(what: Any, given: Sequence[str]) -> Any:
    """Return a function with its arguments filled in; unchanged if there are none."""
    return functools.partial(what, **keywords(given)) if given else what
