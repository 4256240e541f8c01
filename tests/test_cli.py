"""The program as a person or a script meets it: help, exit codes, one JSON object, names in any language."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image

import tellapart
from tellapart import cli, packages, values
from tellapart.spec import Spec, flatten, update

Call = Callable[..., Any]
QUICK = (
    "--model.name", "simple-cnn", "--training.epochs", "1", "--training.batch-size", "8", "--augment.preset",
    "none", "--run.no-tensorboard", "--run.no-report",
)  # fmt: skip


def one_object(answer: Any) -> dict[str, Any]:
    """Check that standard output is one JSON object and nothing else, and return it."""
    content = json.loads(answer.out)
    assert isinstance(content, dict)
    assert answer.out.count("\n") == 1
    assert answer.out.endswith("\n")
    return content


def refused(answer: Any, *words: str) -> None:
    """Check that a mistake is answered on standard error, with ``words`` in it, and nothing printed."""
    assert answer.code == 2, answer.err
    assert answer.out == ""
    assert "Traceback" not in answer.err
    text = " ".join(re.sub(r"[│╭╰─╮╯]", " ", answer.err).split())
    assert [word for word in words if word not in text] == [], text


# --- Help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_comes_at_once_and_loads_nothing_heavy(words: list[str]) -> None:
    program = (
        "import sys\n"
        "from tellapart.cli import main\n"
        "try:\n"
        f"    main({words!r})\n"
        "finally:\n"
        "    heavy = {'torch', 'numpy', 'sklearn', 'scipy', 'PIL', 'timm', 'torchvision'} & set(sys.modules)\n"
        "    print(sorted(heavy), file=sys.stderr)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    best = float("inf")
    for _ in range(4):  # the best of several, and processor time: another program may be busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert done.stderr == "[]\n"
        assert "tellapart" in done.stdout
        if best < 1.5:
            break
    assert best < 1.5  # 0.4 to 0.7 s, by how busy the machine is


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, call: Call) -> None:
    answer = call(command, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert f"tellapart {command}" in answer.out
    summary = cli.COMMANDS[command][0].__doc__
    assert summary is not None
    plain = " ".join(re.sub(r"[│╭╰─╮╯]", " ", answer.out).split())
    assert summary.split(".")[0].split(":")[0] in plain


USAGE = {
    "train": "[DATA]", "find-lr": "[DATA]", "check": "[DATA]", "resume": "RUN", "report": "RUN", "compare": "RUN RUN…",
    "evaluate": "MODEL [DATA]", "compress": "MODEL [DATA]", "predict": "MODEL IMAGE…", "export": "MODEL",
    "serve": "[MODEL]", "import": "WEIGHTS", "models": "[PATTERN]", "cache": "{list,clear} [KEY…]", "doctor": "",
}  # fmt: skip


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_usage_names_what_to_give(command: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = call(command, "--help").out
    assert max(map(len, text.splitlines())) <= 80
    usage = " ".join(re.sub(r"\[(-h|OPTIONS|--[^]]*)\] ?", "", text.splitlines()[0]).split())
    assert usage == f"usage: tellapart {command} {USAGE[command]}".rstrip()
    assert not re.search(r"\bSTR\b|\{None\}", text)


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--augment.crop-scale", "0.1", "0.9"], {"augment.crop_scale": (0.1, 0.9)}),
        (["--augment.crop-scale", "None", "--augment.hflip", "0.25"], {"augment.crop_scale": None, "augment.hflip": 0.25}),
        (["--augment.hflip", "None", "--data.root", "None"], {"augment.hflip": None, "data.root": "None"}),
        (["--augment.policy-ops", "3"], {"augment.policy_ops": 3}),
        (["--augment.crop", "None"], {"augment.crop": None}),
    ],
)  # fmt: skip
def test_a_value_that_may_be_none(words: list[str], value: dict[str, Any]) -> None:
    default = cli.Train(spec=update(Spec(), {"augment.crop_scale": (0.5, 1), "augment.hflip": 0.5}))
    args = tyro.cli(cli.Train, args=words, default=default, registry=values.named())
    flat = flatten(args.spec)
    assert {name: flat[name] for name in value} == value


def test_help_lists_every_field_of_the_spec(call: Call) -> None:
    text = call("train", "--help").out
    for name in flatten(Spec()):
        assert f"--{name.replace('_', '-')}" in text, name
    for flag in ("--recipe", "--spec", "--json", "DATA"):
        assert flag in text


def test_the_overview_lists_every_command(call: Call) -> None:
    texts = {call(*words).out for words in ([], ["--help"], ["-h"], ["help"])}
    assert len(texts) == 1
    lines = texts.pop().splitlines()
    for command in cli.COMMANDS:
        assert [line for line in lines if line.split()[:1] == [command]], command
    assert max(map(len, lines)) <= 100
    assert call("--version").out == call("-V").out == f"tellapart {tellapart.__version__}\n"


def test_running_as_a_module(run_cli: Call) -> None:
    done = run_cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tellapart {tellapart.__version__}\n", "")


# --- Mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (["trian"], ["There is no command 'trian'", "'train'", "Valid: train, resume"]),
        (["train", "--training.epocs", "3"], ["--training.epocs", "--training.epochs"]),
        (["train", "--training.epochs"], ["--training.epochs"]),
        (["train", "--training.epochs", "many"], ["--training.epochs", "many"]),
        (["train", "--training.epochs", "-1"], ["training.epochs is -1; it must be at least 0"]),
        (["train", "--training.lr", "-1"], ["training.lr", "at least 0"]),
        (["train", "--training.lr", "nan"], ["training.lr"]),
        (["train", "--training.optimizer", "adamm"], ["adamm", "adamw", "sgd"]),
        (["train", "--input.channels", "257"], ["input.channels", "257", "256"]),
        (["train", "--input.std", "0", "0", "0"], ["std"]),
        (["train", "--recipe", "tutrial"], ["There is no recipe 'tutrial'", "'tutorial'"]),
        (["train", "--recipe=tutrial"], ["'tutorial'"]),
        (["train", "--spec", "nowhere.yaml"], ["nowhere.yaml cannot be read", "No such file"]),
        (["train", "--spec", "broken.yaml"], ["broken.yaml is not valid YAML"]),
        (["train", "--spec", "wrong.yaml"], ["'training.epocs'", "'epochs'"]),
        (["train", "no such folder"], ["There is no 'no such folder'", "Expected a folder"]),
        (["train", "cifar"], ["'cifar10'"]),
        (["train", "empty"], ["empty"]),
        (["train", "empty", "more"], ["more"]),
        (["train", "--training.device", "gpu"], ["'gpu'", "auto, cpu, cuda"]),
        (["train", "--model.name", "resnet81"], ["resnet81", "'resnet18'"]),
        (["find-lr", "nowhere"], ["There is no 'nowhere'"]),
        (["resume", "nowhere"], ["There is no run folder nowhere"]),
        (["resume", "empty"], ["empty is not a run folder"]),
        (["resume"], ["RUN", "The run folder"]),
        (["import"], ["WEIGHTS", "--out FILE"]),
        (["evaluate", "nowhere"], ["No model: nowhere does not exist"]),
        (["evaluate", "empty"], ["the folder empty has no model.safetensors in it"]),
        (["evaluate", "broken.yaml"], ["broken.yaml cannot be read as safetensors"]),
        (["predict", "nowhere", "broken.yaml"], ["No model: nowhere does not exist"]),
        (["report", "empty"], ["empty is not a run folder"]),
        (["compare", "empty", "nowhere"], ["empty is not a run folder"]),
        (["compare"], ["two run folders or more", "RUN RUN…"]),
        (["predict", "nowhere"], ["IMAGE…"]),
        (["evaluate"], ["MODEL", "Run folder, artifact or exported file"]),
        (["cache", "clear", "--older-than", "x"], ["--older-than DAYS", "could not convert string to float: 'x'"]),
        (["train", "--augment.hflip", "x"], ["--augment.hflip FLOAT", "could not convert string to float: 'x'"]),
        (["train", "--augment.crop-scale", "1"], ["--augment.crop-scale FLOAT FLOAT", "2 values", "not 1"]),
        (["check", "nowhere"], ["There is no 'nowhere'"]),
        (["models", "zzz"], ["No model matches 'zzz'"]),
        (["models", "--summary", "simple-cmm"], ["'simple-cnn'"]),
        (["export", "nowhere"], ["No model: nowhere does not exist"]),
        (["export", "nowhere", "--to", "onix"], ["onix", "state-dict"]),
        (["import", "nowhere.pth", "--classes", "a,b", "--out", "m.safetensors"], ["nowhere.pth does not exist"]),
        (["import", "nowhere.pth"], ["--out"]),
        (["doctor", "--jsn"], ["--jsn", "--json"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_mistake_is_answered_with_what_is_right(
    words: list[str], answers: list[str], call: Call, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.yaml").write_text("training: {epochs: 3", encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text("training: {epocs: 3}", encoding="utf-8")
    refused(call(*words), *answers)
    assert not (tmp_path / "runs").exists()


def test_one_run_is_nothing_to_compare(trained: Any, call: Call) -> None:
    refused(call("compare", trained.run), "two run folders")


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        ([], ["IMAGE…"]),
        (["none.png"], ["no file or folder 'none.png'"]),
        (["*.tiff"], ["No file matches '*.tiff'"]),
        (["http://127.0.0.1/x.png"], ["is a URL", "--urls"]),
        (["x.png", "--top", "0"], ["--top is 0; it must be at least 1"]),
        (["x.png", "--format", "json"], ["json", "jsonl", "csv", "table"]),
        (["x.png", "--device", "gpu"], ["'gpu'"]),
    ],
)
def test_what_cannot_be_predicted(
    words: list[str], answers: list[str], trained: Any, call: Call, tmp_path: Path
) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "x.png")
    refused(call("predict", trained.run, *words), *answers)


def test_a_run_folder_is_not_overwritten(trained: Any, call: Call) -> None:
    refused(call("train", trained.data, "--run.dir", trained.run, *QUICK), "tellapart resume")


def test_a_bad_image_can_be_an_error(make_folder: Callable[..., Path], tmp_path: Path, call: Call) -> None:
    data = make_folder(tmp_path / "data", count=4)
    (data / "bee" / "002.png").write_bytes(b"<html></html>")
    words = ["train", data, *QUICK, "--data.val-fraction", "0", "--data.test-fraction", "0"]
    refused(call(*words, "--data.on-bad-image", "error"), str(data / "bee/002.png"), "HTML")


def test_folders_that_cannot_be_written_are_named(
    make_folder: Callable[..., Path], tmp_path: Path, call: Call
) -> None:
    data = make_folder(tmp_path / "data", count=6)
    (tmp_path / "file").write_text("in the way")
    for flag in ("--run.dir", "--data.cache-dir"):
        answer = call("train", data, *QUICK, flag, "file/x")
        assert answer.code in (1, 2)
        assert answer.err.splitlines()[-1].startswith("error: ")
        assert "file/x" in answer.err.splitlines()[-1]


def test_training_that_fails_is_1(make_folder: Callable[..., Path], tmp_path: Path, call: Call) -> None:
    data = make_folder(tmp_path / "data", count=10)
    answer = call("train", data, *QUICK, "--training.optimizer", "sgd", "--training.lr", "1e20")
    assert answer.code == 1
    assert "error: The loss became NaN or infinite" in answer.err
    assert "--training.lr" in answer.err


def test_an_interruption_is_130(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tellapart import workflow

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "train", stop)
    assert call("train").code == 130
    cut = workflow.Result(tmp_path, tmp_path / "model.safetensors", "", {}, interrupted=True)
    monkeypatch.setattr(workflow, "train", lambda *_, **__: cut)
    answer = call("train", "--json")
    assert answer.code == 130
    assert one_object(answer)["interrupted"] is True
    assert call("train").out == ""


def test_only_the_first_process_prints(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from tellapart import workflow

    result = workflow.Result(tmp_path, tmp_path / "model.safetensors", "", {})
    monkeypatch.setattr(workflow, "train", lambda *_, **__: result)
    monkeypatch.setenv("RANK", "1")
    assert call("train", "--json").out == call("train").out == ""
    monkeypatch.setenv("RANK", "0")
    assert one_object(call("train", "--json"))["run"] == str(tmp_path)
    assert "no validation and no test split" in call("train").out


# --- Flags --------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ``train`` and ``find-lr`` hand over, instead of training."""
    from tellapart import workflow

    got: list[Any] = []

    def keep(data: Any, spec: Spec, **more: Any) -> Any:
        got.append(workflow.make_spec(data, spec=spec))
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "train", keep)
    monkeypatch.setattr(workflow, "find_lr", keep)
    return got


