"""Whether the service stands: good, bad and malicious requests, replaced models and SIGTERM, for some minutes.

    python bench/serving_soak.py FIRST SECOND [--minutes 10] [--fuzz]

FIRST and SECOND are two different models (exports or artifacts) with the same classes. They take turns under one name
while requests go on. Every good answer (`good_requests.py`) is compared with what the model itself gives for the same
bytes; every bad request must get one of the statuses that are right for it (`bad_requests.py`), with a reason in JSON
that tells nothing of the inside. At the end SIGTERM comes in the middle of the load. With --fuzz, schemathesis sends
what it makes of the OpenAPI document as well.

Fails (exit code 1) where an answer is wrong, a request is lost or never answered, a client ends by an error, a kind of
bad request was not sent, the server dies or logs an error, or it grows: the median memory of the last fifth of the time
against that of the second, at most 5 % above; threads and open files, 30 %.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

import bad_requests
import good_requests
from tellapart.runtime import open_backend

LIMITS = {"max_bytes": 1 << 20, "max_pixels": 400_000, "max_images": 5}
FLAT, LOOSE = 1.05, 1.3  # growth of memory; and of threads and open files, which come and go with connections


class Soak:
    """What the clients share: the address, the right answers, and what went wrong."""

    def __init__(self, host: str, port: int, judge: good_requests.Judge, folder: Path) -> None:
        self.host, self.port, self.judge = host, port, judge
        self.inside = re.compile(rf"Traceback|\.py\b|site-packages|{re.escape(str(folder))}".encode())
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.stop, self.ending, self.unready = threading.Event(), threading.Event(), threading.Event()
        self.lock = threading.Lock()

    def count(self, what: str, number: int = 1) -> None:
        with self.lock:
            self.counts[what] += number

    def fail(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what[:4000])

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=f"http://{self.host}:{self.port}", timeout=60, trust_env=False)

    def thread(self, work: Callable[..., None], *words: Any) -> threading.Thread:
        """Return a thread whose own end by an error is something that went wrong."""

        def run() -> None:
            try:
                work(self, *words)
            except Exception:
                if not self.ending.is_set():
                    self.fail(f"{work.__name__}: {traceback.format_exc()}")

        return threading.Thread(target=run, name=work.__name__, daemon=True)


# --- Good requests ------------------------------------------------------------------------------------------


def good_client(soak: Soak, number: int) -> None:
    draw = random.Random(number)
    with soak.client() as client:
        while not soak.unready.is_set():
            try:
                soak.count(f"good: {good_requests.ask(soak.judge, client, draw)}")
            except good_requests.WrongError as error:
                soak.fail(str(error))
            except httpx.HTTPError as error:
                soak.fail(f"lost: {error!r}")


def operator(soak: Soak) -> None:
    """Look at health and metrics, as those do who run a service."""
    with soak.client() as client:
        while not soak.ending.wait(0.5):
            for path in ("/healthz", "/readyz", "/metrics", "/"):
                answer = client.get(path)
                if answer.status_code != 200:
                    soak.fail(f"{path}: {answer.status_code} {answer.text[:200]}")
                soak.count("looks at health and metrics")


# --- Bad requests and other trouble -------------------------------------------------------------------------


def bad_client(soak: Soak, number: int, kinds: list[bad_requests.Bad]) -> None:
    draw = random.Random(1000 + number)
    while True:
        for bad in draw.sample(kinds, len(kinds)):
            if soak.stop.is_set() or soak.ending.is_set():
                return
            try:
                status, body = bad_requests.ask(soak.host, soak.port, bad, timeout=60)
            except OSError as error:
                soak.fail(f"{bad.name}: {error!r}")
                continue
            if status not in bad.statuses:
                soak.fail(f"{bad.name}: {status} {body[:200]!r}")
            elif (
                status
                and not bad_requests.NOT_HTTP.fullmatch(body)
                and (not json.loads(body).get("error") or soak.inside.search(body))
            ):
                soak.fail(f"{bad.name}: no reason, or too much of one, in {body[:200]!r}")
            soak.count(f"bad: {bad.name}")


def rude_client(soak: Soak) -> None:
    """Go away in the middle of good requests."""
    draw = random.Random(7)
    while not soak.stop.is_set() and not soak.ending.is_set():
        content = bad_requests.post("/v1/predict", "image/png", draw.choice(soak.judge.images))
        with (
            contextlib.suppress(OSError),
            bad_requests.socket.create_connection((soak.host, soak.port), 10) as connection,
        ):
            connection.sendall(content[: draw.randrange(1, len(content))])
            time.sleep(draw.uniform(0, 0.1))
        soak.count("gone in the middle")


def replace_models(soak: Soak, path: Path, models: list[Path], seconds: float) -> None:
    """Let the two models take turns, by their file and by request."""
    version = 1
    with soak.client() as client:
        while not soak.stop.wait(seconds) and not soak.ending.is_set():
            version += 1
            soak.judge.of_version[version] = (version - 1) % 2
            beside = path.with_name("coming" + path.suffix)
            shutil.copy(models[(version - 1) % 2], beside)
            beside.replace(path)
            if version % 3 == 0:
                answer = client.post("/v2/repository/models/m/load")
                if answer.status_code != 200:
                    soak.fail(f"load: {answer.text}")
            until = time.monotonic() + 30
            while client.get("/v1/models").json()["models"][0]["version"] < version:
                if time.monotonic() > until:
                    soak.fail(f"version {version} does not come")
                    return
                time.sleep(0.1)
            soak.count("models replaced")


def size(pid: int) -> dict[str, float]:
    """Return a process's resident memory in MiB, threads and open files."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = {name: int(re.search(rf"^{name}:\s+(\d+)", text, re.M)[1]) for name in ("VmRSS", "Threads")}  # type: ignore[index]
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"memory, MiB": found["VmRSS"] / 1024, "threads": found["Threads"], "open files": files}


