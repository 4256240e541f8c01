"""Whether the service stands: good, bad and malicious requests, replaced models and SIGTERM, for some minutes.

    python bench/serving_soak.py FIRST SECOND [--minutes 10] [--fuzz]

FIRST and SECOND are two different models (exports or artifacts) with the same classes. They take turns under one name
while requests go on. Every good answer is compared with what the model itself gives for the same bytes; every bad
request must get one of the statuses that are right for it (`bad_requests.py`), with a reason in JSON. At the end
SIGTERM comes in the middle of the load. With --fuzz, schemathesis sends what it makes of the OpenAPI document as well.

Fails (exit code 1) where an answer is wrong, a request is lost, the server dies or logs an error, or its memory is not
flat: the median of the last fifth of the time against that of the second, at most 5 % above.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import bad_requests
from tellapart.runtime import Backend, open_backend, probabilities

TOLERANCE = 2e-5  # of a probability: a runtime's sums differ a little with the size of the batch
LIMITS = {"max_bytes": 1 << 20, "max_pixels": 400_000, "max_images": 5}
FLAT = 1.05


class Soak:
    """What the clients share: the address, the right answers, and what went wrong."""

    def __init__(self, host: str, port: int, backends: list[Backend]) -> None:
        self.host, self.port, self.backends = host, port, backends
        self.of_version: dict[int, int] = {1: 0}
        self.images = [picture(seed) for seed in range(12)]
        self.right = [[own(backend, image) for image in self.images] for backend in backends]
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.stop, self.ending = threading.Event(), threading.Event()
        self.lock = threading.Lock()

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] += 1

    def fail(self, what: str) -> None:
        with self.lock:
            self.wrong.append(what[:4000])

    def check(self, version: int, places: list[int], given: list[dict[str, float]]) -> None:
        """Compare probabilities by label with the model's own."""
        which = self.of_version.get(version)
        if which is None:
            self.fail(f"nobody knows version {version}")
            return
        classes = self.backends[which].card.classes
        for place, answer in zip(places, given, strict=True):
            expected = self.right[which][place]
            off = max(abs(value - expected[classes.index(label)]) for label, value in answer.items())
            if (
                off > TOLERANCE
                or max(answer, key=lambda name: answer[name]) != classes[int(expected.argmax())]
            ):
                self.fail(f"image {place}, version {version}: off by {off}: {answer}")