def test_flags_go_over_yaml_over_recipe(call: Call, seen: list[Any], tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(
        "training: {lr: 5e-1, epochs: 4}\ndata: {source: here}\n", encoding="utf-8"
    )
    words = ("--recipe", "tutorial", "--spec=my.yaml", "--training.epochs=7", "--data.group", "a b")
    for command in ("train", "find-lr"):
        call(command, *words)
        call(command, "there", *words)
    assert [spec.data.source for spec in seen] == ["here", "there"] * 2
    for spec in seen:
        assert (spec.training.batch_size, spec.training.lr, spec.training.epochs) == (4, 0.5, 7)
        assert spec.data.group == "a b"
    call("train")
    assert seen[-1] == Spec()


def test_underscores_are_understood(call: Call, seen: list[Any]) -> None:
    call("train", "--training.batch_size", "7", "--data.on_bad_image=error", "--run.no_report")
    assert (seen[0].training.batch_size, seen[0].data.on_bad_image, seen[0].run.report) == (7, "error", False)


# --- Prediction ---------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(trained: Any, tmp_path: Path) -> Path:
    for name in ("我的 图片/猫 1.png", '我的 图片/é, "x".png', "bee.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(trained.data / "test/bee/001.png", tmp_path / name)
    return tmp_path


def test_forms_of_printing(trained: Any, pictures: Path, call: Call) -> None:
    paths = ['我的 图片/é, "x".png', "我的 图片/猫 1.png", "bee.png"]
    expected = tellapart.load(trained.run).predict(pictures / "bee.png", top=2)[0]
    words = ("predict", trained.run, "我的 图片", "bee.png", "--top", "2")
    table = call(*words)
    assert (table.code, table.err) == (0, "")
    pairs = ", ".join(
        f"{label} {100 * value:.1f} %"
        for label, value in zip(expected.labels, expected.probabilities, strict=True)
    )
    assert table.out.splitlines() == [f"{path}: {pairs}" for path in paths]
    lines = [json.loads(line) for line in call(*words, "--format", "jsonl").out.splitlines()]
    assert [line["path"] for line in lines] == paths
    for line in lines:
        assert line["label"] == expected.label
        assert line["probability"] == pytest.approx(expected.probability, rel=1e-5)
        assert [item["label"] for item in line["top"]] == list(expected.labels)
    rows = list(csv.DictReader(io.StringIO(call(*words, "--format=csv").out)))
    assert [(row["path"], row["rank"], row["label"]) for row in rows] == [
        (path, str(rank), expected.labels[rank - 1]) for path in paths for rank in (1, 2)
    ]
    assert float(rows[0]["probability"]) == pytest.approx(expected.probability, abs=1e-5)
    assert {row["error"] for row in rows} == {""}
    assert len(call("predict", trained.run, "bee.png", "--top", "99").out.split(",")) == 3


def test_patterns_and_folders(trained: Any, pictures: Path, call: Call) -> None:
    assert len(call("predict", trained.run, "*.png", "我*/*1.png").out.splitlines()) == 2
    assert len(call("predict", trained.run, "**/*.png").out.splitlines()) == 3
    assert len(call("predict", trained.run / "model.safetensors", ".").out.splitlines()) == 3


def test_one_bad_image_among_many(trained: Any, pictures: Path, call: Call) -> None:
    (pictures / "a bad.png").write_bytes(b"<html>")
    answer = call("predict", trained.run, "a bad.png", "bee.png", "--format", "jsonl")
    assert answer.code == 1
    bad, good = map(json.loads, answer.out.splitlines())
    assert set(bad) == {"path", "error"}
    assert bad["path"] == "a bad.png"
    assert good["label"] == "bee"
    assert answer.err == "1 of 2 images could not be read.\n"
    table = call("predict", trained.run, "a bad.png", "bee.png")
    assert table.code == 1
    assert table.out.splitlines()[0].startswith("a bad.png: ")
    rows = list(csv.DictReader(io.StringIO(call("predict", trained.run, "a bad.png", "--format", "csv").out)))
    assert [(row["path"], row["label"], bool(row["error"])) for row in rows] == [("a bad.png", "", True)]


def test_an_image_on_standard_input(
    trained: Any, pictures: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = call("predict", trained.run, "bee.png").out
    content = io.BytesIO((pictures / "bee.png").read_bytes())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=content))
    answer = call("predict", trained.run, "-")
    assert answer.code == 0
    assert answer.out == named.replace("bee.png: ", "-: ")


@pytest.fixture
def address(pictures: Path) -> Iterator[str]:
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *words: Any) -> None:
            super().__init__(*words, directory=str(pictures))

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_addresses_are_fetched_only_when_allowed(trained: Any, call: Call, address: str) -> None:
    refused(call("predict", trained.run, f"{address}/bee.png"), "--urls")
    answer = call("predict", trained.run, f"{address}/bee.png", "--urls")
    assert answer.code == 0
    assert answer.out.startswith(f"{address}/bee.png: bee ")
    missing = call("predict", trained.run, f"{address}/none.png", f"{address}/bee.png", "--urls")
    assert missing.code == 1
    assert len(missing.out.splitlines()) == 2


