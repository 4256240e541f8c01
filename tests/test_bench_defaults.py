"""The comparison of defaults: its sets, its statistics and its page, on small made-up data."""

import gzip
import itertools
import json
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy import stats

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.fixture(autouse=True)
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def cell(right, side="tellapart", seed=0, limit=60.0, seconds=50.0, points=(), about=None, name="digits"):
    from default_results import Cell

    return Cell(
        name, side, seed, limit, seconds, right.count("1") / len(right), right, tuple(points), about or {}
    )


def listing(*counts):
    return {f"c{k}": [f"{k}-{i}" for i in range(count)] for k, count in enumerate(counts)}


def sizes(found):
    return [len(items) for items in found.values()]


# The sets


def test_a_share_is_stratified_repeatable_and_in_order():
    import default_sets as sets

    whole = listing(200, 1000, 30)
    found = sets.share(whole, 0.01)
    assert sizes(found) == [2, 10, 1]
    assert found == sets.share(whole, 0.01)
    assert found != sets.share(whole, 0.01, seed=1)
    assert all(
        whole[name].index(a) < whole[name].index(b)
        for name in whole
        for a, b in zip(found[name], found[name][1:], strict=False)
    )


def test_the_imbalance_is_that_of_the_literature():
    import default_sets as sets

    # CIFAR-10-LT of ratio 100 as published: 12,406 images.
    counts = sizes(sets.imbalanced(listing(*[5000] * 10), 100))
    assert counts == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(counts) == 12406


def test_a_cap_keeps_the_classes_shares():
    import default_sets as sets

    assert sizes(sets.capped(listing(1000, 3000), 400)) == [100, 300]
    assert sizes(sets.capped(listing(10, 30), 400)) == [10, 30]


def test_what_is_held_out_and_what_is_not_are_the_whole():
    import default_sets as sets

    whole = listing(50, 10)
    train, test = sets.apart(whole)
    assert sizes(test) == [10, 2]
    assert {name: sorted(train[name] + test[name]) for name in whole} == {
        k: sorted(v) for k, v in whole.items()
    }


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path, packed):
    import default_sets as sets

    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = b"\0\0\x08\x03" + struct.pack(">3i", 2, 3, 4) + values.tobytes()
    name = "some-idx3-ubyte"
    (tmp_path / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    assert np.array_equal(sets.idx(tmp_path / name), values)


def test_idx_files_that_are_none(tmp_path):
    import default_sets as sets

    with pytest.raises(SystemExit, match="neither"):
        sets.idx(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\0\0\x0d\x01\0\0\0\0")
    with pytest.raises(SystemExit, match="no IDX file"):
        sets.idx(tmp_path / "x")


def photographs(folder, count=5):
    for split in ("train", "val"):
        for label in "ab":
            place = folder / split / label
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (120, 60 + 40 * i), (i, 0, 0)).save(place / f"{i}.jpg")


def test_small_photographs_have_the_short_side(tmp_path):
    import default_sets as sets

    photographs(tmp_path / "from")
    made = sets.prepare("hymenoptera-96", {"photos": tmp_path / "from"}, tmp_path)
    sizes = []
    for path in made.rglob("*.jpg"):
        with Image.open(path) as image:
            sizes.append(image.size)
    assert len(sizes) == 20
    assert {min(size) for size in sizes} == {96}
    assert {*sizes} >= {(192, 96), (96, 176)}


def test_a_set_is_made_once_and_only_from_its_source(tmp_path):
    import default_sets as sets

    photographs(tmp_path / "from")
    assert sets.prepare("hymenoptera", {}, tmp_path) is None
    made = sets.prepare("hymenoptera", {"photos": tmp_path / "from"}, tmp_path, limit=4)
    assert len(list((made / "train").rglob("*.jpg"))) == 10
    assert len(list((made / "test").rglob("*.jpg"))) == 4
    (made / "test" / "a" / "mark.jpg").touch()
    assert sets.prepare("hymenoptera", {"photos": tmp_path / "nowhere"}, tmp_path) == made
    assert (made / "test" / "a" / "mark.jpg").exists()
    assert not list(tmp_path.glob("*.unfinished"))


def test_cloth_of_one_number_is_in_one_split(tmp_path):
    import default_sets as sets

    with zipfile.ZipFile(tmp_path / "some.whl", "w") as wheel:
        for label in ("good", "bad"):
            for i in range(20):
                wheel.writestr(f"p/data/{label}/t{i:02d}.jpg", f"{label}{i:02d}")
    train, test = sets.textile(tmp_path / "some.whl")
    numbers = [{content[-2:] for items in split.values() for content in items} for split in (train, test)]
    assert sizes(train) == [16, 16]
    assert sizes(test) == [4, 4]
    assert not numbers[0] & numbers[1]


def test_digits_of_the_other_package(tmp_path):
    import default_sets as sets

    rows = "\n".join(",".join(map(str, [k] * 784 + [k % 10])) for k in range(100))
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(rows.encode()))
    train, test = sets.mnist(tmp_path)
    assert sizes(train) == [8] * 10
    assert sizes(test) == [2] * 10
    assert {int(image[0, 0]) % 10 for image in train["3"]} == {3}


