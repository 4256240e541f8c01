"""Files that hold many images with their labels: Parquet, Hugging Face's saved data sets, WebDataset shards.

Their contents are written once into the cache folder, as plain image files and an index; from then on they are a
listing like any other. Formats that are not read are known by name in `unread`. Knows nothing of splits that the source
does not give, and decodes no image.
"""

from __future__ import annotations

import os

from tellapart.data.sources.containers import tables, webdataset
from tellapart.data.sources.folders.walk import Tree
from tellapart.data.sources.listing import Listing, Note, split_of_stem
from tellapart.data.sources.lists import table_files
from tellapart.spec import DataSpec


def _is_table(path: str) -> bool:
    return table_files.is_table(path) and (
        not path.lower().endswith(".parquet") or table_files.holds_images(path)
    )


def open_file(path: str, spec: DataSpec, note: Note) -> Listing | None:
    """Return the listing of a file that contains images with labels, None if it does not."""
    folder, name = os.path.split(path)
    if spec.format == "table" or (spec.format == "auto" and _is_table(path)):
        return tables.read_tables(folder, [(name, split_of_stem(name))], spec, note)
    shard = spec.format == "webdataset"
    if shard or (spec.format == "auto" and webdataset.is_tar(path) and webdataset.is_webdataset(path, spec)):
        return webdataset.read_shards(folder, [name], spec, note)
    return None


def open_folder(tree: Tree, spec: DataSpec, note: Note) -> Listing | None:
    """Return the listing of a folder that consists of Parquet or Arrow files, or of shards; else None."""
    found = tables.tables_of(tree) if spec.format in ("auto", "table") else []
    if found:
        return tables.read_tables(tree.root, found, spec, note)
    if spec.format not in ("auto", "webdataset") or tree.images:
        return None
    shards = [path for path in tree.others if webdataset.is_tar(path)]
    if shards and webdataset.is_webdataset(os.path.join(tree.root, shards[0]), spec):
        return webdataset.read_shards(tree.root, shards, spec, note)
    return None
