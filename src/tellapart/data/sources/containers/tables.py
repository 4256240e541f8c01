"""Tables with the bytes of images in a column: Parquet, Arrow files, and what Hugging Face's datasets saves.

Which column holds images and what the classes are called is in the schema where `datasets` wrote it; else the
columns are known by their names and types. Owner of pyarrow. Knows nothing of where the images are written.
"""

from __future__ import annotations

import json
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart import packages
from tellapart.data.samples import read_file
from tellapart.data.sources.containers.records import Container, Record, listing_of
from tellapart.data.sources.folders.walk import Tree, extension
from tellapart.data.sources.listing import Listing, Note, printable, some, split_name, split_of_stem
from tellapart.errors import DataError
from tellapart.spec import DataSpec

EXTENSIONS = (".parquet", ".arrow", ".feather")
_PURPOSE = "Reading Parquet and Arrow files"
_IMAGE = ("image", "img", "image_bytes", "bytes", "picture", "photo", "jpg", "jpeg", "png", "webp", "content")
_LABEL = ("label", "class", "category", "target", "class_name", "label_name", "labels", "cls", "fine_label")
_SPLIT = ("split", "subset", "partition")
_BATCH = 256


@dataclass(frozen=True)
class _Columns:
    """Names of the columns, and the names of the classes where the label is a number into them."""

    image: str
    label: str
    split: str
    names: tuple[str, ...] = ()


def is_table(path: str) -> bool:
    """Return whether a file's name is that of a Parquet or Arrow file."""
    return path.lower().endswith(EXTENSIONS)


def tables_of(tree: Tree) -> list[tuple[str, str]]:
    """Return (path, split) of the tables that a folder consists of, [] if it is no folder of tables.

    A folder that ``datasets`` saved has ``state.json`` beside its Arrow files, and ``dataset_dict.json`` above
    where it has splits. Arrow files that ``datasets`` keeps as a cache of other computations are not data.
    """
    found = [path for path in tree.others if is_table(path)]
    saved = {posixpath.dirname(path) for path in tree.others if posixpath.basename(path) == "state.json"}
    if saved:
        found = [path for path in found if posixpath.dirname(path) in saved]
    if tree.images or not found:
        return []
    return [(path, _split_of(path)) for path in found]


def _split_of(path: str) -> str:
    folders = [split_name(part) for part in path.split("/")[:-1]]
    return next((name for name in folders if name), "") or split_of_stem(path)


def read_tables(root: str, tables: Sequence[tuple[str, str]], spec: DataSpec, note: Note) -> Listing:
    """Return the listing of Parquet or Arrow files: (path relative to ``root``, split) each.

    Raises DataError where they do not agree in their columns, hold several configurations, or lack images or
    labels, and MissingPackageError without pyarrow.
    """
    packages.require("pyarrow.parquet", "parquet", _PURPOSE)
    _one_configuration(root, tables)
    files = [os.path.join(root, path) for path, _ in tables]
    schemas = [_schema(path) for path in files]
    columns = [_columns(schema, path, spec) for schema, path in zip(schemas, files, strict=True)]
    for other, path in zip(columns, files, strict=True):
        if other != columns[0]:
            raise DataError(
                f"{printable(files[0])!r} and {printable(path)!r} differ in their columns or class names; "
                "give the path of one, or of a folder with files of one kind."
            )
    chosen = columns[0]
    container = Container(
        extension(files[0])[1:].capitalize() + " file" + ("s" if len(files) > 1 else ""),
        files,
        chosen.names,
        (chosen.image, chosen.label, chosen.split),
    )
    splits = [split for _, split in tables]
    return listing_of(container, _records(files, splits, chosen), spec, note)


def _one_configuration(root: str, tables: Sequence[tuple[str, str]]) -> None:
    """Raise DataError where the tables lie in several folders that are no splits: several sets in one."""
    folders = {"/".join(part for part in path.split("/")[:-1] if not split_name(part)) for path, _ in tables}
    if len(folders) > 1:
        raise DataError(
            f"{printable(root)!r} holds several data sets (tables in the folders "
            f"{some(sorted(folder or '.' for folder in folders))}); give the path of one of these folders."
        )
    unknown = [path for path, split in tables if not split]
    if unknown and len(unknown) < len(tables):
        raise DataError(
            f"The names of some tables in {printable(root)!r} say no split: {some(unknown)}. Rename them to "
            "train-…, val-… or test-…, or give a folder without them."
        )


def holds_images(path: str) -> bool:
    """Return whether a table has a column with the bytes of images; else it may be a list of their paths.

    Raises DataError for a damaged file, MissingPackageError without pyarrow.
    """
    packages.require("pyarrow.parquet", "parquet", _PURPOSE)
    schema = _schema(path)
    features = _features(schema, path)
    return any(_kind(features.get(name)) == "Image" or _holds_bytes(schema, name) for name in schema.names)


