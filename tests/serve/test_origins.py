"""Pages of other origins: nobody's without --allow-origin, exactly the named ones' with it; also in a real browser."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tellapart.errors import ServeError
from tellapart.serve import Options
from tellapart.serve.origins import normal

from .chromium import Browser, find
from .conftest import Running, picture

PROGRAM = find()
needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")
OURS, OTHER = "https://pages.example", "http://127.0.0.1:3000"
ALLOWED = "access-control-allow-origin"


def may(client: httpx.Client, origin: str, path: str = "/v1/predict", **more: str) -> httpx.Response:
    """Ask as a browser does before its page asks."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Sec-Fetch-Site": "cross-site",
        **more,
    }
    return client.options(path, headers=headers)


def label(client: httpx.Client, origin: str, **more: Any) -> httpx.Response:
    headers = {"Origin": origin, "Sec-Fetch-Site": "cross-site", **more}
    return client.post("/v1/predict", files={"image": picture()}, headers=headers)


def test_nobody_is_allowed_by_default(client: httpx.Client, shared: Running) -> None:
    assert may(client, OURS).status_code == 405
    assert label(client, OURS).status_code == 403
    own = client.get("/v1/models", headers={"Origin": shared.url})
    foreign = client.get("/v1/models", headers={"Origin": OURS})
    for answer in (may(client, OURS), label(client, OURS), own, foreign):
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert "vary" not in answer.headers


def test_exactly_those_that_are_named(start: Callable[..., Running]) -> None:
    service = start(allow_origin=(OURS + "/", "HTTP://127.0.0.1:3000", "https://other.example:443"))
    with service.client() as client:
        for origin in (OURS, OTHER, "https://other.example"):
            answer = may(client, origin, **{"Access-Control-Request-Headers": "content-type,x-api-key"})
            assert (answer.status_code, answer.content) == (204, b"")
            assert answer.headers[ALLOWED] == origin
            assert answer.headers["vary"] == "Origin"
            assert {"POST", "PUT"} <= set(answer.headers["access-control-allow-methods"].split(", "))
            assert {"Authorization", "Content-Type", "Deadline-Ms", "X-API-Key"} <= set(
                answer.headers["access-control-allow-headers"].split(", ")
            )
            assert "access-control-allow-credentials" not in answer.headers
            answer = label(client, origin)
            assert (answer.status_code, answer.headers[ALLOWED]) == (200, origin)
        for origin in (
            "null", "http://pages.example", OURS + ":8443", OURS + ".evil.example", "https://evil.pages.example",
            "https://evil.example", "http://127.0.0.1:30000", "http://localhost:3000", "*", "", OURS + "/", OURS.upper(),
        ):  # fmt: skip
            for answer in (may(client, origin), label(client, origin)):
                assert (answer.status_code, answer.json()["code"]) == (403, "origin"), origin
                assert ALLOWED not in answer.headers
                assert answer.headers["vary"] == "Origin"
            assert ALLOWED not in client.get("/v1/models", headers={"Origin": origin}).headers
        answer = client.post(
            "/v1/predict", files={"image": picture()}, headers={"Sec-Fetch-Site": "cross-site"}
        )
        assert answer.status_code == 403  # it does not say whose page
        assert label(client, service.url, **{"Sec-Fetch-Site": "same-origin"}).status_code == 200
        assert client.options("/v1/predict").status_code == 405
        assert client.options("/v1/predict", headers={"Origin": OURS}).status_code == 405


