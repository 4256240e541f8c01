from __future__ import annotations

import csv
import json
import math
from fractions import Fraction

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tellapart.errors import RunError
from tellapart.evaluation.compare import compare
from tellapart.evaluation.paired import holm, mcnemar, paired_interval


@given(b=st.integers(0, 40), c=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_exact_binomial_tail(b, c):
    n = b + c
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(b, c) + 1))
    assert mcnemar(b, c) == pytest.approx(float(min(1, 2 * tail)), rel=1e-9)


@given(cells=st.tuples(*[st.integers(0, 60)] * 4).filter(lambda cells: sum(cells) > 0))
@settings(max_examples=100, deadline=None)
def test_paired_interval_holds_the_difference_and_turns_round(cells):
    both, one, two, neither = cells
    low, high = paired_interval(both, one, two, neither)
    assert -1 <= low <= (two - one) / sum(cells) + 1e-12
    assert (two - one) / sum(cells) - 1e-12 <= high <= 1
    assert paired_interval(both, two, one, neither) == pytest.approx((-high, -low))


def test_paired_interval_covers_the_truth_and_is_walds_for_many():
    rng = np.random.default_rng(1)
    share = np.array([0.6, 0.1, 0.2, 0.1])
    inside = 0
    for counts in rng.multinomial(120, share, size=1500):
        low, high = paired_interval(*counts.tolist())
        inside += low <= share[2] - share[1] <= high
    assert 0.935 < inside / 1500 < 0.975
    n = 1_000_000
    spread = 1.959964 * math.sqrt((0.3 - 0.01) / n)
    counts = (share * n).astype(int).tolist()
    assert paired_interval(*counts) == pytest.approx((0.1 - spread, 0.1 + spread), abs=1e-5)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_two_runs(make_run):
    one = make_run("one", seed=1, skill=2.5)
    two = make_run(
        "two", seed=2, skill=5.0, seconds=90.0, changes={"training.lr": 0.02, "data.group": "患者"}
    )
    found = compare([one, two])
    assert set(found.differences) == {"training.lr", "data.group"}
    assert found.differences["training.lr"] == [0.0, 0.02]
    (pair,) = found.pairs
    assert pair.shared == 600
    accuracies = [
        json.loads((run / "evaluation/test/metrics.json").read_text())["accuracy"] for run in (one, two)
    ]
    assert pair.difference == pytest.approx(accuracies[1] - accuracies[0])
    assert pair.verdict.startswith("more than chance (p")
    assert pair.p_value == pair.p_adjusted == mcnemar(pair.only_first, pair.only_second)
    assert [result.split for result in found.results] == ["test", "test"]
    assert found.results[1].seconds == pytest.approx(90)
    assert found.results[1].epochs == 12
    text = found.to_text()
    assert max(cell_len(line) for line in text.splitlines()) <= 100
    assert "患者" in text
    assert "more than chance" in text
    json.dumps(found.to_dict(), allow_nan=False)


def test_like_runs_could_be_chance_and_many_are_corrected(make_run):
    runs = [make_run(f"run-with-quite-a-long-name-{k}", seed=k, changes={"seed": k}) for k in range(4)]
    found = compare(runs)
    assert len(found.pairs) == 6
    assert all(pair.p_adjusted >= pair.p_value for pair in found.pairs)
    assert [pair.p_adjusted for pair in found.pairs] == holm([pair.p_value for pair in found.pairs])
    assert any("6 comparisons" in note for note in found.notes)
    assert "could be chance" in found.to_text()
    assert max(cell_len(line) for line in found.to_text().splitlines()) <= 100


def test_a_run_against_itself(make_run):
    run = make_run("same")
    found = compare([run, run])
    assert found.pairs[0].difference == 0
    assert found.pairs[0].p_value == 1
    assert found.differences == {}
    assert "none" in found.to_text()


def edit(path, change):
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    rows = [row for k, row in enumerate(rows) if change(k, row) is not False]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_only_shared_images_count(make_run):
    one, two = make_run("one"), make_run("two", seed=3)
    edit(two / "evaluation/test/predictions.csv", lambda k, row: k < 250)
    (pair,) = compare([one, two]).pairs
    assert (pair.shared, pair.n) == (250, (600, 250))
    assert "250 test images shared (A has 600, B 250)" in compare([one, two]).to_text()


def test_what_cannot_be_compared_is_reported(make_run):
    one, two, three = make_run("one"), make_run("two"), make_run("three", splits=())
    edit(two / "evaluation/test/predictions.csv", lambda k, row: row.update(path="else/" + row["path"]))
    found = compare([one, two, three])
    assert found.pairs == ()
    assert "A and B share no test images" in found.to_text()
    assert "A and C were not evaluated on the same split" in found.to_text()
    assert found.results[2].accuracy is None


def test_other_images_or_labels_under_the_same_paths(make_run):
    one, two = make_run("one"), make_run("two")
    edit(two / "samples.csv", lambda k, row: row.update(hash="f" * 32))
    assert "share no test images" in compare([one, two]).to_text()
    edit(one / "samples.csv", lambda k, row: row.update(hash=""))
    assert compare([one, two]).pairs[0].shared == 600
    edit(two / "evaluation/test/predictions.csv", lambda k, row: row.update(label="zebra") if k < 3 else None)
    assert "label 3 of 600 shared test images differently" in compare([one, two]).to_text()


def test_boxes_tell_rows_of_one_image_apart(make_run):
    boxes = np.tile([0.0, 0.0, 9.0, 9.0], (600, 1))
    boxes[::2] = np.nan
    one, two = make_run("one", boxes=boxes), make_run("two", boxes=boxes, seed=4)
    for run in (one, two):
        edit(run / "evaluation/test/predictions.csv", lambda k, row: row.update(path=f"{k // 2}.png"))
        edit(run / "samples.csv", lambda k, row: row.update(hash=""))
    with open(one / "evaluation/test/predictions.csv", encoding="utf-8") as stream:
        labels = [row["label"] for row in csv.DictReader(stream)]
    assert labels[0] != labels[1]  # of the same image
    assert compare([one, two]).pairs[0].shared == 600


def test_validation_is_called_too_optimistic(make_run):
    found = compare([make_run("one", splits=("val",)), make_run("two", splits=("test", "val"), seed=1)])
    assert found.pairs[0].split == "val"
    assert any("too optimistic" in note for note in found.notes)


def test_what_is_no_run_is_refused(make_run, tmp_path):
    run = make_run("one")
    with pytest.raises(RunError, match="at least two"):
        compare([run])
    with pytest.raises(RunError, match=r"no spec\.yaml"):
        compare([run, tmp_path / "nothing"])
    broken = make_run("broken")
    (broken / "spec.yaml").write_text("a: [")
    with pytest.raises(RunError, match="YAML"):
        compare([run, broken])
    (broken / "spec.yaml").write_text(yaml.safe_dump(["a"]))
    with pytest.raises(RunError, match="fields of a spec"):
        compare([run, broken])
    (run / "evaluation/test/metrics.json").write_text("{}")
    with pytest.raises(RunError, match="damaged"):
        compare([run, run])
