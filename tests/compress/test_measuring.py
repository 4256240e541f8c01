from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tellapart.compress import measuring, page, table
from tellapart.compress.measuring import Candidate, Row
from tellapart.compress.table import Comparison
from tellapart.evaluation.metrics import wilson_interval


class Answers:
    """A backend that knows its answers, and takes its time."""

    format = "onnx"
    card = SimpleNamespace(
        classes=("a", "b", "c"),
        temperature=1.0,
        kind="single",
        ordered=False,
        levels="",
        preprocessing=SimpleNamespace(size=2),
    )

    def __init__(self, given: np.ndarray, seconds: float = 0.0) -> None:
        self.given, self.seconds = given, seconds

    def logits(self, images: np.ndarray) -> np.ndarray:
        time.sleep(self.seconds * len(images))
        return np.eye(3, dtype=np.float32)[self.given[images[:, 0, 0, 0]]]


class Images:
    """Images whose first pixel is their number."""

    def __init__(self, labels: np.ndarray) -> None:
        self.samples = SimpleNamespace(labels=labels, targets=None, classes=("a", "b", "c"))

    def __len__(self) -> int:
        return len(self.samples.labels)

    def batch(self, rows: np.ndarray) -> SimpleNamespace:
        pixels = np.zeros((len(rows), 2, 2, 3), np.uint8)
        pixels[:, 0, 0, 0] = rows
        return SimpleNamespace(pixels=SimpleNamespace(numpy=lambda: pixels))


def test_every_figure_is_that_of_its_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    labels = np.array([0] * 10 + [1] * 20)
    one, two = labels.copy(), labels.copy()
    one[:2], two[:5], two[10:12] = 1, 2, 2
    for name, size in (("one.onnx", 1000), ("two.xml", 100), ("two.bin", 300)):
        (tmp_path / name).write_bytes(b"x" * size)
    candidates = [
        (Candidate("one", "none", tmp_path / "one.onnx", against="one"), Answers(one, 0.001)),
        (Candidate("two", "int8", tmp_path / "two.xml", against="one"), Answers(two, 0.003)),
    ]
    first, second = measuring.measure(candidates, Images(labels))
    assert first.value == pytest.approx(28 / 30)
    assert second.value == pytest.approx(23 / 30)
    assert second.interval == wilson_interval(23, 30)
    assert second.change == {"a": pytest.approx(-0.3), "b": pytest.approx(-0.1)}
    assert second.agreement == pytest.approx(float((one == two).mean()))
    assert (second.bytes, second.size_ratio) == (400, pytest.approx(0.4))
    assert first.ratios[1] == 1
    assert 1.5 < second.ratios[32] < 4.5
    assert second.p50[32] > 90
    assert second.p95[1] >= second.p50[1] >= 3
    assert json.loads(json.dumps(second.to_dict()))["p50"]["32"] == second.p50[32]


def test_energy_is_read_from_its_counters(tmp_path: Path) -> None:
    assert measuring.energy_counters(tmp_path) == []
    for number, value in ((0, 5_000_000), (1, 250_000)):
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        (folder / "energy_uj").write_text(f"{value}\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of package 0, which would count twice
    (tmp_path / "intel-rapl:0:0" / "energy_uj").write_text("7\n")
    assert measuring.read_energy(measuring.energy_counters(tmp_path)) == pytest.approx(5.25)


def row(name: str, accuracy: float, p50: float, method: str = "int8", energy: float | None = None) -> Row:
    candidate = Candidate(
        name, method, Path(f"{name}.onnx"), against="model", parameters=1000, flops=2_000_000
    )
    both = dict.fromkeys(measuring.BATCHES, p50)
    interval = wilson_interval(round(accuracy * 1000), 1000)
    change = {"cat": accuracy - 0.9, "<dog>": 0.0}
    return Row(candidate, "onnx", 5000, 1.0, 1000, accuracy, interval, change, 0.99, both, both, both, energy)


ROWS = (
    row("model", 0.9, 10.0, "none"),
    row("fast", 0.89, 2.0),
    row("slow and wrong", 0.88, 11.0, "prune"),
    row("best", 0.91, 5.0, "distill"),
    row("as fast, less right", 0.85, 2.0),
)


def test_what_no_other_beats() -> None:
    assert [one.candidate.name for one in table.best_of(ROWS)] == ["fast", "best"]
    assert table.best_of([ROWS[0], ROWS[0]]) == [ROWS[0], ROWS[0]]


def test_the_table_is_written_and_read(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, "runs/a", "test", {"processor": "P", "threads": 2}, ROWS, ("a note",))
    content = json.loads(comparison.write().read_text())
    assert [entry["unbeaten"] for entry in content["rows"]] == [False, True, False, True, False]
    assert content["energy"].startswith("not readable")
    assert content["rows"][1]["change"]["cat"] == pytest.approx(-0.01)
    text = comparison.to_text()
    assert "* fast" in text
    assert "-1.00" in text
    assert "a note" in text
    lines = text.splitlines()[2:8]
    assert len({len(line) for line in lines}) == 1


def test_the_page_shows_every_candidate(tmp_path: Path) -> None:
    comparison = Comparison(
        tmp_path, "runs/<a>", "val", {"processor": "P", "threads": 2}, ROWS, ("a <note>",)
    )
    text = page.write_page(comparison).read_text()
    assert text.count("<circle") == 2 * len(ROWS)  # with names, and with numbers for narrow screens
    assert "runs/&lt;a&gt;" in text
    assert "a &lt;note&gt;" in text
    assert "&lt;dog&gt;" in text
    assert "validation images" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "not readable" in text


def test_the_legend_names_what_is_there(tmp_path: Path) -> None:
    comparison = Comparison(tmp_path, "a", "val", {"processor": "P", "threads": 1}, (ROWS[0], ROWS[2]))
    text = page.write_page(comparison).read_text()
    assert "pruned</span>" in text
    assert "INT8</span>" not in text
    assert "smaller networks</span>" not in text


def test_labels_do_not_meet() -> None:
    crowd = [row(f"candidate {k}", 0.9 + 0.001 * k, 3.0 + 0.02 * k) for k in range(8)]
    points = page.picture(crowd).points
    boxes = []
    for point in points:
        width = (page._BOLD if point.best else page._CHARACTER) * len(point.name)
        left = point.label_x if point.anchor == "start" else point.label_x - width
        boxes.append((left, point.label_y - 12, left + width, point.label_y + 4))
        assert left >= page.LEFT
        assert left + width <= page.WIDTH
    overlaps = [page._overlap(a, b) for k, a in enumerate(boxes) for b in boxes[:k]]
    assert max(overlaps) < 60  # a few pixels at most


def test_one_candidate_can_be_drawn() -> None:
    assert len(page.picture([ROWS[0]]).points) == 1
