"""The user's own code in a run: objects that were passed, a spec's names for them, and consent to import.

Knows nothing of what the code does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tellapart import references
from tellapart.errors import RunError, SpecError
from tellapart.models.zoo import OWN
from tellapart.references import Trust
from tellapart.spec import ModelSpec, Spec, own_names, update

FIELDS = {
    "model": "model.name",
    "loss": "training.loss",
    "transform": "augment.transform",
    "optimizer": "training.optimizer",
    "schedule": "training.schedule",
}
"""The field of the spec that names each kind of code."""


@dataclass(frozen=True)
class Own:
    """Objects by kind, and the changes of the spec with names in place of the objects."""

    things: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)

    @contextlib.contextmanager
    def at_hand(self, spec: Spec) -> Iterator[None]:
        """Inside the block, the spec's names stand for the objects."""
        names = dict(own_names(spec))
        with references.providing({(kind, names[kind]): thing for kind, thing in self.things.items()}):
            yield


def take(changes: Mapping[str, Any], **given: Any) -> Own:
    """Return what was passed: objects, or names, under ``given`` or in their fields among the changes.

    Raises SpecError for what is neither.
    """
    things, changed = {}, dict(changes)
    if not isinstance(changed.get("model"), (Mapping, ModelSpec, type(None))):
        given["model"] = changed.pop("model")
    augment = changed.get("augment")
    if isinstance(augment, Mapping) and not isinstance(augment.get("transform", ""), str):
        given["transform"] = augment["transform"]
        changed["augment"] = {key: value for key, value in augment.items() if key != "transform"}
    elif not isinstance(changed.get("augment.transform", ""), str):
        given["transform"] = changed.pop("augment.transform")
    metrics = given.pop("metrics", None)
    for kind, thing in given.items():
        if thing is None:
            continue
        if isinstance(thing, str):
            changed[FIELDS[kind]] = thing
        elif callable(thing):
            things[kind] = thing
            changed[FIELDS[kind]] = references.name_of(thing)
        else:
            raise SpecError(
                f"{kind} is {thing!r:.100}; it must be a callable object, or a name such as "
                "my_package.my_module:function."
            )
    if metrics:
        changed["training.metrics"] = tuple(
            f"{name}={_metric(things, name, one)}" for name, one in metrics.items()
        )
    return Own(things, changed)


def _metric(things: dict[str, Any], name: str, thing: Any) -> str:
    """Return the name of a metric; keep an object among the things. Raises SpecError."""
    if isinstance(thing, str):
        return thing
    if not callable(thing):
        raise SpecError(
            f"metrics: {name!r} is {thing!r:.100}; it must be a function of (labels, predictions)."
        )
    things[f"metrics.{name}"] = thing
    found = references.name_of(thing)
    return references.MARK + name if references.is_object(found) else found


def consent(spec: Spec, own: Own, file: object, trust: Trust) -> Spec:
    """Take names from the user as consent to import them, and record it; names in a file need trust.

    ``file``: a spec, or the path of one. Returns the spec with the names of packages' entry points in full, which need
    no consent: who installs a package that offers itself to tellapart has given it. Raises ArtifactError.
    """
    theirs: set[tuple[str, str]] = set()
    if isinstance(file, (str, os.PathLike)):
        from tellapart import runs

        theirs = set(own_names(runs.read_spec(file)))
    references.trust(trust, *(name for _, name in theirs))
    spec = _in_full(spec)
    for kind, name in own_names(spec):
        if kind not in own.things and (kind, name) in theirs:
            references.require(name, str(file), kind)
        if references.is_reference(name):
            references.allow(name)
            references.remember(name)
    return spec


def _in_full(spec: Spec) -> Spec:
    """Return the spec with ``module:function`` for what entry points name; tellapart's own names come first."""
    found = {}
    for field_name, value, group in (
        ("model.name", spec.model.name, "models"),
        ("training.loss", spec.training.loss, "losses"),
    ):
        if (
            value in ("auto", *OWN, "cross-entropy", "focal", "bce", "asymmetric")
            or references.is_own(value)
            or "/" in value
        ):
            continue
        offered = references.entry_points(group)
        if value in offered:
            found[field_name] = offered[value]
    return update(spec, found)


def again(folder: object, spec: Spec, trust: Trust, **given: Any) -> Own:
    """Return the objects with which a run is resumed. Raises RunError, ArtifactError."""
    own, names = take({}, **given), dict(own_names(spec))
    for kind in own.things:
        if kind not in names:
            raise RunError(
                f"{folder} was trained without a {kind} of your own: resume it without {references.as_given(kind)}."
            )
    references.trust(trust, *names.values())
    for kind, name in names.items():
        if kind in own.things:
            now = references.name_of(own.things[kind])
            if now != name and not (kind.startswith("metrics.") and references.is_object(name)):
                raise RunError(f"{folder} was trained with {kind} {name}; now it is {now}.")
        elif references.is_object(name):
            raise RunError(
                f"{folder} cannot be resumed without its {references.what(kind)} {name.removeprefix(references.MARK)}: "
                "a Python object, which is in no file. Give it again, in Python: tellapart.resume(RUN, "
                f"{references.as_given(kind)})."
            )
        else:
            references.require(name, str(folder), kind)
    return own


def opened(
    file: object, network: str, trust: Trust, model: Any = None, spec: Spec | None = None, loss: Any = None
) -> contextlib.AbstractContextManager[None]:
    """Let a model's file be opened inside the block, and its ``spec`` be trained on. Raises ArtifactError.

    network: the name of its architecture; model: that network, or a callable that makes it.
    """
    names = [("model", network), *(own_names(spec) if spec else [])]
    things = {} if model is None else {("model", network): model}
    if loss is not None and spec is not None:
        things["loss", spec.training.loss] = loss
    references.trust(trust, *(name for _, name in names))
    for kind, name in names:
        if references.is_reference(name) and (kind, name) not in things:
            references.require(name, str(file), kind)
    return references.providing(things)
