"""Sections of a spec: frozen dataclasses that check each value against its annotation, and what is done with them.

Standard library only, so that ``--help`` and validation are instant. Knows no field: `spec` lists those.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from tellapart import clock, references
from tellapart.errors import SpecError, did_you_mean

S = TypeVar("S", bound="Section")


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number; ``above`` makes the lower one exclusive."""

    low: float | None = None
    high: float | None = None
    above: bool = False

    def problem(self, value: float) -> str | None:
        """Return what is wrong with ``value``, or None."""
        if self.low is not None and (value < self.low or (self.above and value == self.low)):
            return f"must be {'above' if self.above else 'at least'} {self.low:g}"
        if self.high is not None and value > self.high:
            return f"must be at most {self.high:g}"
        return None


@dataclass(frozen=True)
class Words:
    """The allowed words, besides the name of own code; ``group``: of packages' entry points."""

    words: tuple[str, ...]
    group: str = ""

    def check(self, value: str, name: str) -> None:
        """Raise SpecError for another word."""
        if value in self.words or references.is_own(value):
            return
        offered = list(references.entry_points(self.group)) if self.group else []
        if value not in offered:
            valid = [*self.words, *offered]
            raise SpecError(
                f"{name} is {value!r}. {did_you_mean(value, valid, meant=meant(value, valid))} Your own: "
                "my_package.my_module:function."
            )


@dataclass(frozen=True)
class Seconds(Range):
    """Bounds of a number of seconds, which may also be written as a duration: 90s, 10m, 1h30m."""


Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Count = Annotated[int, Range(1)]
CountOrZero = Annotated[int, Range(0)]
Duration = Annotated[float, Seconds(0)]


# What other programs call the choices here: torch, torchvision, scikit-learn, Keras, Lightning; in small letters and
# without hyphens. A name counts for each field that has the choice.
_ELSEWHERE = {
    "categoricalcrossentropy": "cross-entropy",
    "ce": "cross-entropy",
    "celoss": "cross-entropy",
    "crossentropyloss": "cross-entropy",
    "softmaxcrossentropy": "cross-entropy",
    "sparsecategoricalcrossentropy": "cross-entropy",
    "bcewithlogits": "bce",
    "bcewithlogitsloss": "bce",
    "binarycrossentropy": "bce",
    "binarycrossentropywithlogits": "bce",
    "multilabelsoftmarginloss": "bce",
    "asl": "asymmetric",
    "asymmetricloss": "asymmetric",
    "map": "mAP",
    "meanaverageprecision": "mAP",
    "focalloss": "focal",
    "sigmoidfocalloss": "focal",
    "constantlr": "constant",
    "fixed": "constant",
    "none": "constant",
    "cosineannealing": "cosine",
    "cosineannealinglr": "cosine",
    "cosineannealingwarmrestarts": "cosine",
    "cosinedecay": "cosine",
    "cosinelrscheduler": "cosine",
    "steplr": "step",
    "multisteplr": "multi-step",
    "piecewiseconstantdecay": "multi-step",
    "linearlr": "linear",
    "onecycle": "one-cycle",
    "onecyclelr": "one-cycle",
    "1cycle": "one-cycle",
    "plateaulr": "plateau",
    "reducelronplateau": "plateau",
    "balanced": "inverse",
    "inversefrequency": "inverse",
    "effectivenumber": "effective",
    "classbalanced": "effective",
    "randomoversampler": "oversample",
    "oversampling": "oversample",
    "randomundersampler": "undersample",
    "undersampling": "undersample",
    "weightedrandomsampler": "weighted",
    "randomsampler": "shuffle",
    "acc": "accuracy",
    "top1": "accuracy",
    "valacc": "accuracy",
    "valaccuracy": "accuracy",
    "f1": "macro-f1",
    "f1macro": "macro-f1",
    "f1score": "macro-f1",
    "uar": "balanced-accuracy",
    "balancedaccuracyscore": "balanced-accuracy",
    "valloss": "loss",
    "float32": "fp32",
    "float": "fp32",
    "32": "fp32",
    "32true": "fp32",
    "bfloat16": "bf16",
    "bf16mixed": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "16": "fp16",
    "16mixed": "fp16",
    "amp": "auto",
    "mixed": "auto",
    "linearprobe": "head",
    "frozen": "head",
    "all": "full",
    "gradual": "staged",
    "interpolationmode.bilinear": "bilinear",
    "interpolationmode.bicubic": "bicubic",
    "centercrop": "crop",
    "centrecrop": "crop",
    "pad": "letterbox",
    "stretch": "squash",
    "randomcrop": "pad",
    "randomresizedcrop": "resized",
    "reflection": "reflect",
    "black": "zeros",
    "trivialaugmentwide": "trivialaugment",
    "imagefolder": "folder",
    "csv": "list",
    "tsv": "list",
    "jsonl": "list",
    "pascalvoc": "voc",
    "labelimg": "voc",
    "cocojson": "coco",
    "multiprocessing": "processes",
    "multithreading": "threads",
    "true": "on",
    "yes": "on",
    "false": "off",
    "no": "off",
}


