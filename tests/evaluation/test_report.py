from __future__ import annotations

import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from tellapart.errors import RunError
from tellapart.evaluation import charts
from tellapart.evaluation.metrics import read_evaluation
from tellapart.evaluation.report import write_report
from tellapart.evaluation.run_folder import read_run

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers text and attributes."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open, self.words, self.attributes, self.tags = [], [], [], []
        self.feed(self.source.replace("<wbr>", ""))  # where a name may break
        assert self.open == []
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    def values(self, tag, name):
        return [value for t, n, value in self.attributes if (t, n) == (tag, name)]


def test_the_page_of_a_tested_run(make_run):
    run = make_run("20261122-ten", seconds=125.0, changes={"training.lr": 0.02})
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path)
    found = read_evaluation(run / "evaluation" / "test")
    assert f"accuracy on 600 test images {100 * found.accuracy:.2f} %" in page.text
    low, high = found.accuracy_interval
    assert f"95 % interval {100 * low:.2f} to {100 * high:.2f} %" in page.text
    assert "were not used in training or to choose the epoch" in page.text
    assert "2 min 05 s" in page.text
    assert "8 of 12" in page.text
    for name in ("小汽车", "deer <b>&amp;", "truncated: 812 of 4,096 bytes"):
        assert name in page.text
    assert "b" not in page.tags or "<b>&amp;amp;" not in page.source
    assert "<script>alert" not in page.source
    assert "&lt;script&gt;alert(1)&lt;/<wbr>script&gt;" in page.source
    assert len([v for v in page.values("img", "src") if v.startswith("data:image/png;base64,")]) == 24
    assert "lr 0.02 default 0" in page.text
    assert "packages.torch 2.13.0" in page.text
    wrong = found.n - np.trace(found.confusion)
    cells = [int(v) for v in re.findall(r"→ [^:]*: (\d+) \(", page.text)]
    assert sum(cells) == found.n
    assert wrong == sum(c for c, kind in zip(cells, page_kinds(page), strict=True) if kind == "wrong")


def page_kinds(page):
    return page.values("rect", "class")


def test_the_page_needs_nothing_from_elsewhere(make_run):
    page = Page(write_report(make_run()))
    assert not re.search(r"""(?:https?:)?//[\w.-]+\.\w""", re.sub(r"base64,[^\"]+", "", page.source))
    assert all(v.startswith("data:") for v in page.values("img", "src"))
    assert "link" not in page.tags
    assert page.values("script", "src") == []
    assert page.tags.count("script") == 1


def test_numbers_of_the_class_table_are_those_of_the_evaluation(make_run):
    run = make_run()
    page = Page(write_report(run))
    scores = read_evaluation(run / "evaluation" / "test").per_class
    order = sorted(scores, key=lambda score: score.f1)
    places = []
    for score in order:
        shares = " ".join(f"{100 * share:.2f} %" for share in (score.recall, score.precision, score.f1))
        row = f"{score.name} {score.support} {shares}"
        assert row in page.text
        places.append(page.text.index(row))
    assert places == sorted(places)


def test_a_hundred_classes(make_run):
    names = tuple(f"{word} {k:02}" for k, word in enumerate(["apple", "自行车", "bee", "bowl"] * 25))
    run = make_run("hundred", classes=names, splits=("test",), n=3000)
    path = write_report(run)
    page = Page(path)
    confusion = read_evaluation(run / "evaluation" / "test").confusion
    assert page.tags.count("rect") == np.count_nonzero(confusion)
    assert page.text.count("自行车 01") > 3
    assert "Most often confused" in page.text
    drawn = charts.matrix_chart(confusion, names)
    assert drawn.size >= 9
    assert drawn.side + drawn.margin <= charts.PAGE_WIDTH
    assert path.stat().st_size < 2_000_000


def test_more_classes_than_names_fit(make_run):
    names = tuple(f"class {k}" for k in range(charts.NAMED_CLASSES + 10))
    page = Page(write_report(make_run("many", classes=names, splits=("test",), n=400)))
    assert "rect" not in page.tags
    assert any("160 classes" in value for value in page.values("img", "alt"))
    assert "Classes without images do not count" in page.text


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (
            ("val",),
            "the epoch was chosen by them, so expect slightly less on new images. This run has no test split.",
        ),
        (("train",), "says nothing about new images. This run has no test split."),
        ((), "Not evaluated yet"),
    ],
)
def test_what_the_figure_is_worth(make_run, splits, said):
    page = Page(write_report(make_run(splits=splits, epochs=1, n=60)))
    assert said in page.text
    assert "were not used in training" not in page.text


