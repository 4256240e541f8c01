"""The end: who comes while the service drains is answered; who asks nothing does not delay it."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tellapart.errors import ServeError
from tellapart.serve import server
from tellapart.serve.options import Options

from .conftest import Running, picture, running, write_model


def end(service: Running) -> None:
    service.server.handle_exit(signal.SIGTERM, None)


def ask(service: Running, wait: float) -> bytes:
    """Connect, ask only after so many seconds, and return the answer."""
    with socket.create_connection((service.host, service.port), timeout=5) as connection:
        time.sleep(wait)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return connection.recv(1000)


def is_refused(service: Running) -> bool:
    try:
        ask(service, wait=0)
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # at the very moment
        pass
    return False


def test_who_connects_while_it_drains_is_answered_and_told_to_leave(start: Callable[..., Running]) -> None:
    service = start(drain_seconds=1.0)
    end(service)
    with service.client() as client:
        assert client.get("/readyz").status_code == 503
    answer = ask(service, wait=0.2)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer.lower()


def test_who_comes_after_the_drain_is_refused_while_others_are_finished(
    start: Callable[..., Running],
) -> None:
    service = start({"delay": 1.5}, drain_seconds=0.1, max_batch=1)
    statuses: list[int] = []

    def predict() -> None:
        with service.client() as client:
            statuses.append(client.post("/v1/predict", files={"image": picture()}).status_code)

    client = threading.Thread(target=predict)
    client.start()
    while not service.service.metrics.in_flight._value.get():
        time.sleep(0.01)
    end(service)
    while not is_refused(service):
        time.sleep(0.01)
    assert statuses == []
    client.join(20)
    assert statuses == [200]


def test_who_asks_nothing_does_not_delay_the_end(faked: None, tmp_path: Path) -> None:
    with running({"m": write_model(tmp_path / "m.onnx")}) as service:
        silent = socket.create_connection((service.host, service.port), timeout=5)
        time.sleep(0.1)
        started = time.monotonic()
        end(service)
        with silent:
            assert silent.recv(100) == b""
        assert time.monotonic() - started < 1


def test_an_address_that_cannot_be_had() -> None:
    with server.listen(Options(port=0)) as listener, pytest.raises(ServeError, match="Cannot listen on 127"):
        server.listen(Options(port=listener.getsockname()[1]))
