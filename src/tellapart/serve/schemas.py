"""The service's OpenAPI descriptions, where FastAPI cannot see them in a signature. Plain data."""

from __future__ import annotations

from typing import Any

ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error", "code"],
    "properties": {
        "error": {"type": "string", "description": "The reason, for people."},
        "code": {"type": "string", "description": "The reason, for programs."},
        "image": {"type": "integer", "description": "The index of the image, from 0, if it is about one."},
    },
}
_REASONS = {
    400: "The request does not have the form described here.",
    401: "The API key is missing or wrong.",
    404: "There is no such model or version.",
    408: "The body did not arrive in time.",
    413: "The body is too large, or contains too many images.",
    415: "The content type, its encoding or the image format is not accepted.",
    422: "An image cannot be read, or is too large.",
    500: "The model failed.",
    503: "The service is busy or still loading the model; Retry-After says when to try again.",
    504: "The deadline passed before there was an answer.",
}
_COMMON = (400, 401, 404, 408, 413, 415, 422, 500, 503, 504)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of refusals; of all that a route with images has, where none is given."""
    return {
        status: {"description": _REASONS[status], "content": {"application/json": {"schema": ERROR}}}
        for status in statuses or _COMMON
    }


def answer(description: str, schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """Return the description of a JSON answer with status 200."""
    return {200: {"description": description, "content": {"application/json": {"schema": schema}}}}


_TEXT, _NUMBER, _COUNT = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}


def _object(required: bool = True, **properties: Any) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "object", "properties": properties}
    return {**result, "required": list(properties)} if required else result


def _list(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


_CLASS = _object(label=_TEXT, probability=_SHARE)
_LEVEL = _object(level=_COUNT, label=_TEXT, probability=_SHARE, agrees={"type": "boolean"})
_TOLD = _object(label=_TEXT, probability=_SHARE, threshold=_SHARE)  # where an image can have several labels


def _single(**properties: Any) -> dict[str, Any]:
    """Return the description of one label's answer, with what is there for some models alone."""
    result = _object(**properties)
    result["properties"]["expected_grade"] = {"type": "number", "description": "Where classes are grades."}
    result["properties"]["levels"] = _list(_LEVEL, description="Where the names of classes have levels.")
    return result


_ONE = _single(label=_TEXT, probability=_SHARE, top=_list(_CLASS))
_SEVERAL = _object(labels=_list(_TOLD), top=_list(_CLASS))
PREDICTIONS = _object(model=_TEXT, version=_COUNT, predictions=_list({"anyOf": [_ONE, _SEVERAL]}))
_MAP: dict[str, Any] = {"explained": _TEXT, "heat": _list(_list(_NUMBER)), "image": _TEXT}
_HEAD: dict[str, Any] = {"model": _TEXT, "version": _COUNT}
EXPLANATION = {
    "anyOf": [
        _single(**_HEAD, label=_TEXT, probability=_SHARE, top=_list(_CLASS), **_MAP),
        _object(True, **_HEAD, labels=_list(_TOLD), top=_list(_CLASS), **_MAP),
    ]
}
for _kind in PREDICTIONS["properties"]["predictions"]["items"]["anyOf"]:
    _about = "The input of the model's last layer, where it was asked for."
    _kind["properties"]["features"] = _list(_NUMBER, description=_about)
STATUS = _object(status=_TEXT)
MODELS = _object(models=_list(_object(name=_TEXT, version=_COUNT, classes=_list(_TEXT), format=_TEXT)))

_BASE64 = {
    "type": "string",
    "description": "An image file in base64 (also URL-safe, in lines, or without padding), or a data URL.",
    "pattern": "^\\s*([dD][aA][tT][aA]:[^,]*;[bB][aA][sS][eE]64,)?[A-Za-z0-9+/_=%\\s-]*$",
}
_FILE = {"type": "string", "format": "binary"}
_TOP = {"type": "integer", "minimum": 1, "maximum": 1000}


def images(many: bool) -> dict[str, Any]:
    """Return the description of a body with one or many images."""
    fields: dict[str, Any] = {"top": _TOP, "model": _TEXT}
    in_json: dict[str, Any] = {"image": _BASE64, "data": _BASE64, **fields}
    in_form: dict[str, Any] = {"image": _FILE, "data": _FILE, **fields}
    if many:
        in_json["images"] = _list(_BASE64)
        in_form["image"] = in_form["data"] = _list(_FILE)
    content = {
        "multipart/form-data": {"schema": {**_object(False, **in_form), "additionalProperties": False}},
        "application/json": {"schema": {**_object(False, **in_json), "additionalProperties": False}},
        "application/octet-stream": {"schema": _FILE},
        **{f"image/{kind}": {"schema": _FILE} for kind in ("jpeg", "png", "webp", "gif", "bmp")},
    }
    return {"requestBody": {"required": True, "content": content}}


_TENSOR = _object(
    False,
    name=_TEXT,
    datatype=_TEXT,
    shape=_list({"type": "integer"}),
    parameters={"type": "object"},
    data={"type": "array", "items": {}},
)
INFERENCE = _object(False, id=_TEXT, parameters={"type": "object"}, outputs=_list(_TENSOR), inputs=_list(
    {**_TENSOR, "required": ["name", "datatype", "shape"]}, minItems=1, maxItems=1,
))  # fmt: skip
INFERENCE["required"] = ["inputs"]
INFERRED = _object(model_name=_TEXT, model_version=_TEXT, outputs=_list(_TENSOR))


def inferred() -> dict[int | str, dict[str, Any]]:
    """Return the description of an inference's answer."""
    result = answer("The requested outputs.", INFERRED)
    result[200]["content"]["application/octet-stream"] = {
        "schema": {
            **_FILE,
            "description": "JSON, followed by the tensors if they were requested in binary.",
        }
    }
    return result


def tensors() -> dict[str, Any]:
    """Return the description of an inference request."""
    content = {
        "application/json": {"schema": INFERENCE},
        "application/octet-stream": {
            "schema": {
                **_FILE,
                "description": "JSON followed by tensors; see Inference-Header-Content-Length.",
            }
        },
    }
    return {"requestBody": {"required": True, "content": content}}
