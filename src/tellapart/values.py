"""How values that are typed are called in help and errors: TEXT, not STR, and a value that may be None by itself.

tyro calls an optional number ``{None}|FLOAT``, and where one is mistyped it says twice what is wrong. The word None
is taken all the same. Loads no torch.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any

from tyro import constructors
from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo

_NONE = ["None"]


@functools.cache
def named() -> constructors.ConstructorRegistry:
    """Return the rules, for ``tyro.cli(registry=…)``."""
    registry = constructors.ConstructorRegistry()
    registry.primitive_rule(_text)
    registry.primitive_rule(_optional)
    return registry


def _text(about: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
    if about.type is not str:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="TEXT",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


def _optional(about: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Return how ``X | None`` is read; None if it is another type, or X is a choice of words (tyro shows them)."""
    parts = typing.get_args(about.type)
    if typing.get_origin(about.type) not in (types.UnionType, typing.Union) or type(None) not in parts:
        return None
    others = [part for part in parts if part is not type(None)]
    if len(others) != 1:
        return None
    inner = constructors.ConstructorRegistry.get_primitive_spec(
        PrimitiveTypeInfo.make(others[0], about.markers)
    )
    if not isinstance(inner, PrimitiveConstructorSpec) or inner.choices is not None:
        return None
    count = inner.nargs

    def read(words: list[str]) -> Any:
        if words == _NONE:
            return None
        if isinstance(count, int) and len(words) != count:
            raise ValueError(f"{count} values are expected, not {len(words)}")
        return inner.instance_from_str(words)

    return PrimitiveConstructorSpec(
        nargs=(1, count) if isinstance(count, int) and count > 1 else count,
        metavar=inner.metavar.strip("{}"),
        instance_from_str=read,
        is_instance=lambda value: value is None or inner.is_instance(value),
        str_from_instance=lambda value: _NONE if value is None else inner.str_from_instance(value),
    )
