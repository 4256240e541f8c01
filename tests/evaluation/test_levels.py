"""Figures at each level of the names, and metrics of one's own: against scikit-learn, in files, pages and comparisons."""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
from scipy.stats import binomtest
from sklearn import metrics as sk
from tests.contract.test_levels import CLASSES, at, summed

from tellapart import printing
from tellapart.contract.answers import Answers
from tellapart.evaluation import metrics, notebook, series
from tellapart.evaluation.charts import told_apart
from tellapart.evaluation.compare import compare
from tellapart.evaluation.metrics import Evaluation
from tellapart.evaluation.report import write_report
from tellapart.predict import Prediction
from tellapart.workflow import Series


def drawn(seed: int, rows: int = 400) -> tuple[Answers, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), rows)
    logits = rng.normal(size=(rows, len(CLASSES))).astype(np.float32)
    logits[np.arange(rows), labels] += 1.0
    return Answers(logits, CLASSES, mark="/"), labels


@pytest.mark.parametrize("level", [1, 2])
def test_figures_of_a_level_are_scikit_learns(level: int) -> None:
    answers, labels = drawn(0)
    softmax = scipy.special.softmax(answers.logits.astype(np.float64), axis=1)
    names, sums = summed(softmax, CLASSES, level, "/")
    truth = [at(CLASSES[k], level, "/") for k in labels]
    told = [names[k] for k in sums.argmax(axis=1)]
    assert told != [at(CLASSES[k], level, "/") for k in answers.best]  # the sums do tell something else
    found = metrics.evaluate(answers, labels, "test").levels[level - 1]
    assert found.classes == tuple(names)
    assert found.accuracy == pytest.approx(sk.accuracy_score(truth, told), abs=1e-12)
    assert found.accuracy_interval == metrics.wilson_interval(round(found.accuracy * 400), 400)
    assert found.macro.f1 == pytest.approx(sk.f1_score(truth, told, average="macro"), abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(truth, told), abs=1e-12)
    assert found.confusion.tolist() == sk.confusion_matrix(truth, told, labels=names).tolist()
    each = sk.precision_recall_fscore_support(truth, told, labels=names)
    for k, score in enumerate(found.per_class):
        figures = (score.precision, score.recall, score.f1, score.support)
        assert figures == pytest.approx(tuple(column[k] for column in each), abs=1e-12)
    index = [names.index(name) for name in truth]
    assert found.loss == pytest.approx(sk.log_loss(index, sums, labels=range(len(names))), abs=1e-9)


def test_names_without_levels_have_no_further_figures() -> None:
    answers, labels = drawn(1)
    assert metrics.evaluate(Answers(answers.logits, CLASSES), labels, "test").levels == ()


def test_figures_are_the_same_from_the_file_and_older_files_have_none() -> None:
    found = metrics.evaluate(*drawn(2), "test")
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    again = Evaluation.from_dict(values)
    assert again.to_dict() == found.to_dict()
    assert [level.accuracy for level in again.levels] == [level.accuracy for level in found.levels]
    del values["levels"]
    assert Evaluation.from_dict(values).levels == ()


def test_the_figures_of_folds_together_are_those_of_all_images() -> None:
    answers, labels = drawn(3)
    folds = [
        metrics.evaluate(Answers(answers.logits[rows], CLASSES, mark="/"), labels[rows], "test")
        for rows in (np.arange(150), np.arange(150, 400))
    ]
    together, whole = metrics.Evaluation.pooled(folds, (), "all"), metrics.evaluate(answers, labels, "all")
    for one, other in zip(together.levels, whole.levels, strict=True):
        assert one.confusion.tolist() == other.confusion.tolist()
        assert (one.accuracy, one.macro) == (other.accuracy, other.macro)
        assert one.loss == pytest.approx(other.loss)


def test_answers_at_each_level_are_in_the_table() -> None:
    answers, labels = drawn(4)
    columns = metrics.predictions(answers, labels, [str(n) for n in range(400)])
    found = metrics.evaluate(answers, labels, "test").levels
    for level in (1, 2):
        pairs = zip(columns[f"label-at-{level}"], columns[f"predicted-at-{level}"], strict=True)
        assert sum(one == other for one, other in pairs) == round(400 * found[level - 1].accuracy)


