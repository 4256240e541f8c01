"""Parquet and Arrow files, opened: their columns, what Hugging Face's datasets says of them, their rows.

Owner of pyarrow. Knows nothing of what the columns mean.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tellapart import packages
from tellapart.data.samples import read_file
from tellapart.data.sources.folders.walk import extension
from tellapart.data.sources.listing import printable
from tellapart.errors import DataError

EXTENSIONS = (".parquet", ".arrow", ".feather")
_PURPOSE = "Reading Parquet and Arrow files"
_BATCH = 256


def is_table(path: str) -> bool:
    """Return whether a file's name is that of a Parquet or Arrow file."""
    return path.lower().endswith(EXTENSIONS)


def require() -> None:
    """Raise MissingPackageError without pyarrow."""
    packages.require("pyarrow.parquet", "parquet", _PURPOSE)


def holds_images(path: str) -> bool:
    """Return whether a table has a column with the bytes of images; else it may be a list of their paths.

    Raises DataError for a damaged file, MissingPackageError without pyarrow.
    """
    require()
    schema = schema_of(path)
    features = features_of(schema, path)
    return any(kind_of(features.get(name)) == "Image" or holds_bytes(schema, name) for name in schema.names)


def plain_columns(path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names and rows of a table's columns of texts, numbers and truth values. Errors as `holds_images`."""
    require()
    names = plain_names(schema_of(path))
    return names, [row for rows in batches(path, names) for row in rows]


def plain_names(schema: Any) -> list[str]:
    """Return the names of the columns of texts, numbers and truth values."""
    import pyarrow

    kinds = pyarrow.types
    return [
        str(field.name)
        for field in schema
        if kinds.is_string(field.type)
        or kinds.is_large_string(field.type)
        or kinds.is_dictionary(field.type)
        or kinds.is_integer(field.type)
        or kinds.is_floating(field.type)
        or kinds.is_boolean(field.type)
    ]


def is_nested(schema: Any, name: str) -> bool:
    """Return whether a column holds lists or structs."""
    import pyarrow

    return bool(pyarrow.types.is_nested(schema.field(name).type))


def is_binary(schema: Any, name: str) -> bool:
    """Return whether a column holds bytes."""
    return not is_nested(schema, name) and holds_bytes(schema, name)


def features_of(schema: Any, path: str) -> Mapping[str, Any]:
    """Return what ``datasets`` wrote on the columns, from the schema or from the file beside."""
    raw = (schema.metadata or {}).get(b"huggingface")
    beside = os.path.join(os.path.dirname(path), "dataset_info.json")
    try:
        if raw is not None:
            found = json.loads(raw)["info"]["features"]
        elif os.path.isfile(beside):
            found = json.loads(read_file(beside))["features"]
        else:
            return {}
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        return {}
    return found if isinstance(found, dict) else {}


def kind_of(feature: Any) -> str:
    """Return what ``datasets`` calls a column's kind, "" where it says nothing."""
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def holds_bytes(schema: Any, name: str) -> bool:
    """Return whether a column holds bytes, or structs of bytes and path."""
    import pyarrow

    kind = schema.field(name).type
    if pyarrow.types.is_struct(kind):
        return any(kind.field(k).name in ("bytes", "path") for k in range(kind.num_fields))
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _open(path: str) -> Any:
    """Return a ParquetFile, or a reader of an Arrow stream or file. Raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.lower().endswith(".parquet"):
            return pyarrow.parquet.ParquetFile(path)
        source = pyarrow.memory_map(path)
        try:
            return pyarrow.ipc.open_stream(source)
        except pyarrow.ArrowInvalid:
            source.seek(0)
            return pyarrow.ipc.open_file(source)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{printable(path)!r} cannot be read as {extension(path)[1:]}: {reason}.") from error


def schema_of(path: str) -> Any:
    """Return the schema of a file. Raises DataError."""
    opened = _open(path)
    return opened.schema_arrow if path.lower().endswith(".parquet") else opened.schema


def batches(path: str, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows, a bounded number at a time."""
    import pyarrow

    opened = _open(path)
    try:
        if path.lower().endswith(".parquet"):
            for batch in opened.iter_batches(batch_size=_BATCH, columns=list(columns)):
                yield batch.to_pylist()
            return
        stream = hasattr(opened, "read_next_batch")
        batches = opened if stream else (opened.get_batch(k) for k in range(opened.num_record_batches))
        for batch in batches:
            for start in range(0, batch.num_rows, _BATCH):
                yield batch.slice(start, _BATCH).select(list(columns)).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{printable(path)!r} is damaged: {reason}.") from error
