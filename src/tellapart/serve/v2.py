"""The routes below /v2: the Open Inference Protocol, with binary tensors, so that Triton's and KServe's clients work.

Also Triton's extensions that its clients call: repository index and load, model configuration, statistics.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tellapart import packages
from tellapart.contract import Card, answers
from tellapart.contract.card import label_mark
from tellapart.errors import TellapartError
from tellapart.serve import schemas, strict_json, tensors
from tellapart.serve.models import Model
from tellapart.serve.refusal import Refusal
from tellapart.serve.service import Service
from tellapart.serve.v1 import Deadline, reply

_log = logging.getLogger("tellapart.serve")
_LENGTH = "inference-header-content-length"
_EXTENSIONS = [
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
]
_INLINE_JSON = 1 << 16


def router(service: Service) -> APIRouter:
    """Return the routes of a service."""
    routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
    _add_inference(routes, service)  # first, because routes are tried in order
    _add_server(routes, service)
    _add_models(routes, service)
    _add_repository(routes, service)
    return routes


def _add_server(routes: APIRouter, service: Service) -> None:
    @routes.get("", responses=schemas.refusals(401))
    async def server() -> Response:
        """Describe the server."""
        return reply(
            {"name": "tellapart", "version": packages.version("tellapart") or "0", "extensions": _EXTENSIONS}
        )

    @routes.get("/health/live")
    async def live() -> Response:
        """Say that the server runs."""
        return reply({"live": True})

    @routes.get("/health/ready", responses=schemas.refusals(503))
    async def ready() -> Response:
        """Say whether every model can answer."""
        if service.draining or not service.repository.ready:
            raise Refusal(503, "not_ready", "the service is starting or stopping", retry_after=1)
        return reply({"ready": True})


def _add_models(routes: APIRouter, service: Service) -> None:
    described = schemas.refusals(401, 404, 503)

    @routes.get("/models/{name}", responses=described)
    @routes.get("/models/{name}/versions/{version}", responses=described)
    async def model(name: str, version: str | None = None) -> Response:
        """Describe a model: its inputs and outputs."""
        with service.repository.lease(name, version) as found:
            return reply(metadata(found))

    @routes.get("/models/{name}/ready", responses=described)
    @routes.get("/models/{name}/versions/{version}/ready", responses=described)
    async def model_ready(name: str, version: str | None = None) -> Response:
        """Say whether a model can answer."""
        with service.repository.lease(name, version) as found:
            return reply({"name": found.name, "ready": True})

    @routes.get("/models/{name}/config", responses=described)
    @routes.get("/models/{name}/versions/{version}/config", responses=described)
    async def config(name: str, version: str | None = None) -> Response:
        """Describe a model as Triton's configuration does."""
        with service.repository.lease(name, version) as found:
            return reply(configuration(found, service.options.max_images))

    @routes.get("/models/{name}/stats", responses=described)
    @routes.get("/models/{name}/versions/{version}/stats", responses=described)
    async def stats(name: str, version: str | None = None) -> Response:
        """Count what a model has computed since the start."""
        with service.repository.lease(name, version) as found:
            return reply({"model_stats": [statistics(found)]})


_INFERRED = schemas.inferred() | schemas.refusals()
_REQUEST = {
    **schemas.tensors(),
    "parameters": [
        Deadline,
        {
            "name": "Inference-Header-Content-Length", "in": "header", "required": False,
            "description": "Length of the JSON where binary tensors follow it.",
            "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
        },
    ],
}  # fmt: skip


def _add_inference(routes: APIRouter, service: Service) -> None:
    @routes.post("/models/{name}/infer", responses=_INFERRED, openapi_extra=_REQUEST)
    @routes.post("/models/{name}/versions/{version}/infer", responses=_INFERRED, openapi_extra=_REQUEST)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Compute a model on image pixels (UINT8 [B, H, W, C], of some models FP32) or image files (BYTES [B])."""
        return await _infer(service, request, name, version)


def _add_repository(routes: APIRouter, service: Service) -> None:
    @routes.post("/repository/index", responses=schemas.refusals(401))
    async def index() -> Response:
        """List the models."""
        found = []
        for name in service.repository.names:
            try:
                state = {"version": str(service.repository.get(name).version), "state": "READY", "reason": ""}
            except Refusal:
                state = {"version": "", "state": "UNAVAILABLE", "reason": "loading"}
            found.append({"name": name, **state})
        return reply(found)

    @routes.post("/repository/models/{name}/load", responses=schemas.refusals(400, 401, 404, 408, 413, 415))
    async def load(request: Request, name: str) -> Response:
        """Load a model's file again; requests in the meantime are answered by the old one."""
        async with service.intake.body(request) as body:
            content = strict_json.mapping(strict_json.loads(body, 100), "the body") if body.strip() else {}
        if content.get("parameters"):
            raise Refusal(400, "not_supported", "models come from the server's own files only")
        try:
            await service.repository.load(name)
        except TellapartError as error:  # the reason may hold a path: it is for the server's log
            service.metrics.for_model(name).reload_failed()
            _log.warning("%s cannot be loaded again: %s", name, error)
            raise Refusal(
                400, "load_failed", "the model file cannot be loaded; the old one stays in use"
            ) from None
        return Response(status_code=200)

    @routes.post("/repository/models/{name}/unload", responses=schemas.refusals(400, 401))
    async def unload(name: str) -> Response:
        """Refuse: the models are chosen when the server is started."""
        raise Refusal(400, "not_supported", "models are chosen when the server is started")


