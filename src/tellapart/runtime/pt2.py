"""What a ``.pt2`` program from elsewhere must look like before torch reads it, even if the user trusts it.

A second line of defence behind `trust`, and no more than that: an allow-list of the archive's records, of the fields
that make torch unpickle, of the operations that are called, and of the arithmetic in sizes. What tellapart's export
writes passes.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

MOST_JSON = 256 << 20
_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|models/model\.json"
    r"|data/weights/(weight_\d{1,7}|model_weights_config\.json)"
    r"|data/constants/(tensor_\d{1,7}|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|extra/(card\.json|graph\.txt)"
)
_OPERATION = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.(?!from_file)(?!__)\w+(\.(?!__)\w+)?"
    r"|torch\.ops\.aten\.__(and|or|xor|lshift|rshift)__\.\w+"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|getitem|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(int|float|min|max|not|ite|sqrt)"
    r"|torch\._sym_sqrt"
)
_environment = threading.Lock()


class CodeError(ValueError):
    """A program that could run code while torch reads or runs it."""


def compiled(content: bytes) -> bool:
    """Return whether a ``.pt2`` file holds native code. Raises zipfile.BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return any("/aotinductor/" in name.lower() for name in archive.namelist())


def refuse_code(content: bytes) -> None:
    """Raise CodeError for a program with anything but what `tellapart export` writes; zipfile.BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        roots = {name.partition("/")[0] for name in names}
        records = [name.partition("/")[2] for name in names]
        if len(roots) != 1 or len({name.lower() for name in records}) != len(records):
            raise CodeError("its records have several roots, or one name twice")
        if any(
            entry.file_size > MOST_JSON for entry in archive.infolist() if entry.filename.endswith(".json")
        ):
            raise CodeError("one of its descriptions is too large")
        root = roots.pop()
        for record in records:
            if not _RECORDS.fullmatch(record):
                raise CodeError(f"it has a record {record[:80]!r}")
        for kind, path in (("weights", r"weight_\d{1,7}"), ("constants", r"tensor_\d{1,7}")):
            record = f"data/{kind}/model_{kind}_config.json"
            if record in records:
                _refuse_pickles(_json(archive.read(f"{root}/{record}")), path)
        if "data/sample_inputs/model.pt" in records:
            _refuse_objects(archive.read(f"{root}/data/sample_inputs/model.pt"))
        if "models/model.json" in records:
            _refuse_calls(_json(archive.read(f"{root}/models/model.json")))


@contextlib.contextmanager
def only_tensors() -> Iterator[None]:
    """Within this context torch unpickles nothing but tensors, whatever its own code asks for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _environment:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _json(content: bytes) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise CodeError("one of its descriptions has a key twice")
        return dict(pairs)

    try:
        return json.loads(content.decode("utf-8"), object_pairs_hook=unique)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CodeError(f"one of its descriptions is not JSON ({type(error).__name__})") from None


def _refuse_pickles(config: Any, path: str) -> None:
    """Raise CodeError if a weight or constant is anything but the plain bytes of a tensor."""
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict) or set(config) != {"config"}:
        raise CodeError("its table of weights is malformed")
    for entry in entries.values():
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise CodeError("it holds pickled weights")
        name = entry.get("path_name")
        if not isinstance(name, str) or not re.fullmatch(path, name):
            raise CodeError(f"it has weights in {str(name)[:80]!r}")


def _refuse_objects(content: bytes) -> None:
    try:
        torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:  # refused, or damaged
        raise CodeError("it holds pickled objects") from error


def _refuse_calls(value: Any) -> None:
    """Raise CodeError for a call of anything but torch's operations, and for a size that is not arithmetic."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
            expression, target = part.get("expr_str", "1"), part.get("target")
            if not isinstance(expression, str) or not _is_arithmetic(expression):
                raise CodeError(f"it has a size that is not arithmetic ({str(expression)[:60]!r})")
            if "inputs" in part and target is not None and not _is_operation(target):
                raise CodeError(f"it calls {str(target)[:80]!r}")


def _is_operation(target: Any) -> bool:
    return isinstance(target, str) and _OPERATION.fullmatch(target) is not None


def _is_arithmetic(text: str) -> bool:
    """Return whether an expression is made of sympy's classes, numbers and symbols' names, and of nothing else."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval"))) if len(text) <= 10_000 else [ast.Pass()]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(
        (isinstance(node, ast.Name) and re.fullmatch(r"[A-Z][A-Za-z]+", node.id))
        or (isinstance(node, ast.Constant) and _is_plain(node.value))
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
        or isinstance(node, (ast.Expression, ast.keyword, ast.Load, ast.UnaryOp, ast.USub, ast.Tuple))
        for node in nodes
    )


def _is_plain(value: Any) -> bool:
    """Return whether a constant is a number or names a symbol, such as ``s32``."""
    if isinstance(value, str):
        return re.fullmatch(r"[a-z]{1,8}\d{0,9}|-?[\d.]{1,30}", value) is not None
    return isinstance(value, (bool, int, float))