def test_refusals_can_be_read_too(start: Callable[..., Running]) -> None:
    service = start(allow_origin=(OURS,), max_body_mb=0.01)
    with service.client() as client:
        headers = {"Origin": OURS}
        answers = [
            client.post("/v1/predict", content=b"GIF89a", headers=headers),
            client.post("/v1/predict", content=bytes(20_000), headers=headers),
            client.get("/none", headers=headers),
            client.get("/v1/predict", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [422, 413, 404, 405]
        for answer in answers:
            assert answer.headers[ALLOWED] == OURS
            assert "Retry-After" in answer.headers["access-control-expose-headers"]


def test_every_page_where_it_is_reported(start: Callable[..., Running]) -> None:
    service = start(allow_origin=("*",))
    with service.client() as client:
        for origin in (OURS, "null", "http://any.example"):
            assert may(client, origin).headers[ALLOWED] == "*"
            assert label(client, origin).headers[ALLOWED] == "*"
        rebound = {"Origin": OURS, "Host": "evil.example"}
        assert client.get("/v1/models", headers=rebound).status_code == 421  # the other rules stay
        rebound["Access-Control-Request-Method"] = "POST"
        assert client.options("/v1/predict", headers=rebound).status_code == 421


def test_the_key_is_asked_for_as_ever(start: Callable[..., Running]) -> None:
    service = start(allow_origin=(OURS,), api_key="k")
    with service.client() as client:
        assert may(client, OURS).status_code == 204  # a browser has no key to ask with
        answer = label(client, OURS)
        assert (answer.status_code, answer.headers[ALLOWED]) == (401, OURS)
        assert label(client, OURS, **{"X-API-Key": "k"}).status_code == 200
        assert may(client, "https://evil.example").status_code == 403
        assert client.options("/v1/predict", headers={"Origin": OURS}).status_code == 401


def test_a_private_network_is_not_opened(start: Callable[..., Running]) -> None:
    """That a page of the web may reach into it is the browser's and its user's to decide."""
    service = start(allow_origin=("*",))
    with service.client() as client:
        answer = may(client, OURS, **{"Access-Control-Request-Private-Network": "true"})
        assert "access-control-allow-private-network" not in answer.headers


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("https://Pages.Example/", "https://pages.example"),
        ("https://pages.example:443", "https://pages.example"),
        ("http://pages.example:443", "http://pages.example:443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("chrome-extension://abcdefghijklmnop", "chrome-extension://abcdefghijklmnop"),
        ("*", "*"),
    ],
)
def test_origins_as_browsers_write_them(given: str, sent: str) -> None:
    assert normal(given) == sent
    Options(allow_origin=(given,))


@pytest.mark.parametrize(
    "given",
    [
        "", "null", "pages.example", "localhost:3000", "https://pages.example/path", "https://*.example", "http://",
        "https://pages.example?x", "https://pages.example#x", "https://a@pages.example", "https://a,https://b",
        "https://a https://b", "http://a:port", "http://a:99999", "//a", "https://a\r\nx: y", "https://[::1", "https://é..b",
    ],
)  # fmt: skip
def test_what_is_no_origin(given: str) -> None:
    with pytest.raises(ServeError, match=r"--allow-origin is .*one page's origin"):
        Options(allow_origin=(given,))


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>a page of one's own</title>")

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[int]:
    """The port of another server, whose page asks. It has threads: browsers open connections that they do not use yet."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield other.server_address[1]
        other.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert PROGRAM is not None
    browser = Browser(PROGRAM, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


SCRIPT = """
(async () => {
  const bytes = Uint8Array.from(atob("TEXT"), one => one.charCodeAt(0)), form = new FormData(), key = {"X-API-Key": "k"};
  form.append("image", new Blob([bytes], {type: "image/png"}), "a.png");
  const json = {method: "POST", body: JSON.stringify({image: "TEXT"}), headers: {"content-type": "application/json", ...key}};
  const tell = async (path, options) => {
    try {
      const answer = await fetch("URL" + path, options);
      const content = await answer.json();
      return [answer.status, content.code || content.predictions[0].label];
    } catch (error) { return [0, error.name]; }
  };
  return [
    await tell("/v1/predict", {method: "POST", body: form, headers: HEADERS}),
    await tell("/v1/predict", {method: "POST", body: bytes, headers: HEADERS}),
    await tell("/v1/predict", json),
    await tell("/predictions/m", {method: "PUT", body: bytes, headers: key}),
    await tell("/v1/predict", {method: "POST", body: "GIF89a", headers: {"content-type": "image/gif", ...key}}),
  ];
})()
"""


def asked(browser: Browser, service: Running, headers: str = "{}") -> list[list[Any]]:
    """Return (status, label or code) of what the page that is open gets; (0, "TypeError") where the browser refuses."""
    script = SCRIPT.replace("TEXT", base64.b64encode(picture()).decode())
    return browser.run(script.replace("URL", service.url).replace("HEADERS", headers))


@needs_browser
def test_a_page_elsewhere(browser: Browser, elsewhere: int, start: Callable[..., Running]) -> None:
    service = start(allow_origin=(f"http://127.0.0.1:{elsewhere}",))
    best = ("ant", "bee", "猫")[service.backend().answer(picture()).argmax()]
    browser.open(f"http://127.0.0.1:{elsewhere}/")
    assert asked(browser, service) == [[200, best]] * 4 + [[422, "bad_image"]]
    count = service.service.repository.get("m").counts.images
    browser.open(f"http://localhost:{elsewhere}/")  # the same page by another name is another origin
    assert asked(browser, service) == [[0, "TypeError"]] * 5
    assert service.service.repository.get("m").counts.images == count == 4


@needs_browser
def test_a_page_elsewhere_with_a_key(browser: Browser, elsewhere: int, start: Callable[..., Running]) -> None:
    service = start(allow_origin=("*",), api_key="k")
    best = ("ant", "bee", "猫")[service.backend().answer(picture()).argmax()]
    browser.open(f"http://127.0.0.1:{elsewhere}/")
    expected = [[200, best]] * 4 + [[422, "bad_image"]]
    assert asked(browser, service, "key") == expected
    assert asked(browser, service)[:2] == [[401, "api_key"]] * 2


@needs_browser
def test_a_page_elsewhere_that_nobody_named(
    browser: Browser, elsewhere: int, start: Callable[..., Running]
) -> None:
    service = start()
    browser.open(f"http://127.0.0.1:{elsewhere}/")
    assert asked(browser, service) == [[0, "TypeError"]] * 5
    assert service.service.repository.get("m").counts.images == 0
