"""How results show themselves in a notebook."""

from __future__ import annotations

import html.parser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tellapart.contract.answers import Answers
from tellapart.evaluation import metrics, notebook
from tellapart.workflow import Result

HOSTILE = "<script>alert(1)</script>"
ALLOWED = {
    *("div", "p", "b", "code", "wbr", "table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "text", "tspan", "line", "path"),
}


class Page(html.parser.HTMLParser):
    """Notes every tag and attribute, and that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        assert not any("url(" in (value or "") or "javascript" in (value or "") for _, value in attrs)
        if tag not in ("wbr", "line", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def evaluation(count: int, name: str = "class") -> metrics.Evaluation:
    rng = np.random.default_rng(0)
    names = tuple(f"{name} {k}" for k in range(count))
    logits = rng.normal(size=(count * 9, count))
    return metrics.evaluate(Answers(logits, names), np.arange(count * 9) % count, "test")


@pytest.mark.parametrize("count", [2, 12, 13, 40])
def test_an_evaluation_shows_itself_without_scripts(count: int) -> None:
    found = evaluation(count, HOSTILE)
    text = found._repr_html_()
    page = Page(text)
    assert page.tags <= ALLOWED
    assert not {name for name in page.attributes if name.startswith("on")}
    assert "&lt;script&gt;" in text
    assert f"{100 * found.accuracy:.2f}" in text
    assert ("Confusion" in text) == (count <= 12)
    assert ("Most often confused" in text) == (count > 12)
    assert text.count("<tr>") < 60
    if count <= 12:
        cells = [int(one) for one in page.texts if one.isdigit()]
        assert cells[-(count**2) :][: count * count] == found.confusion.ravel().tolist()


def test_a_class_without_images_is_shown() -> None:
    found = metrics.evaluate(Answers(np.eye(3), ("a", "b", "ü_" + "x" * 300)), np.array([0, 1, 1]), "val")
    text = found._repr_html_()
    assert "–" in text
    assert "validation" in text
    Page(text)


def test_a_result_shows_its_figures_and_curves(trained: Any) -> None:
    text = Result(trained.run, trained.run / "model.safetensors", "test", {})._repr_html_()
    page = Page(text)
    assert page.tags <= ALLOWED
    assert text.count("<svg") == 2
    stored = metrics.read_evaluation(trained.run / "evaluation" / "test")
    assert f"{100 * stored.accuracy:.2f}" in text
    assert "held out" in text
    assert "bee" in text


@pytest.mark.parametrize(
    ("split", "interrupted", "words"), [("", False, "cannot be read"), ("", True, "tellapart.resume(")]
)
def test_a_result_without_a_folder_still_shows(
    tmp_path: Path, split: str, interrupted: bool, words: str
) -> None:
    folder = tmp_path / "<b>gone"
    text = Result(folder, folder / "m", split, {}, interrupted)._repr_html_()
    assert words in text
    assert "<b>gone" not in text
    Page(text)


def test_a_run_without_evaluation(trained: Any, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_bytes((trained.run / "spec.yaml").read_bytes())
    assert "Trained on everything" in notebook.of_run(tmp_path, "")
