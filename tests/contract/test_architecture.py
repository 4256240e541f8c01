from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellapart.errors import ModelError
from tellapart.models.zoo import Architecture


@given(
    classes=st.integers(1, 1000),
    channels=st.sampled_from([1, 3, 4]),
    size=st.integers(1, 512),
    dropout=st.floats(0, 0.95),
    batch_norm=st.booleans(),
    stem=st.sampled_from(["small", "standard"]),
)
def test_survives_json(**values: object) -> None:
    values["num_classes"] = values.pop("classes")
    architecture = Architecture(name="simple-cnn", **values)
    assert Architecture.from_dict(json.loads(json.dumps(architecture.to_dict()))) == architecture


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 2, "dropout": 1.0}, "dropout"),
        ({"num_classes": 2, "stem": "smal"}, "Did you mean 'small'"),
        ({"num_classes": 2, "sise": 3}, "Did you mean 'size'"),
        ({}, "needs 'num_classes'"),
    ],
)
def test_refuses_impossible_values(values: dict[str, object], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Architecture.from_dict({"name": "fast-cnn", **values})
