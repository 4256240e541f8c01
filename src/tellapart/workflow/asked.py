"""What the user gives for a run, gathered once: `Asked` for a new one, `Again` for one that is resumed.

Knows nothing of how a run is made of it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tellapart import recipes, runs
from tellapart.data.sources.objects import Objects, take
from tellapart.references import Trust
from tellapart.sections import differing, named
from tellapart.spec import Spec, flatten, update
from tellapart.training.callbacks import Callback
from tellapart.workflow import given, own_code
from tellapart.workflow.own_code import Own


def make_spec(
    data: str | os.PathLike[str] | Objects | None = None,
    /,
    recipe: str | None = None,
    spec: Spec | str | os.PathLike[str] | None = None,
    **changes: Any,
) -> Spec:
    """Return the spec of: the defaults or a recipe, a spec or YAML file over it, and ``changes`` over that.

    ``data`` is the source, or objects (`take`), whose name the source becomes; ``data`` among the changes is the source
    too, or a mapping of the section's fields.
    """
    return _wanted(data, recipe, spec, changes)[0]


def _wanted(
    data: str | os.PathLike[str] | Objects | None,
    recipe: str | None,
    spec: Spec | str | os.PathLike[str] | None,
    changes: dict[str, Any],
) -> tuple[Spec, frozenset[str]]:
    """Return what `make_spec` does, and the dotted names of the fields that were given: those of a recipe (all of
    them), of a file, of a Spec (where it differs from the defaults), and the changes.
    """
    if isinstance(changes.get("data"), (str, os.PathLike)):
        data = changes.pop("data")
    base, given = Spec(), frozenset[str]()
    if recipe:
        base = recipes.recipe(recipe)
        given |= flatten(base).keys()
    if isinstance(spec, Spec):
        base = spec
        given |= differing(spec, Spec())
    elif spec is not None:
        content = runs.read_changes(spec)
        base = update(base, content)
        given |= named(content, base)
    base = update(base, changes)
    given |= named(changes, base)
    if data is None:
        return base, given
    return update(base, {"data.source": data.name if isinstance(data, Objects) else os.fspath(data)}), given


@dataclass(frozen=True)
class Telling:
    """What is reported about a run, and to whom. ``verbose``: every choice; ``profile``: where a step's time goes."""

    quiet: bool = False
    verbose: bool = False
    profile: bool = False
    callbacks: tuple[Callback, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What `train` and its kin were given: the spec that is wanted, and objects, which it only names.

    ``ours``: the fields that differ from what the spec began from, which are those that the person set. ``given``: the
    fields that keep their values (see `Resolution`), also those of a recipe, and those set to what is the default.
    """

    spec: Spec
    objects: Objects | None
    own: Own
    ours: frozenset[str]
    telling: Telling
    given: frozenset[str] | None = None

    @classmethod
    def of(
        cls,
        data: Any,
        others: tuple[Any, Any, Iterable[str] | None],
        base: tuple[str | None, Spec | str | os.PathLike[str] | None],
        changes: Mapping[str, Any],
        code: Mapping[str, Any],
        trust: Trust,
        telling: Telling,
    ) -> Asked:
        """Take arguments of `train`: ``others`` are val, test and classes, ``base`` recipe and spec, ``code`` by kind.

        Raises DataError, SpecError, ArtifactError.
        """
        objects = take(data, *others)
        recipe, spec = base
        own = own_code.take(changes, **code)
        wanted, fields = _wanted(objects or data, recipe, spec, dict(own.changes))
        wanted = own_code.consent(wanted, own, spec, trust)
        ours = differing(wanted, make_spec(None, recipe))
        return cls(wanted, objects, own, ours, telling, fields | ours)


@dataclass(frozen=True)
class Again:
    """What `resume` was given: objects again that no file holds, and what is to change."""

    data: Any = None
    val: Any = None
    test: Any = None
    classes: Iterable[str] | None = None
    code: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    trust: Trust = False
    quiet: bool = False
    callbacks: tuple[Callback, ...] = ()

    def objects(self, folder: Path, spec: Spec) -> Objects | None:
        """Return the objects with which the run in ``folder`` is resumed; None for files. Raises RunError."""
        return given.again(folder, spec.data.source, self.data, self.val, self.test, self.classes)

    def own(self, folder: Path, spec: Spec) -> Own:
        """Return the user's own code with which the run is resumed. Raises RunError, ArtifactError."""
        return own_code.again(folder, spec, self.trust, **self.code)

    def unchanged(self) -> Again:
        """Return the same without changes."""
        return dataclasses.replace(self, changes={})


def code_of(
    model: Any, loss: Any, augment: Mapping[str, Any] | None, **others: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the user's own code by kind, and the rest of ``augment`` as changes of the spec."""
    rest = {name: value for name, value in (augment or {}).items() if name != "transform"}
    code = {"model": model, "loss": loss, "transform": (augment or {}).get("transform"), **others}
    return code, {"augment": rest} if rest else {}