def picture(seed: int) -> bytes:
    """Return a smooth picture of some format and size."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: int(rng.integers(30, 250)), : int(rng.integers(30, 250))]  # a BMP of 190 KB at most
    waves = [
        128 + 120 * np.sin(x * rng.uniform(0, 0.2) + y * rng.uniform(0, 0.2) + rng.uniform(0, 6))
        for _ in range(3)
    ]
    buffer = io.BytesIO()
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    image.save(buffer, ("PNG", "JPEG", "WEBP", "BMP")[seed % 4])
    return buffer.getvalue()


def own(backend: Backend, content: bytes) -> np.ndarray[Any, Any]:
    return probabilities(backend.logits(backend.prepare(content)[None]), backend.card)[0]


# --- Good requests ------------------------------------------------------------------------------------------


def good_requests(soak: Soak, client: httpx.Client, draw: random.Random) -> None:
    """Ask once, in one of five forms, and check the answer."""
    form = draw.choice(("raw", "form", "json", "tensor files", "tensor pixels"))
    places = [draw.randrange(len(soak.images)) for _ in range(1 if form == "raw" else draw.randrange(1, 5))]
    files = [soak.images[place] for place in places]
    if form.startswith("tensor"):
        _tensor(soak, client, form, places, files)
        return
    if form == "raw":
        answer = client.post("/v1/predict?top=1000", content=files[0], headers={"content-type": "image/*"})
    elif form == "form":
        answer = client.post("/v1/predict?top=1000", files=[("image", file) for file in files])
    else:
        texts = [base64.b64encode(file).decode() for file in files]
        answer = client.post("/v1/predict", json={"images": texts, "top": 1000})
    if answer.status_code != 200:
        soak.fail(f"{form}: {answer.status_code} {answer.text}")
        return
    content = answer.json()
    given = [{one["label"]: one["probability"] for one in row["top"]} for row in content["predictions"]]
    soak.check(content["version"], places, given)
    soak.count(f"good: {form}")


def _tensor(soak: Soak, client: httpx.Client, form: str, places: list[int], files: list[bytes]) -> None:
    classes = soak.backends[0].card.classes
    if form == "tensor files":
        data = b"".join(struct.pack("<I", len(file)) + file for file in files)
        tensor: dict[str, Any] = {"datatype": "BYTES", "shape": [len(files)]}
    else:  # of one picture, because a tensor's images have one size
        places = places[:1]
        pixels = np.asarray(Image.open(io.BytesIO(files[0])).convert("RGB"))
        data, tensor = pixels.tobytes(), {"datatype": "UINT8", "shape": [1, *pixels.shape]}
    given = {"name": "images", **tensor, "parameters": {"binary_data_size": len(data)}}
    head = json.dumps({"inputs": [given], "outputs": [{"name": "probabilities"}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post("/v2/models/m/infer", content=head + data, headers=headers)
    if answer.status_code != 200:
        soak.fail(f"{form}: {answer.status_code} {answer.text}")
        return
    content = answer.json()
    values = np.array(content["outputs"][0]["data"]).reshape(-1, len(classes))
    rows = [dict(zip(classes, row.tolist(), strict=True)) for row in values]
    soak.check(int(content["model_version"]), places, rows)
    soak.count(f"good: {form}")


def good_client(soak: Soak, number: int) -> None:
    draw = random.Random(number)
    with httpx.Client(base_url=f"http://{soak.host}:{soak.port}", timeout=60, trust_env=False) as client:
        while not soak.stop.is_set():
            try:
                good_requests(soak, client, draw)
            except httpx.ConnectError as error:
                if soak.ending.is_set():
                    return  # nothing is accepted any more
                soak.fail(repr(error))
            except httpx.HTTPError as error:
                soak.fail(f"lost: {error!r}")


# --- Bad requests and other trouble -------------------------------------------------------------------------


def bad_client(soak: Soak, number: int, kinds: list[bad_requests.Bad]) -> None:
    draw = random.Random(1000 + number)
    for round_ in itertools.count():
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
            elif status and not json.loads(body).get("error"):
                soak.fail(f"{bad.name}: no reason in {body[:200]!r}")
            soak.count(f"bad: {bad.name}")
        soak.count(f"rounds of bad requests by client {number}" if round_ >= 0 else "")


def rude_client(soak: Soak) -> None:
    """Go away in the middle of good requests."""
    draw = random.Random(7)
    while not soak.stop.is_set() and not soak.ending.is_set():
        content = bad_requests.post("/v1/predict", "image/png", draw.choice(soak.images))
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
    with httpx.Client(base_url=f"http://{soak.host}:{soak.port}", timeout=60, trust_env=False) as client:
        while not soak.stop.wait(seconds) and not soak.ending.is_set():
            version += 1
            soak.of_version[version] = (version - 1) % 2
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


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return float("nan")


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
    backends = [open_backend(model, threads=1) for model in models]
    log = folder / "log"
    samples: list[tuple[float, float]] = []
    with server(path, log) as (process, where):
        soak = Soak(where["host"], where["port"], backends)
        kinds = bad_requests.all_kinds(**LIMITS)
        slow = bad_requests.slow_kinds()
        works: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
            *[(good_client, (soak, number)) for number in range(3)],
            *[(bad_client, (soak, number, kinds)) for number in range(2)],
            (bad_client, (soak, 9, slow)),
            (rude_client, (soak,)),
            (replace_models, (soak, path, models, max(3.0, args.minutes))),
        ]
        if args.fuzz:
            works.append((fuzz, (soak, folder)))
        threads = [threading.Thread(target=work, args=words) for work, words in works]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        while time.monotonic() - started < args.minutes * 60 and process.poll() is None:
            samples.append((time.monotonic() - started, memory(process.pid)))
            time.sleep(1)
        alive = process.poll() is None
        soak.ending.set()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
        soak.stop.set()
        for thread in threads:
            thread.join(90)
    return report(soak, samples, alive, code, log.read_text(), len(kinds) + len(slow))


def report(
    soak: Soak, samples: list[tuple[float, float]], alive: bool, code: int, log: str, kinds: int
) -> int:
    total = samples[-1][0]
    parts = [[mib for at, mib in samples if total * n / 5 <= at < total * (n + 1) / 5] for n in range(5)]
    medians = [statistics.median(part) for part in parts]
    growth = medians[4] / medians[1]
    good = sum(count for what, count in soak.counts.items() if what.startswith("good"))
    bad = sum(count for what, count in soak.counts.items() if what.startswith("bad"))
    seen = sum(what.startswith("bad") for what in soak.counts)
    print(f"{total:.0f} s: {good} good requests in 5 forms, {bad} bad ones of {seen} kinds (of {kinds})")
    for what in ("gone in the middle", "models replaced", "rounds of schemathesis"):
        print(f"{what}: {soak.counts[what]}")
    print(
        "memory, MiB, medians of fifths: "
        + ", ".join(f"{mib:.1f}" for mib in medians)
        + f"; growth {growth:.3f}"
    )
    print(f"wrong or lost: {len(soak.wrong)}; alive to the end: {alive}; exit code after SIGTERM: {code}")
    for line in soak.wrong[:20]:
        print(f"  {line}")
    errors = [line for line in log.splitlines() if "Traceback" in line or "failed" in line]
    print(f"errors in the log: {len(errors)}")
    if errors:
        print(log[-4000:])
    return int(bool(soak.wrong or errors or not alive or code or growth > FLAT or seen < 30))


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
