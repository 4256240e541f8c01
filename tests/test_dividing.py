"""How effort best divides its work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tellapart.errors import SpecError
from tellapart.spec import Spec, update
from tellapart.workflow import dividing


@pytest.mark.parametrize(("images", "count"), [(100, 5), (4_999, 5), (5_000, 4), (20_000, 3), (10**6, 3)])
def test_the_images_decide_without_a_limit(images: int, count: int) -> None:
    assert dividing.divide(images) == dividing.Division(count)
    assert dividing.members(Spec(), images) == count
    assert dividing.members(update(Spec(), {"distill.members": 2}), images) == 2


def test_one_member_is_none() -> None:
    with pytest.raises(SpecError, match=r"distill\.members is 1"):
        dividing.members(update(Spec(), {"distill.members": 1}), 100)


@given(st.integers(10, 10**6), st.floats(1, 10**5), st.floats(0.1, 10**5))
def test_a_limit_is_divided_whole_and_never_exceeded(images: int, limit: float, pace: float) -> None:
    found = dividing.divide(images, limit, pace)
    assert found.members * found.each + found.student == pytest.approx(limit)
    assert 2 <= found.members <= dividing.divide(images).members
    assert found.student == pytest.approx(0.4 * limit)
    epochs = found.each * pace / (images * (1 - 1 / found.members))
    assert epochs >= 4 * (1 - 1e-9) or found.members == 2
    more = dividing.divide(images, 2 * limit, pace)
    assert more.members >= found.members