def test_the_terminal_shows_every_level() -> None:
    found = metrics.evaluate(*drawn(5), "test")
    text = printing.evaluation_text(found)
    for number, level in enumerate(found.levels, 1):
        assert f"level {number}, {len(level.classes)} names: accuracy {100 * level.accuracy:.2f} %" in text
        assert f"At level {number}:" in text
    assert "macro F1" in text


def test_a_prediction_shows_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    logits = np.log(np.array([[0.16, 0.13, 0.14, 0.38, 0.1, 0.09]], np.float32))
    (answer,) = Answers(logits, CLASSES, mark="/").top(2)
    one = Prediction("a.png", answer.labels, answer.probabilities, levels=answer.levels)
    printing.write_table([one], sys.stdout)
    printing.write_csv([one, Prediction("b.png", error="is text")], sys.stdout, levels=2)
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == (
        "a.png: plants 38.0 %, animals/cat 16.0 %; level 1: animals 43.0 %, to which the class does not belong; "
        "level 2: plants 38.0 %"
    )
    assert (
        shown[1]
        == "path,rank,label,probability,error,label_at_1,probability_at_1,label_at_2,probability_at_2"
    )
    assert shown[2] == "a.png,1,plants,0.380000,,animals,0.430000,plants,0.380000"
    assert shown[3] == "a.png,2,animals/cat,0.160000,,animals,0.430000,plants,0.380000"
    assert shown[4] == "b.png,,,,is text,,,,"


