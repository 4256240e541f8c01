"""Files that are programs: opened where they were exported here, refused where a stranger made them, whatever is in them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tellapart
from tellapart.contract import Architecture, Card, Preprocessing
from tellapart.errors import ArtifactError
from tellapart.export import formats
from tellapart.export.base import Options
from tellapart.export.graph import GraphModel
from tellapart.models import zoo
from tellapart.runtime import open_backend, pt2, trust

CARD = Card(
    Architecture("tutorial-net", 3, size=16),
    ("ant", "bee", "cat"),
    Preprocessing(16, 3, "squash", "bilinear", 1.0, (0.5,) * 3, (0.2,) * 3),
)
MARK = "mischief"


class _Mischief:
    """Whose pickle, loaded without care, makes an empty file in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, (f"open({MARK!r}, 'w').close()",))


def _pickled() -> bytes:
    stream = io.BytesIO()
    torch.save({"a": _Mischief()}, stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A program and a TorchScript file that were exported here."""
    torch.manual_seed(0)
    network = zoo.build(CARD.architecture).eval().requires_grad_(False)
    found = {}
    for name in ("torch-export", "torchscript"):
        entry, folder = formats.find(name), tmp_path_factory.mktemp(name)
        target = folder / entry.file_name(Options())
        found[name] = entry.write(GraphModel(network, CARD), CARD, target, Options()).files[0]
    return found


Records = dict[str, bytes]


def _records(path: Path) -> Records:
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def _write(
    path: Path, records: Records, more: list[tuple[str, bytes]] | None = None, root: str = "model"
) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in [*records.items(), *(more or [])]:
            archive.writestr(f"{root}/{name}", content)
    return path


def _config(kind: str, value: str) -> Callable[[Records], None]:
    """Say in the table of weights that the first of them is pickled."""

    def change(records: Records) -> None:
        name = f"data/{kind}/model_{kind}_config.json"
        text = records[name].decode()
        content = json.loads(text)
        if not content["config"]:
            meta = {"dtype": 7, "sizes": [], "requires_grad": False, "device": {"type": "cpu", "index": None}}
            meta |= {"strides": [], "storage_offset": {"as_int": 0}, "layout": 7}
            content["config"] = {
                "c": {"path_name": "tensor_0", "is_param": False, "use_pickle": False, "tensor_meta": meta}
            }
        first = next(iter(content["config"].values()))
        text = json.dumps(content).replace('"use_pickle": false', value, 1)
        records[name] = text.encode()
        records[f"data/{kind}/{first['path_name']}"] = _pickled()

    return change


def _path_name(kind: str, name: str, content: bytes) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        _config(kind, '"use_pickle": false')(records)
        table = f"data/{kind}/model_{kind}_config.json"
        described = json.loads(records[table])
        next(iter(described["config"].values()))["path_name"] = name
        records[table] = json.dumps(described).encode()
        records[f"data/{kind}/{name}"] = content

    return change


def _new(name: str, content: Callable[[Records], bytes] | bytes) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        records[name] = content if isinstance(content, bytes) else content(records)

    return change


def _evil_sizes(records: Records) -> bytes:
    def evil(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: f"open({MARK!r}, 'w')" if k == "expr_str" else evil(v) for k, v in value.items()}
        return [evil(v) for v in value] if isinstance(value, list) else value

    return json.dumps(evil(json.loads(records["models/model.json"]))).encode()


def _expression(text: str) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        content = records["models/model.json"].decode()
        start = content.index('"expr_str": "') + len('"expr_str": "')
        records["models/model.json"] = (
            content[:start] + text + content[content.index('"', start) :]
        ).encode()

    return change


def _program(change_it: Callable[[dict[str, Any]], Any]) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        content = json.loads(records["models/model.json"])
        change_it(content)
        records["models/model.json"] = json.dumps(content).encode()

    return change


def _calls(target: str) -> Callable[[Records], None]:
    def change(content: dict[str, Any]) -> None:
        node = content["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        node["inputs"] = [{"name": "", "arg": {"as_string": f"touch {MARK}"}, "kind": 1}]

    return _program(change)


STATE = '"use_pickle": '
REFUSED: dict[str, Callable[[Records], None]] = {
    **{
        f"use_pickle {value} in {kind}": _config(kind, STATE + value)
        for kind in ("weights", "constants")
        for value in ("true", "1", '"yes"', "1.5", "[0]", '{"a": 0}', "null")
    },
    "use_pickle escaped": _config("weights", '"use_pickl\\u0065": 1'),
    "use_pickle twice": _config("weights", '"use_pickle": false, "use_pickle": true'),
    "use_pickle missing": _config("weights", '"use_other": false'),
    "weights of the old kind": _new("data/weights/model.pt", _pickled()),
    "constants of the old kind": _new("data/constants/model.pt", _pickled()),
    "Sample_Inputs in capitals": _new("data/Sample_Inputs/model.PT", _pickled()),
    "sample inputs": _new("data/sample_inputs/model.pt", _pickled()),
    "a model without a dot": _new("models/model_json", _evil_sizes),
    "a model in capitals": _new("models/model.JSON", _evil_sizes),
    "a second model": _new("models/other.json", _evil_sizes),
    "every size evaluated": _new("models/model.json", _evil_sizes),
    "a size that calls": _expression(f"open('{MARK}', 'w')"),
    "a size with an attribute": _expression("Symbol('s1').__class__"),
    "a size of ten thousand brackets": _expression("(" * 9000 + "1" + ")" * 9000),
    "a size in an opaque symbol": _expression(f"Symbol('x', open('{MARK}', 'w'))"),
    "a range that calls": _program(
        lambda content: content["range_constraints"].update(
            {"s9": {"min_val": None, "max_val": None, "expr_str": f"open({MARK!r}, 'w')"}}
        )
    ),
    "a custom object": _path_name("constants", "custom_obj_0", _pickled()),
    "an opaque object": _path_name("constants", "opaque_obj_0", pickle.dumps(_Mischief())),
    "weights from elsewhere": _path_name("weights", "../../../etc/passwd", b""),
    "the system's shell": _calls("torch.os.system"),
    "torch's own unpickling": _calls("torch.load"),
    "a file that is written": _calls("torch.ops.aten.from_file.default"),
    "a file of an operator": _calls("torch.ops.image.write_file.default"),
    "a hidden attribute": _calls("torch.ops.aten.__class__.mro"),
    "an extension's operator": _calls("#other:call"),
    "a class by attributes": _calls("_operator.attrgetter"),
    "a method by name": _calls("_operator.methodcaller"),
    "a record of someone else": _new("extra/other.txt", b"x"),
    "a deep program": _new("models/model.json", b"[" * 200_000),
    "native code": _new("data/aotinductor/model/x.so", b"\x7fELF"),
}


@pytest.fixture
def stranger(written: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program in a place where nothing is known of who wrote it; the working folder is empty."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "model.pt2"
    path.write_bytes(written["torch-export"].read_bytes())
    return path


def test_what_was_exported_here_is_opened_and_what_changed_is_not(
    written: dict[str, Path], tmp_path: Path
) -> None:
    for path in written.values():
        assert open_backend(path).card == CARD
        copy = tmp_path / ("copy" + path.suffix.upper())  # the content counts, not the name
        copy.write_bytes(path.read_bytes())
        assert open_backend(copy).card == CARD
        copy.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(ArtifactError, match=r"not opened: .* any program .*--trust"):
            open_backend(copy)


@pytest.mark.parametrize("name", ["torch-export", "torchscript"])
def test_a_strangers_good_file_needs_trust(
    name: str, written: dict[str, Path], stranger: Path, call: Callable[..., Any]
) -> None:
    path = written[name]
    Image.new("RGB", (20, 20), (9, 99, 200)).save("cat.png")
    (Path("data") / "cat").mkdir(parents=True)
    Image.new("RGB", (20, 20), (9, 99, 200)).save("data/cat/1.png")
    here = Path.cwd()
    for words in (["predict", path, here / "cat.png"], ["evaluate", path, here / "data"], ["serve", path]):
        answer = call(*words)
        assert answer.code == 2
        assert "any program" in answer.err
        assert "Traceback" not in answer.err
    with pytest.raises(ArtifactError, match="trust=True"):
        tellapart.load(path)
    with pytest.raises(ArtifactError, match="trust=True"):
        tellapart.evaluate(path, here / "data", quiet=True)
    assert call("predict", path, here / "cat.png", "--trust").code == 0
    assert call("evaluate", path, here / "data", "--trust").code == 0
    assert tellapart.load(path, trust=True).predict(here / "cat.png")[0].labels


@pytest.mark.parametrize("kind", REFUSED)
def test_crafted_programs_run_nothing(kind: str, stranger: Path) -> None:
    """Refused unseen without trust; with it the second wall refuses each, before torch reads it."""
    records = _records(stranger)
    REFUSED[kind](records)
    _write(stranger, records)
    with pytest.raises(ArtifactError, match="any program"):
        open_backend(stranger)
    if kind != "native code":  # which is what an aot.pt2 file is, and what a person trusts it for
        with pytest.raises(ArtifactError, match=r"not opened, even with --trust|is damaged"):
            open_backend(stranger, trust=True)
    assert not list(Path.cwd().iterdir())


def test_a_record_twice_or_under_two_roots_is_refused(stranger: Path) -> None:
    records = _records(stranger)
    name = "data/sample_inputs/model.pt"
    for more in (
        [("data/Sample_inputs/model.pt", _pickled())],
        [("models/MODEL.json", _evil_sizes(records))],
    ):
        with pytest.raises(ArtifactError, match="one name twice"):
            open_backend(_write(stranger, records, more), trust=True)
    with pytest.warns(UserWarning, match="Duplicate name"):
        _write(stranger, records, [(name, _pickled())])
    with pytest.raises(ArtifactError, match="one name twice"):
        open_backend(stranger, trust=True)
    _write(stranger, records)
    with zipfile.ZipFile(stranger, "a") as archive:
        archive.writestr(f"other/{name}", _pickled())
    with pytest.raises(ArtifactError, match="several roots"):
        open_backend(stranger, trust=True)
    assert not list(Path.cwd().iterdir())


def test_the_layout_of_older_torch_is_refused(stranger: Path) -> None:
    """Records without a root, which torch reads in another way, and unpickles where its safe reader refuses."""
    program = _records(stranger)["models/model.json"]
    with zipfile.ZipFile(stranger, "w") as archive:
        archive.writestr("version", "8.7")
        archive.writestr("serialized_exported_program.json", program)
        for name in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{name}.pt", _pickled())
    for trusted in (False, True):
        with pytest.raises(ArtifactError, match="not opened"):
            open_backend(stranger, trust=trusted)
    assert not list(Path.cwd().iterdir())


def test_guards_are_not_run(stranger: Path) -> None:
    """They are Python, for torch to run when a program is called; here a program is made without them."""
    records = _records(stranger)
    _program(lambda content: content.update(guards_code=[f"open({MARK!r}, 'w').close() or True"]))(records)
    backend = open_backend(_write(stranger, records), trust=True)
    assert np.isfinite(backend.logits(np.zeros((2, 16, 16, 3), np.uint8))).all()
    assert not list(Path.cwd().iterdir())


def test_torch_itself_runs_what_the_second_wall_refuses(stranger: Path) -> None:
    """The crafted files are what they are meant to be: torch alone makes the mark. (Else the tests above show nothing.)"""
    made = 0
    for kind in (
        "use_pickle 1 in weights",
        "weights of the old kind",
        "every size evaluated",
        "sample inputs",
    ):
        records = _records(stranger)
        REFUSED[kind](records)
        content = _write(stranger.with_name("x.pt2"), records).read_bytes()
        with warnings.catch_warnings(), contextlib.suppress(Exception):
            warnings.simplefilter("ignore")
            torch.export.load(io.BytesIO(content))
        made += Path(MARK).exists()
        Path(MARK).unlink(missing_ok=True)
    assert made == 4


def test_only_tensors_are_unpickled_inside(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pt2.only_tensors(), pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(_pickled()), weights_only=False)
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert not Path(MARK).exists()


def test_a_torchscript_file_that_writes_is_refused(stranger: Path, tmp_path: Path) -> None:
    """torch.from_file with shared=True makes a file when the module is called."""
    source = tmp_path / "writer.py"
    source.write_text(
        "import torch\nclass Writer(torch.nn.Module):\n    def forward(self, x: torch.Tensor):\n"
        f"        return torch.from_file({MARK!r}, shared=True, size=4) + x\n"
    )
    program = (
        "import sys, warnings; warnings.simplefilter('ignore'); sys.path.insert(0, sys.argv[1]); import torch, writer\n"
        "torch.jit.script(writer.Writer()).save(sys.argv[2], _extra_files={'card.json': sys.argv[3], 'graph.txt': 'plain'})"
    )
    path = tmp_path / "model.torchscript"
    subprocess.run([sys.executable, "-c", program, str(tmp_path), str(path), CARD.to_json()], check=True)
    with pytest.raises(ArtifactError, match="any program"):
        open_backend(path)
    assert not list(Path.cwd().iterdir())


def test_what_cannot_be_recorded_is_reported(
    stranger: Path, written: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    said = trust.record(written["torch-export"])
    assert "--trust" in said
    assert str(trust.record_file()) in said


def test_the_record_is_the_users_own(stranger: Path) -> None:
    assert trust.record(stranger) == ""
    assert trust.record_file().stat().st_mode & 0o077 == 0
    assert trust.wrote(stranger.read_bytes())
    assert open_backend(stranger).card == CARD
    assert not list(Path.cwd().iterdir())
