"""Pages on a phone, measured in a browser: names break between words, and what scrolls shows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.compress.test_measuring import ROWS
from tests.evaluation.test_check_page import folder, photo
from tests.export.test_parity import Linear, compare
from tests.serve.chromium import Browser, find

from tellapart.compress import page as compress_page
from tellapart.compress.table import Comparison
from tellapart.data.health import examine
from tellapart.evaluation import series
from tellapart.evaluation.check_page import write_check_page
from tellapart.evaluation.report import write_report
from tellapart.export import text as export_text

PROGRAM = find()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs a Chromium")

NAMES = (
    "飞机",
    "Volkswagen Golf Sportsvan 1.4 TSI (2014 to 2019)",
    "Staffordshire_bullterrier_of_a_long_line",
    "番茄黄化曲叶病毒病",
    "deer",
    "Apple___Cedar_apple_rust",
    "German Shorthaired Pointer",
    "سفينة شحن",
)
LONGEST = 26  # of the words above, which every line of 390 pixels has room for

BROKEN = """
(() => {
  const words = WORDS, found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walk.nextNode(); node; node = walk.nextNode()) {
    if (node.parentElement.closest("svg, script, style")) continue;
    for (const word of words) for (let at = node.data.indexOf(word); at >= 0; at = node.data.indexOf(word, at + 1)) {
      const range = document.createRange();
      range.setStart(node, at);
      range.setEnd(node, at + word.length);
      const lines = new Set([...range.getClientRects()].filter(r => r.width > 0.5).map(r => Math.round(r.top)));
      if (lines.size > 1) found.push(word);
    }
  }
  return found;
})()
"""

UNSIGNED = """
(() => {
  const across = document.documentElement.clientWidth, found = [];
  if (document.documentElement.scrollWidth > across) found.push("the page");
  for (const node of document.body.querySelectorAll("*")) {
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > across + 1 || box.left < -1) && !node.closest(".scroll, svg")
        && getComputedStyle(node.parentElement).textOverflow !== "ellipsis") {
      found.push(node.tagName + " " + node.className);
    }
  }
  for (const node of document.querySelectorAll(".scroll")) {
    const edge = name => Number(getComputedStyle(node, name).opacity), scrolls = node.scrollWidth > node.clientWidth + 1;
    const named = node.tabIndex === 0 && node.getAttribute("role") === "region" && node.getAttribute("aria-label");
    if (!named) found.push("a region without a name");
    if (scrolls !== edge("::after") > 0.5) found.push(`${node.ariaLabel}: ${edge("::after")} at its end`);
    if (edge("::before") > 0.1) found.push(`${node.ariaLabel}: a sign before it`);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def measured(browser: Browser, page: Path, width: int = 390) -> None:
    browser.open(page.as_uri(), width=width)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    every = {word for name in NAMES for part in name.split("_") for word in part.split()}
    words = {
        word for word in every if max(word) < "\u2e80"
    }  # Chinese may be broken between any two characters
    assert max(map(len, words)) <= LONGEST
    assert browser.run(BROKEN.replace("WORDS", str(sorted(word for word in words if len(word) > 1)))) == []
    assert browser.run(UNSIGNED) == []
    assert browser.complaints() == []


def many(count: int) -> tuple[str, ...]:
    return tuple(f"{NAMES[k % len(NAMES)]} {k:02}" for k in range(count))


@pytest.mark.parametrize("width", [390, 800])
def test_the_page_of_a_check(browser: Browser, tmp_path: Path, width: int) -> None:
    pictures: dict[str, Any] = {
        f"{split}/{name}/a_long_name_{k}.png": photo(k % 3 + len(name))
        for name in NAMES
        for split in ("train", "val", "test")
        for k in range(2)
    }
    pictures["train/German Shorthaired Pointer/damaged_in_the_middle.jpg"] = b"\xff\xd8nothing"
    samples = folder(tmp_path / "data", pictures)
    page = write_check_page(examine(samples), samples, tmp_path / "check.html")
    measured(browser, page, width)


@pytest.mark.parametrize(("count", "width"), [(8, 390), (40, 390), (40, 800)])
def test_the_report(browser: Browser, make_run: Any, count: int, width: int) -> None:
    run = make_run("many", classes=many(count), n=15 * count, seconds=125.0)
    measured(browser, write_report(run), width)
    matrix = "document.querySelector('[aria-label=\"Confusion matrix\"]')"
    assert browser.run(f"{matrix}.scrollWidth > {matrix}.clientWidth") == (width < 500 or count > 30)


@pytest.mark.parametrize("width", [390, 800])
def test_the_report_and_the_page_of_folds_with_levels(browser: Browser, make_run: Any, width: int) -> None:
    classes = tuple(f"{NAMES[k // 2]}/{NAMES[k]}" for k in range(8))
    changes = (("training.metrics", ("kappa=my_package.my_module:kappa",)),)
    run = make_run("one", classes=classes, n=120, mark="/", own={"kappa": 0.123456}, changes=changes)
    measured(browser, write_report(run), width)
    entry = {
        "accuracy": 0.5, "macro_f1": 0.4, "balanced_accuracy": 0.45, "loss": 1.234, "n": 600, "epoch": 12,
        "levels": [{"level": 1, "names": 4, "accuracy": 0.75}], "kappa": 0.123456,
    }  # fmt: skip
    finished = [{"run": f"fold-{k}", **entry} for k in (1, 2, 3)]
    content = {
        "kind": "folds",
        "count": 3,
        "finished": finished,
        "summary": series.summarise(finished, True),
    }
    (run / "folds.json").write_text(json.dumps(content))
    (run / "evaluation" / "test").rename(run / "evaluation" / "out-of-fold")
    page = series.write_page(run)
    assert "<td>0.123456</td>" in page.read_text()
    measured(browser, page, width)


def test_a_sign_goes_where_the_end_is_reached(browser: Browser, make_run: Any) -> None:
    browser.open(write_report(make_run("many", classes=many(40), n=400)).as_uri(), width=390)
    browser.run("document.querySelector('[aria-label=\"Confusion matrix\"]').scrollLeft = 1e6")
    sides = (
        "['::before', '::after'].map(side => Number("
        "getComputedStyle(document.querySelector('[aria-label=\"Confusion matrix\"]'), side).opacity))"
    )
    browser.until(f"{sides}[1] < 0.1")
    assert browser.run(sides)[0] > 0.9


@pytest.mark.parametrize("width", [390, 800])
def test_the_pages_of_compress_and_export(browser: Browser, tmp_path: Path, width: int) -> None:
    rows = tuple(ROWS)
    for row in rows:
        row.change.update(dict.fromkeys(NAMES, -0.01))
    try:
        machine = {"processor": "P", "threads": 2}
        measured(
            browser, compress_page.write_page(Comparison(tmp_path, "runs/a", "test", machine, rows)), width
        )
    finally:
        for row in rows:
            for name in NAMES:
                del row.change[name]
    page = tmp_path / "parity.html"
    page.write_text(export_text.page([compare(Linear())], "runs/a", "1.2"), "utf-8")
    measured(browser, page, width)