# --- One JSON object ----------------------------------------------------------------------------------------


def test_evaluate_as_json(trained: Any, call: Call, tmp_path: Path) -> None:
    answer = call("evaluate", trained.run, "--json")
    content = one_object(answer)
    written = json.loads((trained.run / "evaluation/test/metrics.json").read_text(encoding="utf-8"))
    assert answer.code == 0
    assert (content["accuracy"], content["n"]) == (written["accuracy"], 36)
    other = call("evaluate", trained.run, trained.data / "train", "--json", "--out", "here", "--split", "all")
    assert one_object(other)["n"] == 36
    assert (tmp_path / "here/evaluation/all/predictions.csv").is_file()


def test_evaluate_as_text(trained: Any, call: Call) -> None:
    text = call("evaluate", trained.run).out
    content = one_object(call("evaluate", trained.run, "--json"))
    assert text.startswith(f"Accuracy {100 * content['accuracy']:.2f} % (95 % interval ")
    assert "on 36 images (test)" in text
    for name in ("ant", "bee", "cat"):
        (score,) = (score for score in content["per_class"] if score["name"] == name)
        line, row = (line for line in text.splitlines() if line.startswith(f"{name} "))
        figures = [f"{100 * score[figure]:.2f}" for figure in ("precision", "recall", "f1")]
        assert line.replace("%", "").split()[1:] == ["12", *figures]
        assert sum(map(int, row.split()[1:])) == 12  # of the confusion matrix
    assert max(map(len, text.splitlines())) <= 100


