"""Models that are replaced and a service that ends, both without losing a request; what is counted meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tellapart.errors import ServeError, TellapartError
from tellapart.runtime import probabilities
from tellapart.serve.app import create
from tellapart.serve.models import fingerprint
from tellapart.serve.options import Options

from .conftest import CLASSES, FakeBackend, Running, picture, running, write_model


class Load:
    """Clients that ask on and on, from threads, until they are stopped; every answer is kept."""

    def __init__(self, service: Running, clients: int = 4) -> None:
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.failures: list[str] = []
        self._service, self._stop = service, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def _run(self) -> None:
        with self._service.client() as client:
            while not self._stop.is_set():
                try:
                    answer = client.post("/v1/predict", files={"image": picture()})
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    self.answers.append((answer.status_code, answer.json()))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


def until(true: Callable[[], Any], seconds: float = 10) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_replaced_file_takes_over_and_no_request_is_lost(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    service = start({"seed": 1, "delay": 0.01}, reload_seconds=0.05)
    with Load(service) as load:
        until(lambda: len(load.answers) > 5)
        write_model(tmp_path / "m.onnx", seed=2, delay=0.01)
        until(lambda: load.answers and load.answers[-1][1]["version"] == 2)
        with service.client() as client:
            write_model(tmp_path / "m.onnx", seed=3, delay=0.01, more=1)
            assert client.post("/v2/repository/models/m/load").status_code == 200
            assert client.get("/v2/models/m").json()["versions"] == ["3"]
        count = len(load.answers)
        until(lambda: len(load.answers) > count + 10)
    assert load.failures == []
    assert {status for status, _ in load.answers} == {200}
    for seed in (1, 2, 3):
        backend = FakeBackend(write_model(tmp_path / "own.json", seed=seed))
        given = [a["predictions"][0] for _, a in load.answers if a["version"] == seed]
        assert given
        for answer in given:
            assert answer["probability"] == pytest.approx(backend.answer(picture()).max(), abs=1e-6)


def test_a_broken_file_does_not_take_over(start: Callable[..., Running], tmp_path: Path) -> None:
    service = start(reload_seconds=0.05)
    with service.client() as client:
        before = client.post("/v1/predict", files={"image": picture()}).json()
        (tmp_path / "m.onnx").write_text("{broken", "utf-8")
        until(lambda: b'tellapart_reload_failures_total{model="m"} 1.0' in client.get("/metrics").content)
        assert client.post("/v1/predict", files={"image": picture()}).json() == before
        refused = client.post("/v2/repository/models/m/load")
        assert refused.status_code == 400
        assert str(tmp_path) not in refused.text
        (tmp_path / "m.onnx").unlink()
        assert client.post("/v1/predict", files={"image": picture()}).json() == before
        write_model(tmp_path / "m.onnx", seed=9)
        until(lambda: client.get("/v1/models").json()["models"][0]["version"] == 2)


def test_many_who_ask_for_a_reload_share_one(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start()
    repository, opened = service.service.repository, []
    real = repository._open

    def slow(path: Path) -> Any:
        opened.append(path)
        time.sleep(0.3)
        return real(path)

    monkeypatch.setattr(repository, "_open", slow)
    with service.client() as client, ThreadPoolExecutor(10) as pool:
        first = pool.submit(client.post, "/v2/repository/models/m/load")
        until(lambda: opened)
        others = [pool.submit(client.post, "/v2/repository/models/m/load") for _ in range(9)]
        assert {asked.result().status_code for asked in (first, *others)} == {200}
        assert len(opened) == 2  # what is being opened may be older than the question
        assert client.get("/v1/models").json()["models"][0]["version"] == 3


def test_batches_are_measured_before_the_first_request_only(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def worthwhile(compute: Any, image: Any) -> int:
        asked.append(len(image))
        return 5

    monkeypatch.setattr("tellapart.serve.models.worthwhile", worthwhile)
    service = start(max_batch=0)
    with service.client() as client:
        assert client.post("/v2/repository/models/m/load").status_code == 200
    model = service.service.repository.get("m")
    assert (model.version, model.batcher.max_batch, asked) == (2, 5, [1])


def test_only_a_models_own_files_count(tmp_path: Path) -> None:
    own = [tmp_path / name for name in ("model.xml", "model.bin", "model.onnx", "model.onnx.data")]
    for path in (*own, tmp_path / "model-int8.onnx", tmp_path / "models.bin", tmp_path / "notes.txt"):
        path.write_text(path.name, "utf-8")
    assert [entry[0] for entry in fingerprint(tmp_path / "model.onnx")] == sorted(path.name for path in own)
    before = fingerprint(tmp_path / "model.xml")
    (tmp_path / "model.bin").write_text("other weights", "utf-8")
    assert fingerprint(tmp_path / "model.xml") != before


def test_a_watch_outlives_every_failure(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service = start(reload_seconds=0.02)
    repository = service.service.repository
    with monkeypatch.context() as patch:
        patch.setattr(
            "tellapart.serve.models.Model", lambda *words: (_ for _ in ()).throw(MemoryError("threads"))
        )
        write_model(tmp_path / "m.onnx", seed=5)
        until(lambda: repository._begun["m"] == 2)
        time.sleep(0.1)
    write_model(tmp_path / "m.onnx", seed=6)
    with service.client() as client:
        until(lambda: client.get("/v1/models").json()["models"][0]["version"] > 1)
        assert client.post("/v1/predict", files={"image": picture()}).status_code == 200


def test_the_mix_of_a_replaced_model_is_forgotten(start: Callable[..., Running], tmp_path: Path) -> None:
    scores = {"val": {"per_class": [{"support": 1}, {"support": 3}]}}
    service = start({"classes": ["old", "both"], "scores": scores})
    with service.client() as client:
        assert 'mix_expected{label="old"' in client.get("/metrics").text
        write_model(tmp_path / "m.onnx", seed=1, classes=["both", "new"], scores=scores)
        assert client.post("/v2/repository/models/m/load").status_code == 200
        text = client.get("/metrics").text
    assert 'mix_expected{label="new"' in text
    assert 'mix_expected{label="old"' not in text


def test_old_models_are_closed(start: Callable[..., Running]) -> None:
    service = start()
    threads = service.service.repository.get("m").batcher._threads
    old = weakref.ref(service.backend())
    with service.client() as client:
        for _ in range(3):
            client.post("/v2/repository/models/m/load")
    until(lambda: not any(thread.is_alive() for thread in threads))
    until(lambda: old() is None)  # its memory is given back
    assert service.service.repository.get("m").version == 4


def test_ending_finishes_what_was_accepted(faked: None, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", seed=1, delay=0.15)
    with running({"m": path}, max_batch=1) as service:
        answers: list[int] = []

        def ask() -> None:
            with service.client() as client:
                answers.append(client.post("/v1/predict", files={"image": picture()}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        batcher = service.service.repository.get("m").batcher
        until(lambda: len(answers) + batcher.waiting >= 4)  # one more is being computed: all are accepted
        service.server.handle_exit(signal.SIGTERM, None)
        for thread in threads:
            thread.join(10)
    assert answers == [200] * 5


def test_draining_says_so_and_still_answers(start: Callable[..., Running]) -> None:
    service = start()
    service.service.draining = True
    with service.client() as client:
        assert client.get("/healthz").status_code == 200
        assert client.get("/readyz").status_code == 503
        assert client.get("/v2/health/ready").status_code == 503
        answer = client.post("/v1/predict", files={"image": picture()})
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"


def test_a_busy_service_refuses_by_503(start: Callable[..., Running]) -> None:
    service = start({"delay": 0.3}, queue=1, max_batch=1)
    statuses: list[tuple[int, str | None]] = []

    def ask() -> None:
        with service.client() as client:
            answer = client.post("/v1/predict", files={"image": picture()})
            statuses.append((answer.status_code, answer.headers.get("retry-after")))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert {status for status, _ in statuses} == {200, 503}
    assert all(after and int(after) >= 1 for status, after in statuses if status == 503)


def test_deadline(start: Callable[..., Running]) -> None:
    service = start({"delay": 0.3}, deadline_ms=100)
    with service.client() as client:
        answer = client.post("/v1/predict", files={"image": picture()})
        assert (answer.status_code, answer.json()["code"]) == (504, "deadline")
    service = start({"delay": 0.3})
    with service.client() as client:
        for headers, status in (({}, 200), ({"Deadline-Ms": "100"}, 504), ({"Deadline-Ms": "90000"}, 200)):
            assert (
                client.post("/v1/predict", files={"image": picture()}, headers=headers).status_code == status
            )


def test_metrics(start: Callable[..., Running], tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(json.dumps({"ant": 1, "bee": 1, "猫": 2}), "utf-8")
    service = start(class_mix=str(tmp_path / "mix.json"))
    with service.client() as client:
        label = client.post("/v1/predict", files=[("image", picture())] * 3).json()["predictions"][0]["label"]
        client.post("/v1/predict", content=b"", headers={"content-type": "image/png"})
        client.get("/no/such/path")
        text = client.get("/metrics").text
    assert f'tellapart_predictions_total{{label="{label}",model="m"}} 3.0' in text
    assert 'tellapart_requests_total{route="/v1/predict",status="200"} 1.0' in text
    assert 'tellapart_requests_total{route="/v1/predict",status="400"} 1.0' in text
    assert 'tellapart_requests_total{route="other",status="404"} 1.0' in text
    assert 'tellapart_refusals_total{code="no_image"} 1.0' in text
    assert 'tellapart_batch_images_bucket{le="4.0",model="m"} 1.0' in text
    assert 'tellapart_request_seconds_count{route="/v1/predict"} 2.0' in text
    assert 'tellapart_queue_images{model="m"} 0.0' in text
    share = {"ant": 0.25, "bee": 0.25, "猫": 0.5}[label]
    assert f'tellapart_class_drift{{model="m"}} {1 - share}' in text
    assert 'tellapart_class_mix_expected{label="猫",model="m",source="option"} 0.5' in text


def test_what_cannot_be_served(faked: None, tmp_path: Path) -> None:
    import asyncio

    (tmp_path / "m.onnx").write_text('{"seed": 1, "classes": ["a"]}', "utf-8")
    app = create({"m": str(tmp_path / "m.onnx")}, Options(class_mix=str(tmp_path / "none.json")))

    async def begin() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(ServeError, match="class-mix"):
        asyncio.run(begin())


PROGRAM = """
import json, sys, pathlib
sys.path.insert(0, {folder!r})
from tellapart.serve import models, serve, Options
from tests_serve_conftest import FakeBackend
models.open_backend = lambda path, *more: FakeBackend(pathlib.Path(path))
serve({{"m": {path!r}}}, Options(port=0, drain_seconds=1.0), lambda text: print(text, file=sys.stderr, flush=True),
      lambda where: print(json.dumps(where), flush=True))
