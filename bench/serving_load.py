"""Load for `serving.py`: by wrk where it is installed, else by `http_load.py`, in either case from another process.

wrk (Debian's package) asks by all connections again as soon as they are answered. For less than that each connection
waits a random time before it asks, so that with many of them requests come nearly at random; `http_load.py` lets them
become due as a Poisson process and counts from then.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OWN = "bench/http_load.py"
WRK = shutil.which("wrk") or ""
OPEN_CONNECTIONS = 32  # where requests come at random


def name() -> str:
    """Return what makes the load, and its version."""
    if not WRK:
        return f"{OWN} (wrk is not installed)"
    return subprocess.run([WRK, "-v"], capture_output=True, text=True, check=False).stdout.split(
        " Copyright"
    )[0]


def load(
    url: str,
    body: Path,
    kind: str,
    header: str,
    connections: int,
    seconds: int,
    rate: float = 0.0,
    own: bool = False,
) -> dict[str, Any]:
    """Return requests_per_second, p50_ms, p99_ms, client_cpu and seconds (with the warm-up, of a service's time).

    ``rate``: requests a second that come at random; 0: as many as the connections can ask. ``own``: not by wrk. Raises
    RuntimeError where an answer was not 200.
    """
    if WRK and not own:
        warm_up = _wrk(url, body, kind, header, connections, 1)["seconds"]
        found = _wrk(url, body, kind, header, connections, seconds, rate)
        return {**found, "seconds": found["seconds"] + warm_up}
    words = [
        sys.executable, str(HERE / "http_load.py"), url, str(body), "--type", kind, "--rate", str(rate),
        "--connections", str(OPEN_CONNECTIONS if rate else connections), "--seconds", str(seconds),
        *(["--header", header] if header else []),
    ]  # fmt: skip
    result: dict[str, Any] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    if set(result["statuses"]) - {"200"}:
        raise RuntimeError(f"{url}: {result}")
    return result


def _wrk(
    url: str, body: Path, kind: str, header: str, connections: int, seconds: int, rate: float = 0.0
) -> dict[str, Any]:
    if rate:
        connections = OPEN_CONNECTIONS
    wait = 1000 * connections / rate if rate else 0.0  # answers come in a small part of it
    words = [
        WRK, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(HERE / "wrk_load.lua"), url,
        "--", str(body), kind, str(wait), *([header] if header else []),
    ]  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(done.stdout.splitlines()[-1])
    if found["bad"] or found["lost"] or not found["requests"]:
        raise RuntimeError(f"{url}: {found}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        **found,
        "requests_per_second": found["requests"] / found["seconds"],
        "client_cpu": spent / found["seconds"],
    }
