"""The pages for people: each one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import functools
from pathlib import Path

from starlette.responses import Response

# Only what is in the page itself, requests to the service that sent it, and images that the user chose.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@functools.cache
def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text("utf-8")


def language(accepted: str) -> str:
    """Return "zh" or "en", whichever an Accept-Language header prefers."""
    best, found = 0.0, "en"
    for part in accepted[:1000].split(","):
        tag, _, parameters = part.strip().lower().partition(";")
        try:
            weight = float(parameters.strip().removeprefix("q=")) if parameters else 1.0
        except ValueError:
            continue
        short = tag.partition("-")[0]
        if short in ("zh", "en") and weight > best:
            best, found = weight, short
    return found


def response(name: str, accepted: str) -> Response:
    """Return a page in the language that is preferred; the page itself can switch it."""
    chosen = language(accepted)
    text = _text(name).replace('<html lang="en">', f'<html lang="{"zh-CN" if chosen == "zh" else "en"}">', 1)
    headers = {"content-security-policy": _POLICY, "vary": "accept-language"}
    return Response(text, media_type="text/html", headers=headers)
