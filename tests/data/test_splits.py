"""Laws of the split: every row once, groups whole, counts near their targets, no dependence on order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from tellapart.data.sources.splits import assign, crossing, quotas
from tellapart.errors import DataError

FRACTIONS = st.sampled_from(
    [(0.0, 0.0), (0.1, 0.2), (0.1, 0.0), (0.0, 0.3), (0.45, 0.45), (0.9, 0.05), (0.3, 0.3)]
)
LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=120)


def table(labels: list[int]) -> tuple[np.ndarray, list[str]]:
    return np.asarray(labels, np.int64), [f"c{label}/{row}.png" for row, label in enumerate(labels)]


@given(st.integers(0, 3000), FRACTIONS)
def test_quotas_are_within_one_of_the_target_and_leave_train_a_sample(
    count: int, fractions: tuple[float, float]
) -> None:
    val, test = quotas(count, *fractions)
    assert val >= 0
    assert test >= 0
    assert val + test <= max(count - 1, 0)
    assert abs(val - count * fractions[0]) < 1
    assert abs(test - count * fractions[1]) < 1
    if count >= 2 and fractions[0]:
        assert val >= 1
    if count >= 3 and fractions[1] and fractions[0] <= 2 / 3:
        assert test >= 1


@given(LABELS, FRACTIONS, st.integers(0, 9))
@settings(deadline=None)
def test_each_class_gives_its_quota(values: list[int], fractions: tuple[float, float], seed: int) -> None:
    labels, paths = table(values)
    splits = assign(labels, paths, *fractions, seed)
    assert set(splits) <= {"train", "val", "test"}
    assert len(splits) == len(values)
    for k in set(values):
        count = values.count(k)
        found = tuple(int(((splits == s) & (labels == k)).sum()) for s in ("val", "test"))
        assert found == quotas(count, *fractions)


@given(LABELS, FRACTIONS, st.integers(0, 9), st.randoms(use_true_random=False), st.booleans())
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter(values, fractions, seed, random, grouped) -> None:
    labels, paths = table(values)
    groups = [f"g{row % 7}" for row in range(len(values))] if grouped else None
    splits = dict(zip(paths, assign(labels, paths, *fractions, seed, groups), strict=True))
    order = list(range(len(values)))
    random.shuffle(order)
    shuffled = assign(
        labels[order], [paths[i] for i in order], *fractions, seed, groups and [groups[i] for i in order]
    )
    assert dict(zip([paths[i] for i in order], shuffled, strict=True)) == splits


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 25)), min_size=1, max_size=150),
    FRACTIONS,
    st.integers(0, 9),
)
@settings(deadline=None)
def test_groups_are_never_cut_and_train_keeps_every_class(rows, fractions, seed) -> None:
    labels, paths = table([label for label, _ in rows])
    groups = [f"patient {group}" for _, group in rows]
    splits = assign(labels, paths, *fractions, seed, groups)
    assert crossing(groups, splits) == 0
    assert set(labels[splits == "train"]) == set(labels)
    if fractions == (0.0, 0.0):
        assert set(splits) == {"train"}


def test_groups_of_one_image_are_dealt_to_within_one_of_the_target() -> None:
    labels, paths = table([row % 3 for row in range(300)])
    splits = assign(labels, paths, 0.1, 0.2, 0, groups=paths)
    for k in range(3):
        assert abs(((splits == "val") & (labels == k)).sum() - 10) <= 1
        assert abs(((splits == "test") & (labels == k)).sum() - 20) <= 1


@pytest.mark.parametrize("seed", range(5))
def test_group_split_is_as_stratified_as_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 1500)
    labels = ((groups % 4) * (rng.random(1500) < 0.7)).astype(np.int64)
    paths = [f"{row}" for row in range(1500)]
    ours = assign(labels, paths, 0.2, 0.0, seed, [str(group) for group in groups]) == "val"
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(labels, labels, groups)

    def error(chosen: np.ndarray) -> float:
        counts = np.bincount(labels[chosen], minlength=4)
        return float(np.abs(counts - 0.2 * np.bincount(labels, minlength=4)).sum())

    theirs = []
    for _, rows in folds:
        mask = np.zeros(1500, bool)
        mask[rows] = True
        theirs.append(error(mask))
    assert error(ours) <= max(np.mean(theirs), 12)


def test_seeds_differ_and_repeat() -> None:
    labels, paths = table([row % 2 for row in range(200)])
    first, again, other = (assign(labels, paths, 0.2, 0.2, seed) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


def test_a_wanted_split_gets_a_group_if_one_can_be_spared() -> None:
    labels = np.array([0, 0, 0, 1, 1, 1] * 3)
    groups = [f"g{row // 6}" for row in range(18)]
    splits = assign(labels, [str(row) for row in range(18)], 0.1, 0.0, 0, groups)
    assert (splits == "val").sum() == 6


def test_one_group_cannot_be_split() -> None:
    splits = assign(np.array([0, 0, 1]), ["a", "b", "c"], 0.3, 0.3, 0, ["g"] * 3)
    assert list(splits) == ["train"] * 3


def test_rows_of_one_path_stay_together_also_through_different_groups() -> None:
    paths = [f"{row // 3}.jpg" for row in range(60)]
    labels = np.array([row % 2 for row in range(60)])
    assert crossing(paths, assign(labels, paths, 0.3, 0.3, 0)) == 0
    groups = [f"g{row // 4}" for row in range(60)]
    splits = assign(labels, paths, 0.3, 0.3, 0, groups)
    assert crossing(paths, splits) == 0
    assert crossing(groups, splits) == 0


def test_fractions_that_leave_no_train_are_refused() -> None:
    with pytest.raises(DataError, match=r"below 1"):
        assign(np.zeros(4, np.int64), list("abcd"), 0.5, 0.5, 0)


def test_undecodable_names_are_dealt_too() -> None:
    splits = assign(np.zeros(5, np.int64), [f"\udcff{row}" for row in range(5)], 0.4, 0.0, 0)
    assert (splits == "val").sum() == 2
