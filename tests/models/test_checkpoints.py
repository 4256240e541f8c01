from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tellapart.errors import ModelError
from tellapart.models import checkpoints, zoo
from tellapart.models.zoo import Architecture


def build(name: str = "tutorial-net", classes: int = 10, channels: int = 3) -> nn.Module:
    return zoo.build(Architecture(name, classes, channels))


@pytest.mark.parametrize("ending", ["pth", "pt", "safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_files_and_prefixes(tmp_path: Path, ending: str, prefix: str) -> None:
    state = build().state_dict()
    named = {prefix + name: tensor for name, tensor in state.items()}
    file = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        safetensors.torch.save_file(named, file)
    else:
        torch.save(named, file)
    found = checkpoints.read_state(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_wrapped_state_dicts(tmp_path: Path, key: str) -> None:
    torch.save({"epoch": 3, key: build().state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "a.pth")
    assert checkpoints.read_state(tmp_path / "a.pth").keys() == build().state_dict().keys()


def test_a_pickled_module_is_refused_without_running_it(tmp_path: Path) -> None:
    torch.save(build(), tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"state_dict\(\)"):
        checkpoints.read_state(tmp_path / "whole.pth")


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.mark,)


def test_code_in_a_pickle_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pth")
    with pytest.raises(ModelError, match="could run any code"):
        checkpoints.read_state(tmp_path / "bomb.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("ending", "content"),
    [
        ("pth", b""),
        ("pth", b"<html>not found</html>"),
        ("pt", b"PK\x03\x04half"),
        ("safetensors", b"\x10\0\0\0\0\0\0\0{"),
    ],
)
def test_damaged_files(tmp_path: Path, ending: str, content: bytes) -> None:
    file = tmp_path / f"damaged.{ending}"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="damaged"):
        checkpoints.read_state(file)
    if ending == "safetensors":
        with pytest.raises(ModelError, match="damaged"):
            checkpoints.read_metadata(file)


def test_truncated_file(tmp_path: Path) -> None:
    torch.save(build().state_dict(), tmp_path / "a.pth")
    content = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=r"cut\.pth cannot be read"):
        checkpoints.read_state(tmp_path / "cut.pth")


@pytest.mark.parametrize("content", [{"lr": 0.1}, {}, [1, 2], torch.zeros(3)])
def test_files_that_hold_something_else(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth holds"):
        checkpoints.read_state(tmp_path / "a.pth")


def test_find(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model\.safetensors"):
        checkpoints.find(tmp_path)
    with pytest.raises(ModelError, match="does not exist"):
        checkpoints.find(tmp_path / "a.pth")
    (tmp_path / "model.safetensors").touch()
    assert checkpoints.find(tmp_path) == tmp_path / "model.safetensors"


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("pretrained", "my-run"):
        (tmp_path / folder).mkdir()
    assert not checkpoints.is_path("pretrained")
    assert not checkpoints.is_path("a1_in1k")
    assert checkpoints.is_path("my-run")
    assert checkpoints.is_path("net.pth")
    assert checkpoints.is_path("runs/3")


def test_adapted_channels_answer_as_before() -> None:
    conv = nn.Conv2d(3, 8, 3, bias=False)
    grey = torch.randn(2, 1, 9, 9)
    expected = conv(grey.expand(-1, 3, -1, -1))
    one = checkpoints.adapt_channels(conv.weight, 1)
    torch.testing.assert_close(nn.functional.conv2d(grey, one), expected, rtol=0, atol=1e-5)
    three = checkpoints.adapt_channels(one, 3)
    torch.testing.assert_close(
        nn.functional.conv2d(grey.expand(-1, 3, -1, -1), three), expected, rtol=0, atol=1e-5
    )
    six = checkpoints.adapt_channels(conv.weight, 6)
    torch.testing.assert_close(
        nn.functional.conv2d(grey.expand(-1, 6, -1, -1), six), expected, rtol=0, atol=1e-5
    )
    assert checkpoints.adapt_channels(torch.zeros(8, 5, 3, 3), 1) is None


def test_merge_is_whole_or_not_at_all() -> None:
    model, other = build(), build()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = dict(other.state_dict())
    state["conv2.weight"] = torch.zeros(16, 6, 3, 3)
    state["extra.weight"] = torch.zeros(2)
    del state["fc1.bias"]
    with pytest.raises(ModelError) as caught:
        checkpoints.merge(model, state, (), "a.pth")
    message = str(caught.value)
    assert "a.pth" in message
    assert "conv2.weight is 16x6x3x3, not 16x6x5x5" in message
    assert "fc1.bias 120 is missing" in message
    assert "extra.weight 2 has no place" in message
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_many_problems_are_counted() -> None:
    with pytest.raises(ModelError, match=r"and 12 more\.$"):
        checkpoints.merge(build(), dict(build("simple-cnn").state_dict()), (), "x")


def test_merge_new_head() -> None:
    model, other = build(classes=4), build(classes=10)
    fresh = model.fc3.weight.detach().clone()
    merged = checkpoints.merge(model, dict(other.state_dict()), (), "x")
    assert merged.new == ("fc3.weight", "fc3.bias")
    assert merged.loaded == 8
    assert torch.equal(model.fc3.weight, fresh)
    assert torch.equal(model.fc2.weight, other.fc2.weight)


def test_merge_a_backbone_without_a_head() -> None:
    state = {n: t for n, t in build().state_dict().items() if not n.startswith("fc3")}
    assert checkpoints.merge(build(), state, (), "x").new == ("fc3.weight", "fc3.bias")


def test_a_head_of_other_width_is_an_error() -> None:
    state = dict(build().state_dict())
    state["fc3.weight"] = torch.zeros(10, 83)
    with pytest.raises(ModelError, match=r"fc3\.weight is 10x83, not 10x84"):
        checkpoints.merge(build(), state, (), "x")


def test_merge_says_that_it_adapts_channels() -> None:
    grey, colour = build(channels=1), build(channels=3)
    merged = checkpoints.merge(grey, dict(colour.state_dict()), (), "x")
    assert torch.equal(grey.conv1.weight, colour.conv1.weight.sum(1, keepdim=True))
    assert merged.notes == (
        "conv1.weight was made for 3 channels and is summed over its input channels for 1.",
    )


def test_old_files_lack_counters_of_batches() -> None:
    model = build("fast-cnn")
    state = {n: t for n, t in build("fast-cnn").state_dict().items() if not n.endswith("num_batches_tracked")}
    assert checkpoints.merge(model, state, (), "x").new == ()
