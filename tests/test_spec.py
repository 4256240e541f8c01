"""Flags, YAML and keyword arguments are three spellings of one spec; mistakes are answered with what is valid."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tellapart import runs
from tellapart import spec as spec_module
from tellapart.cli import Train
from tellapart.errors import SpecError
from tellapart.sections import Words
from tellapart.spec import (
    AugmentSpec,
    DataSpec,
    InputSpec,
    ModelSpec,
    Range,
    Section,
    Spec,
    TrainingSpec,
    flatten,
    to_dict,
    update,
)

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=12)  # no line breaks


ARGUMENTS = st.lists(st.sampled_from(["width=64", "act=gelu", "x="]), max_size=3).map(tuple)
CHECKED: dict[tuple[type, str], st.SearchStrategy[Any]] = {  # beyond what their annotations say
    (AugmentSpec, "transform"): st.sampled_from(["", "my_package.my_module:transform"]),
    (AugmentSpec, "transform_arguments"): ARGUMENTS,
    (ModelSpec, "arguments"): ARGUMENTS,
    (TrainingSpec, "loss_arguments"): ARGUMENTS,
    (TrainingSpec, "optimizer_arguments"): ARGUMENTS,
    (TrainingSpec, "metrics"): st.sampled_from([(), ("kappa=my_package.my_module:kappa",)]),
    (InputSpec, "range"): st.sampled_from(["full", "max", "0-4095", "-1000-3000.5", "255"]),
    (DataSpec, "fold"): st.sampled_from(["", "1/2", "5/5", "2/10"]),
    (DataSpec, "leave_out"): st.sampled_from(["", "1/2", "5/5", "2/10"]),
    (DataSpec, "levels"): st.sampled_from(["auto", "none", "/", "::", "\\", ">", ""]),
}


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a field's annotation allows, read off the annotation."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        base, bounds = parts
        if isinstance(bounds, Words):
            return st.sampled_from([*bounds.words, "my_package.my_module:function"])
        limits: dict[str, Any] = {"min_value": bounds.low, "max_value": bounds.high}
        if base is float:
            return st.floats(**limits, exclude_min=bounds.above, allow_nan=False, allow_infinity=False)
        return st.integers(**{name: None if v is None else int(v) for name, v in limits.items()})
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin is tuple and parts[-1] is Ellipsis:
        items = TEXT.filter(lambda text: not text.startswith("-")) if parts[0] is str else values_of(parts[0])
        return st.lists(items, max_size=4).map(tuple)
    if origin is tuple:
        return st.tuples(*(values_of(part) for part in parts))
    if parts and type(None) not in parts:
        return st.one_of(values_of(part) for part in parts)
    if type(None) in parts:
        return st.none() | st.one_of(values_of(part) for part in parts if part is not type(None))
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    return {bool: st.booleans(), int: st.integers(), str: TEXT}[hint]


def sections(cls: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(
        cls,
        **{
            name: CHECKED[cls, name]
            if (cls, name) in CHECKED
            else sections(hint)
            if isinstance(hint, type) and issubclass(hint, Section)
            else values_of(hint)
            for name, hint in hints.items()
        },
    )


SPECS = sections(Spec)


def as_flags(spec: Spec) -> list[str]:
    words: list[str] = []
    for name, value in flatten(spec).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            head, _, last = flag.rpartition(".")
            words.append(f"--{flag}" if value else f"--{head}.no-{last}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *(item if isinstance(item, str) else repr(item) for item in value)]
        else:
            words.append(f"--{flag}={value}")
    return words


def parse(*words: str) -> Spec:
    return tyro.cli(Train, prog="tellapart train", args=list(words)).spec


def test_every_field_is_drawn() -> None:
    """The strategy above is no weaker than the spec: each field takes a value that is not its default."""
    default = flatten(Spec())
    changed: set[str] = set()

    @settings(max_examples=80, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(SPECS)
    def draw(spec: Spec) -> None:
        changed.update(name for name, value in flatten(spec).items() if value != default[name])

    draw()
    assert changed == set(default)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("specs")


@settings(max_examples=25, deadline=None)
@given(spec=SPECS)
@example(spec=Spec())
def test_yaml_holds_the_whole_spec(spec: Spec, folder: Path) -> None:
    runs.write_spec(spec, folder / "spec.yaml")
    assert runs.read_spec(folder / "spec.yaml") == spec
    assert yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8")) == to_dict(spec)


@settings(max_examples=25, deadline=None)
@given(spec=SPECS)
def test_keyword_arguments_hold_the_whole_spec(spec: Spec) -> None:
    assert update(Spec(), to_dict(spec)) == spec
    assert update(Spec(), flatten(spec)) == spec
    assert update(Spec(), {name.replace("_", "-"): value for name, value in flatten(spec).items()}) == spec
    assert update(Spec(), vars(spec)) == spec


@settings(max_examples=12, deadline=None)
@given(spec=SPECS)
def test_flags_hold_the_whole_spec(spec: Spec) -> None:
    assert parse(*as_flags(spec)) == spec


@pytest.mark.parametrize("name", sorted(flatten(Spec())))
def test_hyphens_and_underscores_are_the_same(name: str) -> None:
    value = flatten(Spec())[name]
    assert update(Spec(), {name: value}) == update(Spec(), {name.replace("_", "-"): value}) == Spec()


def test_each_spelling_of_a_number() -> None:
    """YAML 1.1 reads 1e-3 as text and 2 as an integer; both are numbers to a person."""
    read = yaml.safe_load("training: {lr: 1e-3, weight_decay: 5e-4, warmup-epochs: 2, gamma: 1.0e-1}")
    assert isinstance(read["training"]["lr"], str)
    training = update(Spec(), read).training
    assert (training.lr, training.weight_decay, training.warmup_epochs, training.gamma) == (
        0.001,
        5e-4,
        2.0,
        0.1,
    )
    assert isinstance(training.warmup_epochs, float)
    assert parse("--training.lr", "1e-3", "--training.warmup-epochs", "2").training.lr == 0.001


def test_one_value_stands_for_a_tuple() -> None:
    assert update(Spec(), {"input": {"mean": 0.5, "std": [1, "2e-1"]}}).input.mean == (0.5,)
    assert update(Spec(), {"input.std": [1, "2e-1"]}).input.std == (1.0, 0.2)


def test_optional_values_can_be_given_back() -> None:
    lit = update(Spec(), {"augment.hflip": 0.5, "augment.crop": "pad"})
    assert update(lit, {"augment": {"hflip": None, "crop": None}}) == Spec()


def test_later_changes_go_over_earlier_ones() -> None:
    changed = update(Spec(), {"training": {"epochs": 3, "lr": 0.5}, "training.lr": 0.1, "seed": 4})
    assert (changed.training.epochs, changed.training.lr, changed.seed) == (3, 0.1, 4)
    again = update(changed, {"training.lr": 0.2, "training": {"epochs": 9}})
    assert (again.training.epochs, again.training.lr, again.seed) == (9, 0.2, 4)
    assert update(changed, {"training": TrainingSpec(epochs=2)}).training == TrainingSpec(epochs=2)


UNKNOWN = [
    ({"trainin.lr": 1}, ["'trainin.lr'", "'training'"]),
    ({"training": {"epocs": 3}}, ["'training.epocs'", "'epochs'"]),
    ({"training.optimiser": "sgd"}, ["'training.optimiser'", "'optimizer'"]),
    ({"data": {"on-bad-images": "skip"}}, ["'data.on-bad-images'", "'on_bad_image'"]),
    ({"lr": 0.1}, ["'lr'", "data, ", "training"]),
    ({3: 0.1}, ["'3'", "training"]),
    ({"seed.more": 1}, ["seed has no parts", "'seed.more'"]),
    ({"training": 3}, ["training is 3", "mapping"]),
    ({"training": None}, ["training is None", "mapping"]),
    ({"training": AugmentSpec()}, ["training is", "mapping"]),
]

IMPOSSIBLE = [
    ("training.epochs", -1, ["-1", "at least 0"]),
    ("training.epochs", 2.5, ["2.5", "int"]),
    ("training.epochs", "3", ["'3'", "int"]),
    ("training.epochs", True, ["True", "int"]),
    ("training.lr", -1e-3, ["-0.001", "at least 0"]),
    ("training.lr", "fast", ["'fast'", "float"]),
    ("training.lr", False, ["False", "float"]),
    ("training.lr", [0.1], ["[0.1]", "float"]),
    ("training.momentum", 1.5, ["1.5", "at most 1"]),
    ("training.ema", 1, ["1", "at most 0.999999"]),
    ("training.optimizer", "adamm", ["'adamm'", "'adam'", "sgd", "muon"]),
    ("training.optimizer", ["sgd"], ["['sgd']", "sgd"]),
    ("training.precision", 16, ["16", "fp16"]),
    ("speed.compile", "yes", ["'yes'", "auto, on, off"]),
    ("speed.compile", 1, ["1", "auto, on, off"]),
    ("speed.fused", "yes", ["'yes'", "bool"]),
    ("speed.fused", 1, ["1", "bool"]),
    ("training.milestones", [1, "x"], ["'x'", "int"]),
    ("training.betas", [0.9], ["2 values"]),
    ("training.betas", [0.9, 0.99, 0.999], ["2 values"]),
    ("model.layer_decay", 0, ["above 0"]),
    ("model.name", 18, ["18", "str"]),
    ("model.name", None, ["None", "str"]),
    ("input.channels", 257, ["257", "256"]),
    ("input.size", -1, ["-1", "at least 0"]),
    ("augment.hflip", 2, ["2", "at most 1"]),
    ("augment.hue", 0.6, ["0.6", "at most 0.5"]),
    ("augment.preset", "cifar10", ["'cifar10'", "'cifar'", "photo"]),
    ("augment.scale", "big", ["2 values"]),
    ("data.val_fraction", 0.95, ["0.95", "at most 0.9"]),
    ("data.on_bad_image", "ignore", ["'ignore'", "skip, error"]),
    ("seed", "zero", ["'zero'", "int"]),
]


@pytest.mark.parametrize(("changes", "words"), UNKNOWN)
def test_an_unknown_name_is_answered_with_the_nearest(changes: dict[Any, Any], words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        update(Spec(), changes)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(("name", "value", "words"), IMPOSSIBLE)
def test_an_impossible_value_is_answered_with_what_is_right(name: str, value: Any, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        update(Spec(), {name: value})
    assert [word for word in (name, *words) if word not in str(caught.value)] == []
    with pytest.raises(ValueError, match=re.escape(str(caught.value))):  # what the parser of flags reports
        update(Spec(), {name.replace("_", "-"): value})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["training.lr", "training.weight_decay", "augment.hflip", "input.mean", "input.std"]
)
def test_numbers_are_finite(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=name):
        update(Spec(), {name: value})


@pytest.mark.parametrize("value", [True, False, 3.0])
def test_a_choice_of_numbers_takes_no_other_type(value: Any) -> None:
    """In Python True == 1 and 3.0 == 3, but neither is a number of channels."""
    with pytest.raises(SpecError, match=r"input\.channels"):
        update(Spec(), {"input.channels": value})


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, value in flatten(Spec()).items()
        if not isinstance(value, bool) and not name.endswith("arguments")
    ],
)
def test_no_field_takes_a_mapping(name: str) -> None:
    with pytest.raises(SpecError, match=re.escape(name)):
        update(Spec(), {name: {"a": 1}})


@given(low=st.integers(-5, 5), width=st.integers(0, 5), above=st.booleans(), value=st.floats(-20, 20))
def test_range_says_what_is_outside(low: int, width: int, above: bool, value: float) -> None:
    inside = (low < value if above else low <= value) and value <= low + width
    assert (Range(low, low + width, above).problem(value) is None) == inside


def test_sections_check_themselves() -> None:
    with pytest.raises(SpecError, match=r"training\.epochs is -1"):
        TrainingSpec(epochs=-1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Spec().seed = 1  # type: ignore[misc]


def test_every_field_is_explained() -> None:
    """`--help` shows the text below each field."""
    tree = ast.parse(Path(spec_module.__file__).read_text(encoding="utf-8"))
    explained = set()
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for field, text in itertools.pairwise(cls.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                assert len(ast.literal_eval(text.value)) >= len("The loss.")
                explained.add(ast.unparse(field.target))
    assert {name.rpartition(".")[2] for name in flatten(Spec())} <= explained


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"training: {epochs: 3", ["not valid YAML", "line"]),
        (b"- training", ["must be a mapping"]),
        (b"epochs", ["must be a mapping"]),
        (b"training:\n  epocs: 3\n", ["training.epocs", "'epochs'"]),
        (b"\xff\xfe\x00", ["not valid YAML"]),
        (b"!!python/object/apply:os.system ['true']", ["not valid YAML"]),
    ],
)
def test_a_wrong_yaml_file_is_named(content: bytes, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "wrong spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        runs.read_spec(path)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_yaml_file_goes_over_a_base(tmp_path: Path) -> None:
    path = tmp_path / "部分.yaml"
    path.write_text("training:\n  epochs: 3\n", encoding="utf-8")
    base = update(Spec(), {"training.lr": 0.5, "training.epochs": 7})
    assert runs.read_spec(path, base) == update(base, {"training.epochs": 3})
    path.write_text("", encoding="utf-8")
    assert runs.read_spec(path, base) == base
    with pytest.raises(SpecError, match=r"nowhere\.yaml cannot be read"):
        runs.read_spec(tmp_path / "nowhere.yaml")
