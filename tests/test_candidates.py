"""Candidates for a data set: what they would take here, their order, and what the command prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tellapart
from tellapart import packages
from tellapart.errors import DataError, ModelError, SpecError
from tellapart.models import candidates as models
from tellapart.models.candidates import Origin
from tellapart.training.resolution import by_size
from tellapart.training.speed import pace
from tellapart.training.speed.pace import Pace
from tellapart.workflow import shortlist

Call = Callable[..., Any]


def folder(root: Path, side: int, classes: tuple[str, ...] = ("猫", "狗"), images: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for name in classes:
        for number in range(images):
            path = root / "train" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return root


ORIGINS = [
    Origin("fast-cnn", "none", "none", "MIT"),
    Origin("whitened-cnn", "none", "none", "MIT"),
    Origin("timm/resnet18", "a1_in1k", "cached", "apache-2.0", 71.5, "timm's results"),
    Origin("timm/resnet50", "a1_in1k", "cached", "apache-2.0", 80.4, "timm's results"),
    Origin("timm/convnext_tiny", "in12k_ft_in1k", "download", "apache-2.0", 84.2, "timm's results"),
]
RATES = {  # forward, training
    "fast-cnn": (1000.0, 200.0), "whitened-cnn": (500.0, 100.0), "whitened-cnn-small": (400.0, 90.0),
    "timm/resnet18": (40.0, 10.0),
    "timm/resnet50": (20.0, 4.0), "timm/convnext_tiny": (10.0, 2.0),
}  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Known candidates at a known pace; the list has what was measured."""
    if not packages.installed("timm"):
        pytest.skip("timm is not installed")
    monkeypatch.setattr(by_size, "lite_installed", lambda: False)  # else few small pictures get its weights
    names: list[str] = []

    def measure(resolved: Any, part: Any, processes: Any) -> Pace:
        name = resolved.spec.model.name
        names.append(name)
        assert resolved.spec.model.finetune == "full"
        assert 2 <= len(part) <= max(32, resolved.spec.training.batch_size)
        assert len(part.classes) == 2
        return Pace(1_234_567, *RATES[name], "fp32")

    monkeypatch.setattr(models, "all_of", lambda longest: ORIGINS)
    monkeypatch.setattr(pace, "recall", lambda *_: None)
    monkeypatch.setattr(pace, "measure", measure)
    return names


def test_what_to_expect_follows_from_the_pace(tmp_path: Path, measured: list[str]) -> None:
    data = folder(tmp_path / "data", 100)  # 20 training images, of which some are held out for validation
    found = tellapart.candidates(data, time_limit="10s", quiet=True)
    assert sorted(measured) == sorted({origin.name for origin in ORIGINS})
    count = found.images
    assert (found.classes, found.shortest, found.longest, found.time_limit) == (2, 100, 100, 10.0)
    assert 10 < count <= 20
    for one in found.candidates:
        forward, training = RATES[one.name]
        assert (one.forward, one.training, one.parameters) == (forward, training, 1_234_567)
        assert one.epoch_seconds == pytest.approx(count / training)
        assert one.epochs == int(10 * training / count)
        assert one.features_seconds == (None if one.weights == "none" else pytest.approx(count / forward))
    assert {one.name: one.size for one in found.candidates}["timm/resnet18"] == 224
    assert json.loads(json.dumps(found.to_dict()))["candidates"][0]["name"] == found.candidates[0].name


@pytest.mark.parametrize(
    ("side", "limit", "order"),
    [
        (100, "10m", ["timm/resnet50", "timm/resnet18", "timm/convnext_tiny", "fast-cnn", "whitened-cnn"]),
        (100, "6s", ["timm/resnet18", "timm/resnet50", "timm/convnext_tiny", "fast-cnn", "whitened-cnn"]),
        (100, "0.1s", ["timm/resnet18", "timm/resnet50", "timm/convnext_tiny", "fast-cnn", "whitened-cnn"]),
        (100, None, ["timm/resnet50", "timm/resnet18", "timm/convnext_tiny", "fast-cnn", "whitened-cnn"]),
        (32, "10m", ["fast-cnn", "whitened-cnn", "timm/resnet50", "timm/resnet18", "timm/convnext_tiny"]),
        (32, "1s", ["fast-cnn", "timm/resnet50", "timm/resnet18", "whitened-cnn", "timm/convnext_tiny"]),
    ],
)
def test_what_fits_comes_first(
    side: int, limit: str | None, order: list[str], tmp_path: Path, measured: list[str]
) -> None:
    """From scratch first for small images, last for others; else at hand before downloads, by accuracy."""
    found = tellapart.candidates(folder(tmp_path / "data", side), time_limit=limit, quiet=True)
    assert [one.name for one in found.candidates] == order
    if limit is None:
        assert {one.epochs for one in found.candidates} == {None}
        assert {one.fits for one in found.candidates} == {"layers"}


