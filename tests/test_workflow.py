"""The stages together: what a run writes, what is refused, and what other data means for a model."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

import tellapart
from tellapart import runs, workflow
from tellapart.errors import ArtifactError, DataError, ModelError, RunError, SpecError
from tellapart.preprocess import load
from tellapart.spec import DataSpec, Spec, update
from tellapart.training import task

TINY: dict[str, Any] = {
    "model": {"name": "simple-cnn"},
    "training": {"epochs": 1, "batch_size": 8},
    "augment": {"preset": "none"},
    "run": {"tensorboard": False, "report": False},
}


def train(data: Any, run: Path, **changes: Any) -> workflow.Result:
    return workflow.train(data, quiet=True, **TINY, **{"run.dir": str(run), **changes})


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


# --- The spec of a run --------------------------------------------------------------------------------------


def test_the_order_of_what_makes_a_spec(tmp_path: Path) -> None:
    """Defaults, recipe, YAML file, keyword arguments, DATA: each over those before it."""
    file = tmp_path / "my.yaml"
    file.write_text("training: {lr: 0.5, epochs: 4}\ndata: {source: here}\n", encoding="utf-8")
    made = workflow.make_spec("there", "tutorial", file, training={"epochs": 7})
    assert made.training.batch_size == 4, "the recipe's"
    assert made.training.lr == 0.5, "the file's"
    assert made.training.epochs == 7, "the argument's"
    assert made.data.source == "there"
    assert workflow.make_spec(None, "tutorial", file).data.source == "here"
    assert workflow.make_spec() == Spec()
    assert workflow.make_spec("there", data={"format": "folder", "train": ["x"]}).data == DataSpec(
        source="there", format="folder", train=("x",)
    )
    assert (
        workflow.make_spec(data="there")
        == workflow.make_spec(data={"source": "there"})
        == workflow.make_spec("there")
    )
    given = update(Spec(), {"seed": 3})
    assert workflow.make_spec(Path("x"), spec=given).seed == 3
    with pytest.raises(SpecError, match="'epochs'"):
        workflow.make_spec(training={"epocs": 1})


def test_the_saved_spec_leaves_nothing_open(trained: Any) -> None:
    spec = runs.read_spec(trained.run / "spec.yaml")
    text = (trained.run / "spec.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert not content["augment"].pop("transform")  # and how it would be called is open without one
    assert content["augment"].pop("transform_takes") == "auto"
    assert "auto" not in [value for name in ("input", "augment", "model") for value in content[name].values()]
    assert spec.input.size == 16
    assert spec.input.channels == 3
    assert len(spec.input.mean) == len(spec.input.std) == 3
    assert Path(spec.data.source) == trained.data
    assert None not in content["augment"].values()


def test_mean_and_deviation_are_those_of_train(trained: Any) -> None:
    """Measured on the training images alone, each pixel counting alike."""
    pixels = [np.asarray(Image.open(path)) for path in sorted((trained.data / "train").rglob("*.png"))]
    flat = np.concatenate([one.reshape(-1, 3) for one in pixels]) / 255
    spec = runs.read_spec(trained.run / "spec.yaml")
    np.testing.assert_allclose(spec.input.mean, flat.mean(0), atol=5.1e-5)
    np.testing.assert_allclose(spec.input.std, flat.std(0), atol=5.1e-5)


def test_training_again_from_the_saved_spec_gives_the_same_bytes(trained: Any, tmp_path: Path) -> None:
    again = workflow.train(spec=trained.run / "spec.yaml", quiet=True, **{"run.dir": str(tmp_path / "again")})
    ours, theirs = (
        safetensors.torch.load_file(run / "model.safetensors") for run in (again.run, trained.run)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# --- What a run writes --------------------------------------------------------------------------------------


def test_the_samples_are_listed_with_their_split(trained: Any) -> None:
    listed = rows(trained.run / "samples.csv")
    assert len(listed) == 3 * 3 * 12
    for row in listed:
        split, label, _ = row["path"].split("/")
        assert (split, label) == (row["split"], row["label"])
        assert len(row["hash"]) == 32
    assert rows(trained.run / "bad-images.csv") == []


def test_metrics_are_scikit_learns(trained: Any) -> None:
    from sklearn import metrics

    for split in ("val", "test"):
        folder = trained.run / "evaluation" / split
        content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        answers = rows(folder / "predictions.csv")
        truth, guess = [row["label"] for row in answers], [row["predicted"] for row in answers]
        assert len(answers) == content["n"] == 36
        assert content["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
        assert content["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, guess))
        assert content["macro"]["f1"] == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
        assert content["confusion"] == metrics.confusion_matrix(truth, guess).tolist()
        losses = -np.log([float(row["label_probability"]) for row in answers])
        assert content["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    card = tellapart.load(trained.run).card
    assert card.scores["test"]["accuracy"] == content["accuracy"]
    assert card.scores["test"]["predicted"] == np.array(content["confusion"]).sum(axis=0).tolist()
    assert card.classes == ("ant", "bee", "cat")


def test_evaluating_a_run_again_gives_its_figures(trained: Any, tmp_path: Path) -> None:
    for split in ("test", "val"):
        written = json.loads((trained.run / f"evaluation/{split}/metrics.json").read_text(encoding="utf-8"))
        again = workflow.evaluate(trained.run, split=split, quiet=True, out=tmp_path).to_dict()
        for name in ("n", "accuracy", "loss", "confusion", "macro", "classes"):
            assert again[name] == written[name]
        ours, theirs = (
            rows(root / f"evaluation/{split}/predictions.csv") for root in (tmp_path, trained.run)
        )
        assert ours == theirs
    assert workflow.evaluate(trained.run, quiet=True).split == "test"
    assert workflow.evaluate(trained.run, split="all", quiet=True).n == 108
    with pytest.raises(RunError, match=r"not a run folder|no run folder"):
        workflow.evaluate(trained.run / "model.safetensors", quiet=True)


# --- Classes ------------------------------------------------------------------------------------------------


def test_plain_progress_lines_stand_at_round_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the pause between two lines ends in the middle of N steps."""
    from tellapart.tracking import Trackers
    from tellapart.tracking.remaining import Ahead
    from tellapart.workflow.telling import RunReporter

    with tellapart.tracking.Console() as console:
        reporter = RunReporter(console, Trackers([]), 0, 30)
        reporter.start(1, 30, 0, Ahead())
        reporter.shown -= 100
        for step in range(5, 31):
            reporter.step(0, step, 1.0, 0.5, 100.0)
    lines = [line for line in capsys.readouterr().err.splitlines() if "step" in line]
    assert len(lines) == 1
    assert "step 6/30" in lines[0]


