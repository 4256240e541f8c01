"""Bad requests get a 4xx with a reason, and the service goes on."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .conftest import Running, picture

PLACE = Path(__file__).resolve().parents[2] / "bench" / "bad_requests.py"
SPEC = importlib.util.spec_from_file_location("bad_requests", PLACE)
assert SPEC is not None
assert SPEC.loader is not None
bad_requests: Any = importlib.util.module_from_spec(SPEC)
sys.modules["bad_requests"] = bad_requests
SPEC.loader.exec_module(bad_requests)
KINDS = bad_requests.all_kinds()
SLOW = bad_requests.slow_kinds()


def explained(status: int, body: bytes) -> dict[str, Any]:
    """Check that an answer gives a reason and nothing of the inside, and return it."""
    if status == 400 and bad_requests.NOT_HTTP.fullmatch(body):
        return {}
    content = json.loads(body)
    assert content["error"]
    assert content["code"]
    assert not re.search(r"/\w+/|Traceback|File |\.py|0x[0-9a-f]{6}", content["error"])
    return content


def wait_until(true: Callable[[], Any]) -> None:
    limit = time.monotonic() + 10
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_there_are_many_kinds() -> None:
    assert len({bad.name for bad in KINDS}) == len(KINDS) > 90


@pytest.mark.parametrize("bad", KINDS, ids=lambda bad: bad.name)
def test_bad_requests(shared: Running, bad: Any) -> None:
    status, body = bad_requests.ask(shared.host, shared.port, bad)
    assert status in bad.statuses, body[:300]
    if status:
        explained(status, body)
    with shared.client() as client:
        assert client.post("/v1/predict", files={"image": picture()}).status_code == 200
    assert shared.service.intake.held == 0


def test_slow_senders(start: Callable[..., Running]) -> None:
    service = start(head_timeout=0.3, body_timeout=0.3)
    with ThreadPoolExecutor(len(SLOW)) as pool:
        answers = list(pool.map(lambda bad: bad_requests.ask(service.host, service.port, bad), SLOW))
    for bad, (status, body) in zip(SLOW, answers, strict=True):
        assert status in bad.statuses, bad.name
        explained(status, body)


def test_a_client_that_takes_no_answer(start: Callable[..., Running]) -> None:
    """It asks for more than the system keeps for it, reads nothing, and must not hold its connection for ever."""
    service = start(body_timeout=0.5)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect((service.host, service.port))
        client.sendall(ask * 200)
        connections = service.server.server_state.connections
        wait_until(lambda: connections)
        wait_until(lambda: not connections)
    with service.client() as client_after:
        assert client_after.get("/healthz").status_code == 200


def test_slow_but_steady_readers_get_all(start: Callable[..., Running]) -> None:
    """Answers are taken in time, one by one: the bound is on each, not on the connection."""
    service = start(body_timeout=0.5)
    ask = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    with socket.create_connection((service.host, service.port), 10) as client:
        client.sendall(ask * 20)
        content = b""
        while content.count(b"HTTP/1.1 200") < 20:
            part = client.recv(20_000)
            assert part
            content += part
            time.sleep(0.02)


def test_too_many_connections(start: Callable[..., Running]) -> None:
    service = start(max_connections=3)
    with (
        service.client() as first,
        service.client() as second,
        service.client() as third,
        service.client() as fourth,
    ):
        for client in (first, second, third):
            assert client.get("/healthz").status_code == 200
        refused = fourth.get("/healthz")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert first.get("/healthz").status_code == 200
        third.close()
        assert fourth.get("/healthz").status_code == 200


def test_bodies_together_are_bounded(start: Callable[..., Running]) -> None:
    service = start(max_memory_mb=1, max_body_mb=3.0)
    with service.client() as client:
        refused = client.post("/v1/predict", content=bytes(2 << 20), headers={"content-type": "image/png"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert client.post("/v1/predict", files={"image": picture()}).status_code == 200


def test_a_failing_model_is_not_shown(start: Callable[..., Running]) -> None:
    service = start({"fails": True})
    with service.client() as client:
        for _ in range(2):
            answer = client.post("/v1/predict", files={"image": picture()})
            assert answer.status_code == 500
            assert explained(500, answer.content)["code"] == "model_failed"
        assert client.get("/healthz").status_code == 200


def test_key(start: Callable[..., Running]) -> None:
    service = start(api_key="wörd")
    with service.client() as client:
        for path in ("/healthz", "/readyz", "/", "/docs", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200, path
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v2", "/none"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "api_key"), path
            assert answer.headers["www-authenticate"] == "Bearer"
        for header in ({"X-API-Key": "wörd".encode()}, {"Authorization": b"Bearer " + "wörd".encode()}):
            assert client.get("/v1/models", headers=header).status_code == 200
        for header in ({"X-API-Key": b"word"}, {"Authorization": b"Bearer"}, {"Authorization": b"Basic x"}):
            assert client.get("/v1/models", headers=header).status_code == 401
        assert (
            client.get("/v1/models", headers={"X-API-Key": "wörd".encode(), "Host": "any"}).status_code == 200
        )


def test_a_slow_sender_keeps_nobody_from_a_heat_map(start: Callable[..., Running]) -> None:
    service = start()
    head = bad_requests.post("/v1/explain?grid=2", "image/png", b"", length=5000)
    with socket.create_connection((service.host, service.port), 10) as slow, service.client() as client:
        slow.sendall(head + picture()[:100])
        wait_until(lambda: service.service.intake.held)
        assert client.post("/v1/explain?grid=2", files={"image": picture()}).status_code == 200


def test_an_upload_that_is_given_up_leaves_nothing(start: Callable[..., Running]) -> None:
    service = start()
    for _ in range(5):
        with socket.create_connection((service.host, service.port), 10) as gone:
            gone.sendall(bad_requests.post("/v1/predict", "image/png", bytes(400_000), length=500_000))
    wait_until(lambda: not service.service.intake.held and not service.server.server_state.connections)
    wait_until(lambda: service.service.metrics.in_flight._value.get() == 0)


def test_the_heads_of_answers_alone(client: Any) -> None:
    for path in ("/healthz", "/", "/metrics"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b""), path
    assert client.head("/v1/predict").status_code == 405


def test_a_page_of_this_service_may_post(client: Any) -> None:
    for site in ("same-origin", "none"):
        answer = client.post("/v1/predict", files={"image": picture()}, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/v1/predict", "/v2/models/m/infer", "/v2/repository/models/m/load"])
def test_pages_of_others_may_not_post(path: str, client: Any, shared: Running) -> None:
    """Also where the browser tells of its page by Origin alone."""
    own = f"http://{shared.host}:{shared.port}"
    for origin in (
        "http://evil.example",
        "https://evil.example",
        "null",
        own + "0",
        f"http://{shared.host}",
        "http://x",
        "",
    ):
        answer = client.post(path, content=b"x", headers={"Origin": origin, "Content-Type": "text/plain"})
        assert (answer.status_code, answer.json()["code"]) == (403, "origin"), origin
    for headers in (
        {"Origin": own},
        {"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-origin"},
        {},
    ):
        answer = client.post("/v1/predict", files={"image": picture()}, headers=headers)
        assert answer.status_code == 200, headers
    assert client.get("/v1/models", headers={"Origin": "http://evil.example"}).status_code == 200


def test_a_phones_moving_picture_is_one(client: Any) -> None:
    """A film behind a JPEG holds what looks like thousands of scans; the picture itself has one."""
    film = picture(kind="JPEG") + b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\2" * 5000
    answer = client.post("/v1/predict", content=film, headers={"content-type": "image/jpeg"})
    assert answer.status_code == 200


def test_formats_are_chosen(start: Callable[..., Running]) -> None:
    service = start(formats=("tiff",))
    with service.client() as client:
        answer = client.post("/v1/predict", files={"image": picture()})
        assert (answer.status_code, answer.json()["error"]) == (415, "the image is png; accepted are tiff")
        assert client.post("/v1/predict", files={"image": picture(kind="TIFF")}).status_code == 200
