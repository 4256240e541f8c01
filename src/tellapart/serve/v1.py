"""The routes below /v1: images in, labels and probabilities (or a heat map) out."""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from tellapart.contract import Pixels, answers
from tellapart.contract.decoding import to_shown, whole
from tellapart.serve import bodies, explain, schemas
from tellapart.serve.batching import Batcher, Expected
from tellapart.serve.models import Model
from tellapart.serve.refusal import Refusal, dumps
from tellapart.serve.service import Service

_INLINE_BYTES = 1 << 18  # larger bodies are parsed in a thread, so that others do not have to wait
_MAX_TOP = 1000
MOST_FEATURED = 32  # images of a request whose answer has features, thousands of numbers for each

Top = Annotated[int, Query(ge=1, le=_MAX_TOP, description="How many classes to give for each image.")]
Name = Annotated[str | None, Query(description="The model; by default the first.", max_length=100)]
Featured = Annotated[
    bool,
    Query(
        description="Whether to give each image's features too, the input of the model's last layer: for at most "
        f"{MOST_FEATURED} images, and by models that have them (an artifact, or a file exported with --features)."
    ),
]
Deadline = {
    "name": "Deadline-Ms", "in": "header", "required": False, "description": "Time for the answer, in milliseconds.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}  # fmt: skip


def reply(content: Any) -> Response:
    """Return a JSON answer."""
    return Response(dumps(content), media_type="application/json")


def router(service: Service) -> APIRouter:
    """Return the routes of a service."""
    routes = APIRouter(prefix="/v1", tags=["Images"])

    @routes.get("/models", responses=schemas.answer("The models.", schemas.MODELS) | schemas.refusals(401))
    async def models() -> Response:
        """List the models that answer, the default first."""
        found = [service.repository.get(name) for name in service.repository.names]
        about = [
            {
                "name": m.name,
                "version": m.version,
                "format": m.backend.format,
                "classes": list(m.card.classes),
            }
            for m in found
        ]
        return reply({"models": about})

    @routes.post(
        "/predict",
        responses=schemas.answer("An answer for each image, in order.", schemas.PREDICTIONS)
        | schemas.refusals(),
        openapi_extra={**schemas.images(many=True), "parameters": [Deadline]},
    )
    async def predict_images(
        request: Request, top: Top = 5, model: Name = None, features: Featured = False
    ) -> Response:
        """Label images: multipart form, raw bytes, or base64 in JSON; one or many.

        A body without a content type, or with the form type that curl sends by default, is recognised by how it begins:
        as an image or as JSON.
        """
        return await predict(service, request, top, model, features=features)

    @routes.post(
        "/explain",
        responses=schemas.answer("The answer, and where it is from.", schemas.EXPLANATION)
        | schemas.refusals(),
        openapi_extra={**schemas.images(many=False), "parameters": [Deadline]},
    )
    async def explain_image(
        request: Request,
        label: Annotated[str | None, Query(description="The class; by default the most probable.")] = None,
        grid: Annotated[int, Query(ge=2, le=64, description="Cells along a side of the heat map.")] = 12,
        top: Top = 5,
        model: Name = None,
    ) -> Response:
        """Compute a heat map of one image by occlusion: how much the probability falls where a cell is covered."""
        return await _explain(service, request, label, grid, top, model)

    return routes


async def predict(
    service: Service,
    request: Request,
    top: int,
    name: str | None,
    version: str | None = None,
    addressed: bool = False,
    features: bool = False,
) -> Response:
    """Return labels for a request's images, and ``features`` where they are asked for.

    ``addressed``: the address names the model, so no field may name another. Raises Refusal.
    """
    deadline = service.deadline(request)
    expected = service.repository.get(name).batcher.expect()
    try:
        async with service.intake.body(request) as body:
            asked = await _asked(service, request, body, service.options.max_images, deadline)
            top, given = _fields(asked, top, name)
            if addressed and given != name:
                raise Refusal(400, "bad_model", "the body names a different model than the URL")
            with service.repository.lease(given, version) as model:
                if features and len(asked.files) > MOST_FEATURED:
                    raise Refusal(
                        413, "too_many_images", f"features are given for at most {MOST_FEATURED} images"
                    )
                images = await service.files(asked.files, model, deadline)
                found = await _queued(
                    model.featured if features else model.batcher, images, deadline, expected
                )
                count = len(model.card.classes)
                told = answers.of(found[:, :count], model.card)
                model.answered(told)
                predictions = [one.to_dict() for one in told.top(top)]
                if features:
                    for prediction, row in zip(predictions, found[:, count:], strict=True):
                        prediction["features"] = [float(f"{value:.9g}") for value in row]  # float32 in full
                return reply({"model": model.name, "version": model.version, "predictions": predictions})
    finally:
        expected.arrived()


async def _queued(
    batcher: Batcher, images: Pixels, deadline: float, expected: Expected
) -> npt.NDArray[np.float32]:
    answer = batcher.submit(images, deadline)
    expected.arrived()
    return await answer


async def _asked(
    service: Service, request: Request, body: bytes, max_images: int, deadline: float
) -> bodies.Asked:
    content_type = request.headers.get("content-type", "")
    if len(body) <= _INLINE_BYTES:
        return bodies.parse(body, content_type, max_images)
    return await service.in_thread(lambda: bodies.parse(body, content_type, max_images), deadline)


def _fields(asked: bodies.Asked, top: int, name: str | None) -> tuple[int, str | None]:
    """Return top and model; the body's fields take precedence over the query's."""
    given = asked.fields.get("top", top)
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 5:
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= _MAX_TOP:
        raise Refusal(400, "bad_top", f"top must be a whole number of 1 to {_MAX_TOP}")
    name = asked.fields.get("model", name)
    if name is not None and not isinstance(name, str):
        raise Refusal(400, "bad_model", "model must be a string")
    return given, name


async def _explain(
    service: Service, request: Request, label: str | None, grid: int, top: int, name: str | None
) -> Response:
    deadline = service.deadline(request)
    limit = service.options.explain_images
    if not limit:
        raise Refusal(404, "no_explain", "heat maps are switched off")
    if explain.cells(grid) > limit:
        raise Refusal(400, "grid", f"a grid of {grid} computes {explain.cells(grid)} images; at most {limit}")
    async with service.intake.body(request) as body:
        asked = await _asked(service, request, body, 1, deadline)
        top, name = _fields(asked, top, name)
        with service.repository.lease(name) as model:
            image = (await service.files(asked.files, model, deadline))[0]
            with service.alone():  # only now: a slow sender must not block it for others
                return reply(await _explained(model, image, label, grid, top, deadline))


async def _explained(
    model: Model, image: Pixels, label: str | None, grid: int, top: int, deadline: float
) -> dict[str, Any]:
    classes = model.card.classes
    if label is not None and label not in classes:
        raise Refusal(404, "no_class", "the model has no such class")
    whole = answers.of(await model.batcher.submit(image[None], deadline), model.card)
    target = int(whole.best[0]) if label is None else classes.index(label)
    covered = []
    # one chunk after the other, so that others' images are computed in between
    step = model.batcher.fair_share
    for start in range(0, grid * grid, step):
        part = explain.occluded(image, grid, start, min(start + step, grid * grid))
        logits = await model.batcher.submit(part, deadline)
        covered.append(answers.probabilities(logits, model.card)[:, target])
    probability = float(whole.probabilities[0, target])
    values = explain.heat(probability, np.concatenate(covered), grid, image.shape[:2])
    return {
        "model": model.name,
        "version": model.version,
        **next(whole.top(top)).to_dict(),
        "explained": classes[target],
        "heat": values.round(6).tolist(),
        "image": _data_url(image),
    }


def _data_url(image: Pixels) -> str:
    """Return what the model sees as a PNG."""
    image = whole(image)
    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else to_shown(image)).save(
        buffer, format="PNG", compress_level=1
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