print(json.dumps([name for name in ("torch", "sklearn", "torchvision", "timm") if name in sys.modules]))
"""


def test_a_process_ends_in_order_and_never_loads_torch(tmp_path: Path) -> None:
    """SIGTERM under load from clients that heed /readyz: exit code 0, and every request is answered."""
    path = write_model(tmp_path / "m.onnx", seed=1, delay=0.02)
    source = (Path(__file__).parent / "conftest.py").read_text("utf-8")
    (tmp_path / "tests_serve_conftest.py").write_text(source, "utf-8")
    program = PROGRAM.format(folder=str(tmp_path), path=str(path))
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        where = json.loads(process.stdout.readline())
        url = f"http://127.0.0.1:{where['port']}"
        statuses: list[int | str] = []
        asked, unready = threading.Event(), threading.Event()

        def ask() -> None:
            with httpx.Client(base_url=url, trust_env=False) as client:
                while not unready.is_set():
                    try:
                        statuses.append(client.post("/v1/predict", files={"image": picture()}).status_code)
                    except httpx.HTTPError as error:
                        statuses.append(repr(error))
                        return
                    asked.set()

        def watch() -> None:
            with httpx.Client(base_url=url, trust_env=False) as client:
                while client.get("/readyz").status_code == 200:
                    time.sleep(0.02)
            unready.set()

        threads = [threading.Thread(target=ask) for _ in range(6)] + [threading.Thread(target=watch)]
        for thread in threads:
            thread.start()
        assert asked.wait(10)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        for thread in threads:
            thread.join(10)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert set(statuses) == {200}
    assert unready.is_set()
    assert json.loads(out) == []
    assert re.search(r"serving at http://127\.0\.0\.1:\d+", err)
    assert "all accepted requests have been answered" in err


def test_fake_answers_are_those_of_its_classes(tmp_path: Path) -> None:
    """The reference of these tests is itself a classifier."""
    backend = FakeBackend(write_model(tmp_path / "m.onnx", seed=1))
    answers = [backend.answer(picture(seed)) for seed in range(30)]
    assert len({int(answer.argmax()) for answer in answers}) > 1
    assert np.allclose([answer.sum() for answer in answers], 1)
    assert probabilities(np.zeros((1, 3), np.float32), backend.card).shape == (1, len(CLASSES))
    assert issubclass(ServeError, TellapartError)


def test_a_failure_of_the_program_is_not_shown(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = start()

    def broken(*words: object) -> None:
        raise ZeroDivisionError("/secret/inside")

    monkeypatch.setattr("tellapart.serve.v1.answers.of", broken)
    with service.client() as client:
        answer = client.post("/v1/predict", files={"image": picture()})
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        assert "secret" not in answer.text
        text = client.get("/metrics").text
    assert 'tellapart_requests_total{route="/v1/predict",status="500"} 1.0' in text
    assert service.service.intake.held == 0


@pytest.mark.parametrize(
    "about",
    [{"classes": ["ant", "bee", "\ud800"]}, {"classes": ["\udfff", "b", "c"]}, {"classes": ["a", "b", "c"], "nan": True},
     {"classes": ["a", "b", "c"], "wide": True}],
    ids=["half a pair", "the other half", "no numbers", "too many numbers"],
)  # fmt: skip
def test_a_file_that_could_not_be_answered_with_does_not_take_over(
    about: dict[str, Any], start: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole answer is tried before: probabilities, JSON, metrics. One bad name used to break /metrics for good."""
    service = start()
    logits = FakeBackend.logits

    def other(self: FakeBackend, images: Any) -> Any:
        found = logits(self, images)
        if "a" in self.card.classes and about.get("nan"):
            return np.full_like(found, np.nan)
        return np.repeat(found, 2, 1) if "a" in self.card.classes and about.get("wide") else found

    monkeypatch.setattr(FakeBackend, "logits", other)
    with service.client() as client:
        before = client.post("/v1/predict", files={"image": picture()}).json()
        write_model(tmp_path / "m.onnx", seed=5, **about)
        assert client.post("/v2/repository/models/m/load").status_code == 400
        assert client.post("/v1/predict", files={"image": picture()}).json() == before
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").json()["models"][0]["version"] == 1


def test_an_answer_that_is_no_number_is_refused(
    start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that passed the trial, for the image that makes it overflow."""
    service = start()
    monkeypatch.setattr(service.backend(), "weights", np.full((192, 3), np.inf, np.float32))
    with service.client() as client:
        answer = client.post("/v1/predict", files={"image": picture()})
        assert (answer.status_code, answer.json()["code"]) == (500, "model_failed")
        assert client.get("/metrics").status_code == 200


def test_a_strangers_program_does_not_take_over(
    start: Callable[..., Running], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .pt2 file that replaces one that was trusted because it was exported here is refused unseen."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    write_model(tmp_path / "p.pt2", seed=1)
    with running({"p": tmp_path / "p.pt2"}, reload_seconds=0.05) as service, service.client() as client:
        before = client.post("/v1/predict", files={"image": picture()}).json()
        (tmp_path / "p.pt2").write_bytes(b"PK\x03\x04 anything")
        failed = b'tellapart_reload_failures_total{model="p"} 1.0'
        until(lambda: failed in client.get("/metrics").content, 60)  # torch is loaded first
        assert client.post("/v1/predict", files={"image": picture()}).json() == before
        answer = client.post("/v2/repository/models/p/load")
        assert answer.status_code == 400
