"""JSON from any source, read strictly: its text, and its values against the types of a dataclass's fields.

Standard library only; knows no field.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any

MOST_TEXT = 64 << 20
MOST_DEPTH = 32
MOST_INT = 2**53  # largest whole number that every JSON reader keeps exactly
MOST_NAME = 1000
MOST_ITEMS = 10_000


class StrictError(ValueError):
    """An invalid text or value; the message says which, and what would be right."""


def parse(text: str) -> Any:
    """Return a JSON text's value, which can be written as JSON in UTF-8 again. Raises StrictError."""
    if len(text) > MOST_TEXT:
        raise StrictError(f"it has more than {MOST_TEXT >> 20} million characters")
    value = read(text)
    _look_through(value)
    return value


def read(text: str, controls: bool = False) -> Any:
    """Return a JSON text's value if it has only one meaning: no key twice, no NaN, no infinity. Raises StrictError.

    ``controls``: take line breaks and tabs inside of strings, which JSON wants escaped.
    """
    try:
        return json.loads(
            text,
            strict=not controls,
            object_pairs_hook=_unique,
            parse_constant=_not_a_number,
            parse_float=_float,
        )
    except RecursionError:
        raise StrictError(f"it is nested deeper than {MOST_DEPTH}") from None
    except StrictError:
        raise
    except json.JSONDecodeError as error:
        raise StrictError(f"it is not JSON: {error}") from None
    except ValueError:  # Python refuses to convert numbers of thousands of digits
        raise StrictError("it has a number of too many digits") from None


def fields(cls: Any, values: Any, where: str) -> dict[str, Any]:
    """Return ``values`` (a JSON object) as a dataclass's arguments, each checked against its annotation.

    Fields without a default must be present, and unknown ones must not. Raises StrictError.
    """
    values = mapping(values, where)
    hints = _hints(cls)
    for key in values:
        if key not in hints:
            raise StrictError(f"{where} has an unknown field {shorten(key)}; known are {', '.join(hints)}")
    result = {}
    for item in dataclasses.fields(cls):
        if item.name in values:
            result[item.name] = conform(values[item.name], hints[item.name], f"{where}.{item.name}")
        elif item.default is item.default_factory is dataclasses.MISSING:
            raise StrictError(f"{where} lacks {item.name!r}")
    return result


def conform(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` if it is of the type ``hint``, a list as a tuple if one is meant. Raises StrictError."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if not any(value == one and type(value) is type(one) for one in args):
            raise StrictError(f"{where} is {shorten(value)}; valid are {', '.join(map(str, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        for one in args:
            try:
                return conform(value, one, where)
            except StrictError as error:
                last = error
        raise last
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) > MOST_ITEMS:
            raise StrictError(f"{where} is {shorten(value)}; it must be a list")
        kinds = [args[0]] * len(value) if args[1:] == (Ellipsis,) else list(args)
        if len(kinds) != len(value):
            raise StrictError(f"{where} is {shorten(value)}; it must have {len(kinds)} values")
        return tuple(conform(one, kind, where) for one, kind in zip(value, kinds, strict=True))
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        raise StrictError(f"{where} is {shorten(value)}; it must be {_WORDS.get(hint, str(hint))}")
    if hint is str and len(value) > MOST_NAME:
        raise StrictError(f"{where} has {len(value)} characters; it must have at most {MOST_NAME}")
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object. Raises StrictError."""
    if not isinstance(value, dict):
        raise StrictError(f"{where} is {shorten(value)}; it must be an object of values by name")
    return value


def shorten(value: Any) -> str:
    """Return a value for a message: short, in ASCII."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise StrictError("it has a field twice")
    return found


def _not_a_number(word: str) -> Any:
    raise StrictError(f"it has {word}, which is not a number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise StrictError(f"it has {text[:20]}, which is too large a number")
    return value


def _look_through(value: Any) -> None:
    """Raise StrictError for anything in a value that cannot be written as text, or that readers do not accept."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_DEPTH:
            raise StrictError(f"it is nested deeper than {MOST_DEPTH}")
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                below += one.keys()
                below += one.values()
            elif isinstance(one, list):
                below += one
            elif isinstance(one, str):
                try:
                    one.encode("utf-8")
                except UnicodeEncodeError:
                    raise StrictError(f"it has a text that is not Unicode, {shorten(one)}") from None
            elif isinstance(one, int) and abs(one) > MOST_INT:
                raise StrictError("it has a whole number above 2**53")
        level = below
