"""How much of the bare runtime's speed is left behind HTTP, and what others leave of it.

    python bench/serving.py [MODEL.onnx] [--size 224] [--litserve PYTHON] [--rounds 5] [--seconds 3] [--connections 8]

MODEL is an export of tellapart's; without one EfficientNet-Lite0 with random weights is made for pixels of --size,
which sets how long an image takes (224 about 5 ms in one thread of a recent server). Sides, in turns:

- bare: the network in ONNX Runtime in a loop, in a process of its own, with the threads and (about) the batch size
  that tellapart's service used in the same round; and two such loops at once. Its p50 and p99 are computed: of the same
  random requests in a queue before the loop that costs nothing;
- tellapart: `tellapart serve`, pixels of the model's size as binary tensors of the Open Inference Protocol; and the
  same with `--instances 2`, beside two loops;
- LitServe with dynamic batches of up to 8 (PYTHON: an environment with litserve and onnxruntime), pixels as base64 in
  JSON;
- plain: a FastAPI handler without batches, raw pixels; and the same with FastAPI's pool of threads, beside two loops;
- jpeg: `tellapart serve`, a photograph as JPEG, against decoding, resizing and computing it in a loop.

All get the same network (the export cut behind its resizing) and as many threads. The load comes from another process
(wrk where it is installed, see `serving_load.py`), by a number of connections that ask again as soon as they are
answered; then requests at random times at half of the rate that the side reached. While one side is measured the others
are stopped (SIGSTOP). Ratios are medians over the rounds. "Per CPU second" compares the processor time that an image
takes, all of the server's included, which a busy machine distorts less than rates. CPU columns say how many processors
the server and the client took on average: with few processors the client takes from the server.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import common
import serving_load

HERE = Path(__file__).resolve().parent
OUT_OF_ROUNDS = ("p50_ms", "p99_ms")
TWO, POOL, TWICE = "tellapart, 2 instances", "plain, pool", "bare, two loops"
AGAINST = {TWO: TWICE, POOL: TWICE, TWICE: TWICE, "jpeg": "bare jpeg", "bare jpeg": "bare jpeg"}


@dataclass
class Side:
    """A server in a process group of its own, and how to ask it."""

    name: str
    process: subprocess.Popen[Any]
    url: str
    body: Path
    kind: str
    header: str = ""

    def send(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def load(self, args: argparse.Namespace, rate: float = 0.0) -> dict[str, Any]:
        """Return what the client measured, and the processors that the server took."""
        before = cpu_of(self.process.pid)
        result = serving_load.load(
            self.url, self.body, self.kind, self.header, args.connections, args.seconds, rate, args.own_load
        )
        result["server_cpu"] = (cpu_of(self.process.pid) - before) / result["seconds"]
        return result


def cpu_of(group: int) -> float:
    """Return the seconds of processor time that a process group has taken."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def loop(work: Callable[[], object], seconds: float, images: int = 1, loops: int = 1) -> dict[str, Any]:
    """Return images a second of so many loops at once, the processors that were taken, and each image's seconds."""
    for _ in range(3):
        work()
    started, before = time.perf_counter(), time.process_time()
    took: list[float] = []

    def run() -> float:
        count, wall = 0, 0.0
        while wall < seconds:
            work()
            count += images
            took.append(time.perf_counter() - started - wall)
            wall += took[-1]
        return count / wall

    with ThreadPoolExecutor(loops) as pool:
        rates = [future.result() for future in [pool.submit(run) for _ in range(loops)]]
    wall = time.perf_counter() - started
    processors = (time.process_time() - before) / wall
    return {
        "requests_per_second": sum(rates), "server_cpu": processors, "took": [one / images for one in took],
    }  # fmt: skip