def test_compare_check_and_doctor_as_json(trained: Any, call: Call) -> None:
    compared = call("compare", trained.run, trained.run, "--json")
    assert one_object(compared)["pairs"][0]["p_value"] == 1
    assert "could be chance" in call("compare", trained.run, trained.run).out
    checked = call("check", trained.data, "--json", "--html", "page.html")
    assert one_object(checked)
    assert "page.html" in checked.err
    assert Path("page.html").stat().st_size > 10_000
    assert one_object(call("doctor", "--json"))
    for words in (["check", trained.data], ["doctor"]):
        answer = call(*words)
        assert answer.code == 0
        assert len(answer.out.splitlines()) > 5


@pytest.mark.parametrize("words", [["simple*"], ["--summary", "simple-cnn"]])
def test_models_as_json(words: list[str], call: Call) -> None:
    answer = call("models", *words, "--json")
    assert "simple-cnn" in json.dumps(one_object(answer))


def test_models_as_text(call: Call) -> None:
    assert [line.split()[0] for line in call("models", "*-cnn").out.splitlines()] == [
        "model",
        "simple-cnn",
        "fast-cnn",
        "whitened-cnn",
    ]
    text = call("models", "--summary", "tutorial-net", "--num-classes", "7").out
    assert "61,751" in text, "62,006 parameters of the tutorial's network, less those of three classes"


