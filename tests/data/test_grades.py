"""The order of classes that are grades: as it is given, as names say it, and refused where nothing says it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import tellapart
from tellapart.contract import grades as numbers
from tellapart.data.sources import grades
from tellapart.data.sources.opening import open_source
from tellapart.errors import DataError, SpecError
from tellapart.spec import DataSpec

IN_ORDER = (
    ("0", "1", "2", "3", "4"),
    tuple(map(str, range(1, 12))),
    ("-1", "0", "1"),
    ("0.0", "0.5", "1.0"),
    ("10", "20", "30"),
    ("grade_0", "grade_1", "grade_2"),
    tuple(f"G {n}" for n in range(12)),
    ("grade-1", "grade-2"),
    ("1 star", "2 stars", "3 stars"),
    ("0_none", "1_bad", "2_dreadful"),
    ("sharp (0)", "soft (1)", "blurred (2)"),
    ("I", "II", "III", "IV"),
    ("stage i", "stage ii", "stage iii"),
    ("A", "B", "C", "D"),
    ("class A", "class B"),
    ("0-2", "4-6", "8-12", "60-100"),
    ("<10", "10-19", "20+"),
    ("low", "medium", "high"),
    ("very_low", "low", "high", "Very High"),
    ("No_DR", "Mild", "Moderate", "Severe", "Proliferate_DR"),
    ("none", "mild", "severe"),
    ("damage-none", "damage-minor", "damage-major"),
    ("bad", "good"),
    ("S", "M", "L", "XL"),
    ("unripe", "ripe", "overripe"),
    ("first", "second", "third"),
    ("无", "轻度", "中度", "重度"),
)


@pytest.mark.parametrize("order", IN_ORDER, ids=lambda order: order[0])
def test_names_say_their_order_however_they_come(order: tuple[str, ...]) -> None:
    ways = [sorted(order), sorted(order, reverse=True), *itertools.islice(itertools.permutations(order), 3)]
    for way in ways:
        found, why = grades.arranged(tuple(way), grades.AUTO)
        assert found == order
        assert why.startswith("by ")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("ant", "bee"), "the names of these classes do not say one: ant, bee"),
        (("none", "mild", "Mild"), "do not say one"),
        (("non severe", "severe"), "do not say one"),
        (("C", "D"), "do not say one"),
        (("1,000", "2,000"), "do not say one"),
        (("0", "1", "many"), "do not say one"),
        (("low", "tall"), "do not say one"),
        (("0-5", "3-9"), "do not say one"),
        (("0", "1", "3"), "2 is missing: 0, 1, 3"),
        (("grade 1", "grade 10", "grade 2"), "3, 4, 5, 6, 7, 8, 9 are missing"),
        (("0", "0.5", "1", "2"), "a grade may be missing"),
        (("stage I", "stage II", "stage IV"), "3 is missing"),
        (("first", "third"), "second is missing"),
        (("01", "1", "2"), "Two classes have one grade: 01, 1"),
        (("severe_0", "mild_1"), "more than one order: severe_0, mild_1 .*; mild_1, severe_0"),
    ],
    ids=str,
)
def test_what_says_no_order_or_two_is_refused_with_the_way_out(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        grades.arranged(names, grades.AUTO)
    assert "--data.order" in str(caught.value)
    assert all(name in str(caught.value) for name in names)
    assert caught.value.exit_code == 2
    order = tuple(reversed(names))
    assert grades.arranged(names, order) == (order, "as data.order says")


@pytest.mark.parametrize(
    ("given", "told", "error"),
    [
        (("a", "b"), "it lacks c", DataError),
        (("a", "b", "c", "d"), "it has d, which no image has", DataError),
        (("a", "B", "c"), "it has B, .*it lacks b", DataError),
        (("a", "b", "b", "c"), "names b more than once", SpecError),
    ],
)
def test_an_order_that_does_not_name_the_classes_is_refused(
    given: tuple[str, ...], told: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=told):
        grades.arranged(("a", "b", "c"), given)


def test_numbers_of_the_source_count_unless_they_are_the_alphabets() -> None:
    names = ("calm", "rough", "breezy")
    assert grades.arranged(names, grades.AUTO, ("calm", "breezy", "rough"))[0] == ("calm", "breezy", "rough")
    with pytest.raises(DataError, match="do not say one"):
        grades.arranged(names, grades.AUTO, tuple(sorted(names)))
    with pytest.raises(DataError, match="more than one order"):
        grades.arranged(("low", "high", "medium"), grades.AUTO, ("medium", "low", "high"))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("1", "2", "3"), [1, 2, 3]),
        (("0", "0.5", "1", "2"), [0, 0.5, 1, 2]),
        (("3", "2", "1"), [3, 2, 1]),
        (("grade_5", "grade_6"), [5, 6]),
        (("stage II", "stage III"), [2, 3]),
        (("none", "mild", "severe"), [0, 1, 2]),
        (("A", "B"), [0, 1]),
    ],
)
def test_what_grades_count_in_a_mean(names: tuple[str, ...], expected: list[float]) -> None:
    assert numbers.values(names) == expected


def test_the_table_has_the_grades_in_their_order(tmp_path: Path, make_folder) -> None:
    names = ("grade_10", "grade_8", "grade_9")
    data = make_folder(tmp_path / "data", classes=names, count=8)
    plain = open_source(DataSpec(source=str(data)), lambda text: None)
    assert (plain.classes, plain.ordered) == (names, False)
    told: list[str] = []
    found = open_source(DataSpec(source=str(data), order=("auto",)), told.append)
    assert (found.classes, found.ordered) == (("grade_8", "grade_9", "grade_10"), True)
    assert told[0] == "Grades, the lowest first (by the numbers in their names): grade_8, grade_9, grade_10."
    here = [found.classes[label] for label in found.labels]
    assert here == [plain.classes[label] for label in plain.labels]
    assert here == [str(path).partition("/")[0] for path in found.paths]
    assert list(found.splits) == list(plain.splits)


def test_numbers_that_a_file_names_are_the_order(tmp_path: Path, make_folder) -> None:
    data = make_folder(tmp_path / "data", classes=("0", "1", "2"), count=8)
    (data / "classes.txt").write_text("calm\nbreezy\nafter the storm\n")
    found = open_source(DataSpec(source=str(data), order=("auto",)), lambda text: None)
    assert found.classes == ("calm", "breezy", "after the storm")


def test_python_says_the_order_by_its_classes() -> None:
    images = np.zeros((12, 8, 8, 3), np.uint8) + np.arange(12, dtype=np.uint8)[:, None, None, None]
    labels = np.arange(12) % 3
    given = tellapart.data.sources.objects.take((images, labels), classes=["calm", "breezy", "after"])
    found = open_source(DataSpec(source=given.name, order=("auto",)), lambda text: None, given=given)
    assert found.classes == ("calm", "breezy", "after")


def test_several_labels_have_no_order(tmp_path: Path, make_folder) -> None:
    data = make_folder(tmp_path / "data", classes=("1", "2"), count=6)
    rows = "".join(f"{k}/{n:03}.png,{'1|2' if n % 2 else k}\n" for k in (1, 2) for n in range(6))
    (data / "list.csv").write_text("path,labels\n" + rows)
    with pytest.raises(DataError, match="images of one label each"):
        open_source(
            DataSpec(source=str(data / "list.csv"), labels="multi", order=("auto",)), lambda text: None
        )


def test_yaml_may_write_numbers() -> None:
    assert DataSpec(order=[0, 1, 2]).order == ("0", "1", "2")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"data\.order is False"):
        DataSpec(order=[False, "mild"])  # type: ignore[arg-type]  # what YAML 1.1 makes of no
