"""A run's spec is completed by one owner, in order; nobody else changes it."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tellapart
from tellapart import recipes
from tellapart.augment import Augment
from tellapart.data.sources import opening
from tellapart.data.stores.images import Look
from tellapart.sections import Section
from tellapart.spec import Spec, flatten, update
from tellapart.training import setup
from tellapart.training.distributed import Processes
from tellapart.training.resolution import DataFacts, DeviceFacts, PixelFacts, Resolution, Stage

SOURCE = Path(tellapart.__file__).parent
SMALL = Look(longest=8, shortest=8, grey=True, same=True)
CPU = DeviceFacts("cpu", 1000, lambda: 10**6)
FIELDS = {name.rpartition(".")[2] for name in flatten(Spec())} | {
    field.name for field in dataclasses.fields(Spec)
}
# What is asked of a run before it begins (Python's arguments, a search's changes, paths made whole for its file) is no
# completion, and describing a spec without mixing changes no run's.
BEFORE_A_RUN = {
    "workflow/run.py": "make_spec",
    "workflow/run_files.py": "anywhere",
    "workflow/inspect.py": "_augmented",
}
NO_RUNS_SPEC = {
    ("training/speed/features.py", "changing"),
    ("training/speed/pace.py", "_steps"),  # of a copy that is timed
    ("training/methods/infobatch.py", "before_step"),  # of a batch
    ("workflow/run_files.py", "_all_samples"),  # of a table
}


def _changes(node: ast.AST) -> bool:
    """Whether a call changes a spec: ``update(...)`` of spec.py, or ``replace`` with names of its fields."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name) and node.func.id == "update":
        return True
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    ours = name == "replace" and (
        name == getattr(node.func, "id", "") or ast.unparse(node.func) == "dataclasses.replace"
    )
    return ours and any(keyword.arg is None or keyword.arg in FIELDS | {"spec"} for keyword in node.keywords)


def _found(tree: ast.AST, where: str) -> set[tuple[str, str]]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {(where, f.name) for f in functions if any(_changes(node) for node in ast.walk(f))}


def test_only_the_resolution_changes_a_spec() -> None:
    found: set[tuple[str, str]] = set()
    files = [*(SOURCE / "training").rglob("*.py"), *(SOURCE / name for name in BEFORE_A_RUN)]
    for path in files:
        where = path.relative_to(SOURCE).as_posix()
        if where.startswith("training/resolution/"):
            continue
        found |= _found(ast.parse(path.read_text(encoding="utf-8")), where)
    assert found - NO_RUNS_SPEC - set(BEFORE_A_RUN.items()) == set()


@pytest.mark.parametrize(
    "line",
    [
        "update(spec, {'training.precision': 'fp32'})",
        "dataclasses.replace(prepared, spec=other)",
        "replace(spec.training, batch_size=3)",
        "dataclasses.replace(spec.input, **chosen)",
    ],
)
def test_the_rule_sees_what_it_is_for(line: str) -> None:
    assert _found(ast.parse(f"def f():\n    return {line}"), "x") == {("x", "f")}