def ideal(took: list[float], rate: float) -> dict[str, float]:
    """Return p50 and p99 of the loop itself behind a queue that costs nothing, when requests come at random.

    A Poisson process of ``rate`` a second, served one after the other, by the seconds that the loop's images took.
    """
    rng = np.random.default_rng(0)
    gaps, costs = rng.exponential(1 / rate, 20_000), rng.choice(took, 20_000)
    waited, answers = 0.0, []
    for gap, cost in zip(gaps, costs, strict=True):
        waited = max(0.0, waited - gap)  # what is left of those before
        waited += cost
        answers.append(1000 * waited)
    return {name: float(np.percentile(answers, share)) for name, share in (("p50_ms", 50), ("p99_ms", 99))}


def bare(
    model: str, batch: int, threads: int, seconds: float, picture: str = "", loops: int = 1
) -> dict[str, Any]:
    """Return the rate of the runtime alone; with ``picture`` of decoding and resizing as well."""
    from tellapart.runtime import open_backend

    backend = open_backend(model, threads=threads)
    size = backend.card.preprocessing.size
    if picture:
        content = Path(picture).read_bytes()
        return loop(lambda: backend.logits(backend.prepare(content)[None]), seconds)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3)).astype(np.uint8)
    return loop(lambda: backend.logits(images), seconds, batch, loops)


def bare_in_process(
    args: argparse.Namespace, batch: int, picture: str = "", loops: int = 1
) -> dict[str, Any]:
    words = [sys.executable, __file__, args.model, "--bare", str(batch), "--threads", str(args.threads)]
    words += ["--seconds", str(args.seconds), "--picture", picture, "--loops", str(loops)]
    result: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return result


def made(size: int, folder: Path) -> str:
    """Write EfficientNet-Lite0 with random weights for squashed images of this size as ONNX; return its path."""
    from tellapart import artifact
    from tellapart.contract import Architecture, Card, Preprocessing
    from tellapart.models import zoo
    from tellapart.workflow.exporting import export

    architecture = Architecture("timm/tf_efficientnet_lite0", 2, size=size)
    contract = Preprocessing(size, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.5,) * 3)
    path = folder / "network.safetensors"
    artifact.save(path, zoo.build(architecture).state_dict(), Card(architecture, ("ant", "bee"), contract))
    export(path, to=["onnx"], out=folder / "export")
    return str(folder / "export" / "model.onnx")


def payloads(args: argparse.Namespace, folder: Path) -> int:
    """Write the network alone and the requests' bodies; return the images' size."""
    import onnx
    from PIL import Image

    from tellapart.runtime.onnx import card_of, split

    model = onnx.load(args.model)
    size = card_of(
        {entry.key: entry.value for entry in model.metadata_props}, Path(args.model)
    ).preprocessing.size
    onnx.save(split(model)[1], folder / "network.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).astype(np.uint8).tobytes()
    (folder / "pixels").write_bytes(pixels)
    (folder / "base64.json").write_text(json.dumps({"content": base64.b64encode(pixels).decode()}))
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, size, size, 3]}
    head = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": len(pixels)}}],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
    (folder / "head").write_bytes(json.dumps(head).encode())
    (folder / "tensor").write_bytes(json.dumps(head).encode() + pixels)
    y, x = np.mgrid[:375, :500]
    photo = np.stack([128 + 90 * np.sin(x / 37) * np.cos(y / 23), x / 2, y / 2], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=90)
    (folder / "photo.jpg").write_bytes(buffer.getvalue())
    return int(size)


def start(words: list[str], folder: Path, name: str, own: bool) -> subprocess.Popen[Any]:
    environment = dict(os.environ)
    if not own:
        environment.pop("PYTHONPATH", None)
    log = (folder / f"{name}.log").open("wb")
    return subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)


