"""What ``import tellapart`` promises: few names, each with documentation, and nothing loaded before it is used."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tellapart
from tellapart import errors, spec, workflow
from tellapart.cli import COMMANDS
from tellapart.serve import options as serve_options

HEAVY = ("torch", "numpy", "sklearn", "scipy", "PIL", "torchvision", "timm", "rich")


def test_names() -> None:
    assert set(tellapart.__all__) <= set(dir(tellapart))
    for name in tellapart.__all__:
        assert getattr(tellapart, name).__doc__, name
    assert tellapart.Spec is spec.Spec
    assert tellapart.UserError is errors.UserError
    assert tellapart.train is workflow.train
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        tellapart.trian  # noqa: B018


FUNCTIONS = {"import": "import_weights"}
"""Commands whose function has another name: ``import`` is a word of Python."""

ARGUMENTS = {
    "source": "data",
    "data_source": "data",
    "spec_file": "spec",
    ("serve", "path"): "models",  # one model, or several by name
    **dict.fromkeys([(name, "model") for name in ("predict", "evaluate", "export", "compress")], "path"),
}
"""Arguments whose name in Python is another one."""

PRINTED = {"as_json", ("predict", "format"), ("train", "folds"), ("train", "repeat")}
"""Arguments that only say how a result is printed; a function returns it. Folds and repeats are functions of their own."""

ALIKE = {
    "check": {"data": ("digits", None)},
    "import": {"classes": ("", ())},
    "serve": {"models": (None, inspect.Parameter.empty)},  # one of MODEL and --model must be given
}
"""Defaults that are the same in another form."""


def through_changes(command: str) -> dict[str, Any]:
    """The fields that a function takes as ``**changes``, with their defaults, by what they are fields of."""
    if command == "serve":
        return {field.name: field.default for field in dataclasses.fields(serve_options.Options)}
    if command == "evaluate":
        return {
            field.name: getattr(spec.DataSpec(), field.name) for field in dataclasses.fields(spec.DataSpec)
        }
    return {}


def arguments_of(command: str, kind: Any) -> dict[str, Any]:
    """A command's arguments by their names in Python, with their defaults."""
    found = {}
    for field in dataclasses.fields(kind):
        if field.name in PRINTED or (command, field.name) in PRINTED or field.name == "spec":
            continue
        if dataclasses.is_dataclass(type(default := made(field))):  # of serve: flags of their own
            found |= {part.name: getattr(default, part.name) for part in dataclasses.fields(default)}
        elif (
            name := ARGUMENTS.get((command, field.name)) or ARGUMENTS.get(field.name, field.name)
        ) not in found:
            found[name] = default
    return found


def made(field: Any) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


@pytest.mark.parametrize("command", list(COMMANDS))
def test_each_command_is_one_call(command: str) -> None:
    """A function of the command's name has its arguments, with equal defaults."""
    name = FUNCTIONS.get(command, command.replace("-", "_"))
    assert name in tellapart.__all__
    function = getattr(tellapart, name)
    assert callable(function)
    parameters = inspect.signature(function).parameters
    keywords = [one for one in parameters.values() if one.kind is one.VAR_KEYWORD]
    kind = COMMANDS[command][0]
    if "spec" in {field.name for field in dataclasses.fields(kind)}:
        assert keywords, f"{name}(**changes) stands for the options of the spec"
        assert parameters["spec"].default is None
    behind = through_changes(command) if keywords else {}
    if command == "resume":  # fields of the spec, of which None changes nothing
        behind = dict.fromkeys((field.name for field in dataclasses.fields(kind)), None)
    alike = ALIKE.get(command, {})
    for argument, default in arguments_of(command, kind).items():
        if argument not in parameters:
            assert behind[argument] == default, argument
            continue
        theirs = parameters[argument].default
        assert theirs == default or (default, theirs) == alike.get(argument), argument


def test_rooms_are_commands_whoever_imports_them_first() -> None:
    """``tellapart.export`` is a package inside and a command: both, in whatever order they are imported."""
    program = """
import inspect
import tellapart.export.formats, tellapart.models.zoo, tellapart.serve
from tellapart import doctor, workflow
from tellapart.predict import Classifier
import tellapart

for name in tellapart._ROOMS:
    room = getattr(tellapart, name)
    assert inspect.ismodule(room) and callable(room), name
    assert inspect.signature(room).parameters, name
assert inspect.signature(tellapart.export) == inspect.signature(workflow.export)
assert doctor.examine and tellapart.models.zoo
print(len(tellapart.models("simple-cnn")), type(doctor(quick=True)).__name__)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("1 Report\n", "")


def test_wrong_words_are_answered_as_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(errors.UserError, match="Did you mean 'clear'"):
        tellapart.cache("claer", cache_dir=tmp_path)  # type: ignore[call-overload]
    with pytest.raises(errors.UserError, match="takes no keys"):
        tellapart.cache("list", ["a"], cache_dir=tmp_path)
    with pytest.raises(errors.UserError, match="at least 0 days"):
        tellapart.cache("clear", older_than=-1, cache_dir=tmp_path)
    assert tellapart.cache("list", cache_dir=tmp_path) == []
    with pytest.raises(errors.UserError, match="Did you mean 'port'"):
        tellapart.serve(tmp_path / "model.onnx", prot=1)
    with pytest.raises(errors.UserError, match="at least 1"):
        tellapart.predict(tmp_path / "model.onnx", tmp_path, top=0)
    with pytest.raises(errors.UserError, match="no file or folder"):
        tellapart.predict(tmp_path / "model.onnx", tmp_path / "none.png")
    assert "62,006" in tellapart.models(summary="tutorial-net")


def test_every_public_function_is_documented() -> None:
    for name in workflow.__all__:
        member: Any = getattr(workflow, name)
        assert member.__doc__, name
        if inspect.isfunction(member):
            assert inspect.signature(member).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize(
    "words",
    [
        "import tellapart; dir(tellapart); tellapart.Spec; tellapart.UserError",
        "import tellapart.recipes, tellapart.packages",
    ],
)
def test_importing_loads_nothing_heavy(words: str) -> None:
    program = f"{words}\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_train_load_predict(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """The README's three lines; quiet means that nothing is printed."""
    data = make_folder(tmp_path / "photos", classes=("ant", "蜂"), count=20)
    result = tellapart.train(
        data,
        quiet=True,
        model={"name": "simple-cnn"},
        training={"epochs": 3, "batch_size": 8},
        **{"augment.preset": "none", "run.dir": str(tmp_path / "run"), "run.tensorboard": False},
    )
    answers = tellapart.load(result.run).predict(sorted((data / "蜂").glob("*.png")), top=2)
    assert capfd.readouterr() == ("", "")
    assert result.run == tmp_path / "run"
    assert result.artifact == tmp_path / "run" / "model.safetensors"
    assert result.split == "test"
    assert not result.interrupted
    assert result.metrics["n"] == 8
    assert len(answers) == 20
    for answer in answers:
        assert set(answer.labels) == {"ant", "蜂"}
        assert sum(answer.probabilities) == pytest.approx(1, abs=1e-6)
    assert tellapart.load(result.artifact).classes == ("ant", "蜂")
    direct = tellapart.predict(result.run, data / "蜂", top=2)
    assert [(p.path, p.labels, p.probabilities) for p in direct] == [
        (p.path, p.labels, p.probabilities) for p in answers
    ]
    evaluation = tellapart.evaluate(result.run, quiet=True)
    assert evaluation.accuracy == result.metrics["accuracy"]
    assert Path(tellapart.report(result.run)).read_text(encoding="utf-8").count("蜂") > 0