def meant(value: Any, valid: list[str]) -> list[str]:
    """Return the choice that another program calls ``value``, if there is one."""
    word = "".join(letter for letter in str(value).casefold() if letter not in "-_ ")
    word = word.removeprefix("torch.").removeprefix("optim.").removeprefix("nn.").removeprefix("lrscheduler.")
    known = _ELSEWHERE.get(word)
    return [known] if known in valid else []


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """Return ``value`` as the type ``hint`` requires; raise SpecError if it does not fit."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        base, *extras = typing.get_args(hint)
        if isinstance(value, str) and any(isinstance(extra, Seconds) for extra in extras):
            value = clock.seconds(value, name)
        value = _coerce(value, base, name)
        for extra in extras:
            problem = extra.problem(value) if isinstance(extra, Range) else None
            if problem:
                raise SpecError(f"{name} is {value!r}; it {problem}.")
            if isinstance(extra, Words):
                extra.check(value, name)
        return value
    if origin is Literal:
        choices = typing.get_args(hint)
        if isinstance(value, bool) and value not in choices and {"on", "off"} <= set(choices):
            value = "on" if value else "off"  # what YAML 1.1 makes of these words
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            valid = [str(choice) for choice in choices]
            raise SpecError(
                f"{name} is {value!r}. {did_you_mean(str(value), valid, meant=meant(value, valid))}"
            )
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
        several = [kind for kind in kinds if typing.get_origin(kind) is tuple]
        if several and len(kinds) > 1 and isinstance(value, (list, tuple)):  # one value, or several
            return _coerce(value, several[0], name) if len(value) != 1 else _coerce(value[0], kinds[0], name)
        return _coerce(value, kinds[0], name)
    if origin is tuple:
        return _coerce_tuple(value, typing.get_args(hint), name)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as text
            value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{name} is {value!r}; it must be a finite number.")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SpecError(f"{name} is {value!r}; it must be of type {hint.__name__}.")
    return value


def _coerce_tuple(value: Any, args: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        value = (value,)
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise SpecError(f"{name} is {value!r}; it must have {len(args)} values.")
    return tuple(_coerce(v, a, name) for v, a in zip(value, args, strict=True))


@dataclass(frozen=True)
class Section:
    """A part of the spec: checks every value against its annotation when made.

    ``prefix`` of a subclass stands before its fields' names in messages, such as ``training.``.
    """

    _prefix = ""

    def __init_subclass__(cls, prefix: str = "") -> None:
        super().__init_subclass__()
        cls._prefix = prefix

    def __post_init__(self) -> None:
        hints = _hints(typing.cast(Any, type(self)))
        for item in dataclasses.fields(self):
            label = f"{self._prefix}{item.name}"
            hint = hints[item.name]
            if isinstance(hint, type) and issubclass(hint, Section):
                continue
            object.__setattr__(self, item.name, _coerce(getattr(self, item.name), hint, label))


def to_dict(spec: Section) -> dict[str, Any]:
    """Return the spec as nested plain values (tuples as lists), ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value

    result: dict[str, Any] = plain(dataclasses.asdict(spec))
    return result