def test_a_class_missing_in_val_keeps_labels_right(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Indices come from the union of the splits: with val's own folder order, cat would be bee."""
    data = make_folder(tmp_path / "data", count=30, splits=("train", "val", "test"))
    shutil.rmtree(data / "val" / "ant")
    shutil.rmtree(data / "test" / "bee")
    result = train(data, tmp_path / "run", **{"training.epochs": 3})
    assert tellapart.load(result.run).classes == ("ant", "bee", "cat")
    for split, present in (("val", {"bee", "cat"}), ("test", {"ant", "cat"})):
        answers = rows(result.run / f"evaluation/{split}/predictions.csv")
        assert {row["label"] for row in answers} == present
        assert all(f"/{row['label']}/" in row["path"] for row in answers)
        assert np.mean([row["correct"] == "1" for row in answers]) > 0.8


def test_other_data_is_matched_by_class_name(trained: Any, tmp_path: Path) -> None:
    """A folder with some of the classes only, whose own order is another."""
    for name in ("cat", "bee"):
        shutil.copytree(trained.data / "test" / name, tmp_path / "some" / name)
    whole = workflow.evaluate(trained.run, quiet=True)
    some = workflow.evaluate(trained.run, tmp_path / "some", quiet=True, out=tmp_path)
    assert some.n == 24
    assert some.classes == ("ant", "bee", "cat")
    assert some.confusion[0].sum() == 0
    np.testing.assert_array_equal(some.confusion[1:], whole.confusion[1:])
    assert {row["label"] for row in rows(tmp_path / "evaluation/all/predictions.csv")} == {"bee", "cat"}
    lines = [f"{path},{path.parent.name},test" for path in sorted((tmp_path / "some").rglob("*.png"))[::-1]]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]), encoding="utf-8")
    listed = workflow.evaluate(trained.run, tmp_path / "list.csv", quiet=True)
    np.testing.assert_array_equal(listed.confusion, some.confusion)