def test_the_table_of_models(call: Call) -> None:
    if not packages.installed("torchvision"):
        pytest.skip("torchvision is not installed")
    answer = call("models")
    lines = answer.out.splitlines()
    assert lines[0].split() == ["model", "px", "params", "top-1", "licence"]
    assert max(map(len, [*lines, *answer.err.splitlines()])) <= 80
    rows = {line.split()[0]: line.split()[1:] for line in lines}
    assert rows["torchvision/resnet18"] == ["224", "11.69M", "69.8", "BSD-3-Clause"]
    assert rows["tutorial-net"] == ["32", "0.06M", "MIT", "(untrained)"]
    assert "torchvision states" in answer.err
    (info,) = one_object(call("models", "torchvision/resnet18", "--json"))["models"]
    assert (info["parameters"], info["accuracy"]) == (11_689_512, 69.758)


def test_find_lr(trained: Any, call: Call) -> None:
    words = ("find-lr", trained.data, *QUICK, "--steps", "30")
    content = one_object(call(*words, "--json"))
    assert len(content["lrs"]) == len(content["losses"])
    text = call(*words).out
    assert f"Suggestion: --training.lr {content['suggestion']:.2g}" in text


def test_a_rate_that_cannot_be_found_is_1(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from tellapart import workflow
    from tellapart.training.methods.lr_finder import LrCurve

    monkeypatch.setattr(
        workflow, "find_lr", lambda *_, **__: LrCurve((0.1, 1.0), (2.0, 3.0), (2.0, 3.0), None)
    )
    answer = call("find-lr")
    assert answer.code == 1
    assert "no suggestion" in answer.out


# --- Terminals ----------------------------------------------------------------------------------------------


RUN_ALL = """
import sys
from tellapart.cli import main
words = []
for word in sys.argv[1:]:
    if word != ";":
        words.append(word)
        continue
    code = main(words)
    print("----")
    assert code == 0, (words, code)
    words = []
"""
ASCII_OUTPUT = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
ASCII_SYSTEM = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [ASCII_OUTPUT, ASCII_SYSTEM], ids=["ascii output", "C locale"])
def test_a_terminal_without_unicode(
    terminal: dict[str, str], trained: Any, tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    """Where only ASCII can be printed nothing crashes, and JSON stays JSON."""
    names = [b"\xe7\x8c\xab.png", "é.png".encode(), "😀.png".encode(), b"\xff.png"]
    for name in names:
        shutil.copy(trained.data / "test/bee/001.png", tmp_path / os.fsdecode(name))
    make_folder(tmp_path / "data", classes=("蚂蚁", "é"), count=10)
    run = str(trained.run)
    commands = [
        ["predict", run, *names, "--format", "jsonl"],
        ["predict", run, *names],
        ["predict", run, *names, "--format", "csv"],
    ]
    if terminal is ASCII_OUTPUT:
        commands += [["train", "data", *QUICK, "--run.dir", "运行", "--json"], ["evaluate", "运行"]]
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))
    }
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *(word for command in commands for word in (*command, ";"))],
        cwd=tmp_path,
        env=kept | {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ} | terminal,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    jsonl, table, listed, *more = done.stdout.decode("ascii").split("----\n")[:-1]
    assert [os.fsencode(json.loads(line)["path"]) for line in jsonl.splitlines()] == names
    assert len(table.splitlines()) == 4
    assert len(listed.splitlines()) == 5
    if terminal is ASCII_OUTPUT:
        assert json.loads(more[0])["run"] == "运行"
        assert more[1].startswith("Accuracy")


