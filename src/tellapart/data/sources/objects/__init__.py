"""Python objects as data instead of a path: data sets, frames, arrays and lists, as one `Listing` like any other.

`kinds` knows what an object is, `items` reads images out of it, `frames` reads tables of paths, `labels` names
classes, and `collection` puts the splits (train, val, test) together. pandas, polars, datasets and torchvision are
never imported here: their objects have already loaded them.
"""

from __future__ import annotations

from tellapart.data.sources.objects.collection import MARK, Objects, explain, is_objects, take

__all__ = ["MARK", "Objects", "explain", "is_objects", "take"]
