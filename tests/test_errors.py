"""Errors say what would be right; exit codes tell a wrong input from work that failed."""

from __future__ import annotations

import doctest
import inspect
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellapart import errors
from tellapart.errors import MissingPackageError, TellapartError, UserError, did_you_mean, shown

NAMES = st.text(string.ascii_lowercase + "0123456789-_", min_size=4, max_size=16)


def test_the_example_in_the_documentation() -> None:
    assert doctest.testmod(errors).failed == 0


@given(NAMES, st.lists(st.text("ΩΨΞ", min_size=1), max_size=30), st.data())
def test_a_slip_of_one_letter_finds_the_name(name: str, others: list[str], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(name) - 1))
    slipped = name[:place] + name[place + 1 :]
    assert did_you_mean(slipped, [*others, name]).startswith(f"Did you mean '{name}'?")


@given(NAMES, st.lists(NAMES, min_size=1, max_size=40, unique=True), st.integers(1, 40))
def test_few_names_are_all_given_and_many_are_not(name: str, valid: list[str], limit: int) -> None:
    text = did_you_mean(name, iter(valid), limit)
    if len(valid) <= limit:
        assert text.endswith(f"Valid: {', '.join(valid)}.")
    else:
        assert "Valid:" not in text
        assert "Did you mean" in text or text.endswith(f"{', '.join(valid[:limit])}, …")


@pytest.mark.parametrize("name", ["Multi-Step", "MULTI_STEP", "multistep", "multi step", "MultiStep"])
def test_case_and_hyphens_do_not_matter(name: str) -> None:
    assert did_you_mean(name, ["step", "multi-step", "cosine"]).startswith("Did you mean 'multi-step'?")
    assert did_you_mean("RESNET", ["resnet18", "vgg11"]).startswith("Did you mean 'resnet18'?")


def test_nothing_is_reported_where_nothing_is_valid() -> None:
    assert did_you_mean("resnet", []) == ""


def test_exit_codes() -> None:
    tree = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(tree) >= 10
    for kind in tree:
        assert issubclass(kind, TellapartError)
        assert kind.exit_code == (2 if issubclass(kind, UserError) else 1)
    assert errors.TrainingError.exit_code == 1
    assert issubclass(errors.SpecError, ValueError)


def test_a_missing_package_says_what_to_type() -> None:
    error = MissingPackageError("timm", "models", "The model timm/vit")
    assert 'pip install "tellapart[models]"' in str(error)
    assert str(error).startswith("The model timm/vit needs the package 'timm'")
    with pytest.raises(UserError):
        raise error


def test_what_steers_a_terminal_is_spelt_out() -> None:
    steering = "".join(
        map(chr, [*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066, 0x200F, 0x2028])
    )
    found = shown(f"a{steering}b")
    assert found.isascii()
    assert "\\x1b" in found
    assert "\\u202e" in found
    assert "\\x9b" in found
    assert shown("猫 é\ttab\nline 🐝") == "猫 é\ttab\nline 🐝"
    assert shown("a\nb\tc", one_line=True) == "a\\nb\\tc"