# The statistics


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("90", 90), ("10m", 600), ("1.5h", 5400)])
def test_times_as_they_are_typed(text, seconds):
    import default_results as results

    assert results.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0m", "-3m", "10 m", "ten", "10d"])
def test_what_is_no_time(text):
    import default_results as results

    with pytest.raises(ValueError, match="no time"):
        results.seconds(text)


def test_times_as_they_are_passed_on():
    import default_results as results

    assert [results.time_text(t) for t in (600.0, 90.0, 60, 12.5)] == ["10m", "90s", "1m", "12.5s"]


@pytest.mark.parametrize(
    ("limit", "epochs"),
    [(100, 7), (99.9, 6), (60, 3), (5, 1), (1e6, 25)],  # 20 s before, 10 s for the head, 10 s each
)
def test_epochs_that_fit(limit, epochs):
    import default_results as results

    assert results.fitting_epochs(limit, 20, 10, 10, 25) == epochs


def test_the_interval_of_a_difference_is_that_of_pairs():
    import default_results as results

    rng = np.random.default_rng(0)
    both = rng.random((2, 400)) < [[0.9], [0.8]]
    a, b = ("".join("01"[int(mark)] for mark in row) for row in both)
    ahead, half = results.difference([cell(a)], [cell(b, "fastai")])
    gap = both[0].astype(float) - both[1]
    low, high = stats.norm.interval(0.95, gap.mean(), stats.sem(gap))
    assert ahead == pytest.approx(gap.mean())
    assert (ahead - half, ahead + half) == (pytest.approx(low, abs=1e-5), pytest.approx(high, abs=1e-5))


def test_seeds_widen_the_interval():
    import default_results as results

    calm = [cell("1" * 80 + "0" * 20, seed=s) for s in range(3)]
    rough = [cell("1" * n + "0" * (100 - n), seed=s) for s, n in enumerate((70, 80, 90))]
    assert results.accuracy(calm)[0] == pytest.approx(results.accuracy(rough)[0]) == 0.8
    images = results.accuracy(rough)[1] ** 2 - 1.96**2 * 0.01 / 3
    marks = np.mean([[float(m) for m in one.right] for one in rough], axis=0)
    assert images == pytest.approx((1.96 * stats.sem(marks)) ** 2)


@pytest.mark.parametrize(
    ("ahead", "half", "sooner", "words", "holds"),
    [
        (0.02, 0.01, 0.1, "more accurate", True),
        (0.01, 0.01, 3.0, "equal within the interval and 3.0× sooner", True),
        (-0.01, 0.01, 2.9, "equal within the interval and 2.9× sooner", False),
        (0.0, 0.0, 5.0, "equal within the interval and 5.0× sooner", True),
        (-0.02, 0.01, 9.0, "worse", False),
    ],
)
def test_verdicts(ahead, half, sooner, words, holds):
    import default_results as results

    assert results.verdict(ahead, half, sooner) == (words, holds)


def test_the_time_to_their_accuracy_is_that_of_our_shortest_run_that_has_it():
    import default_results as results

    own = [
        cell(r, seed=s, limit=t, seconds=t - 1)
        for t, r in ((6.0, "1100"), (15.0, "1110"), (60.0, "1111"))
        for s in (0, 1)
    ]
    theirs = [cell("1110", "fastai", s, seconds=56.0) for s in (0, 1)]
    row = results.compared(own, theirs)
    assert (row.ours_to_it, row.ratio) == (14.0, 4.0)
    assert row.ahead == 0.25
    never = results.compared([cell("1100", seconds=28.0)], theirs)
    assert (never.ours_to_it, never.ratio) == (None, None)
    assert never.verdict == "equal within the interval and 2.0× sooner"


def test_the_median_counts_what_was_not_reached_and_the_better_variant():
    import default_results as results

    own = [cell("1110", name=name, seconds=10.0) for name in "xyz"]
    rows = [results.compared([own[k]], [cell(right, side, name="xyz"[k], seconds=40.0)])
            for k, side, right in [(0, "a", "1110"), (0, "b", "1100"), (1, "a", "1000"), (1, "b", "1100"), (2, "a", "1111")]]  # fmt: skip
    best = results.better(rows, ("a", "b"))
    assert [(row.set, row.side) for row in best] == [("x", "a"), ("y", "b"), ("z", "a")]
    assert results.median_ratio(best) == 4.0
    assert results.median_ratio([best[0], best[2]]) == 2.0
    assert results.median_ratio([]) is None