@contextlib.contextmanager
def sides(args: argparse.Namespace, folder: Path) -> Iterator[list[Side]]:
    """Start every server, wait until each answers, stop all; end them at the end."""
    size = payloads(args, folder)
    network, threads, batch = str(folder / "network.onnx"), str(args.threads), str(args.max_batch or 8)
    found: list[Side] = []
    length = f"Inference-Header-Content-Length: {(folder / 'head').stat().st_size}"
    octets = "application/octet-stream"
    for name, more in (("tellapart", []), (TWO, ["--instances", "2"])):
        port = free_port()
        words = [
            sys.executable,
            "-m",
            "tellapart",
            "serve",
            "--model",
            f"m={args.model}",
            "--port",
            str(port),
            *more,
        ]
        words += [
            "--threads",
            threads,
            "--max-batch",
            str(args.max_batch),
            "--max-wait-ms",
            str(args.max_wait_ms),
        ]
        process, here = start(words, folder, name, own=True), f"http://127.0.0.1:{port}"
        found.append(Side(name, process, f"{here}/v2/models/m/infer", folder / "tensor", octets, length))
        if name == "tellapart":
            found.append(Side("jpeg", process, f"{here}/v1/predict", folder / "photo.jpg", "image/jpeg"))
    for name, more in (("plain", []), (POOL, ["pool"])):
        script, port = str(HERE / "peers" / "serve_plain.py"), free_port()
        words = [sys.executable, script, network, str(port), str(size), threads, *more]
        process = start(words, folder, name, own=True)
        found.append(Side(name, process, f"http://127.0.0.1:{port}/predict", folder / "pixels", octets))
    if args.litserve:
        script, port = str(HERE / "peers" / "serve_litserve.py"), free_port()
        words = [
            args.litserve,
            script,
            network,
            str(port),
            str(size),
            batch,
            str(args.max_wait_ms / 1000),
            threads,
        ]
        process = start(words, folder, "litserve", own=False)
        url = f"http://127.0.0.1:{port}/predict"
        found.append(Side("LitServe", process, url, folder / "base64.json", "application/json"))
    try:
        for side in found:
            wait_for(side)
        for side in found:
            side.send(signal.SIGSTOP)
        yield found
    finally:
        for process in {side.process.pid: side.process for side in found}.values():
            for number in (signal.SIGCONT, signal.SIGTERM):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(side: Side) -> None:
    until = time.monotonic() + 120
    headers = {"Content-Type": side.kind}
    if side.header:
        name, _, value = side.header.partition(": ")
        headers[name] = value
    while True:
        try:
            request = urllib.request.Request(side.url, side.body.read_bytes(), headers)
            with urllib.request.urlopen(request, timeout=10):
                return
        except OSError:
            assert side.process.poll() is None, f"{side.name} has ended"
            assert time.monotonic() < until, f"{side.name} does not answer"
            time.sleep(0.3)


def counts(side: Side) -> list[float]:
    """Return what tellapart's service has computed so far: images, batches, and seconds of computing."""
    with urllib.request.urlopen(side.url[: side.url.index("/v")] + "/metrics", timeout=20) as answer:
        text = answer.read().decode()
    names = ("batch_images_sum", "batch_images_count", "batch_seconds_sum")
    found = [re.search(rf"^tellapart_{name}\S* (\S+)", text, re.M) for name in names]
    return [float(one[1]) if one else 0.0 for one in found]


def measure(args: argparse.Namespace, found: list[Side]) -> dict[str, list[dict[str, Any]]]:
    """Return for each side what each round gave."""
    rows: dict[str, list[dict[str, Any]]] = {side.name: [] for side in found}
    rows |= {name: [] for name in ("bare", "bare jpeg", TWICE)}
    for number in range(args.rounds):
        for side in found:
            row = measure_side(args, side, rows)
            rows[side.name].append(row)
            print(f"round {number + 1}: {side.name} {row['requests_per_second']:.1f}/s", file=sys.stderr)
    return rows


