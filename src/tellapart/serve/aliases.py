"""TorchServe's and LitServe's URLs for /v1/predict, so that scripts written for them work unchanged.

The answer is that of /v1/predict.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from tellapart.serve import schemas
from tellapart.serve.service import Service
from tellapart.serve.v1 import Deadline, Name, Top, predict

_RESPONSES = schemas.answer("An answer for each image, in order.", schemas.PREDICTIONS) | schemas.refusals()
_REQUEST = {**schemas.images(many=True), "parameters": [Deadline]}


def router(service: Service) -> APIRouter:
    """Return the routes of a service."""
    routes = APIRouter(tags=["Images"])

    @routes.post("/predict", responses=_RESPONSES, openapi_extra=_REQUEST)
    async def bare(request: Request, top: Top = 5, model: Name = None) -> Response:
        """Label images, as /v1/predict does (LitServe's address)."""
        return await predict(service, request, top, model)

    @routes.put("/predictions/{name}", responses=_RESPONSES, openapi_extra=_REQUEST)
    @routes.post("/predictions/{name}", responses=_RESPONSES, openapi_extra=_REQUEST)
    @routes.put("/predictions/{name}/{version}", responses=_RESPONSES, openapi_extra=_REQUEST)
    @routes.post("/predictions/{name}/{version}", responses=_RESPONSES, openapi_extra=_REQUEST)
    async def by_name(request: Request, name: str, version: str | None = None, top: Top = 5) -> Response:
        """Label images by the model of this name, as /v1/predict does (TorchServe's address)."""
        return await predict(service, request, top, name, version, addressed=True)

    return routes