def plain_columns(path: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names and rows of a table's columns of texts, numbers and truth values. Errors as `holds_images`."""
    packages.require("pyarrow.parquet", "parquet", _PURPOSE)
    import pyarrow

    kinds = pyarrow.types
    names = [
        str(field.name)
        for field in _schema(path)
        if kinds.is_string(field.type)
        or kinds.is_large_string(field.type)
        or kinds.is_dictionary(field.type)
        or kinds.is_integer(field.type)
        or kinds.is_floating(field.type)
        or kinds.is_boolean(field.type)
    ]
    return names, [row for rows in _batches(path, names) for row in rows]


# --- Opening ----------------------------------------------------------------------------------------------


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


def _schema(path: str) -> Any:
    opened = _open(path)
    return opened.schema_arrow if path.lower().endswith(".parquet") else opened.schema


def _batches(path: str, columns: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
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


# --- Which columns ----------------------------------------------------------------------------------------


def _features(schema: Any, path: str) -> Mapping[str, Any]:
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


def _columns(schema: Any, path: str, spec: DataSpec) -> _Columns:
    features = _features(schema, path)
    names = list(schema.names)
    image = _image_column(schema, features, path)
    label, class_names = _label_column(schema, features, image, path)
    split = next((name for name in names if name.casefold() in _SPLIT and name not in (image, label)), "")
    return _Columns(image, label, split, class_names)


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _holds_bytes(schema: Any, name: str) -> bool:
    import pyarrow

    kind = schema.field(name).type
    if pyarrow.types.is_struct(kind):
        return any(kind.field(k).name in ("bytes", "path") for k in range(kind.num_fields))
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _image_column(schema: Any, features: Mapping[str, Any], path: str) -> str:
    declared = [name for name in schema.names if _kind(features.get(name)) == "Image"]
    candidates = declared or [name for name in schema.names if _holds_bytes(schema, name)]
    named = [name for name in candidates if name.casefold() in _IMAGE]
    best = candidates if len(candidates) == 1 else named
    if len(best) == 1:
        return str(best[0])
    what = "several columns of images" if candidates else "no column with the bytes of images"
    raise DataError(
        f"{printable(path)!r} has {what}. Its columns: "
        f"{some((f'{field.name} ({field.type})' for field in schema), 20)}. Expected one column of image "
        "bytes, or of structs with bytes and path as Hugging Face's datasets writes them."
    )


def _label_column(
    schema: Any, features: Mapping[str, Any], image: str, path: str
) -> tuple[str, tuple[str, ...]]:
    others = [name for name in schema.names if name != image]
    declared = [name for name in others if _kind(features.get(name)) == "ClassLabel"]
    named = sorted(
        (name for name in declared or others if name.casefold() in _LABEL),
        key=lambda name: _LABEL.index(name.casefold()),
    )
    best = declared if len(declared) == 1 else named[:1]
    if not best:
        raise DataError(
            f"{printable(path)!r} has no column for the label ({', '.join(_LABEL)}). Its columns: "
            f"{some((f'{field.name} ({field.type})' for field in schema), 20)}."
        )
    feature = features.get(best[0])
    names = feature.get("names") if isinstance(feature, dict) else None
    return best[0], tuple(map(str, names)) if isinstance(names, list) else ()


# --- Rows to records --------------------------------------------------------------------------------------


def _records(files: Sequence[str], splits: Sequence[str], columns: _Columns) -> Iterator[Record]:
    wanted = [name for name in (columns.image, columns.label, columns.split) if name]
    for path, split in zip(files, splits, strict=True):
        row = 0
        for rows in _batches(path, wanted):
            for record in rows:
                yield _record(record, split, columns, f"{printable(path)}, row {row}", os.path.dirname(path))
                row += 1


def _record(row: Mapping[str, Any], split: str, columns: _Columns, where: str, folder: str) -> Record:
    label, problem = _label(row[columns.label], columns.names, where)
    given = "" if columns.split == "" else str(row[columns.split] or "")
    if given and not split_name(given):
        raise DataError(f"{where}: {columns.split} is {given!r}; expected train, val or test.")
    content, name = _image(row[columns.image], where, folder)
    problem = problem or ("" if content else "no image in its row")
    return Record(content, label, split_name(given) or split, name, problem)


def _label(value: Any, names: Sequence[str], where: str) -> tuple[str, str]:
    """Return a row's label, or why it has none."""
    if value is None or value == "" or (isinstance(value, float) and value != value):
        return "", "no label"
    if isinstance(value, list | dict):
        raise DataError(f"{where}: the label is {str(value)[:60]}; expected one class for each image.")
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not names or isinstance(value, str):
        return str(value), ""
    if value == -1:  # what datasets writes where a split has no labels
        return "", "no label (-1)"
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise DataError(f"{where}: the label is {value}, but there are names for 0 to {len(names) - 1}.")
    return names[value], ""


def _image(value: Any, where: str, folder: str) -> tuple[bytes, str]:
    """Return an image's bytes and name; a struct without bytes names a file."""
    if not isinstance(value, dict):
        return (value or b""), ""
    content, name = value.get("bytes"), str(value.get("path") or "")
    if content is None and name:
        try:
            content = read_file(os.path.join(folder, name))
        except OSError as error:
            raise DataError(f"{where}: the image {printable(name)!r} cannot be read: {error}.") from error
    return (content or b""), name
