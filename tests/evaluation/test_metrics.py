from __future__ import annotations

import csv
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn import metrics as sk

from tellapart.contract.answers import Answers
from tellapart.errors import DataError
from tellapart.evaluation import metrics


def told(logits, names):
    return Answers(logits.numpy(), tuple(names))


def draw(n, k, seed=0, present=None):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, k, generator=generator)
    return logits, torch.randint(0, present or k, (n,), generator=generator)


@given(n=st.integers(1, 60), k=st.integers(1, 9), seed=st.integers(0, 10**6), gap=st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_quick_agrees_with_scikit_learn(n, k, seed, gap):
    logits, labels = draw(n, k, seed, max(1, k - gap))
    found = metrics.quick(logits, labels)
    truth, guess = labels.numpy(), logits.argmax(1).numpy()
    present = np.unique(truth)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess), abs=1e-12)
    f1 = sk.f1_score(truth, guess, labels=present, average="macro", zero_division=0)
    assert found["macro-f1"] == pytest.approx(f1, abs=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of predictions outside the classes present
        balanced = sk.balanced_accuracy_score(truth, guess)
    assert found["balanced-accuracy"] == pytest.approx(balanced, abs=1e-12)
    loss = sk.log_loss(truth, logits.double().softmax(1).numpy(), labels=range(k)) if k > 1 else 0.0
    assert found["loss"] == pytest.approx(loss, abs=1e-5)


@given(correct=st.integers(0, 400), more=st.integers(0, 400))
@settings(max_examples=100, deadline=None)
def test_wilson_interval_agrees_with_scipy(correct, more):
    n = correct + more
    if n == 0:
        return
    wanted = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert metrics.wilson_interval(correct, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize("present", [12, 7])
def test_evaluate_agrees_with_scikit_learn(present):
    logits, labels = draw(500, 12, 3, present)
    names = [f"class {k}" for k in range(12)]
    found = metrics.evaluate(
        told(logits, names), labels.numpy(), "test", seconds=2.0, latencies_ms=[1, 2, 3, 4, 10]
    )
    truth, guess = labels.numpy(), logits.argmax(1).numpy()
    assert found.n == 500
    assert found.accuracy == sk.accuracy_score(truth, guess)
    assert found.top5 == sk.top_k_accuracy_score(truth, logits.numpy(), k=5, labels=range(12))
    assert found.loss == pytest.approx(
        sk.log_loss(truth, logits.double().softmax(1).numpy(), labels=range(12))
    )
    assert (found.confusion == sk.confusion_matrix(truth, guess, labels=range(12))).all()
    assert found.confusion.dtype == np.int64
    classes = np.unique(truth)
    for average, got in (("macro", found.macro), ("weighted", found.weighted)):
        wanted = sk.precision_recall_fscore_support(
            truth, guess, labels=classes, average=average, zero_division=0
        )
        assert (got.precision, got.recall, got.f1) == pytest.approx(wanted[:3], abs=1e-12)
    assert found.balanced_accuracy == pytest.approx(found.macro.recall)
    assert found.images_per_second == 250
    assert found.latency_ms == {"p50": 3.0, "p90": pytest.approx(7.6), "p99": pytest.approx(9.76)}
    for k, score in enumerate(found.per_class):
        assert score.support == (truth == k).sum()
        assert (score.recall is None) == (k >= present)
        if score.support:
            assert score.recall == pytest.approx((guess[truth == k] == k).mean())


def test_a_class_without_images_does_not_count_as_zero():
    logits = torch.eye(3)[[0, 1, 2, 1]] * 5
    found = metrics.evaluate(told(logits, "abc"), np.array([0, 1, 0, 1]), "val")
    assert found.per_class[2] == metrics.ClassScore("c", 0, None, None, None)
    assert found.balanced_accuracy == pytest.approx((0.5 + 1) / 2)
    assert found.top5 is None
    assert metrics.quick(logits, torch.tensor([0, 1, 0, 1]))["macro-f1"] == pytest.approx(found.macro.f1)


def test_equal_logits_rank_by_class_in_accuracy_and_top5():
    logits = torch.zeros(7, 7)
    found = metrics.evaluate(told(logits, "0123456"), np.arange(7), "test")
    assert found.accuracy == 1 / 7
    assert found.top5 == 5 / 7


def test_json_has_no_nan_even_where_logits_have():
    logits, labels = draw(40, 8)
    logits[3] = float("nan")
    logits[4, 2] = float("inf")
    found = metrics.evaluate(told(logits, [str(k) for k in range(8)]), labels.numpy(), "test")
    assert found.loss is None
    text = json.dumps(found.to_dict(), allow_nan=False)
    again = metrics.Evaluation.from_dict(json.loads(text))
    assert again.to_dict() == found.to_dict()
    assert again.confusion.dtype == np.int64
    assert again.macro == found.macro


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="empty"):
        metrics.quick(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="belong"):
        metrics.evaluate(told(torch.zeros(2, 3), "abc"), np.array([1]), "test")


def test_write_evaluation(tmp_path):
    logits, labels = draw(200, 6, 5)
    names = ["猫", "dog, big", 'say "x"', "d", "e", "f"]
    answers = told(logits, names)
    found = metrics.evaluate(answers, labels.numpy(), "test")
    boxes = np.full((200, 4), np.nan)
    boxes[1] = (0, 1.5, 20, 30)
    asked = []

    def thumbnail(row):
        asked.append(row)
        return np.full((4, 5, 1 if row % 2 else 3), row % 256, np.uint8)

    folder = tmp_path / "evaluation" / "test"
    for count in (9, 5):  # the second time replaces the first
        asked.clear()
        metrics.write_evaluation(
            folder,
            found,
            [f"p/{k}.png" for k in range(200)],
            answers,
            labels.numpy(),
            thumbnail,
            count,
            boxes,
        )
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 200
    probability = logits.double().softmax(1)
    assert [row["label"] for row in rows] == [names[k] for k in labels]
    assert [row["correct"] == "1" for row in rows] == (logits.argmax(1) == labels).tolist()
    assert float(rows[7]["confidence"]) == pytest.approx(float(probability[7].max()), rel=1e-5)
    assert float(rows[7]["label_probability"]) == pytest.approx(float(probability[7, labels[7]]), rel=1e-5)
    assert (rows[0]["box"], rows[1]["box"]) == ("", "0 1.5 20 30")
    wrong = torch.where(logits.argmax(1) != labels, probability.amax(1), torch.tensor(-1.0))
    assert asked == wrong.argsort(descending=True)[:5].tolist()
    index = json.loads((folder / "mistakes" / "index.json").read_text())
    assert [entry["path"] for entry in index] == [f"p/{row}.png" for row in asked]
    assert sorted(path.name for path in (folder / "mistakes").glob("*.png")) == [
        f"{k:02}.png" for k in range(1, 6)
    ]
    assert np.asarray(Image.open(folder / "mistakes" / "01.png")).flat[0] == asked[0] % 256
    assert metrics.read_evaluation(folder).to_dict() == found.to_dict()
    assert not list(folder.glob("*.tmp"))


def test_no_thumbnails_and_no_mistakes(tmp_path):
    answers, labels = told(torch.eye(3), "abc"), np.arange(3)
    found = metrics.evaluate(answers, labels, "val")
    metrics.write_evaluation(tmp_path, found, ["x", "y", "z"], answers, labels)
    assert json.loads((tmp_path / "mistakes" / "index.json").read_text()) == []
    assert metrics.worst_mistakes(answers, labels, 5) == []
    assert metrics.evaluate(answers, labels, "val", latencies_ms=[]).latency_ms is None
