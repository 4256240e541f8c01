"""Tables with the bytes of images in a column: Parquet, Arrow files, and what Hugging Face's datasets saves.

Which column has images and what the classes are called is in the schema if `datasets` wrote it; otherwise the columns
are found as in lists. Knows nothing of where the images are written.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.data.samples import read_file
from tellapart.data.sources.containers.records import Container, Found, Record, answer, listing_of
from tellapart.data.sources.folders.walk import Tree, extension
from tellapart.data.sources.listing import Listing, Note, printable, some, split_name, split_of_stem
from tellapart.data.sources.lists import column_choice, table_files
from tellapart.data.sources.lists.column_choice import Columns
from tellapart.data.sources.lists.column_names import LABEL, SPLIT, plain
from tellapart.data.sources.lists.files import Table
from tellapart.errors import DataError
from tellapart.spec import DataSpec

_IMAGE = ("image", "img", "image_bytes", "bytes", "picture", "photo", "jpg", "jpeg", "png", "webp", "content")
_LONG = 300  # characters above which a text is not a label but a caption


@dataclass(frozen=True)
class _Shape:
    """What a file's schema says: the column of images, the plain columns, and the names of declared classes."""

    image: str
    columns: tuple[str, ...]
    names: Mapping[str, tuple[str, ...]]


def tables_of(tree: Tree) -> list[tuple[str, str]]:
    """Return (path, split) of the tables that a folder consists of, [] if it is no folder of tables.

    A folder that ``datasets`` saved has ``state.json`` beside its Arrow files, and ``dataset_dict.json`` above
    where it has splits. Arrow files that ``datasets`` keeps as a cache of other computations are not data.
    """
    found = [path for path in tree.others if table_files.is_table(path)]
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
    table_files.require()
    _one_configuration(root, tables)
    files = [os.path.join(root, path) for path, _ in tables]
    schemas = [table_files.schema_of(path) for path in files]
    shapes = [_shape(schema, path, spec) for schema, path in zip(schemas, files, strict=True)]
    for other, path in zip(shapes, files, strict=True):
        if (other.image, other.names) != (shapes[0].image, shapes[0].names):
            raise _differ(files[0], path)
    splits = [split for _, split in tables]

    def find(said: Note) -> Found:
        table = _table(files, shapes, spec)
        columns = _columns(table, shapes[0], schemas[0], spec, said)
        wanted = {*columns.labels, *filter(None, (columns.split, columns.group))}
        for other, path in zip(shapes, files, strict=True):
            if not wanted <= set(other.columns):
                raise _differ(files[0], path)
        names = shapes[0].names.get(columns.labels[0], ()) if len(columns.labels) == 1 else ()
        records = _records(files, splits, table, shapes[0].image, columns, names)
        return Found(records, names, bool(columns.group))

    kind = extension(files[0])[1:].capitalize() + " file" + ("s" if len(files) > 1 else "")
    return listing_of(Container(kind, files, (repr(shapes),), find), spec, note)


def _differ(one: str, other: str) -> DataError:
    return DataError(
        f"{printable(one)!r} and {printable(other)!r} differ in their columns or class names; give the path of one, or "
        "of a folder with files of one kind."
    )


def _one_configuration(root: str, tables: Sequence[tuple[str, str]]) -> None:
    """Raise DataError if the tables are in several folders that are not splits: several data sets."""
    folders = {"/".join(part for part in path.split("/")[:-1] if not split_name(part)) for path, _ in tables}
    if len(folders) > 1:
        raise DataError(
            f"{printable(root)!r} holds several data sets (tables in the folders "
            f"{some(sorted(folder or '.' for folder in folders))}); give the path of one of these folders."
        )
    unknown = [path for path, split in tables if not split]
    if unknown and len(unknown) < len(tables):
        raise DataError(
            f"The names of some tables in {printable(root)!r} name no split: {some(unknown)}. Rename them to "
            "train-…, val-… or test-…, or give a folder without them."
        )


# --- Which columns ----------------------------------------------------------------------------------------


def _shape(schema: Any, path: str, spec: DataSpec) -> _Shape:
    features = table_files.features_of(schema, path)
    image = _image_column(schema, features, path, spec)
    names = {}
    for name in schema.names:
        feature = features.get(name) or {}
        if name != image and table_files.kind_of(feature) == "ClassLabel":
            given = feature.get("names")
            names[name] = tuple(map(str, given)) if isinstance(given, list) else ()
    texts = [n for n in schema.names if plain(n) in LABEL and table_files.is_binary(schema, n)]
    columns = tuple(name for name in (*table_files.plain_names(schema), *texts) if name != image)
    return _Shape(image, columns, names)