async def _infer(service: Service, request: Request, name: str, version: str | None) -> Response:
    deadline = service.deadline(request)
    with service.repository.lease(name, version) as model:
        expected = model.batcher.expect()
        try:
            async with service.intake.body(request) as body:
                asked = await _parsed(service, body, _header_bytes(request), deadline)
                if asked.timeout is not None:
                    deadline = min(deadline, service.deadline_in(asked.timeout))
                # an empty batch is answered with empty outputs, as Triton does
                if not len(asked.images):
                    return _answer(asked, model, np.zeros((0, len(model.card.classes)), np.float32))
                images = await _pixels(service, asked, model, deadline)
                answer = model.batcher.submit(images, deadline)
                expected.arrived()
                return _answer(asked, model, await answer)
        finally:
            expected.arrived()


def _header_bytes(request: Request) -> int | None:
    text = request.headers.get(_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal(400, "bad_tensor", "Inference-Header-Content-Length must be a number of bytes")
    return int(text)


async def _parsed(service: Service, body: bytes, length: int | None, deadline: float) -> tensors.Inference:
    options = service.options

    def work() -> tensors.Inference:
        return tensors.parse(body, length, options.max_images, options.max_pixels)

    if (len(body) if length is None else length) <= _INLINE_JSON:
        return work()
    return await service.in_thread(work, deadline)


async def _pixels(
    service: Service, asked: tensors.Inference, model: Model, deadline: float
) -> np.ndarray[Any, np.dtype[Any]]:
    images = asked.images
    if isinstance(images, np.ndarray):
        return await service.pixels(images, model, deadline)
    return await service.files(images, model, deadline)


def _answer(
    asked: tensors.Inference, model: Model, logits: np.ndarray[Any, np.dtype[np.float32]]
) -> Response:
    told = answers.of(logits, model.card)
    model.answered(told)
    head: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
    if asked.id is not None:
        head["id"] = asked.id
    outputs = {
        "probabilities": told.probabilities.astype(np.float32),
        "logits": logits,
        "labels": _labels(told),
    }
    body, length = tensors.render(head, asked.outputs, outputs, model.card.classes)
    if length is None:
        return Response(body, media_type="application/json")
    return Response(body, media_type="application/octet-stream", headers={_LENGTH: str(length)})


def _labels(told: answers.Answers) -> list[str]:
    """Return each image's label, or its several labels joined by a mark that no class name has."""
    if not told.several:
        return told.labels
    mark = label_mark(told.classes)
    return [mark.join(told.classes[index] for index in row) for row in told.told]


def _platform(model: Model) -> str:
    return f"tellapart_{model.backend.format}".replace("-", "_")


def _pixels_kind(card: Card) -> str:
    return "FP32" if card.preprocessing.depth == "float32" else "UINT8"


def _shapes(card: Card) -> tuple[list[int], dict[str, list[int]]]:
    count = len(card.classes)
    outputs = {"probabilities": [-1, count], "logits": [-1, count], "labels": [-1]}
    return [-1, -1, -1, card.preprocessing.channels], outputs


def metadata(model: Model) -> dict[str, Any]:
    """Return the protocol's description of a model."""
    images, outputs = _shapes(model.card)
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": _platform(model),
        "inputs": [{"name": tensors.INPUT, "datatype": _pixels_kind(model.card), "shape": images}],
        "outputs": [
            {"name": name, "datatype": kind, "shape": outputs[name]} for name, kind in tensors.OUTPUTS.items()
        ],
    }


def configuration(model: Model, max_images: int) -> dict[str, Any]:
    """Return the parts of a model's configuration that Triton's clients read."""
    images, outputs = _shapes(model.card)
    kinds = {"FP32": "TYPE_FP32", "BYTES": "TYPE_STRING"}
    return {
        "name": model.name,
        "platform": _platform(model),
        "backend": "tellapart",
        "max_batch_size": max_images,
        "input": [
            {"name": tensors.INPUT, "data_type": f"TYPE_{_pixels_kind(model.card)}", "dims": images[1:]}
        ],
        "output": [
            {"name": name, "data_type": kinds[kind], "dims": outputs[name][1:] or [1]}
            for name, kind in tensors.OUTPUTS.items()
        ],
    }


def statistics(model: Model) -> dict[str, Any]:
    """Return counts in the form of Triton's statistics; times in nanoseconds."""
    counts = model.counts
    return {
        "name": model.name,
        "version": str(model.version),
        "inference_count": counts.images,
        "execution_count": counts.batches,
        "inference_stats": {
            "queue": {"count": counts.images, "ns": int(counts.queue_seconds * 1e9)},
            "compute_infer": {"count": counts.batches, "ns": int(counts.compute_seconds * 1e9)},
        },
    }