def test_models_returns_the_same(tmp_path: Path, measured: list[str]) -> None:
    data = folder(tmp_path / "data", 100)
    wanted = {"data.val_fraction": 0.5}
    found = tellapart.models(for_data=data, time_limit="10s", **wanted)
    assert found == tellapart.candidates(data, time_limit=10, quiet=True, **wanted)
    with pytest.raises(SpecError, match="can only be given with --for"):
        tellapart.models("fast-cnn", time_limit=5)
    with pytest.raises(SpecError, match="cannot be combined"):
        tellapart.models(for_data=data, summary="fast-cnn")


def test_what_fits() -> None:
    """16 images: two epochs of all layers are enough with weights, ten from scratch; the head needs one pass."""
    search = object.__new__(shortlist._Search)
    search.train = range(16)  # type: ignore[assignment]

    def fits(weights: str, limit: float | None, forward: float, training: float) -> str:
        search.limit = limit
        one = shortlist.Candidate("x", weights, "cached", "", None, None, "")
        return search._expected(one, Pace(1, forward, training, "fp32")).fits

    assert fits("tag", 8.0, 100, 4) == "layers"
    assert fits("tag", 7.9, 100, 4) == "head"
    assert fits("tag", 0.1, 100, 4) == "no"
    assert fits("none", 40.0, 100, 4) == "layers"
    assert fits("none", 39.9, 100, 4) == "no"
    assert fits("none", None, 100, 4) == "layers"


