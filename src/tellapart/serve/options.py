"""How a service runs: address, batches, limits. Plain values, checked. Standard library only."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tellapart.errors import ServeError
from tellapart.serve.origins import normal

FORMATS = ("jpeg", "png", "webp", "gif", "bmp", "tiff", "ppm", "ico", "jpeg2000", "avif", "heif", "numpy")
KEY_VARIABLE = "TELLAPART_API_KEY"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_AT_LEAST: Mapping[str, float] = {
    "port": 0,
    "max_batch": 0,
    "max_wait_ms": 0,
    "queue": 1,
    "deadline_ms": 1,
    "instances": 1,
    "threads": 0,
    "decoders": 0,
    "max_body_mb": 0.001,
    "max_memory_mb": 1,
    "max_pixels": 1,
    "max_images": 1,
    "max_connections": 1,
    "body_timeout": 0.01,
    "head_timeout": 0.01,
    "explain_images": 0,
    "reload_seconds": 0,
    "drift_window": 10,
    "drain_seconds": 0,
    "shutdown_seconds": 0,
}


@dataclass(frozen=True)
class Options:
    """How to serve. Raises ServeError for an impossible value."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine can connect. 0.0.0.0: listen on all networks."""
    port: int = 8000
    """Port to listen on; 0: any free port."""
    api_key: str = ""
    """Key that requests must carry; better in the environment as TELLAPART_API_KEY, where others cannot see it."""
    allow_origin: tuple[str, ...] = ()
    """Origin of a page elsewhere that may ask by script, such as https://pages.example; *: every page of the web."""
    max_batch: int = 0
    """Largest batch; 0: measured when the service starts, up to 32."""
    max_wait_ms: float = 2.0
    """Longest time an image waits for others to form a batch, only while other requests are being read."""
    queue: int = 256
    """Images that may wait for each model; further ones are refused with 503 and Retry-After."""
    deadline_ms: int = 10_000
    """Time limit of a request, after which the answer is 504; the request header Deadline-Ms can shorten it."""
    instances: int = 1
    """Batches of one model computed at the same time."""
    threads: int = 0
    """Threads per batch, if the format's runtime allows setting it; 0: the runtime's choice."""
    decoders: int = 0
    """Threads that decode images; 0: one per processor core."""
    device: str = "cpu"
    """For an artifact: cpu, cuda, cuda:N or mps; for an ONNX file: cpu, cuda, cuda:N, tensorrt or tensorrt:N."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """For an artifact: the precision to compute in."""
    trust: bool = False
    """Open .pt2 and TorchScript files not exported on this machine, now and when replaced: they are programs."""
    max_body_mb: float = 20.0
    """Largest request body in MiB."""
    max_memory_mb: int = 256
    """Total size in MiB of all request bodies held at once; above it, requests are refused with 503."""
    max_pixels: int = 50_000_000
    """Largest number of pixels of an image, checked in its header before decoding."""
    max_images: int = 64
    """Largest number of images in one request."""
    formats: tuple[str, ...] = ("jpeg", "png", "webp", "gif", "bmp")
    """Accepted image formats, recognised by content: also tiff, numpy (.npy), ppm, ico, jpeg2000, avif, heif."""
    max_connections: int = 512
    """Open connections at once; further ones are refused with 503."""
    body_timeout: float = 30.0
    """Seconds for the body of a request to arrive, and for the client to receive the answer."""
    head_timeout: float = 10.0
    """Seconds for the header of a request to arrive."""
    explain_images: int = 400
    """Largest number of images computed for one heat map; 0: no heat maps."""
    reload_seconds: float = 1.0
    """Seconds between checks whether a model file was replaced; 0: only on request."""
    class_mix: str = ""
    """JSON file with the expected share of answers by class; else the model's validation, else the first answers."""
    drift_window: int = 1000
    """Number of recent answers whose class mix is compared with the expected one."""
    drain_seconds: float = 0.5
    """After SIGTERM: seconds in which new requests are still accepted while /readyz already reports not ready."""
    shutdown_seconds: float = 30.0
    """After that: seconds to finish the accepted requests."""

    def __post_init__(self) -> None:
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if not value >= least:
                raise ServeError(f"--{name.replace('_', '-')} is {value}; it must be at least {least:g}.")
        if self.port > 65535:
            raise ServeError(f"--port is {self.port}; it must be at most 65535.")
        for origin in self.allow_origin:
            normal(origin)
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise ServeError(f"--formats has {unknown}; valid are {', '.join(FORMATS)}.")

    @property
    def max_bytes(self) -> int:
        """Largest body in bytes."""
        return int(self.max_body_mb * 2**20)

    @property
    def loopback(self) -> bool:
        """Whether only programs on this machine can connect."""
        return self.host in ("localhost", "::1") or bool(re.fullmatch(r"127\.\d+\.\d+\.\d+", self.host))

    def with_key_of_environment(self) -> Options:
        """Return the options with the key from TELLAPART_API_KEY if none is given."""
        key = self.api_key or os.environ.get(KEY_VARIABLE, "")
        return dataclasses.replace(self, api_key=key)


def name_of(path: str) -> str:
    """Return a model's default name: its file's stem, or its folder's name."""
    stem = Path(path).resolve().name if Path(path).is_dir() else Path(path).stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100]
    return name or "model"


def by_name(path: str | None, named: Sequence[str] = ()) -> dict[str, str]:
    """Return paths by name for MODEL and for ``name=path`` pairs. Raises ServeError."""
    models = {} if path is None else {name_of(path): path}
    for pair in named:
        name, equals, where = pair.partition("=")
        if not equals or not where or not NAME.fullmatch(name):
            raise ServeError(
                f"--model is {pair!r}; it must be name=path, the name of letters, digits, dots, dashes and _."
            )
        if name in models:
            raise ServeError(f"Two models are called {name!r}; give each a name with --model name=path.")
        models[name] = where
    if not models:
        raise ServeError("Nothing to serve: give MODEL, or --model name=path.")
    return models
