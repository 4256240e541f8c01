"""Splits that a source does not have, or not all of them: filled in, with groups and copies of a picture kept together.

Knows nothing of how a source is read.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tellapart.data.samples import LEFT_OUT
from tellapart.data.sources import copies, folds, splits
from tellapart.data.sources.listing import Listing, many, some
from tellapart.data.sources.notes import Notes
from tellapart.errors import DataError
from tellapart.spec import DataSpec


def groups_of(listing: Listing, spec: DataSpec, notes: Notes) -> list[str] | None:
    """Return the group of each row: a list's column, or what the pattern finds in the path; else its own path."""
    groups = listing.groups
    if groups is None and spec.group:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated spellings of patterns still work
                pattern = re.compile(spec.group)
        except re.error as error:
            raise DataError(
                f"data.group is {spec.group!r}, which is not a regular expression: {error}."
            ) from error
        groups = []
        for path in listing.paths:
            match = pattern.search(path)
            groups.append("" if match is None else (match[1] if pattern.groups else match[0]) or "")
        if not any(groups):
            raise DataError(
                f"data.group is {spec.group!r}, which matches no path; the first is {listing.paths[0]!r}."
            )
    if groups is None:
        return None
    alone = groups.count("")
    if alone:
        notes(f"{many(alone, 'image')} without a group count as groups of their own.")
    return [group or path for group, path in zip(groups, listing.paths, strict=True)]


def fill(
    listing: Listing, labels: npt.NDArray[Any], groups: list[str] | None, spec: DataSpec, notes: Notes
) -> None:
    """Give the rows without a split one, and tell which splits there are."""
    column = listing.splits
    if any(column):
        unknown = column.count("")
        if unknown:
            notes(f"{many(unknown, 'image')} without a split count as train.")
            column = listing.splits = [split or "train" for split in column]
        if "train" in column and "val" not in column and spec.val_fraction > 0:
            rows = np.flatnonzero(_there(listing) & (as_objects(column) == "train"))
            _deal(listing, labels, groups, rows, (spec.val_fraction, 0.0), spec, notes)
        if groups is not None and (cut := splits.crossing(groups, listing.splits)):
            notes.warn(f"The source's own splits divide {many(cut, 'group')}: the figures may be too good.")
    else:
        rows = np.flatnonzero(_there(listing))
        listing.splits = ["train"] * len(column)
        _deal(listing, labels, groups, rows, (spec.val_fraction, spec.test_fraction), spec, notes)
        taken = [
            f"{listing.splits.count(split):,} as {split}"
            for split in ("val", "test")
            if split in listing.splits
        ]
        if taken:
            notes(
                f"The source has no splits: held out {' and '.join(taken)} of its {many(len(rows), 'image')}."
            )
    _report_splits(listing.splits, notes)


def fill_fold(
    listing: Listing,
    labels: npt.NDArray[Any],
    groups: list[str] | None,
    spec: DataSpec,
    notes: Notes,
    classes: Sequence[str],
) -> None:
    """Make the fold named in the spec the test split, and split the others into train and val.

    Folds are of all images but those of the source's own test split, which is left as it is.
    """
    chosen = spec.folds()
    assert chosen is not None
    number, count = chosen
    own = as_objects(listing.splits) == "test"
    rows = np.flatnonzero(_there(listing) & ~own)
    units = copies.units(listing, labels, groups, rows, spec, notes, notes.warn)
    held = folds.assign(labels[rows], units, count, spec.split_seed) == number - 1
    rest = np.flatnonzero(~held)
    together = [units[n] for n in rest.tolist()]
    paths = [listing.paths[row] for row in rows[rest].tolist()]
    alone = len(set(together)) == len(together)
    dealt = splits.assign(
        labels[rows[rest]], paths, spec.val_fraction, 0.0, spec.split_seed, None if alone else together
    )
    column = np.where(own, "test", "train").astype(object)
    column[rows[held]] = "test"
    column[rows[rest]] = dealt
    listing.splits = column.tolist()
    few = folds.scarce(labels[rows], units, count)
    if few:
        names = [classes[k] for k in few]
        notes.warn(
            f"{many(len(few), 'class', 'classes')} with fewer images, or groups of them, than the {count} folds, so "
            f"that some folds hold out none: {some(names, 6)}."
        )
    apart = (
        f"; the source's own test split ({many(int(own.sum()), 'image')}) is in no fold" if own.any() else ""
    )
    notes(f"{count} folds of {many(len(rows), 'image')}{apart}.")


def leave_out(
    listing: Listing, labels: npt.NDArray[Any], groups: list[str] | None, spec: DataSpec, notes: Notes
) -> None:
    """Take the fold of the training split that the spec names out of it (`LEFT_OUT`).

    Images of a class with fewer images, or groups of them, than there are folds stay in it.
    """
    chosen = spec.left_out()
    if chosen is None:
        return
    number, count = chosen
    rows = np.flatnonzero(_there(listing) & (as_objects(listing.splits) == "train"))
    units = copies.units(listing, labels, groups, rows, spec, lambda text: None, lambda text: None)
    held = folds.assign(labels[rows], units, count, spec.split_seed) == number - 1
    few = folds.scarce(labels[rows], units, count)
    if few:
        theirs = labels[rows][:, few].any(axis=1) if labels.ndim == 2 else np.isin(labels[rows], few)
        rare = {units[n] for n in np.flatnonzero(theirs).tolist()}
        held &= np.fromiter((unit not in rare for unit in units), bool, len(units))
    for row in rows[held].tolist():
        listing.splits[row] = LEFT_OUT
    notes(f"Fold {number} of {count} of the training split is left out: {many(int(held.sum()), 'image')}.")


def _there(listing: Listing) -> npt.NDArray[np.bool_]:
    """Return which rows have a file: missing images take no place in a split."""
    return np.fromiter((path not in listing.missing for path in listing.paths), bool, len(listing.paths))


def _deal(
    listing: Listing,
    labels: npt.NDArray[Any],
    groups: list[str] | None,
    rows: npt.NDArray[np.intp],
    fractions: tuple[float, float],
    spec: DataSpec,
    notes: Notes,
) -> None:
    dealt = copies.deal(listing, labels, groups, rows, fractions, spec, notes, notes.warn)
    for row, split in zip(rows.tolist(), dealt.tolist(), strict=True):
        listing.splits[row] = split


def _report_splits(column: Sequence[str], notes: Notes) -> None:
    present = set(column)
    if "train" not in present:
        notes("There is no train split: this data can only be used for evaluation.")
    elif "val" not in present:
        notes("There is no validation split: training uses all images and keeps the last epoch.")
    if "test" not in present and "val" in present:
        notes("There is no test split: the final figures will be those of validation.")


def as_objects(items: Sequence[str]) -> npt.NDArray[np.object_]:
    """Return a column of the table of samples."""
    column = np.empty(len(items), dtype=object)
    column[:] = items
    return column