def _image_column(schema: Any, features: Mapping[str, Any], path: str, spec: DataSpec) -> str:
    bytes_ = [name for name in schema.names if table_files.holds_bytes(schema, name)]
    if spec.path_column:
        found = column_choice.told(Table(path, list(schema.names), []), spec.path_column, "path_column")
        if found not in bytes_:
            raise DataError(
                f"data.path_column is {spec.path_column!r}, and {printable(path)!r} has no bytes of images there, but "
                f"in {some(bytes_)}. --data.format list reads the table as a list of paths."
            )
        return found
    declared = [name for name in schema.names if table_files.kind_of(features.get(name)) == "Image"]
    candidates = declared or bytes_
    named = [name for name in candidates if name.casefold() in _IMAGE]
    best = candidates if len(candidates) == 1 else named
    if len(best) == 1:
        return str(best[0])
    what = "several columns of images" if candidates else "no column with the bytes of images"
    raise DataError(
        f"{printable(path)!r} has {what}. Its columns: {_described(schema)}. Expected one column of image "
        "bytes, or of structs with bytes and path as Hugging Face's datasets writes them; --data.path-column names it."
    )


def _described(schema: Any) -> str:
    return some((f"{field.name} ({field.type})" for field in schema), 20)


def _columns(table: Table, shape: _Shape, schema: Any, spec: DataSpec, note: Note) -> Columns:
    usual = shape.names or any(plain(column) in LABEL for column in table.columns)
    for name in schema.names:
        wanted = name in spec.label_column if spec.label_column or usual else plain(name) in LABEL
        if wanted and name != shape.image and table_files.is_nested(schema, name):
            raise DataError(
                f"{printable(table.path)!r}: the label column {name!r} holds {schema.field(name).type}; expected "
                "one class for each image."
            )
    columns = column_choice.choose_beside(table, spec, [c for c in shape.names if c in table.columns], note)
    if columns.labels:
        return columns
    raise DataError(
        f"{printable(table.path)!r} has no column for the label (label, class, category, …), or several that may be "
        f"it; --data.label-column names it. Its columns: {_described(schema)}."
    )


# --- Rows to records --------------------------------------------------------------------------------------


def _table(files: Sequence[str], shapes: Sequence[_Shape], spec: DataSpec) -> Table:
    """Return the cells of all files beside the images, with the names of declared classes in place of numbers."""
    named = (*spec.label_column, spec.split_column, spec.group)
    columns = [c for c in shapes[0].columns if c in named or c in shapes[0].names or _is_short(files[0], c)]
    rows: list[tuple[int, Mapping[str, Any]]] = []
    for path, shape in zip(files, shapes, strict=True):
        for batch in table_files.batches(path, [c for c in columns if c in shape.columns]):
            rows.extend((len(rows) + k, _cells(row, shape)) for k, row in enumerate(batch))
    return Table(files[0] if len(files) == 1 else os.path.dirname(files[0]), columns, rows)


def _is_short(path: str, column: str) -> bool:
    """Return whether a column's first cells are such that they may be labels, splits or groups."""
    if plain(column) in (*LABEL, *SPLIT):
        return True
    cells = [row[column] for row in next(table_files.batches(path, [column]), [])]
    if any(isinstance(value, float) and not value.is_integer() and value == value for value in cells):
        return False  # a measurement
    return all(len(str(value)) <= _LONG for value in cells)


def _cells(row: Mapping[str, Any], shape: _Shape) -> dict[str, Any]:
    found = {}
    for name, value in row.items():
        if isinstance(value, float):  # how whole numbers are written where some are missing
            value = None if value != value else int(value) if value.is_integer() else value
        if isinstance(value, bytes):
            value = value.decode("utf-8", "backslashreplace")
        names = shape.names.get(name, ())
        inside = isinstance(value, int) and 0 <= value < len(names)
        found[name] = names[value] if inside else value
    return found


def _records(
    files: Sequence[str],
    splits: Sequence[str],
    table: Table,
    image: str,
    columns: Columns,
    names: tuple[str, ...],
) -> Iterator[Record]:
    cells = iter(table.rows)
    for path, split in zip(files, splits, strict=True):
        row = 0
        for batch in table_files.batches(path, [image]):
            for record in batch:
                where = f"{printable(path)}, row {row}"
                given = next(cells)[1]
                found = _numbered(given, columns, names, where) or answer(given, columns, split, where)
                found.content, found.name = _image(record[image], where, os.path.dirname(path))
                found.problem = found.problem or ("" if found.content else "no image in its row")
                yield found
                row += 1


def _numbered(row: Mapping[str, Any], columns: Columns, names: Sequence[str], where: str) -> Record | None:
    """Return the record of a row whose class is a number without a name: -1 is what datasets writes for none."""
    value = row[columns.labels[0]]
    if not names or not isinstance(value, int):
        return None
    if value == -1:
        return Record(b"", problem="no label (-1)")
    raise DataError(f"{where}: the label is {value}, but there are names for 0 to {len(names) - 1}.")


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