def flatten(spec: Section) -> dict[str, Any]:
    """Return ``{"training.lr": 0.001, …}``, every field by its dotted name."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        if isinstance(value, Section):
            flat.update({f"{item.name}.{key}": inner for key, inner in flatten(value).items()})
        else:
            flat[item.name] = value
    return flat


def differing(spec: S, base: S) -> frozenset[str]:
    """Return the dotted names of the fields in which a spec differs from its starting point."""
    before = flatten(base)
    return frozenset(name for name, value in flatten(spec).items() if value != before[name])


def named(changes: Mapping[str, Any], spec: Section) -> frozenset[str]:
    """Return the dotted names of the fields of ``spec`` that ``changes``, as of `update`, give a value."""
    found: set[str] = set()
    for raw, value in changes.items():
        head, _, rest = str(raw).replace("-", "_").partition(".")
        current = getattr(spec, head, None)
        if not isinstance(current, Section):
            found.add(head)
            continue
        inner: Any = {rest: value} if rest else value
        if isinstance(inner, Section):
            inner = flatten(inner)
        found |= {f"{head}.{name}" for name in named(inner, current)} if isinstance(inner, Mapping) else set()
    return frozenset(found)


def durations(spec: Section) -> frozenset[str]:
    """Return the names of the spec's own fields that are durations."""
    hints = _hints(typing.cast(Any, type(spec)))
    return frozenset(
        name
        for name, hint in hints.items()
        if any(isinstance(extra, Seconds) for extra in getattr(hint, "__metadata__", ()))
    )


def choices(spec: Section) -> dict[str, tuple[str, ...]]:
    """Return, by dotted name, the words that may be given for each field that takes one of some words."""
    found: dict[str, tuple[str, ...]] = {}
    for name, hint in _hints(typing.cast(Any, type(spec))).items():
        value = getattr(spec, name, None)
        if isinstance(value, Section):
            found.update({f"{name}.{key}": inner for key, inner in choices(value).items()})
            continue
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Words):
                found[name] = extra.words
        parts = (
            typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        )
        for part in parts:
            words = typing.get_args(part) if typing.get_origin(part) is Literal else ()
            if words and all(isinstance(word, str) for word in words):
                found[name] = (*words, *(["None"] if type(None) in parts else []))
    return found


def update(spec: S, changes: Mapping[str, Any], where: str = "") -> S:
    """Return ``spec`` with ``changes`` over it.

    Keys are field names, nested mappings or sections, or dotted names; hyphens count as underscores.
    Raises SpecError for an unknown key (naming the nearest) or an impossible value.
    """
    names = {item.name for item in dataclasses.fields(spec)}
    values: dict[str, Any] = {}
    for raw, value in changes.items():
        head, _, rest = str(raw).replace("-", "_").partition(".")
        if head not in names:
            unknown = f"{where}{raw}"
            raise SpecError(f"There is no {unknown!r} in the spec. {did_you_mean(head, sorted(names), 40)}")
        current = getattr(spec, head)
        base = values.get(head, current)
        if rest:
            if not isinstance(base, Section):
                raise SpecError(f"{where}{head} has no parts, so {where}{raw!r} means nothing.")
            values[head] = update(base, {rest: value}, f"{where}{head}.")
        elif isinstance(current, Section) and isinstance(value, Mapping):
            values[head] = update(base, value, f"{where}{head}.")
        elif isinstance(current, Section) and not isinstance(value, type(current)):
            raise SpecError(f"{where}{head} is {value!r}; it must be a mapping of {where}{head}'s fields.")
        else:
            values[head] = value
    return dataclasses.replace(spec, **values)