def test_runs_are_compared_at_each_level(make_run: Any) -> None:
    runs = [make_run(name, CLASSES, seed=k, skill=1.5, mark="/") for k, name in enumerate("ab")]
    found = compare(runs)
    assert [pair.level for pair in found.pairs] == [0, 1, 2]
    files = [json.loads((run / "evaluation/test/metrics.json").read_text()) for run in runs]
    for result, values in zip(found.results, files, strict=True):
        assert [one.accuracy for one in result.levels] == [one["accuracy"] for one in values["levels"]]
    tables = [np.genfromtxt(r / "evaluation/test/predictions.csv", delimiter=",", dtype=str) for r in runs]
    for pair in found.pairs[1:]:
        right = []
        for table in tables:
            head = table[0].tolist()
            label, told = (head.index(f"{what}-at-{pair.level}") for what in ("label", "predicted"))
            right.append(table[1:, label] == table[1:, told])
        only = (int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
        assert (pair.only_first, pair.only_second) == only
        assert pair.p_value == pytest.approx(binomtest(only[0], sum(only), 0.5).pvalue)
    text = found.to_text()
    assert "Levels of the names" in text
    assert "points of accuracy at level 2" in text
    assert max(map(len, text.splitlines())) <= 100
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_correction_for_several_pairs_is_that_of_each_level(make_run: Any) -> None:
    runs = [make_run(name, CLASSES, seed=k, skill=1.5, mark="/") for k, name in enumerate("abc")]
    plain = [make_run(f"plain-{name}", CLASSES, seed=k, skill=1.5) for k, name in enumerate("abc")]
    found, without = compare(runs), compare(plain)
    kept = [pair.p_adjusted for pair in found.pairs if pair.level == 0]
    assert kept == [pair.p_adjusted for pair in without.pairs]
    assert any("3 comparisons at each level" in note for note in found.notes)


def test_the_report_shows_levels_where_there_are_any(make_run: Any) -> None:
    page = write_report(make_run("run", CLASSES, mark="/")).read_text()
    assert "<h2>Levels</h2>" in page
    assert "The class names have 3 levels" in page
    assert page.count('aria-label="Confusion matrix: rows true') == 3
    assert "<h2>Levels</h2>" not in write_report(make_run("plain", CLASSES)).read_text()


def test_metrics_of_ones_own_are_in_the_report_and_the_comparison(make_run: Any) -> None:
    one = make_run("one", own={"kappa": 0.8125, "<b>odd</b>": None})
    other = make_run("other", seed=1, own={"kappa": 0.5})
    page = write_report(one).read_text()
    assert "<dt>kappa</dt><dd>0.8125</dd>" in page
    assert "<dt>&lt;b&gt;odd&lt;/b&gt;</dt><dd>not defined</dd>" in page
    found = compare([one, other])
    assert [result.own for result in found.results] == [{"kappa": 0.8125, "<b>odd</b>": None}, {"kappa": 0.5}]
    lines = found.to_text().splitlines()
    start = lines.index("Metrics of your own")
    assert [line.split() for line in lines[start + 2 : start + 4]] == [
        ["kappa", "0.8125", "0.5"],
        ["<b>odd</b>", "not", "defined", "–"],
    ]
    assert "Metrics of your own" not in compare([make_run("x"), make_run("y", seed=1)]).to_text()


def test_a_notebook_shows_levels_and_metrics_of_ones_own(make_run: Any) -> None:
    found = metrics.read_evaluation(
        make_run("run", CLASSES, mark="/", own={"kappa": 0.25}) / "evaluation/test"
    )
    html = notebook.of_evaluation(found)  # type: ignore[arg-type]
    assert "kappa 0.25" in html
    assert "level 1: accuracy" in html


def test_several_runs_have_the_mean_of_each_level_and_metric() -> None:
    finished = [
        {"accuracy": 0.5, "kappa": value, "levels": [{"level": 1, "names": 3, "accuracy": share}]}
        for value, share in ((0.1, 0.6), (0.4, 0.8), (0.7, 0.7))
    ]
    found = series.summarise(finished, True)
    assert found["kappa"]["mean"] == pytest.approx(0.4)
    assert found["kappa"]["interval"][1] > 1  # a metric need not be a share
    assert found["levels"][0]["mean"] == pytest.approx(statistics.fmean([0.6, 0.8, 0.7]))
    assert found["levels"][0]["std"] == pytest.approx(statistics.stdev([0.6, 0.8, 0.7]))
    assert "missing" not in found
    assert "levels" not in series.summarise([{"accuracy": 0.5}], True)


def test_several_runs_say_the_mean_of_each_level_in_the_terminal(tmp_path: Path) -> None:
    finished = [
        {
            "run": f"fold-{k}",
            "n": 9,
            "accuracy": 0.5,
            "levels": [{"level": 1, "names": 3, "accuracy": 0.6 + k / 10}],
        }
        for k in (1, 2)
    ]
    told = Series(tmp_path, tmp_path, "", {}, kind="folds", runs=tuple(finished))
    told = dataclasses.replace(told, summary=series.summarise(finished, True))
    assert "  level 1, 3 names: 75.00 %" in printing.series_summary(told).splitlines()


def test_long_names_that_begin_alike_are_told_apart() -> None:
    names = (
        "vehicles/heavy goods vehicle/new",
        "vehicles/heavy goods vehicle/old",
        "dog",
        "a name that is just long",
    )
    short = told_apart(names, 20)
    assert len(set(short)) == 4
    assert short[0].endswith("e/new")
    assert short[2:] == ("dog", "a name that is just…")


def test_the_environment_is_told_in_words(make_run: Any) -> None:
    run: Path = make_run("run")
    content = {
        "memory": {"total": 25 * 2**30, "limit": None},
        "packages": [{"name": "timm", "version": "1.0"}, {"name": "mlflow", "version": None}],
        "gpus": [],
        "fast": True,
        "advice": ["Do this.", "Do that."],
    }
    (run / "environment.json").write_text(json.dumps(content))
    page = write_report(run).read_text()
    for name, value in (
        ("memory.total", "25.0 GiB"), ("packages.timm", "1.0"), ("fast", "yes"), ("advice", "Do this. Do that."),
    ):  # fmt: skip
        assert f"<tr><td>{name}</td><td>{value}</td></tr>" in page
    assert "packages.mlflow" not in page
    assert ">gpus<" not in page


def test_names_that_begin_alike_are_told_apart_above_the_terminals_matrix() -> None:
    names = [f"vehicles/land/kind {k}" for k in range(9)]
    found = metrics.evaluate(Answers(np.eye(9, dtype=np.float32), names), np.arange(9), "test")
    text = printing.evaluation_text(found).splitlines()
    heads = text[text.index("confusion: rows true, columns predicted, in the same order") + 1].split()
    assert [head for head in heads if head.isdigit()] == [str(k) for k in range(9)]
