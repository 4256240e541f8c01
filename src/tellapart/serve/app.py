"""The application: routes, the guard in front of them, and errors as JSON. Owner of FastAPI."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response

from tellapart import packages
from tellapart.serve import aliases, page, schemas, v1, v2
from tellapart.serve.guard import Guard
from tellapart.serve.metrics import CONTENT_TYPE, Metrics
from tellapart.serve.models import Repository
from tellapart.serve.options import Options
from tellapart.serve.refusal import Refusal
from tellapart.serve.service import Service
from tellapart.serve.v1 import reply

_CODES = {404: "not_found", 405: "method"}


def create(
    models: Mapping[str, str], options: Options, notify: Callable[[str], None] = lambda text: None
) -> FastAPI:
    """Return the application; ``app.state.service`` is its `Service`. Models are opened when it starts."""
    options = options.with_key_of_environment()
    metrics = Metrics()
    repository = Repository(models, options, metrics)
    service = Service(repository, options, metrics)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            for name in repository.names:
                await repository.load(name)
        except Exception as error:
            service.failure = error
            raise
        tasks = []
        if options.reload_seconds:
            tasks.append(asyncio.create_task(repository.watch(options.reload_seconds, notify)))
        yield
        for task in tasks:
            task.cancel()
        await repository.close()
        service.close()

    app = FastAPI(
        title="tellapart", version=packages.version("tellapart") or "0", lifespan=lifespan,
        docs_url=None, redoc_url=None,
        description="Image classification: the answers that were measured.",
        middleware=[Middleware(Guard, service=service)],
        license_info={"name": "MIT", "identifier": "MIT"},
    )  # fmt: skip
    app.state.service = service
    for routes in (v1.router(service), aliases.router(service), v2.router(service)):
        app.include_router(routes)
    _add_operations(app, service)
    _add_errors(app, service)
    if options.api_key:
        _declare_key(app)
    return app


def _add_operations(app: FastAPI, service: Service) -> None:
    """Add health, metrics and the pages."""

    @app.get("/healthz", tags=["Operation"], responses=schemas.answer("It runs.", schemas.STATUS))
    async def health() -> Response:
        """Say that the service runs."""
        return reply({"status": "ok"})

    @app.get(
        "/readyz", tags=["Operation"],
        responses=schemas.answer("It answers.", schemas.STATUS) | schemas.refusals(503),
    )  # fmt: skip
    async def ready() -> Response:
        """Say whether the service accepts requests: not before every model is loaded, and not while it shuts down."""
        if service.draining or not service.repository.ready:
            raise Refusal(503, "not_ready", "the service is starting or stopping", retry_after=1)
        return reply({"status": "ready"})

    @app.get(
        "/metrics", tags=["Operation"], response_class=PlainTextResponse, responses=schemas.refusals(401)
    )
    async def metrics() -> Response:
        """Give counts and times for Prometheus."""
        return Response(service.metrics.text(), media_type=None, headers={"content-type": CONTENT_TYPE})

    @app.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        return page.response("index.html", request.headers.get("accept-language", ""))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return page.response("docs.html", request.headers.get("accept-language", ""))


def _add_errors(app: FastAPI, service: Service) -> None:
    """Answer errors by JSON, with a reason that holds no path and no stack; the guard does so for what is left."""

    def answer(refusal: Refusal, headers: Mapping[str, str] | None = None) -> Response:
        service.metrics.refused(refusal.code)
        return Response(
            refusal.body,
            refusal.status,
            {**(headers or {}), **refusal.headers},
            media_type="application/json",
        )

    async def refused(request: Request, error: Any) -> Response:
        return answer(error)

    async def invalid(request: Request, error: Any) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first.get("loc", ())[1:])
        return answer(Refusal(422, "bad_parameter", f"{where}: {first.get('msg', 'is not valid')}"))

    async def http_error(request: Request, error: Any) -> Response:
        code = _CODES.get(error.status_code, "http")
        return answer(Refusal(error.status_code, code, str(error.detail).lower()), error.headers)

    async def gone(request: Request, error: Any) -> Response:
        return Response(status_code=400)  # the client has disconnected

    app.add_exception_handler(Refusal, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(ClientDisconnect, gone)


def _declare_key(app: FastAPI) -> None:
    """Put the key into the OpenAPI document."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["key"] = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        document["security"] = [{"key": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]