def test_nothing_changes_the_spec_after_the_last_stage(
    pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No part of a spec is made anew while a run is planned, and what is planned has the very spec of the end."""
    own = {
        "input.size": 8,
        "data.cache_dir": str(tmp_path),
        "training.batch_size": 4,
        "training.start_size": 0,
    }
    prepared = setup.prepare(update(Spec(), own), pictures(), lambda count: None)
    model, processes = setup.build_model(prepared)[0], Processes(0, 1, torch.device("cpu"))
    prepared = setup.complete(prepared, model, processes)
    made: list[str] = []
    check = Section.__post_init__
    monkeypatch.setattr(
        Section, "__post_init__", lambda self: (made.append(type(self).__name__), check(self))[1]
    )
    plan = setup.plan(prepared, model, processes)
    assert made == []
    assert plan.spec is prepared.spec is prepared.resolution.spec


def test_augment_is_built_once(pictures: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Augment] = []
    begin = Augment.__init__
    monkeypatch.setattr(
        Augment, "__init__", lambda self, *a, **k: (built.append(self), begin(self, *a, **k))[1]
    )
    own = {"input.size": 32, "data.cache_dir": str(tmp_path), "training.batch_size": 64}
    prepared = setup.prepare(update(Spec(), own), pictures(size=32), lambda count: None)
    model, processes = setup.build_model(prepared)[0], Processes(0, 1, torch.device("cpu"))
    plan = setup.plan(setup.complete(prepared, model, processes), model, processes)
    assert len(built) == 1
    assert plan.channels_last
    assert plan.task.augment.channels_last
    assert not prepared.augment.channels_last  # what is handed on is another view of it


def test_stages_have_an_order() -> None:
    wanted = Resolution(Spec())
    pixels = PixelFacts((0.5,), (0.25,))
    for early in (lambda: wanted.by_pixels(pixels), lambda: wanted.by_speed(CPU)):
        with pytest.raises(RuntimeError, match="stage"):
            early()
    data = wanted.by_data(DataFacts(SMALL, 1000))
    with pytest.raises(RuntimeError, match="stage"):
        data.by_data(DataFacts(SMALL, 1000))
    with pytest.raises(RuntimeError, match="stage"):
        data.by_speed(CPU)
    done = data.by_pixels(pixels).by_speed(CPU)
    assert [part.stage for part in (wanted, data, done)] == [Stage.WANTED, Stage.DATA, Stage.SPEED]
    assert done.complete
    assert wanted.spec == Spec()  # a stage leaves the one before it as it was


def test_an_incomplete_spec_is_not_planned(pictures: Any, tmp_path: Path) -> None:
    own = {"input.size": 8, "data.cache_dir": str(tmp_path)}
    prepared = setup.prepare(update(Spec(), own), pictures(), lambda count: None)
    with pytest.raises(RuntimeError, match="complete"):
        setup.plan(prepared, setup.build_model(prepared)[0], Processes(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(
    "changes", [{}, {"input.range": "max"}, {"input.size": 24, "training.batch_size": 9}], ids=str
)
def test_the_choices_are_the_difference_and_each_says_why(changes: dict[str, Any]) -> None:
    """What was wanted, with the choices over it, is the result: nothing was completed without a choice."""
    wanted = update(Spec(), changes)
    done = Resolution(wanted).by_data(DataFacts(SMALL, 1000, largest=4095.0))
    done = done.by_pixels(PixelFacts((0.5,), (0.25,))).by_speed(CPU)
    before, after = flatten(wanted), flatten(done.spec)
    differs = {name for name in after if after[name] != before[name]}
    assert {choice.field for choice in done.choices} == differs
    assert len(done.choices) == len(differs)
    assert all(after[choice.field] == choice.value for choice in done.choices)
    for choice in done.choices:
        assert choice.reason
        assert "\n" not in str(choice)
    assert not differs & (set(changes) - {"input.range"})
    assert changes.get("input.range") is None or after["input.range"] == "0-4095"


def _sixteen_bits(folder: Path) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, low in (("a", 0), ("b", 600)):
        (folder / name).mkdir(parents=True)
        for place in range(12):
            values = rng.integers(low, low + 2000, (12, 12)).astype(np.uint16)
            Image.fromarray(values).save(folder / name / f"{place}.png")
    return folder


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        (None, {}),
        (None, {"input.range": "max"}),
        (None, {"input.mean": (0.5,), "augment.mixup": 0.2, "training.sampling": "weighted"}),
        ("cifar10-fast", {"training.start_size": 0, "training.batch_size": 8, "data.val_fraction": 0.1}),
        ("tutorial-cnn", {}),
    ],
    ids=str,
)
def test_a_resolved_spec_resolves_to_itself(
    recipe: str | None, changes: dict[str, Any], tmp_path: Path
) -> None:
    """From files to the last stage, and again from the spec that a run's folder would hold."""
    source = _sixteen_bits(tmp_path / "data")
    own = {"data.source": str(source), "data.cache_dir": str(tmp_path / "cache"), "data.workers": 1}
    wanted = update(recipes.recipe(recipe) if recipe else Spec(), {**own, **changes})
    processes = Processes(0, 1, torch.device("cpu"))
    found = []
    for spec in (wanted, None):
        samples = opening.open_source(wanted.data, lambda text: None)
        prepared = setup.prepare(spec or found[0].spec, samples, lambda count: None)
        model = setup.build_model(prepared)[0]
        found.append(setup.complete(prepared, model, processes).resolution)
    assert found[0].choices
    assert found[1].choices == ()
    assert found[1].spec == found[0].spec
    given = {
        **flatten(wanted),
        **({"input.range": found[0].spec.input.range} if "input.range" in changes else {}),
    }
    assert {name: flatten(found[0].spec)[name] for name in changes} == {name: given[name] for name in changes}
