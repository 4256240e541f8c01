"""Whatever the OpenAPI document allows, and what it does not, is answered as it says."""

from __future__ import annotations

import warnings
from typing import Any

import hypothesis
import pytest

from .conftest import Running

with warnings.catch_warnings():  # of packages that it imports
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi import checks


@pytest.fixture(scope="module")
def document(shared: Running) -> Any:
    return schemathesis.openapi.from_url(f"{shared.url}/openapi.json")


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_those_of_the_document(document: Any, mode: Any) -> None:
    """Statuses, content types and bodies are as described; what breaks the description is refused; nothing is a 500."""
    found = [operation.ok() for operation in document.get_all_operations()]
    assert len(found) > 15
    for operation in found:
        if mode is schemathesis.GenerationMode.NEGATIVE and not (operation.query or operation.body):
            continue  # there is nothing that could be wrong

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(max_examples=3, database=None, phases=[hypothesis.Phase.generate])
        def check(case: Any) -> None:
            if case.headers and mode is schemathesis.GenerationMode.POSITIVE:
                case.headers.pop("Deadline-Ms", None)  # a millisecond is allowed, and too short
            if isinstance(case.body, dict) and [] in case.body.values() and "form" in (case.media_type or ""):
                return  # in a form nothing is left of an empty list, so that what breaks the description is not sent
            answer = case.call(timeout=20)
            left_out = [checks.positive_data_acceptance]  # a description cannot say which bytes are an image
            if answer.status_code == 413:  # right for too much, and unknown to the check
                left_out.append(checks.negative_data_rejection)
            case.validate_response(answer, excluded_checks=left_out)

        check()


def test_the_document_names_what_there_is(document: Any, shared: Running) -> None:
    paths = set(document.raw_schema["paths"])
    assert {
        "/v1/predict",
        "/v1/explain",
        "/v2/models/{name}/infer",
        "/metrics",
        "/healthz",
        "/readyz",
    } <= paths
    assert document.raw_schema["paths"]["/v1/predict"]["post"]["responses"]["422"]
