"""The page in a real browser: choose, drop, paste; keyboard and screen reader; phone; English and Chinese."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tellapart.serve import page

from .chromium import Browser, find
from .conftest import Running, picture

PROGRAM = find()
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
SHOTS = os.environ.get("TELLAPART_SCREENSHOTS", "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    names = []
    for number in range(2):
        path = tmp_path / f"picture {number}.png"
        path.write_bytes(picture(number, (60, 80)))
        names.append(str(path))
    return names


def show(browser: Browser, name: str) -> None:
    if SHOTS:
        browser.shot(Path(SHOTS) / f"{name}.png")


def names(browser: Browser) -> list[str]:
    return browser.run("[...document.querySelectorAll('#results h2')].map(node => node.textContent)")


@needs_browser
def test_choose_and_look(browser: Browser, shared: Running, files: list[str]) -> None:
    browser.open(shared.url + "/")
    browser.choose("#files", files)
    browser.until("document.querySelectorAll('#results table').length === 2")
    assert set(names(browser)) == {"picture 0.png", "picture 1.png"}
    expected = shared.backend().answer(Path(files[0]).read_bytes())
    rows = browser.run(
        "[...document.querySelectorAll('#results > li')].find(n => n.innerText.includes('picture 0')).innerText"
    )
    assert f"{100 * expected.max():.1f}\N{NO-BREAK SPACE}%" in rows
    browser.run("document.querySelector('#results button').click()")
    browser.until("document.querySelector('#results canvas')")
    red = browser.run(
        "(() => { const c = document.querySelector('#results canvas');"
        " return c.getContext('2d').getImageData(0, 0, 360, 360).data.reduce((m, v, i) => i % 4 === 3 && v > m ? v : m, 0) })()"
    )
    assert red > 100  # something of the heat map is painted, on a picture without colours of its own
    assert "grayscale" in browser.run("getComputedStyle(document.querySelector('.heated img')).filter")
    assert "Red: covering this" in browser.run("document.getElementById('status').textContent")
    show(browser, "desktop")
    assert browser.complaints() == []
    assert {re.sub(r"^(https?://[^/]+|blob|data).*", r"\1", url) for url in browser.requests()} <= {
        shared.url,
        "blob",
        "data",
    }


@needs_browser
def test_drop_and_paste(browser: Browser, shared: Running) -> None:
    browser.open(shared.url + "/")
    browser.run(
        "(async () => { const bytes = await new Promise(done => { const c = document.createElement('canvas'); "
        "c.width = 40; c.height = 30; c.toBlob(done); }); const data = new DataTransfer();"
        "data.items.add(new File([bytes], 'dropped.png', {type: 'image/png'}));"
        "window.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true}));"
        "window.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data})); })()"
    )
    browser.until("document.querySelectorAll('#results table').length === 2")
    assert names(browser) == ["dropped.png", "dropped.png"]


@needs_browser
def test_by_keyboard(browser: Browser, shared: Running, files: list[str]) -> None:
    browser.open(shared.url + "/")
    browser.choose("#files", files[:1])
    browser.until("document.querySelectorAll('#results table').length === 1")
    reached = []
    for _ in range(8):
        browser.key("Tab", 9)
        reached.append(browser.run("document.activeElement.id || document.activeElement.textContent"))
        assert browser.run("document.activeElement.matches(':focus-visible')") or reached[-1] == ""
        if reached[-1] == "What did it look at?":
            break
    assert reached == ["en", "zh", "model", "clear", "files", "What did it look at?"]
    browser.key("Enter", 13, "\r")
    browser.until("document.querySelector('#results canvas')")
    assert browser.run("document.activeElement.textContent") == "Show the picture"  # the focus stays
    browser.key(" ", 32, " ")
    browser.until("!document.querySelector('#results canvas')")


@needs_browser
def test_with_a_screen_reader(browser: Browser, shared: Running, files: list[str]) -> None:
    browser.open(shared.url + "/")
    browser.choose("#files", files[:1])
    browser.until("document.querySelectorAll('#results table').length === 1")
    tree = browser.tree()
    assert ("heading", "What is in the picture?") in tree
    assert ("list", "Results") in tree
    assert ("image", "picture 0.png") in tree
    assert ("table", "Labels of picture 0.png") in tree
    assert ("combobox", "Model") in tree
    assert any(role == "button" and name.startswith("Choose pictures") for role, name in tree)
    assert any(role == "button" and "picture 0.png" in name for role, name in tree)
    nameless = [
        role for role, name in tree if role in ("button", "image", "table", "combobox", "link") and not name
    ]
    assert nameless == []
    said = browser.run("document.getElementById('status').textContent")
    assert re.fullmatch(r"picture 0\.png: \S+, \d+\.\d\xa0%", said)
    assert browser.run("document.getElementById('status').getAttribute('aria-live')") == "polite"


@needs_browser
def test_on_a_phone_in_chinese(browser: Browser, shared: Running, files: list[str]) -> None:
    browser.open(shared.url + "/", 360, 740, "zh-CN,zh;q=0.9,en;q=0.5")
    assert browser.run("document.documentElement.lang") == "zh-CN"
    assert browser.run("document.querySelector('h1').textContent") == "图里是什么？"
    browser.choose("#files", files)
    browser.until("document.querySelectorAll('#results table').length === 2")
    browser.run("document.querySelector('#results button').click()")
    browser.until("document.querySelector('#results canvas')")
    assert browser.run("document.documentElement.scrollWidth") <= 360
    small = browser.run(
        "[...document.querySelectorAll('button, select')].filter(n => n.offsetParent && n.offsetHeight < 44).length"
    )
    assert small == 0
    show(browser, "phone")
    browser.run("document.getElementById('en').click()")
    assert browser.run("document.querySelector('h1').textContent") == "What is in the picture?"
    assert browser.run("document.documentElement.lang") == "en"
    assert browser.complaints() == []


@needs_browser
def test_what_goes_wrong_is_reported(browser: Browser, shared: Running, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(picture()[:60])
    browser.open(shared.url + "/")
    browser.choose("#files", [str(tmp_path / "broken.png")])
    browser.until("document.querySelector('#results .bad')")
    said = browser.run("document.querySelector('[role=alert]').textContent")
    assert said == "broken.png: bad image: truncated PNG file"
    (tmp_path / "letter.png").write_text("Dear all,", "utf-8")
    browser.choose("#files", [str(tmp_path / "letter.png")])
    browser.until("document.querySelector('#results .seen').innerText === 'no preview'")
    browser.run("document.getElementById('zh').click()")
    shown = browser.run("document.querySelector('#results .bad').textContent")
    assert shown.startswith("无法读取这张图片")


def test_reasons_in_chinese_are_of_codes_that_there_are() -> None:
    text = page._text("index.html")
    block = text.partition("reasons: {\n")[2].partition("\n    },")[0]
    codes = set(re.findall(r"(\w+): \"", block))
    source = "".join(path.read_text("utf-8") for path in Path(page.__file__).parent.parent.glob("*.py"))
    assert len(codes) > 10
    assert codes <= set(re.findall(r"\"(\w+)\"", source))


@needs_browser
def test_a_key_is_asked_for(browser: Browser, start: Callable[..., Running], files: list[str]) -> None:
    service = start(api_key="secret")
    browser.open(service.url + "/")
    browser.until("!document.getElementById('locked').hidden")
    assert (
        browser.run("document.querySelector('[role=alert]').textContent") == ""
    )  # to be asked is no mistake
    browser.choose("#files", files[:1])
    browser.until("document.querySelector('#results .bad')")
    show(browser, "key")
    for key, said in (("wrong", "the API key is missing or wrong"), ("secret", "")):
        browser.run(
            f"(() => {{ const k = document.getElementById('key'); k.value = '{key}'; "
            "k.dispatchEvent(new Event('change')); })()"
        )
        browser.until(f"document.querySelector('[role=alert]').textContent === '{said}'")
    browser.until("document.querySelectorAll('#results table').length === 1")  # the picture is tried again


@needs_browser
def test_no_key_is_asked_for_where_none_is_needed(browser: Browser, shared: Running) -> None:
    browser.open(shared.url + "/")
    browser.until("document.getElementById('knows').textContent")
    assert browser.run("document.getElementById('key').offsetParent === null")
    assert browser.run("document.getElementById('knows').textContent") == (
        "The model knows 3 classes: ant, bee, 猫."
    )


@needs_browser
def test_the_interface_is_described(browser: Browser, shared: Running) -> None:
    browser.open(shared.url + "/docs")
    browser.until("document.querySelectorAll('details').length > 10")
    text = browser.run(
        "[...document.querySelectorAll('details')].forEach(n => n.open = true) || document.body.innerText"
    )
    for word in ("/v1/predict", "multipart/form-data", "Deadline-Ms", "/v2/models/{name}/infer", "curl"):
        assert word in text
    show(browser, "docs")
    assert browser.complaints() == []
    assert all(url.startswith((shared.url, "data:")) for url in browser.requests())


def test_pages_are_self_contained(client: httpx.Client) -> None:
    for path in ("/", "/docs"):
        answer = client.get(path)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", answer.text)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,zh;q=0.9", "en"),
        ("de,zh;q=0.4,en;q=0.3", "zh"),
        ("fr", "en"),
        ("zh;q=broken, en;q=0.1", "en"),
    ],
)
def test_language(accepted: str, chosen: str) -> None:
    assert page.language(accepted) == chosen