def measure_side(
    args: argparse.Namespace, side: Side, rows: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return what a side gave; what it is compared with is put into ``rows``, measured next to it in time."""
    ours = side.name in ("tellapart", TWO)
    side.send(signal.SIGCONT)
    before = counts(side) if ours else []
    full = side.load(args)
    row = {name: full[name] for name in ("requests_per_second", "server_cpu", "client_cpu")}
    if ours:
        images, batches, busy = (b - a for a, b in zip(before, counts(side), strict=True))
        row["batch"], row["busy"] = images / max(1.0, batches), busy / full["seconds"]
    side.send(signal.SIGSTOP)
    if side.name == "tellapart":
        rows["bare"].append(bare_in_process(args, max(1, round(row["batch"]))))
    if side.name == TWO:
        rows[TWICE].append(bare_in_process(args, max(1, round(row["batch"])), loops=2))
    if side.name == "jpeg":
        rows["bare jpeg"].append(bare_in_process(args, 1, str(side.body)))
    side.send(signal.SIGCONT)
    half = side.load(args, rate=full["requests_per_second"] / 2)
    side.send(signal.SIGSTOP)
    row["load"] = half["requests_per_second"] / full["requests_per_second"]
    if side.name == "tellapart":
        rows["bare"][-1] |= ideal(rows["bare"][-1]["took"], half["requests_per_second"])
    return row | {name: half[name] for name in OUT_OF_ROUNDS}


def per_cpu(row: dict[str, Any]) -> float:
    """Return images for each second of processor time, which other programs disturb less than those of a clock."""
    return row["requests_per_second"] / row["server_cpu"]


def report(rows: dict[str, list[dict[str, Any]]]) -> None:
    def middle(name: str, key: str) -> str:
        values = [row[key] for row in rows[name] if key in row]
        return f"{statistics.median(values):.2f}" if values else "-"

    print(
        "| side | requests/s | of bare | lowest to highest | per CPU second, of bare | p50 ms | p99 ms "
        "| p99/p50 | server CPU | client CPU |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name in ("bare", "tellapart", "LitServe", "plain", TWICE, TWO, POOL, "bare jpeg", "jpeg"):
        if not rows.get(name):
            continue
        pairs = list(zip(rows[name], rows[AGAINST.get(name, "bare")], strict=True))
        efficiency = [per_cpu(one) / per_cpu(other) for one, other in pairs]
        ratios = sorted(one["requests_per_second"] / other["requests_per_second"] for one, other in pairs)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
        tails = [row["p99_ms"] / row["p50_ms"] for row in rows[name] if "p99_ms" in row]
        tail = f"{statistics.median(tails):.2f} ({min(tails):.2f} to {max(tails):.2f})" if tails else "-"
        print(
            f"| {name} | {middle(name, 'requests_per_second')} | **{statistics.median(ratios):.2f}** | {spread} | "
            f"{statistics.median(efficiency):.2f} | {middle(name, 'p50_ms')} | {middle(name, 'p99_ms')} | {tail} | "
            f"{middle(name, 'server_cpu')} | {middle(name, 'client_cpu')} |"
        )
    for name in ("tellapart", TWO):
        print(
            f"\n{name}: {middle(name, 'batch')} images in a batch on average; its threads computed for "
            f"{middle(name, 'busy')} of the time. p50, p99 at {middle(name, 'load')} of the load."
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument(
        "--size", type=int, default=224, help="of the network's pixels, where no model is given"
    )
    parser.add_argument("--litserve", default="", help="python of an environment with litserve")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-batch", type=int, default=0, help="of tellapart; 0: what it measures")
    parser.add_argument("--max-wait-ms", type=float, default=2.0)
    parser.add_argument(
        "--own-load", action="store_true", help="by http_load.py, also where wrk is installed"
    )
    for hidden in ("--bare", "--loops"):
        parser.add_argument(hidden, type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--picture", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        print(json.dumps(bare(args.model, args.bare, args.threads, args.seconds, args.picture, args.loops)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.model = args.model or made(args.size, Path(folder))
        one = 1000 / bare_in_process(args, 1)["requests_per_second"]
        generator = serving_load.OWN if args.own_load else serving_load.name()
        common.introduce(
            f"{args.threads} threads compute; load by {generator}; "
            f"an image alone takes {one:.1f} ms in the bare runtime; {args.rounds} rounds of {args.seconds} s"
        )
        with sides(args, Path(folder)) as found:
            report(measure(args, found))


if __name__ == "__main__":
    main()