def test_the_usual_choice_is_marked(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Origin("whitened-cnn-small", "none", "none", "MIT")
    monkeypatch.setattr(shortlist.models, "all_of", lambda longest: [small, *ORIGINS])
    found = tellapart.candidates(folder(tmp_path / "data", 16), quiet=True)
    assert [one.name for one in found.candidates if one.default] == ["whitened-cnn-small"]


def test_a_candidate_that_cannot_be_is_listed_last_with_its_reason(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    vit = Origin("timm/vit_tiny_patch16_224", "augreg_in21k_ft_in1k", "download", "apache-2.0", 75.0, "x")
    monkeypatch.setattr(models, "all_of", lambda longest: [vit, *ORIGINS])
    real = pace.measure

    def measure(resolved: Any, part: Any, processes: Any) -> Pace:
        if "vit" in resolved.spec.model.name:
            raise ModelError("does not fit into patches")
        return real(resolved, part, processes)

    monkeypatch.setattr(pace, "measure", measure)
    data = folder(tmp_path / "data", 100)
    found = tellapart.candidates(data, quiet=True)
    assert (found.candidates[-1].name, found.candidates[-1].problem) == (
        vit.name,
        "does not fit into patches",
    )
    assert "not measured: does not fit into patches" in call("models", "--for", data).out


def test_a_second_call_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(tmp_path / "data", 16)
    changes = {"data.cache_dir": str(tmp_path / "cache")}
    monkeypatch.chdir(tmp_path)
    first = tellapart.candidates(data, pattern="fast-cnn-small", quiet=True, **changes)
    monkeypatch.setattr(pace, "measure", lambda *_: pytest.fail("measured again"))
    again = tellapart.candidates(data, pattern="fast-cnn-small", quiet=True, **changes)
    assert again == first
    assert [one.name for one in first.candidates] == ["fast-cnn-small"]
    assert first.candidates[0].size == 16
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["measured"]


def test_arrays_and_digits(tmp_path: Path, measured: list[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    found = tellapart.candidates((images, np.arange(20) % 2), quiet=True)
    assert (found.longest, found.classes) == (28, 2)
    assert found.candidates[0].size == 28


def test_images_that_can_have_several_labels(tmp_path: Path) -> None:
    """Most of them have none; those that are measured have some."""
    lines = ["path,a,b"]
    for number in range(40):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{int(number % 8 == 0)},{int(number % 8 == 4)}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    changes = {"data.label_column": ("a", "b"), "data.cache_dir": str(tmp_path / "cache")}
    found = tellapart.candidates(tmp_path / "list.csv", pattern="fast-cnn-small", quiet=True, **changes)
    assert found.candidates[0].problem == ""
    assert found.candidates[0].training


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model.name": "resnet18"}, SpecError, "model.name cannot be given here"),
        ({"run.dir": "x"}, SpecError, "run.dir cannot be given here"),
        ({"time_limit": "soon"}, SpecError, "is 'soon'; it must be a duration"),
        ({"pattern": "zzz"}, ModelError, "No model that can be trained here matches 'zzz'"),
        ({"pattern": "*"}, ModelError, "give a narrower pattern"),
    ],
)
def test_mistakes(changes: dict[str, Any], kind: type[Exception], words: str, tmp_path: Path) -> None:
    if not packages.installed("timm"):
        pytest.skip("timm is not installed")
    with pytest.raises(kind, match=words):
        tellapart.candidates(folder(tmp_path / "data", 16), quiet=True, **changes)


def test_data_that_nothing_can_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only one class"):
        tellapart.candidates(folder(tmp_path / "one", 16, ("cat",)), quiet=True)
    with pytest.raises(DataError, match="There is no"):
        tellapart.candidates(tmp_path / "missing", quiet=True)
    bad = folder(tmp_path / "bad", 16)
    for path in bad.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="can be read"):
        tellapart.candidates(bad, quiet=True)


# The command


def test_the_table_fits_a_terminal(tmp_path: Path, measured: list[str], call: Call) -> None:
    data = folder(tmp_path / "照片", 100)
    answer = call("models", "--for", data, "--time-limit", "10s")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "照片: " in answer.out
    assert "time limit 10.0 s" in answer.out
    (row,) = [line for line in lines if line.startswith("timm/resnet50")]
    count = int(re.search(r"(\d+)\s+training", answer.out).group(1))  # type: ignore[union-attr]
    assert row.split() == ["timm/resnet50", "80.4", "1.23M", "224", f"{count / 20:.2f}", "s", f"{count / 4:.2f}", "s",
                           str(int(40 / count))]  # fmt: skip
    below = lines[lines.index(row) + 1]
    assert below.split() == ["a1_in1k,", "in", "the", "cache,", "apache-2.0", "20/s", "4.0/s"]
    assert answer.out.count("to be downloaded") == 1
    assert "timm's results" in " ".join(lines)


def test_long_names_and_licences_fit_too(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    name = "timm/vit_base_patch16_clip_quickgelu_224"
    monkeypatch.setitem(RATES, name, (1.0, 0.1))
    long = Origin(name, "dfn2b", "download", "a very long licence " * 4)
    monkeypatch.setattr(models, "all_of", lambda longest: [long])
    answer = call("models", "--for", folder(tmp_path / "data", 100))
    assert name in answer.out
    assert max(map(len, answer.out.splitlines())) <= 80


def test_without_timm_there_is_a_hint(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(tmp_path / "data", 100)
    assert tellapart.candidates(data, quiet=True).notes == ()
    monkeypatch.setattr(models, "all_of", lambda longest: ORIGINS[:1])
    monkeypatch.setattr(packages, "installed", lambda name: False)
    (note,) = tellapart.candidates(data, quiet=True).notes
    assert "tellapart[models]" in note


def test_another_precision_is_told(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.setattr(pace, "measure", lambda resolved, part, processes: Pace(1, 2.0, 1.0, "bf16"))
    assert (
        "a1_in1k, in the cache, apache-2.0, bf16 " in call("models", "--for", folder(tmp_path / "d", 100)).out
    )


def test_as_json(tmp_path: Path, measured: list[str], call: Call) -> None:
    answer = call("models", "--for", folder(tmp_path / "data", 100), "--time-limit", "1m", "--json")
    content = json.loads(answer.out)
    assert answer.out.count("\n") == 1
    assert content["time_limit"] == 60.0
    assert content["candidates"][0]["fits"] == "layers"
    assert {one["where"] for one in content["candidates"]} == {"none", "cached", "download"}
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--time-limit", "10m"), "--time-limit can only be given with --for DATA"),
        (("--input.size", "64"), "Options about images and training can only be given with --for DATA"),
        (("--for", "missing"), "There is no 'missing'"),
        (("--for", "digits", "--summary", "fast-cnn"), "--summary and --for cannot be combined"),
        (("--summary", "fast-cnn", "--time-limit", "1m"), "--time-limit can only be given with --for DATA"),
    ],
)
def test_mistakes_on_the_command_line(words: tuple[str, ...], told: str, call: Call) -> None:
    answer = call("models", *words)
    assert (answer.code, answer.out) == (2, "")
    assert told in answer.err
