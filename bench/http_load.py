"""Load for an HTTP service, from a process of its own: one request again and again, from a number of connections.

    python bench/http_load.py http://127.0.0.1:8000/v1/predict body.bin --type image/jpeg --connections 8 --seconds 5

Without --rate each connection asks again as soon as it is answered (throughput). With --rate requests are due at
random times (a Poisson process, seeded), whether or not earlier ones are answered; latency counts from when a request
was due. Prints one JSON object. Written on asyncio's transports: what the client takes the service does not get.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import resource
import time
import urllib.parse
from pathlib import Path


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.buffer = b""
        self.due = 0.0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.load.free(self)

    def ask(self, due: float) -> None:
        self.busy, self.due = True, due
        self.transport.write(self.load.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        start = head.index(b"content-length:") + 15
        length = int(head[start : (head.find(b"\r\n", start) + 1 or len(head) + 1) - 1])
        if len(self.buffer) < end + 4 + length:
            return
        status = int(head[9:12])
        self.buffer, self.busy = b"", False
        self.load.answered(status, time.perf_counter() - self.due)
        self.load.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.load.answered(0, time.perf_counter() - self.due)


class Load:
    def __init__(self, request: bytes, rate: float) -> None:
        self.request, self.rate = request, rate
        self.latencies: list[float] = []
        self.statuses: collections.Counter[int] = collections.Counter()
        self.idle: collections.deque[Connection] = collections.deque()
        self.due: collections.deque[float] = collections.deque()
        self.going = True
        self.counting = False

    def free(self, connection: Connection) -> None:
        if not self.going:
            return
        if not self.rate:
            connection.ask(time.perf_counter())
        elif self.due:
            connection.ask(self.due.popleft())
        else:
            self.idle.append(connection)

    def answered(self, status: int, seconds: float) -> None:
        if self.counting:
            self.statuses[status] += 1
            self.latencies.append(seconds)

    async def arrivals(self) -> None:
        """Let requests become due; those for which no connection is free wait, and their time counts."""
        draw = random.Random(0)
        at = time.perf_counter()
        while self.going:
            at += draw.expovariate(self.rate)
            await asyncio.sleep(max(0.0, at - time.perf_counter()))
            if self.idle:
                self.idle.popleft().ask(at)
            else:
                self.due.append(at)


async def run(args: argparse.Namespace) -> dict[str, object]:
    url = urllib.parse.urlsplit(args.url)
    body = Path(args.body).read_bytes()
    lines = [
        f"POST {url.path}{'?' + url.query if url.query else ''} HTTP/1.1", f"Host: {url.netloc}",
        f"Content-Type: {args.type}", f"Content-Length: {len(body)}", *args.header,
    ]  # fmt: skip
    load = Load("\r\n".join(lines).encode() + b"\r\n\r\n" + body, args.rate)
    loop = asyncio.get_running_loop()
    for _ in range(args.connections):
        await loop.create_connection(lambda: Connection(load), url.hostname, url.port)
    arrivals = asyncio.create_task(load.arrivals()) if args.rate else None
    await asyncio.sleep(args.warm_up)
    load.counting = True
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(args.seconds)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    load.counting = load.going = False
    if arrivals:
        arrivals.cancel()
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    times = sorted(load.latencies)
    return {
        "requests_per_second": len(times) / seconds,
        "statuses": dict(load.statuses),
        "p50_ms": 1000 * times[len(times) // 2] if times else None,
        "p99_ms": 1000 * times[int(len(times) * 0.99)] if times else None,
        "client_cpu": spent / seconds,
        "seconds": seconds + args.warm_up,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url")
    parser.add_argument("body")
    parser.add_argument("--type", default="application/octet-stream")
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--rate", type=float, default=0.0)
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
