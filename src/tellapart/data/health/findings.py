"""What a person should know about a data set, in sentences: the advice names flags of the spec.

Reads no file and measures nothing: everything comes from the `Health` and the samples.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tellapart.contract.deep import likely_range, uses_little
from tellapart.data.health.result import Finding, Group, Health, Level
from tellapart.data.samples import Samples
from tellapart.data.sources import lookalikes

# code -> what was found, and what to do about it
TEXTS: dict[str, tuple[str, str]] = {
    "no-images": ("No image can be read.", "Check the path and the format of the data."),
    "one-class": ("Fewer than two classes have images.", "A classifier needs two or more."),
    "no-train": ("There is no train split.", "Put images under train/CLASS/."),
    "class-empty": ("No readable image at all of: {names}.", "Add images, or remove the class."),
    "class-not-in-train": (
        "No image in train of: {names}.",
        "The network cannot learn what it never sees: add images to train, or take the class out.",
    ),
    "class-missing": (
        "No image in {split} of: {names}.",
        "These classes are not measured on {split}; move some of their images there.",
    ),
    "classes-alike": (
        "{count} of names that look alike.",
        "Each counts as a class of its own; if they are one class, give them one name.",
    ),
    "class-missing-value": (
        "A class is named like a missing value: {names}.",
        "If these images have no label, take them out of the data.",
    ),
    "imbalance": (
        "Classes are unequal in train: {most} has {high:,} images, {least} {low:,} ({ratio:.1f} times).",
        "From 5 times on, training balances them by itself: with class weights, and the epoch by balanced accuracy. "
        "Otherwise try --training.class-weights {weights} or --training.sampling oversample.",
    ),
    "small-class": (
        "Fewer than 20 images in train of: {names}.",
        "Add images; until then use pretrained weights with --model.finetune head.",
    ),
    "small-split": (
        "{split} has {count} images: an accuracy of 90\u00a0% on them may be off by {points:.1f} points.",
        "",
    ),
    "leakage-exact": (
        "{count} in more than one split, byte for byte.",
        "The measured accuracy will be too good. Remove the copies, or keep them together with --data.group.",
    ),
    "leakage-near": (
        "{count} in more than one split, nearly unchanged (saved again, cropped, mirrored, the next of a burst).",
        "The measured accuracy will be too good. Remove the copies, or keep them together: --data.copies near where "
        "the splits are not the source's own, else --data.group.",
    ),
    "labels-exact": (
        "{count} with different labels, byte for byte the same.",
        "One of the labels is wrong: look at them and keep one copy.",
    ),
    "labels-near": (
        "{count} with different labels, nearly the same.",
        "One of the labels may be wrong: look at them.",
    ),
    "duplicates": (
        "{count} or near copies within a split.",
        "Harmless in small numbers; they count double in training and in the figures.",
    ),
    "search-stopped": (
        "So many images look alike that not all pairs could be compared.",
        "The list of near duplicates may be incomplete.",
    ),
    "unreadable": (
        "{count} cannot be read.",
        "Training skips them and lists them in bad-images.csv (--data.on-bad-image error stops instead).",
    ),
    "unusable": (
        "The reader skipped {count}.",
        "Mend or remove them; training skips them and lists them in bad-images.csv.",
    ),
    "grey": (
        "{count} greyscale among colour images.",
        "They become three equal channels. Check whether most of them are in one class.",
    ),
    "unused-range": (
        "{count} of more than 8 bits with no number above {largest:,.0f} of 65,535: they become nearly black.",
        "If that is the full range of the sensor, train with --input.range {range}, or --input.range max.",
    ),
    "rotated": ("{count} turned by EXIF data.", "They are turned upright, both here and in training."),
    "extension": (
        "{count} with an extension that is not the format's.",
        "They are read by their content; other programs may fail to open them.",
    ),
    "tiny": (
        "{count} far smaller than the rest.",
        "Enlarging them blurs them; check whether they belong here.",
    ),
    "conflicts": (
        "{count} with more than one label in the source.",
        "Keep one label, or make one sample of each box with --data.boxes crop.",
    ),
    "suspects": (
        "{count} unlike the rest, the most unusual first.",
        "Look at them: charts, placeholders and blank images do not belong here.",
    ),
}


SEVERAL: dict[str, tuple[str, str]] = {
    "imbalance": (
        "Labels are unequal in train: {most} is on {high:,} images, {least} on {low:,} ({ratio:.1f} times).",
        "Try --training.class-weights inverse; the best epoch is chosen by the mean over the labels already.",
    ),
    "small-split": (
        "{split} has {count} images: thresholds and the figures of rare labels are uncertain.",
        "",
    ),
    "labels-exact": (
        "{count} with different labels, byte for byte the same.",
        "One may lack a label of the other: look at them and keep one copy.",
    ),
    "labels-near": (
        "{count} with different labels, nearly the same.",
        "One may lack a label of the other: look at them.",
    ),
    "unlabelled": (
        "{count} without any label.",
        "They count as images in which none of the classes is: right if somebody looked, wrong if nobody did.",
    ),
}
"""What is said instead where an image can have several labels."""


def _finding(level: Level, code: str, paths: Iterable[str] = (), **values: Any) -> Finding:
    message, advice = (text.format(**values) for text in TEXTS[code])
    return Finding(level, code, message, advice, tuple(paths))


def _of(health: Health, level: Level, code: str, paths: Iterable[str] = (), **values: Any) -> Finding:
    """Return a finding whose words depend on whether an image can have several labels."""
    if health.images is None or code not in SEVERAL:
        return _finding(level, code, paths, **values)
    message, advice = (text.format(**values) for text in SEVERAL[code])
    return Finding(level, code, message, advice, tuple(paths))


def judge(health: Health, samples: Samples) -> Iterator[Finding]:
    """Yield everything worth knowing, in no order of gravity; ``health`` has no findings yet."""
    if not len(health.rows):
        yield _finding("error", "no-images")
    else:
        yield from _class_findings(health)
        yield from _name_findings(health)
        yield from _balance_findings(health)
        if health.unlabelled:
            yield _of(health, "info", "unlabelled", count=counted(health.unlabelled, "image"))
    yield from _leakage_findings(health, has_boxes=samples.boxes is not None)
    yield from _file_findings(health, samples)
    if samples.conflicts:
        lines = [f"{conflict.path}: {', '.join(conflict.labels)}" for conflict in samples.conflicts]
        yield _finding("warning", "conflicts", lines, count=counted(len(lines), "image"))
    if samples.unusable:
        lines = [f"{item.path}: {item.reason}" for item in samples.unusable]
        yield _finding(
            "warning",
            "unusable",
            lines,
            count=counted(len(lines), "image or annotation", "images or annotations"),
        )
    if health.suspects:
        lines = [f"{suspect.image.path}: {', '.join(suspect.reasons)}" for suspect in health.suspects]
        yield _finding("info", "suspects", lines, count=counted(len(lines), "image"))


def _class_findings(health: Health) -> Iterator[Finding]:
    total = health.total()
    if np.count_nonzero(total) < 2:
        yield _finding("error", "one-class")
    if "train" not in health.counts:
        yield _finding("error", "no-train")
    empty = [_isolated(name) for name, whole in zip(health.classes, total, strict=True) if not whole]
    if empty:
        yield _finding("error", "class-empty", names=_some(empty))
    for split, counts in health.counts.items():
        rows = zip(health.classes, counts, total, strict=True)
        missing = [_isolated(name) for name, count, whole in rows if whole and not count]
        if missing and split == "train":
            yield _finding("error", "class-not-in-train", names=_some(missing))
        elif missing:
            yield _finding("warning", "class-missing", split=split, names=_some(missing))


def _name_findings(health: Health) -> Iterator[Finding]:
    groups = lookalikes.look_alike(health.classes)
    if groups:
        total = dict(zip(health.classes, health.total().tolist(), strict=True))
        lines = [
            f"{lookalikes.spelt(group)}: {', '.join(f'{total[name]:,}' for name in group)} images"
            for group in groups
        ]
        yield _finding("warning", "classes-alike", lines, count=counted(len(groups), "group"))
    missing = lookalikes.missing_values(health.classes)
    if missing:
        yield _finding("warning", "class-missing-value", names=_some([repr(name) for name in missing]))


def _balance_findings(health: Health) -> Iterator[Finding]:
    train = np.array(health.counts.get("train", ()), dtype=np.int64)
    present = np.flatnonzero(train)
    if len(present) > 1:
        most, least = present[np.argmax(train[present])], present[np.argmin(train[present])]
        ratio = train[most] / train[least]
        if ratio >= 2:
            yield _of(
                health,
                "warning" if ratio >= 5 else "info",
                "imbalance",
                most=_isolated(health.classes[most]),
                high=train[most],
                least=_isolated(health.classes[least]),
                low=train[least],
                ratio=ratio,
                weights="effective" if ratio >= 50 else "inverse",
            )
    small = [f"{_isolated(health.classes[k])} ({train[k]})" for k in present if train[k] < 20]
    if small:
        yield _finding("warning", "small-class", names=_some(small))
    for split in ("val", "test"):
        count = health.in_splits().get(split, 0)
        if 0 < count < 400:
            points = 100 * 1.96 * (0.9 * 0.1 / count) ** 0.5  # half of the normal 95 % interval
            yield _of(health, "info", "small-split", split=split, count=count, points=points)


def _leakage_findings(health: Health, has_boxes: bool) -> Iterator[Finding]:
    for field, code in (("split", "leakage"), ("label", "labels")):
        exact = [group for group in health.groups if group.differing(field, same_bytes=True)]
        near = [g for g in health.groups if g.differing(field, False) and not g.differing(field, True)]
        if exact and not (field == "label" and has_boxes):
            count = counted(len(exact), "picture")
            yield _of(health, "error", f"{code}-exact", _copies(exact, field), count=count)
        if near and not (field == "label" and has_boxes):
            count = counted(len(near), "picture")
            yield _of(health, "warning", f"{code}-near", _copies(near, field), count=count)
    inside = [g for g in health.groups if not g.differing("split", False) and not g.differing("label", False)]
    if inside:
        extra = sum(len(group.images) - 1 for group in inside)
        count = counted(extra, "further copy", "further copies")
        yield _finding("info", "duplicates", _copies(inside), count=count)
    if not health.complete:
        yield _finding("info", "search-stopped")


def _file_findings(health: Health, samples: Samples) -> Iterator[Finding]:
    if health.bad:
        lines = [f"{item.image.path}: {item.reason}" for item in health.bad]
        yield _finding("warning", "unreadable", lines, count=counted(len(lines), "image"))
    if health.deep and uses_little(health.largest):
        count = counted(len(health.deep), "image")
        yield _finding(
            "warning",
            "unused-range",
            (image.path for image in health.deep),
            count=count,
            largest=health.largest,
            range=likely_range(health.largest),
        )
    listed = {"grey": health.grey, "rotated": health.rotated, "extension": health.wrong_extension}
    for code, images in listed.items():
        if images:
            paths = (image.path for image in images)
            yield _finding("info", code, paths, count=counted(len(images), "image"))
    if len(health.rows):
        sides = np.stack([health.widths, health.heights], axis=1)
        short = sides.min(axis=1)
        tiny = np.flatnonzero(short < max(16, np.median(short) / 8))
        if 0 < len(tiny) < len(short) / 2:
            tiny = tiny[np.argsort(short[tiny], kind="stable")]
            paths = (samples.paths[health.rows[n]] for n in tiny)
            sizes = (f"{width}x{height}" for width, height in sides[tiny])
            lines = [f"{path}: {size}" for path, size in zip(paths, sizes, strict=True)]
            yield _finding("info", "tiny", lines, count=counted(len(lines), "image"))


def counted(number: int, noun: str, plural: str = "") -> str:
    """Spell a number of things: 1 image, 2,000 images."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _some(names: Sequence[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _isolated(name: str) -> str:
    """Keep a right-to-left name from turning the words around it (Unicode's first strong isolate)."""
    turns = any(unicodedata.bidirectional(character) in ("R", "AL") for character in name)
    return f"\u2068{name}\u2069" if turns else name


def _copies(groups: Sequence[Group], field: str = "", limit: int = 4) -> Iterator[str]:
    """Yield a line for each group; with ``field`` ("split" or "label") its different values come first."""
    for group in groups:
        values = [str(getattr(image, field)) if field else "" for image in group.images]
        first = {value: n for n, value in reversed(list(enumerate(values)))}
        order = sorted(range(len(values)), key=lambda n: (first[values[n]] != n, n))
        marks = [f" ({_isolated(value)})" if field else "" for value in values]
        shown = [group.images[n].path + marks[n] for n in order[:limit]]
        rest = len(values) - len(shown)
        changes = f" [{', '.join(group.changes)}]" if group.changes else ""
        yield " = ".join([*shown, f"{rest:,} more"] if rest else shown) + changes