def test_a_reader_that_goes_away_is_no_error(trained: Any) -> None:
    """``tellapart predict … | head -1``"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tellapart", "predict", str(trained.run), str(trained.data)],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (0, 1, 141)


# --- The whole way ------------------------------------------------------------------------------------------


def _read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path, make_folder: Callable[..., Path], run_cli: Call, call: Call) -> None:
    """Train, evaluate, predict, report, compare, resume, export, import: one after the other, on files."""
    from sklearn.metrics import accuracy_score

    classes = ("ant", "bee, wild", "猫")
    make_folder(tmp_path / "my data", classes=classes, splits=("train", "val", "test"))
    flags = ("--model.name", "simple-cnn", "--training.epochs", "2", "--training.batch-size", "8")
    done = run_cli("train", "my data", *flags, "--augment.preset", "light", "--run.dir", "run", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (result["run"], result["artifact"], result["split"]) == ("run", "run/model.safetensors", "test")
    assert "epoch 2/2" in done.stderr
    run = tmp_path / "run"
    expected = {
        "spec.yaml", "samples.csv", "bad-images.csv", "metrics.csv", "model.safetensors", "checkpoint", "report.html",
        "environment.json", "evaluation",
    }  # fmt: skip
    beside = {
        "tensorboard",
        "last.safetensors",
        "warnings.jsonl",
        "advice.json",
        "choices.jsonl",
        ".tellapart-lock",
    }
    assert expected <= {path.name for path in run.iterdir()} <= expected | beside
    assert len(list((run / "checkpoint").iterdir())) == 2
    assert not list(run.rglob("*.tmp"))
    for split in ("val", "test"):
        assert {"metrics.json", "predictions.csv", "mistakes"} <= {
            path.name for path in (run / "evaluation" / split).iterdir()
        }

    evaluated = one_object(call("evaluate", "run", "--json"))
    written = json.loads((run / "evaluation/test/metrics.json").read_text(encoding="utf-8"))
    answers = _read(run / "evaluation/test/predictions.csv")
    assert evaluated["accuracy"] == written["accuracy"] == result["metrics"]["accuracy"]
    assert evaluated["n"] == result["metrics"]["n"] == len(answers) == 36
    assert evaluated["accuracy"] == pytest.approx(
        accuracy_score([row["label"] for row in answers], [row["predicted"] for row in answers])
    )

    predicted = call("predict", "run", *(f"my data/{row['path']}" for row in answers), "--format", "jsonl")
    lines = [json.loads(line) for line in predicted.out.splitlines()]
    assert [line["label"] for line in lines] == [row["predicted"] for row in answers]
    assert [f"{line['probability']:.6g}" for line in lines] == [row["confidence"] for row in answers]
    with open(tmp_path / "my data" / answers[0]["path"], "rb") as picture:
        piped = run_cli("predict", "run", "-", stdin=picture)
    assert piped.stdout == f"-: {lines[0]['label']} {100 * lines[0]['probability']:.1f} %\n"

    page = call("report", "run", "--out", "page.html")
    assert (page.code, page.out) == (0, "page.html\n")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "猫" in text
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", text), "nothing from elsewhere"

    other = call("train", "--spec", "run/spec.yaml", "--seed", "1", "--run.dir", "other")
    assert other.code == 0
    assert other.out.startswith("Accuracy ")
    compared = one_object(call("compare", "run", "other", "--json"))
    assert compared["differences"] == {"seed": [0, 1]}
    assert compared["pairs"][0]["shared"] == 36

    before = (run / "model.safetensors").read_bytes()
    again = call("resume", "run")
    assert again.code == 0
    assert "finished" in again.err or "complete" in again.err
    assert again.out.startswith("Accuracy ")
    assert one_object(call("resume", "run", "--json"))["metrics"] == result["metrics"]
    assert (run / "model.safetensors").read_bytes() == before

    exported = call("export", "run", "--to", "state-dict", "--out", "out")
    assert "out/model.pth" in exported.out.splitlines()
    assert (
        one_object(call("export", "run", "--to", "state-dict", "--out", "again", "--json"))["passed"] is True
    )
    network = tellapart.load(run).backend.predictor.model
    network.load_state_dict(torch.load(tmp_path / "out/model.pth", weights_only=True))
    refused(call("export", "run", "--to", "state-dict", "--out", "out"), "exists")

    spec = _spec_flags(run)
    names = "ant,bee; wild,猫"
    brought = call("import", "out/model.pth", "--classes", names, "--out", "new.safetensors", *spec)
    assert (brought.code, brought.out) == (0, "new.safetensors\n")
    back = call("predict", "new.safetensors", "my data/test", "--format", "jsonl", "--top", "3")
    there = call("predict", "run", "my data/test", "--format", "jsonl", "--top", "3")
    assert back.out.replace("bee; wild", "bee, wild") == there.out


def _spec_flags(run: Path) -> list[str]:
    """The flags that say how a run's weights were trained."""
    contract = tellapart.load(run).card.preprocessing
    values = {
        "size": [contract.size],
        "mean": contract.mean,
        "std": contract.std,
        "resize": [contract.resize],
    }
    flags = ["--model.name", "simple-cnn"]
    for name, value in values.items():
        flags += [f"--input.{name}", *map(str, value)]
    assert np.isfinite(contract.mean).all()
    return flags