@pytest.mark.parametrize("right", [True, False])
def test_logits_that_are_known_count_where_a_sample_confirms_them(
    trained: Any, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tellapart import runtime
    from tellapart.data.sources import opening
    from tellapart.data.stores import images
    from tellapart.evaluation import infer
    from tellapart.spec import DataSpec
    from tellapart.workflow import measure

    backend: Any = runtime.open_backend(trained.run)
    samples = opening.open_source(DataSpec(source=str(trained.data)), lambda text: None).split("test")
    found, _ = images.evaluation_images(samples, backend.card.preprocessing, DataSpec())
    stored = infer.Stored(found)
    known = infer.collect_logits(backend.predictor, found)
    console = tellapart.tracking.Console(quiet=True)
    expected = measure.evaluate_set(backend, stored, "test", None, console)
    asked: list[int] = []
    answer = backend.logits

    def counting(pixels: Any) -> Any:
        asked.append(len(pixels))
        return answer(pixels)

    backend.logits = counting
    given = known if right else known.roll(1, 0)
    evaluation = measure.evaluate_set(backend, stored, "test", None, console, given)
    of_one = [1] * 33  # for latency
    assert asked == ([infer.SAMPLE, *of_one] if right else [infer.SAMPLE, len(found), *of_one])
    assert evaluation.loss == pytest.approx(expected.loss, rel=1e-5)
    assert evaluation.accuracy == expected.accuracy
    assert evaluation.images_per_second is not None


def test_training_images_among_those_evaluated_are_counted(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.data / "test", tmp_path / "mixed")
    for path in sorted((trained.data / "train" / "cat").iterdir())[:5]:
        shutil.copy(path, tmp_path / "mixed" / "cat" / f"again-{path.name}")
    capsys.readouterr()
    workflow.evaluate(trained.run / "model.safetensors", tmp_path / "mixed")
    assert "5 of these 41 images trained this model" in " ".join(capsys.readouterr().err.split())
    workflow.evaluate(trained.run)
    assert "trained this model" not in capsys.readouterr().err


def test_an_unknown_class_is_named(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.data / "test" / "cat", tmp_path / "cat")
    shutil.copytree(trained.data / "test" / "bee", tmp_path / "wasp")
    with pytest.raises(DataError, match=r"does not know: wasp\. The model knows: ant, bee, cat\."):
        workflow.evaluate(trained.run, tmp_path, quiet=True)


def test_a_split_without_images_is_named(trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.data / "test", tmp_path / "test")  # of which training makes no validation
    with pytest.raises(DataError, match="has no val images"):
        workflow.evaluate(trained.run, tmp_path, split="val", quiet=True)


def test_one_class_is_not_enough(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tmp_path / "data", classes=("one",), count=10)
    with pytest.raises(DataError, match=r"only the class 'one'; training needs two"):
        train(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- Bad images ---------------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path: Path, make_folder: Callable[..., Path]) -> Path:
    data = make_folder(tmp_path / "data", count=20, splits=("train", "val"))
    (data / "train/ant/000.png").write_bytes(b"")
    (data / "train/bee/007.png").write_text("<!doctype html><html>not found</html>")
    (data / "val/cat/003.png").write_bytes((data / "val/cat/004.png").read_bytes()[:200])
    return data


def test_bad_images_are_listed_and_training_continues(
    damaged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = train(damaged, tmp_path / "run")
    listed = {row["path"]: row["reason"] for row in rows(result.run / "bad-images.csv")}
    assert list(listed) == ["train/ant/000.png", "train/bee/007.png", "val/cat/003.png"]
    assert listed["train/ant/000.png"] == "empty file"
    assert "HTML" in listed["train/bee/007.png"]
    assert "PNG" in listed["val/cat/003.png"]
    used = {row["path"] for row in rows(result.run / "samples.csv")}
    assert len(used) == 2 * 3 * 20 - 3
    assert not used & set(listed)
    assert result.metrics["n"] == 59
    assert "Skipped 3 images that cannot be read" in capfd.readouterr().err
    again = workflow.evaluate(result.run, quiet=True)
    assert (again.n, again.accuracy) == (59, result.metrics["accuracy"])


def test_bad_images_can_stop_training(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 images cannot be used, the first: .*train/ant/000\.png: empty file"
    ):
        train(damaged, tmp_path / "run", **{"data.on_bad_image": "error"})
    assert not (tmp_path / "run").exists()


def test_a_class_of_bad_images_only_is_reported(
    damaged: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in (damaged / "train/bee").iterdir():
        path.write_bytes(b"")
    result = train(damaged, tmp_path / "run")
    assert "There is no readable training image of: bee." in capfd.readouterr().err
    assert tellapart.load(result.run).classes == ("ant", "bee", "cat")
    for path in (damaged / "train").rglob("*.png"):
        path.write_bytes(b"")
    workflow.check(damaged, html=tmp_path / "check.html", quiet=True)
    assert (tmp_path / "check.html").is_file()


def test_bad_images_do_not_count_in_an_evaluation(
    trained: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(trained.data / "test", tmp_path / "data")
    (tmp_path / "data/ant/003.png").write_bytes(b"")
    assert workflow.evaluate(trained.run, tmp_path / "data", quiet=True).n == 35
    assert "Skipped 1 image that cannot be read; the first: ant/003.png: empty file" in capfd.readouterr().err
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"None of the all images of .*data can be read"):
        workflow.evaluate(trained.run, tmp_path / "data", quiet=True)


def test_nothing_but_bad_images(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tmp_path / "data", count=3, splits=("train", "val"))
    for path in (data / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="val"):
        train(data, tmp_path / "run")
    for path in (data / "train").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="can be read"):
        train(data, tmp_path / "run")


def test_conflicting_labels_are_listed(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tmp_path / "data", count=20)
    odd = 'ant/a, "b".png'
    (data / "ant/000.png").rename(data / odd)
    named = [(path.relative_to(data).as_posix(), path.parent.name) for path in sorted(data.rglob("*.png"))]
    with open(data / "labels.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "label"), *named, (odd, "bee"), ("cat/003.png", "ant")])
    result = train(data / "labels.csv", tmp_path / "run")
    listed = {row["path"]: row["labels"] for row in rows(result.run / "conflicts.csv")}
    assert listed == {odd: "ant | bee", "cat/003.png": "ant | cat"}
    assert not {row["path"] for row in rows(result.run / "samples.csv")} & set(listed)


def test_boxes_are_told_apart_in_the_answers(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tmp_path / "data", count=10, splits=("train", "val"), size=32)
    lines = [("path", "label", "split", "x0", "y0", "x1", "y1")]
    for path in sorted(data.rglob("*.png")):
        where = path.relative_to(data).as_posix()
        boxes = (("0", "0", "16", "32"), ("16", "0", "32", "32"))
        lines += [(where, path.parent.name, where.split("/")[0], *box) for box in boxes]
    with open(data / "boxes.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(lines)
    result = train(data / "boxes.csv", tmp_path / "run", **{"data.boxes": "crop"})
    answers = rows(result.run / "evaluation/val/predictions.csv")
    assert len(answers) == 60
    assert len({(row["path"], row["box"]) for row in answers}) == 60
    assert {row["box"] for row in answers} == {"0 0 16 32", "16 0 32 32"}


# --- Splits -------------------------------------------------------------------------------------------------


def test_without_validation_everything_trains(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """The last epoch counts, and test is read once, at the end."""
    data = make_folder(tmp_path / "data", splits=("train", "test"))
    result = train(data, tmp_path / "run", **{"data.val_fraction": 0.0, "training.epochs": 2})
    assert result.split == "test"
    assert {row["split"] for row in rows(result.run / "samples.csv")} == {"train", "test"}
    names = {row["name"] for row in rows(result.run / "metrics.csv")}
    assert not [name for name in names if name.startswith("val/")]
    assert tellapart.load(result.run).card.scores["epoch"] == 2


def test_without_any_other_split_nothing_is_measured(
    tmp_path: Path, make_folder: Callable[..., Path]
) -> None:
    data = make_folder(tmp_path / "data")
    result = train(data, tmp_path / "run", **{"data.val_fraction": 0.0, "data.test_fraction": 0.0})
    assert (result.split, dict(result.metrics)) == ("", {})
    assert not (result.run / "evaluation").exists()
    assert tellapart.load(result.run).predict(data / "ant/000.png")[0].label in ("ant", "bee", "cat")


def test_copies_across_splits_are_reported(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    data = make_folder(tmp_path / "data", splits=("train", "val"))
    for number in range(5):
        shutil.copy(data / f"train/ant/00{number}.png", data / f"val/ant/copy{number}.png")
    train(data, tmp_path / "run")
    assert "5 of 41 validation images are also in train" in capfd.readouterr().err


# --- Resume -------------------------------------------------------------------------------------------------


def test_ctrl_c_loses_nothing(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle of an epoch and resumed: the same weights and metrics as the uncut run."""
    data = make_folder(tmp_path / "data", splits=("train", "val"))
    changes = {"training.epochs": 2, "model.dropout": 0.2, "augment.preset": "cifar"}
    uncut = train(data, tmp_path / "uncut", **changes)
    steps = 0
    inputs = task.Classification.inputs

    def count(self: Any, *words: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            signal.raise_signal(signal.SIGINT)
        return inputs(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(task.Classification, "inputs", count)
        cut = train(data, tmp_path / "cut", **changes)
    assert steps == 3, "the step is finished, and no other begun"
    assert cut.interrupted
    assert not (cut.run / "evaluation").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handler is given back"
    resumed = workflow.resume(cut.run, quiet=True)
    assert not resumed.interrupted
    assert resumed.metrics == uncut.metrics
    ours, theirs = (safetensors.torch.load_file(run / "model.safetensors") for run in (cut.run, uncut.run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_finished_run_says_so(trained: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    before = (run / "metrics.csv").read_bytes()
    result = workflow.resume(run)
    text = capfd.readouterr().err
    assert "finished" in text or "complete" in text
    assert "epoch 1/2" not in text
    assert (
        result.metrics["accuracy"]
        == json.loads((run / "evaluation/test/metrics.json").read_text())["accuracy"]
    )
    assert (run / "metrics.csv").read_bytes() == before


def test_a_run_without_a_checkpoint_begins_again(trained: Any, tmp_path: Path) -> None:
    """Cut off before its first checkpoint, it ends with the same weights and no value twice."""
    shutil.copytree(trained.run, tmp_path / "run")
    for name in ("checkpoint", "evaluation"):
        shutil.rmtree(tmp_path / "run" / name)
    workflow.resume(tmp_path / "run", quiet=True)
    ours, theirs = (
        safetensors.torch.load_file(run / "model.safetensors") for run in (tmp_path / "run", trained.run)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    logged = [(row["name"], row["step"]) for row in rows(tmp_path / "run" / "metrics.csv")]
    assert len(set(logged)) == len(logged) == len(rows(trained.run / "metrics.csv"))


@pytest.mark.parametrize("more", [-2, -1, 1, 2])
def test_images_added_or_taken_away_at_the_end_are_noticed(more: int, trained: Any, tmp_path: Path) -> None:
    shutil.copytree(trained.run, tmp_path / "run")
    listed = (tmp_path / "run" / "samples.csv").read_bytes().splitlines(keepends=True)
    then = (
        [*listed, *listed[-more:]] if more > 0 else listed[:more]
    )  # what is there now is one or two off that
    (tmp_path / "run" / "samples.csv").write_bytes(b"".join(then))
    with pytest.raises(RunError, match=r"data of .*run"):
        workflow.resume(tmp_path / "run", quiet=True)


def test_resuming_on_changed_data_is_refused(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    data = make_folder(tmp_path / "data", splits=("train", "val"))
    run = train(data, tmp_path / "run").run
    before = sorted(path.name for path in run.iterdir())
    Image.new("RGB", (16, 16)).save(data / "train/bee/003.png")
    with pytest.raises(RunError, match=r"has changed: line \d+ of samples\.csv was .*train/bee/003\.png"):
        workflow.resume(run, quiet=True)
    (data / "train/cat/011.png").unlink()
    (data / "train/bee/003.png").unlink()
    with pytest.raises(RunError, match=r"data of .*run"):
        workflow.resume(run, quiet=True)
    assert sorted(path.name for path in run.iterdir()) == before
    with pytest.raises(RunError, match="no run folder"):
        workflow.resume(tmp_path / "nowhere")


def test_a_run_can_be_resumed_from_anywhere(
    tmp_path: Path, make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, trained: Any
) -> None:
    """Paths that were given relative to the folder of the first command."""
    make_folder(tmp_path / "here" / "data", splits=("train", "val"))
    shutil.copy(trained.run / "model.safetensors", tmp_path / "here" / "start.safetensors")
    monkeypatch.chdir(tmp_path / "here")
    changes = {"model.weights": "start.safetensors", "data.cache_dir": "cache"}
    run = train("data", Path("run"), **changes).run.absolute()
    monkeypatch.chdir(tmp_path)
    assert workflow.resume(run, quiet=True).metrics["n"] == 36
    assert not (tmp_path / "cache").exists()


def test_a_run_folder_is_not_used_twice(trained: Any) -> None:
    with pytest.raises(RunError, match="tellapart resume"):
        train(trained.data, trained.run)


# --- Other forms --------------------------------------------------------------------------------------------


def test_a_state_dict_goes_out_and_comes_back(trained: Any, tmp_path: Path) -> None:
    """The tutorials' .pth: loads with weights_only, and brought in again answers alike."""
    (file,) = workflow.export(trained.run, ["state-dict"], tmp_path / "out", images=20).files
    state = torch.load(file, weights_only=True)
    network = tellapart.load(trained.run).backend.predictor.model
    network.load_state_dict(state)
    spec = runs.read_spec(trained.run / "spec.yaml")
    brought = workflow.import_weights(
        file, tmp_path / "new/model.safetensors", classes=("ant", "bee", "cat"), spec=spec
    )
    pictures = sorted((trained.data / "test").rglob("*.png"))
    ours, theirs = (tellapart.load(path).predict(pictures, top=3) for path in (brought, trained.run))
    assert [(a.labels, a.probabilities) for a in ours] == [(a.labels, a.probabilities) for a in theirs]
    with pytest.raises(ArtifactError, match="exists"):
        workflow.export(trained.run, ["state-dict"], tmp_path / "out")
    with pytest.raises(SpecError, match="Did you mean 'onnx'"):
        workflow.export(trained.run, ["onix"], tmp_path / "other")


def test_imported_weights_give_the_networks_own_logits(tmp_path: Path) -> None:
    """Against the network that the weights came from, in plain torch."""
    from tellapart.models import zoo

    torch.manual_seed(0)
    network = zoo.build(zoo.Architecture("tutorial-net", 10)).eval()
    torch.save(network.state_dict(), tmp_path / "cifar_net.pth")
    spec = update(Spec(), {"model.name": "tutorial-net", "input.mean": [0.5] * 3, "input.std": [0.5] * 3})
    path = workflow.import_weights(
        tmp_path / "cifar_net.pth", tmp_path / "m.safetensors", classes=[str(n) for n in range(10)], spec=spec
    )
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = network((torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5).softmax(1)
    np.testing.assert_allclose(tellapart.load(path).probabilities(images), expected, rtol=1e-4)
    assert np.array_equal(load(images[0], tellapart.load(path).card.preprocessing), images[0])


def _weights(tmp_path: Path) -> Path:
    from tellapart.models import zoo

    file = tmp_path / "net.pth"
    torch.save(zoo.build(zoo.Architecture("simple-cnn", 2, size=16)).state_dict(), file)
    return file


WHOLE = {"model.name": "simple-cnn", "input.size": 16, "input.mean": [0.5] * 3, "input.std": [0.5] * 3}


@pytest.mark.parametrize(
    ("changes", "classes", "error", "message"),
    [
        ({"model.name": "auto"}, "ab", SpecError, r"model\.name must be given"),
        ({"input.mean": []}, "ab", SpecError, r"input\.mean and input\.std must be given"),
        ({"input.std": [0, 0.5, 0.5]}, "ab", SpecError, r"std"),
        ({"input.mean": [0.5, 0.5]}, "ab", SpecError, r"mean"),
        ({"input.channels": 1}, "ab", SpecError, r"input\.mean has 3 values"),
        ({}, "abc", SpecError, "are the classes right"),
        ({}, "aa", SpecError, "twice|two|more than once|distinct|duplicate"),
        ({"model.name": "tutorial-net", "input.size": 32}, "ab", ModelError, "net.pth"),
        ({"model.name": "simple-cmm"}, "ab", ModelError, "'simple-cnn'"),
    ],
)
def test_what_an_import_needs_is_reported(
    changes: dict[str, Any], classes: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    spec = update(Spec(), {**WHOLE, **changes})
    with pytest.raises(error, match=message):
        workflow.import_weights(
            _weights(tmp_path), tmp_path / "m.safetensors", classes=list(classes), spec=spec
        )
    assert not (tmp_path / "m.safetensors").exists()


def test_an_import_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match="exists"):
        workflow.import_weights(
            _weights(tmp_path), tmp_path / "m.safetensors", classes=["a", "b"], spec=update(Spec(), WHOLE)
        )
    assert (tmp_path / "m.safetensors").read_bytes() == b"mine"


def test_one_mean_stands_for_all_channels(tmp_path: Path) -> None:
    spec = update(Spec(), {**WHOLE, "input.mean": 0.5, "input.std": 0.25, "input.channels": 3})
    path = workflow.import_weights(
        _weights(tmp_path), tmp_path / "m.safetensors", classes=["a", "b"], spec=spec
    )
    contract = tellapart.load(path).card.preprocessing
    assert (contract.mean, contract.std) == ((0.5,) * 3, (0.25,) * 3)


def test_the_licence_of_weights_is_reported(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What they are and where they come from; a licence that forbids commercial use warns, also where quiet."""
    from tellapart.models import weights

    direct = weights.load

    def restricted(*words: Any) -> Any:
        return dataclasses.replace(direct(*words), licence="CC BY-NC 4.0", non_commercial=True)

    monkeypatch.setattr(weights, "load", restricted)
    result = train(trained.data, tmp_path / "run", **{"model.weights": str(trained.run)})
    assert "CC BY-NC 4.0) forbids commercial use" in capfd.readouterr().err
    assert tellapart.load(result.run).card.weights["licence"] == "CC BY-NC 4.0"


def test_weights_of_a_run_are_where_training_starts(trained: Any, tmp_path: Path) -> None:
    """With a learning rate of nearly nothing, the start is the end: the other run's answers."""
    changes = {
        "model.weights": str(trained.run),
        "training.lr": 1e-12,
        "training.threads": torch.get_num_threads(),
    }
    result = train(trained.data, tmp_path / "run", **changes)
    ours, theirs = (
        safetensors.torch.load_file(run / "model.safetensors") for run in (result.run, trained.run)
    )
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)


# --- The others ---------------------------------------------------------------------------------------------


def test_the_rate_finder_suggests_a_rate_that_trains(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    curve = workflow.find_lr(trained.data, steps=40, quiet=True, **TINY)
    assert len(curve.lrs) == len(curve.losses)
    assert list(curve.lrs) == sorted(curve.lrs)
    assert curve.suggestion is not None
    assert curve.lrs[0] < curve.suggestion < curve.lrs[-1]
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_the_summary_counts_parameters() -> None:
    from tellapart.models import zoo

    text = workflow.model_summary("simple-cnn", 16, 1, 5)
    network = zoo.build(zoo.Architecture("simple-cnn", 5, channels=1, size=16))
    assert f"{sum(p.numel() for p in network.parameters()):,}" in text
    with pytest.raises(ModelError, match="'simple-cnn'"):
        workflow.model_summary("simple-cmm")


def test_comparing_two_runs(trained: Any, tmp_path: Path) -> None:
    from scipy.stats import binomtest

    other = train(trained.data, tmp_path / "other", **{"training.epochs": 1, "training.lr": 1e-5})
    found = workflow.compare([trained.run, other.run])
    assert found.differences["training.lr"] == [0.001, 1e-5]
    assert found.differences["training.epochs"] == [2, 1]
    assert "model.name" not in found.differences
    right = [
        {row["path"]: row["correct"] == "1" for row in rows(run / "evaluation/test/predictions.csv")}
        for run in (trained.run, other.run)
    ]
    one = sum(right[0][path] and not right[1][path] for path in right[0])
    two = sum(right[1][path] and not right[0][path] for path in right[0])
    (pair,) = found.pairs
    assert (pair.only_first, pair.only_second, pair.shared) == (one, two, 36)
    assert pair.p_value == pytest.approx(binomtest(one, one + two).pvalue if one + two else 1.0)


def test_checking_writes_a_page(trained: Any, tmp_path: Path) -> None:
    health = workflow.check(trained.data, html=tmp_path / "check.html", quiet=True)
    assert health.to_dict()
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert page.count("data:image/") > 10


def test_checking_one_class_only(tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    """Nothing to train, and so nothing to augment; but a page there is."""
    data = make_folder(tmp_path / "data", classes=("one",), count=5)
    workflow.check(data, html=tmp_path / "check.html", quiet=True)
    assert "one" in (tmp_path / "check.html").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _threads_stay() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def test_a_state_dict_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is a state dict(.|\n)*tellapart import"):
        tellapart.load(_weights(tmp_path))


def test_the_tutorials_names_of_cifars_classes() -> None:
    from tellapart.workflow.measure import _other_name

    assert [_other_name(n, ("plane", "car", "cat")) for n in ("airplane", "automobile", "cat", "ship")] == [
        "plane",
        "car",
        "cat",
        "ship",
    ]
    assert _other_name("car", ("automobile",)) == "automobile"
    assert _other_name("car", ("car", "automobile")) == "car"


def test_evaluate_makes_the_split_that_training_made(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder without splits: the same images are test as in a training on it."""
    flat = make_folder(tmp_path / "flat", splits=("train",)) / "train"
    run = train(flat, tmp_path / "run", **{"data.test_fraction": 0.4, "data.split_seed": 3}).run
    shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    capfd.readouterr()
    with open(run / "samples.csv", newline="", encoding="utf-8") as stream:
        trained = list(csv.DictReader(stream))
    for split in ("train", "val", "test"):
        out = tmp_path / f"measured-{split}"
        workflow.evaluate(run / "model.safetensors", flat, split=split, out=out)
        with open(out / "evaluation" / split / "predictions.csv", newline="", encoding="utf-8") as stream:
            measured = sorted(row["path"] for row in csv.DictReader(stream))
        assert measured == sorted(row["path"] for row in trained if row["split"] == split)
        said = capfd.readouterr().err
        assert f"does not say which images are its {split} split: measured on the split that training" in said
        assert f"{len(measured)} of {len(trained)} images (seed 3, by {run / 'spec.yaml'})" in said
    workflow.evaluate(tmp_path / "alone.safetensors", flat, split="test")
    assert "(seed 0, by the default options: the model is not in a run folder" in capfd.readouterr().err


def test_splits_that_the_source_has_are_taken_as_they_are(
    tmp_path: Path, make_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "whole", splits=("train", "val", "test"))
    run = train(folder, tmp_path / "run").run
    capfd.readouterr()
    for split in ("train", "val", "test"):
        workflow.evaluate(run / "model.safetensors", folder, split=split)
    assert "does not say" not in capfd.readouterr().err