def test_a_test_split_that_waits(make_run):
    run = make_run(n=50)
    shutil.rmtree(run / "evaluation" / "test")
    assert "The test split has not been evaluated yet." in Page(write_report(run)).text


def test_a_run_that_has_only_just_begun(make_run, tmp_path):
    run = make_run(splits=())
    for name in ("samples.csv", "bad-images.csv", "metrics.csv", "environment.json"):
        (run / name).unlink()
    out = write_report(run, tmp_path / "page.html")
    page = Page(out)
    assert "no samples.csv" in page.text
    assert not (run / "report.html").exists()
    (run / "metrics.csv").write_text(
        "name,value,step\ntrain/loss,2.5,10\ntrain/loss,nan,20\ntrain/loss,2.0,30\ntrain/lo"
    )
    page = Page(write_report(run))
    assert "step" in page.text
    assert page.values("svg", "aria-label") == ["Loss by step"]


def test_an_old_spec_and_odd_bytes(make_run):
    run = make_run(n=50)
    with open(run / "spec.yaml", "a", encoding="utf-8") as stream:
        stream.write("gone:\n  option: 3\n")
    with open(run / "bad-images.csv", "ab") as stream:
        stream.write(b"caf\xe9.jpg,\xff\n")
    page = Page(write_report(run))
    assert "option 3 default –" in page.text
    assert "caf" in page.text


def test_damaged_files_are_named(make_run):
    run = make_run(n=50)
    (run / "evaluation/test/mistakes/index.json").write_text('[{"image": "01.png"}]')
    with pytest.raises(RunError, match=r"index\.json"):
        write_report(run)
    (run / "environment.json").write_text("{")
    with pytest.raises(RunError, match=r"environment\.json"):
        write_report(run)


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 2), ("loss", 3)])
def test_the_best_epoch(make_run, metric, best):
    run = make_run(splits=(), changes={"training.best_metric": metric})
    lines = ["name,value,step"]
    for epoch, (accuracy, loss) in enumerate([(0.5, 1.0), (0.8, 0.9), (0.8, 0.7), (0.7, 0.7)], 1):
        lines += [
            f"epoch,{epoch},{epoch * 10}",
            f"val/accuracy,{accuracy},{epoch * 10}",
            f"val/loss,{loss},{epoch * 10}",
        ]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    assert read_run(run).best_epoch == best


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.13, 0.98), (0, 2.31), (0, 1e-3), (3, 3), (0, 12345), (1, 60)]
)
def test_ticks_are_round_and_hold_the_data(low, high):
    ticks = charts.nice_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-12
    assert ticks[-1] >= high - 1e-12
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    assert f"{steps[0]:e}"[:3] in ("1.0", "2.0", "2.5", "5.0")


def test_lines_lie_inside_the_chart():
    points = [(k / 10, 1e6 if k == 1 else 2.0 / k) for k in range(1, 1000)]
    chart = charts.line_chart(
        "Loss", [("training", "train", points), ("none", "val", [])], "number", "epoch", 5.0, "best"
    )
    assert len(chart.lines) == 1
    numbers = np.array(re.findall(r"[\d.]+,[\d.]+", chart.lines[0].path))
    places = np.array([[float(v) for v in pair.split(",")] for pair in numbers])
    assert len(places) == charts.MOST_POINTS
    assert places[:, 0].min() >= charts.LEFT
    assert places[:, 0].max() <= charts.WIDTH - charts.RIGHT
    assert places[:, 1].min() >= charts.TOP
    assert places[:, 1].max() <= charts.HEIGHT - charts.BOTTOM
    assert charts.line_chart("Loss", [("x", "train", [(0, float("nan"))])], "number", "epoch") is None


def test_confused_pairs():
    matrix = np.array([[5, 2, 0], [7, 1, 0], [0, 3, 9]])
    assert charts.confused_pairs(matrix) == [(1, 0, 7, 7 / 8), (2, 1, 3, 3 / 12), (0, 1, 2, 2 / 7)]
    assert charts.confused_pairs(np.eye(4, dtype=int)) == []


def test_only_the_pages_own_script_may_run(make_run):
    """Whatever a name or a field may smuggle in: nothing from elsewhere, and no script but the one of this hash."""
    source = write_report(make_run("20261122-policy")).read_text("utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', source)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"]
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert source.index("Content-Security-Policy") < source.index("<title>")
    assert not re.search(r"<[^>]*\son\w+=", source)
