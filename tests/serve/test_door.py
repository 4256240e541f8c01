"""Who has come in is answered, also when the door is shut behind them; newcomers are kept out."""

from __future__ import annotations

import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tellapart.errors import ServeError
from tellapart.serve import door
from tellapart.serve.options import Options

from .conftest import running, write_model


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with door.listen(Options(port=0)) as found:
        yield found


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the queue is only made short")
@pytest.mark.parametrize("refused_by_a_sandbox", [False, True])
def test_who_waits_in_the_queue_is_kept_and_others_stay_outside(
    listener: socket.socket, refused_by_a_sandbox: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if refused_by_a_sandbox:
        monkeypatch.setattr(door, "_ATTACH_FILTER", 9999)
    address = listener.getsockname()
    with socket.create_connection(address, timeout=5) as inside:
        door.keep_newcomers_out(listener)
        inside.sendall(b"asked late")
        if not refused_by_a_sandbox:
            with pytest.raises(TimeoutError):
                socket.create_connection(address, timeout=0.3)
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(100) == b"asked late"  # the filter, which it inherits, lets data through
            accepted.sendall(b"answered")
            assert inside.recv(100) == b"answered"
    if not refused_by_a_sandbox:
        listener.settimeout(0.05)
        with pytest.raises(TimeoutError):
            listener.accept()  # nobody is left whom closing would turn away
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


def ask(host: str, port: int, wait: float, answers: list[bytes], connected: threading.Event) -> None:
    """Connect, and ask only after so many seconds."""
    with socket.create_connection((host, port), timeout=5) as connection:
        connected.set()
        time.sleep(wait)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answers.append(connection.recv(1000))


def test_who_has_just_connected_may_still_ask(faked: None, tmp_path: Path) -> None:
    with running({"m": write_model(tmp_path / "m.onnx")}) as service:
        answers: list[bytes] = []
        connected = threading.Event()
        client = threading.Thread(target=ask, args=(service.host, service.port, 0.4, answers, connected))
        client.start()
        assert connected.wait(5)
        service.server.handle_exit(signal.SIGTERM, None)
        client.join(10)
    assert answers
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answers[0].lower()


def test_who_asks_nothing_delays_the_end_by_a_second_only(faked: None, tmp_path: Path) -> None:
    with running({"m": write_model(tmp_path / "m.onnx")}) as service:
        silent = socket.create_connection((service.host, service.port), timeout=5)
        time.sleep(0.1)
        started = time.monotonic()
        service.server.handle_exit(signal.SIGTERM, None)
        with silent:
            assert silent.recv(100) == b""
        assert 0.9 < time.monotonic() - started < 3


def test_an_address_that_cannot_be_had(listener: socket.socket) -> None:
    with pytest.raises(ServeError, match="Cannot listen on 127"):
        door.listen(Options(port=listener.getsockname()[1]))