def fuzz(soak: Soak, folder: Path) -> None:
    """Let schemathesis send what it makes of the OpenAPI document, again and again."""
    url = f"http://{soak.host}:{soak.port}/openapi.json"
    settings = folder / "schemathesis.toml"  # 503 and 504 are right where the service is busy
    settings.write_text(
        '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503", "504"]\n'
    )
    for seed in itertools.count():
        if soak.stop.is_set() or soak.ending.is_set():
            return
        words = [
            sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()",
            "--config-file", str(settings), "run", url,
            "--checks", "not_a_server_error", "--max-examples", "20", "--seed", str(seed), "--no-color",
            "--exclude-path-regex", "repository", "--phases", "examples,coverage,fuzzing",
        ]  # fmt: skip
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode and not soak.ending.is_set() and not soak.stop.is_set():
            soak.fail(f"schemathesis: {done.stdout[-3500:]}")
        made = re.search(r"([\d,]+) generated", done.stdout)
        soak.count("requests by schemathesis", int(made[1].replace(",", "")) if made else 0)
        soak.count("rounds of schemathesis")


# --- The whole ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(path: Path, log: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    words = [
        sys.executable, "-m", "tellapart", "serve", "--model", f"m={path}", "--port", "0", "--json", "--threads", "1",
        "--max-body-mb", str(LIMITS["max_bytes"] / 2**20), "--max-pixels", str(LIMITS["max_pixels"]),
        "--max-images", str(LIMITS["max_images"]), "--body-timeout", "2", "--head-timeout", "2",
        "--reload-seconds", "0.5", "--deadline-ms", "60000",
    ]  # fmt: skip
    with log.open("w") as stream:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stream, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, log.read_text()
        yield process, json.loads(line)
    finally:
        process.kill()


def run(args: argparse.Namespace, folder: Path) -> int:
    models = [Path(args.first), Path(args.second)]
    path = folder / ("m" + models[0].suffix)
    shutil.copy(models[0], path)
    judge = good_requests.Judge([open_backend(model, threads=1) for model in models])
    log = folder / "log"
    samples: list[dict[str, float]] = []
    with server(path, log) as (process, where):
        soak = Soak(where["host"], where["port"], judge, folder)
        kinds, slow = bad_requests.all_kinds(**LIMITS), bad_requests.slow_kinds()
        threads = [
            *[soak.thread(good_client, number) for number in range(3)],
            *[soak.thread(bad_client, number, kinds) for number in range(2)],
            soak.thread(bad_client, 9, slow),
            soak.thread(rude_client),
            soak.thread(operator),
            soak.thread(replace_models, path, models, max(3.0, args.minutes)),
            *([soak.thread(fuzz, folder)] if args.fuzz else []),
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        while time.monotonic() - started < args.minutes * 60 and process.poll() is None:
            with contextlib.suppress(OSError, TypeError):  # it has just died, and the next look says so
                samples.append(size(process.pid))
            time.sleep(1)
        alive = process.poll() is None
        soak.ending.set()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        with soak.client() as client, contextlib.suppress(httpx.HTTPError):
            while client.get("/readyz").status_code == 200:
                time.sleep(0.02)
        soak.unready.set()  # from now on nobody asks anything new, as with a balancer
        code = process.wait(60)
        soak.stop.set()
        for thread in threads:
            thread.join(90)
            if thread.is_alive():
                soak.fail(f"{thread.name} does not end: it waits for an answer")
    return report(soak, samples, alive, code, log.read_text(), len(kinds) + len(slow))


def report(soak: Soak, samples: list[dict[str, float]], alive: bool, code: int, log: str, kinds: int) -> int:
    def total(what: str) -> int:
        return sum(count for name, count in soak.counts.items() if name.startswith(what))

    seen = sum(name.startswith("bad") for name in soak.counts)
    forms = sum(name.startswith("good") for name in soak.counts)
    print(f"{len(samples)} s: {total('good')} good requests in {forms} forms, {total('bad')} bad ones")
    print(
        f"kinds of bad requests: {seen} of {kinds}, each at least {min(_of(soak.counts, 'bad'), default=0)} times"
    )
    for what, count in sorted(soak.counts.items()):
        if not what.startswith("bad"):
            print(f"{what}: {count}")
    growth = {}
    for name in samples[0]:
        parts = [
            [one[name] for one in samples[len(samples) * n // 5 : len(samples) * (n + 1) // 5]]
            for n in range(5)
        ]
        medians = [statistics.median(part) for part in parts]
        growth[name] = medians[4] / medians[1]
        middle, most = ", ".join(f"{value:.1f}" for value in medians), max(one[name] for one in samples)
        print(f"{name}, medians of fifths: {middle}; growth {growth[name]:.3f}; most {most:.1f}")
    print(f"wrong or lost: {len(soak.wrong)}; alive to the end: {alive}; exit code after SIGTERM: {code}")
    for line in soak.wrong[:20]:
        print(f"  {line}")
    errors = [line for line in log.splitlines() if "Traceback" in line or "failed" in line]
    print(f"errors in the log: {len(errors)}")
    if errors:
        print(log[-4000:])
    leaks = growth["memory, MiB"] > FLAT or growth["threads"] > LOOSE or growth["open files"] > LOOSE
    return int(bool(soak.wrong or errors or not alive or code or leaks or seen < kinds))


def _of(counts: collections.Counter[str], what: str) -> list[int]:
    return [count for name, count in counts.items() if name.startswith(what)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first")
    parser.add_argument("second")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--fuzz", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        return run(args, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