@pytest.mark.parametrize(
    ("took", "word"), [(60, "in time"), (63, "in time"), (57, "in time"), (56, "earlier"), (64, "late")]
)
def test_whether_a_run_ended_in_its_time(took, word):
    import default_results as results

    assert results.punctual(60, took) == word


def test_more_time_that_makes_it_worse():
    import default_results as results

    good, bad = cell("1" * 95 + "0" * 5), cell("1" * 80 + "0" * 20, limit=600.0)
    assert results.falls([good], [bad])
    assert not results.falls([bad], [good])
    assert not results.falls([good], [good])


def test_courses_are_averaged_point_by_point():
    import default_results as results

    a = cell("11", seconds=30.0, points=[(10.0, 0.4), (20.0, 0.6)])
    b = cell("10", seconds=40.0, points=[(20.0, 0.6)], seed=1)
    assert results.within([a, b]) == [(15.0, 0.5), (35.0, 0.75)]


# Running and showing


def test_answers_are_in_the_order_of_the_paths(tmp_path):
    import defaults

    table = tmp_path / "predictions.csv"
    table.write_text(
        "path,label,correct\ntest/b/1.png,b,1\ntest/a/2.png,a,0\ntest/a/10.png,a,1\n", encoding="utf-8"
    )
    assert defaults.marks(table) == "101"


def test_a_finished_cell_is_not_run_again_and_a_failure_leaves_none(tmp_path, capsys):
    import defaults

    def fails():
        raise defaults.FailedError("no")

    path = tmp_path / "cells" / "digits" / "tellapart-60s-seed0.json"
    defaults.run((path, fails))
    assert "digits/tellapart-60s-seed0 failed" in capsys.readouterr().out
    assert not path.exists()
    defaults.run((path, lambda: cell("1101")))
    defaults.run((path, fails))
    assert [one.accuracy for one in defaults.cells(tmp_path)] == [0.75]


@pytest.fixture
def page():
    import default_page
    import defaults

    own = [cell("1" * 90 + "0" * 10, seed=s, limit=t, seconds=t) for s in (0, 1) for t in (6.0, 60.0, 180.0)]
    theirs = [
        cell("1" * 50 + "0" * 50, side, s, seconds=70.0, points=[(30.0, 0.3)])
        for side in defaults.PEERS
        for s in (0, 1)
    ]
    by_hand = [cell("1" * 95 + "0" * 5, "head, 128 px")]
    sets = [
        default_page.Picture("digits", "Digits <8 px>", 60.0),
        default_page.Picture("cifar10", "CIFAR-10", 600.0),
    ]
    settings = {"head, 128 px": [], "another": []}
    return default_page.Page(sets, own + theirs + by_hand, "tellapart", list(defaults.PEERS), defaults.VARIANTS, settings, "a machine")  # fmt: skip


def test_the_table_and_the_page_say_the_same(page):
    text = "\n".join(page.text())
    html = page.html()
    for word in ("more accurate", "+40.00 ±", "90.00 ±", "does not fall", "in time", "11.7×", "-5.00 ±"):
        assert word in text, word
        assert word in html, word
    assert "on 1 of 1 sets" in text
    assert "CIFAR-10" not in text  # nothing was run on it
    assert "Digits &lt;8 px&gt;" in html
    assert html.count("<svg ") == 1
    assert "http" not in html


def test_the_picture_has_every_side_inside_its_frame(page):
    import re

    import default_page

    svg = page.picture(page.sets[0])
    places = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)]
    assert len(places) == 3 + 4 * 2
    assert all(default_page.LEFT <= x <= default_page.WIDTH for x, _ in places)
    assert all(0 <= y <= default_page.HEIGHT - default_page.BOTTOM for _, y in places)


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.4), (7, 8), (10, 10), (1, 1800), (60, 60)])
def test_ticks_of_seconds_enclose_what_is_shown(low, high):
    import default_page

    ticks = default_page._log_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert len(ticks) > 1
    assert all(math.isclose(b / a, 2) or math.isclose(b / a, 2.5) for a, b in itertools.pairwise(ticks))


def test_the_settings_are_options_that_there_are():
    from default_settings import SETTINGS
    from tellapart import recipes
    from tellapart.spec import Spec, update

    assert len(SETTINGS) == 20
    assert len({json.dumps(flags) for flags in SETTINGS.values()}) == 20
    for flags in SETTINGS.values():
        given = dict(zip(flags[::2], flags[1::2], strict=True))
        base = recipes.recipe(given.pop("--recipe")) if "--recipe" in given else Spec()
        changes = {name[2:].replace("-", "_"): yaml.safe_load(value) for name, value in given.items()}
        changes = {k: "none" if v is None else v for k, v in changes.items()}
        assert update(base, changes) != Spec()
