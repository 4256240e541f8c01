"""Data sets with annotation files: from the entries of a format's parser to one table.

One image-level label for each image, or one row for each box. An image with two labels is a conflict,
reported and left out, never decided here. Annotations that cannot be used are listed with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from tellapart.data.samples import Unusable
from tellapart.data.sources.annotations import json_files, label_studio, retinanet, via, xml_files, yolo
from tellapart.data.sources.annotations.detection import TITLES, file_format
from tellapart.data.sources.annotations.entries import NO_BOX, Entry, Files, Labelled
from tellapart.data.sources.annotations.given_splits import image_lists, image_sets, one_split
from tellapart.data.sources.annotations.index import ImageIndex
from tellapart.data.sources.annotations.tables import crops, images, sets
from tellapart.data.sources.folders.walk import Tree, extension
from tellapart.data.sources.listing import (
    Listing,
    Note,
    many,
    printable,
    some,
    split_of_folders,
    split_of_stem,
)
from tellapart.errors import DataError, SpecError
from tellapart.spec import DataSpec

_TEXTS = (".xml", ".json", ".csv", ".tsv", ".txt", ".names", ".labels", ".yaml", ".yml")
_STALE = 0.05  # share of the annotations that may name a different image than the one with their own name


@dataclass
class _Gathered:
    """What the annotations say about the images that exist, and what is wrong with the rest."""

    objects: dict[str, list[Labelled]] = field(default_factory=lambda: defaultdict(list))
    tags: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    opinions: dict[str, list[frozenset[str]]] = field(default_factory=lambda: defaultdict(list))
    splits: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    relative: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)
    stale: list[tuple[str, str, str]] = field(default_factory=list)
    bad: list[Unusable] = field(default_factory=list)
    count: int = 0


def read_annotations(tree: Tree, kind: str, spec: DataSpec, note: Note, only: str = "") -> Listing:
    """Return the listing of a folder with annotation files of format ``kind`` (``only``: of just that file).

    Splits come from folders named train, val, test, VOC's ``ImageSets/Main``, CVAT's subsets, or the name of a
    file of many images. Raises DataError if no annotation can be used, or most cannot.
    """
    files = Files(tree.root, spec.encoding, note)
    files.texts.survey(files.path(source) for source in tree.others if extension(source) in _TEXTS)
    found = _gather(tree, _entries(tree, [only] if only else tree.others, kind, files, spec, note), spec)
    splits = _splits(found, tree, files, kind, note)
    files.texts.finish()
    _check(found, tree, kind)
    if not only:
        told = {item.path for item in found.bad}  # with their reason
        bare = sum(image not in found.objects and image not in told for image in tree.images)
        if bare:
            note(f"Skipped {many(bare, 'image')} without an annotation.")
    _tell(found, kind, note)
    listing = Listing(root=tree.root, bad=found.bad)
    objects = _chosen_labels(found, spec.boxes == "crop", note)
    if spec.labels == "multi":
        if spec.boxes == "crop":
            raise SpecError(
                "data.labels multi is for whole images: with data.boxes crop each box has one label."
            )
        return sets(listing, objects, splits, note, found.opinions, spec.label_separator)
    make = crops if spec.boxes == "crop" else images
    return make(listing, objects, splits, found.relative, note)


def _splits(found: _Gathered, tree: Tree, files: Files, kind: str, note: Note) -> dict[str, str]:
    """Return the split of each image: from its folder or annotation, otherwise from lists beside them."""
    beside: dict[str, set[str]] = {}
    if kind == "voc":
        beside = image_sets(tree, files, found.splits)
    if kind == "yolo":
        beside = image_lists(tree, files)
    given = {image: splits - {""} or beside.get(image, {""}) for image, splits in found.splits.items()}
    return one_split(given, note)


def _entries(
    tree: Tree, sources: Iterable[str], kind: str, files: Files, spec: DataSpec, note: Note
) -> Iterator[Entry]:
    if kind in ("voc", "labelme", "yolo"):
        yield from _of_images(tree, sources, kind, files, note)
        return
    wanted = spec.label_column
    readers: dict[tuple[str, str], Callable[[str], Iterator[Entry]]] = {
        ("coco", ".json"): lambda source: json_files.read_coco(files, source, spec.labels == "multi"),
        ("createml", ".json"): lambda source: json_files.read_createml(files, source),
        ("cvat", ".xml"): lambda source: xml_files.read_cvat(files, source),
        ("label-studio", ".json"): lambda source: label_studio.read_json(files, source, wanted),
        ("label-studio", ".csv"): lambda source: label_studio.read_csv(files, source, wanted),
        ("label-studio", ".tsv"): lambda source: label_studio.read_csv(files, source, wanted),
        ("via", ".json"): lambda source: via.read_json(files, source, wanted),
        ("via", ".csv"): lambda source: via.read_csv(files, source, wanted),
        ("retinanet", ".csv"): lambda source: retinanet.read_csv(files, source),
    }
    several = list(sources)
    damaged: DataError | None = None
    any_read = False
    for source in several:
        reader = readers.get((kind, extension(source)))
        if reader is None:
            continue
        if extension(source) != ".json" and len(several) > 1 and file_format(files.path(source)) != kind:
            continue
        try:
            entries = list(reader(source))
        except DataError as error:
            if file_format(files.path(source)) == kind:
                raise
            damaged = damaged or error  # and of something else, if there is better
            continue
        any_read = any_read or bool(entries)
        split = split_of_stem(source) if len(entries) > 1 else ""
        for entry in entries:
            entry.split = entry.split or split
            yield entry
    if damaged is not None and not any_read:
        raise damaged


def _of_images(tree: Tree, sources: Iterable[str], kind: str, files: Files, note: Note) -> Iterator[Entry]:
    """Yield the entries of formats with a file for each image; a damaged file beside its image is one too."""
    index = ImageIndex(tree.images)
    names = yolo.Names(tree, files, note) if kind == "yolo" else None
    end = {"voc": ".xml", "labelme": ".json", "yolo": ".txt"}[kind]
    for source in sources:
        path = files.path(source)
        if extension(source) != end:
            continue
        paired = bool(index.beside_or_twin(source))
        if kind == "voc" and (xml_files.root_name(path) == "annotation" or paired):
            yield from xml_files.read_voc(files, source)
        elif kind == "labelme" and (paired or file_format(path) == kind):
            yield from (
                entry for entry in json_files.read_labelme(files, source) if paired or not entry.problem
            )
        elif names is not None and not yolo.is_names(source) and (paired or yolo.looks_like_yolo(path)):
            yield from yolo.read_yolo(files, source, names.of(source))


def _gather(tree: Tree, entries: Iterable[Entry], spec: DataSpec) -> _Gathered:
    index = ImageIndex(tree.images)
    found = _Gathered()
    for entry in entries:
        found.count += 1
        meant = index.find(entry, spec.match)
        image = meant.image
        if meant.several:
            entry.problem = entry.problem or (
                f"{printable(entry.source)} may be of {' or '.join(map(printable, meant.several[:3]))}, and does not "
                "say which."
            )
        if entry.problem:
            found.bad.append(Unusable(image or entry.image or entry.source, entry.problem))
        elif not image:
            found.missing.append(entry.image or entry.source)
        else:
            if meant.other:
                found.stale.append((entry.source, meant.other, image))
            found.objects[image] += entry.objects
            found.tags[image] += entry.tags
            found.opinions[image] += entry.opinions
            found.splits[image].add(split_of_folders(image) or split_of_folders(entry.source) or entry.split)
            found.relative |= {image} if entry.relative else set()
    for item in found.bad:  # what another annotation says of it may not be all
        found.objects.pop(item.path, None)
        found.tags.pop(item.path, None)
    stale = [item for item in found.stale if spec.match == "auto"]
    if len(stale) > max(1, _STALE * found.count):
        source, other, image = stale[0]
        raise DataError(
            f"{many(len(stale), 'annotation')} of {found.count:,} name another image than that of their own file's "
            f"name: {printable(source)} says {printable(other)!r}, and {printable(image)!r} lies there too. If images "
            "and annotations were renamed together, --data.match stem takes the image of the same name; --data.match "
            "name takes the one that is named inside."
        )
    return found


def _check(found: _Gathered, tree: Tree, kind: str) -> None:
    if 2 * len(found.bad) > found.count:
        raise DataError(
            f"{len(found.bad):,} of {many(found.count, TITLES[kind] + ' annotation')} cannot be used; the first: "
            f"{found.bad[0].reason}"
        )
    if not found.objects:
        lost = (
            f" The first names {printable(found.missing[0])!r}, which does not exist."
            if found.missing
            else ""
        )
        raise DataError(
            f"No {TITLES[kind]} annotations of images were found in {printable(tree.root)!r}.{lost}"
        )


def _tell(found: _Gathered, kind: str, note: Note) -> None:
    if found.missing:
        note(
            f"Skipped {many(len(found.missing), 'annotation')} whose image is missing: {some(found.missing, 3)}."
        )
    if found.bad:
        note(
            f"Skipped {many(len(found.bad), 'annotation')} that cannot be used, listed with the bad images; the "
            f"first: {found.bad[0].reason}"
        )
    if found.stale:
        source, other, image = found.stale[0]
        note(
            f"{many(len(found.stale), 'annotation')} whose own name and the image named inside differ: the image of "
            f"the same name was taken ({printable(source)} says {printable(other)!r}, taken was {printable(image)!r})."
        )
    note(f"Read as {TITLES[kind]} annotations of {many(len(found.objects), 'image')}.")


def _chosen_labels(found: _Gathered, crop: bool, note: Note) -> dict[str, list[Labelled]]:
    """Return the labels that count: those of boxes for crops, otherwise those of whole images if most have any."""
    objects: dict[str, list[Labelled]] = dict(found.objects)
    tagged = {image: tags for image, tags in found.tags.items() if tags}
    if not tagged:
        return objects
    boxed = {image: labels for image, labels in objects.items() if labels}
    if boxed and (crop or 2 * len(tagged) < len(tagged.keys() | boxed.keys())):
        note(f"Labels of whole images ({many(len(tagged), 'image')} with any) do not count: boxes do.")
        return objects
    names = {tag for tags in tagged.values() for tag in tags}
    other = {label for labels in boxed.values() for label, _ in labels} - names
    if other:
        note(
            f"The labels of whole images count ({some(sorted(names), 5)}), not those of boxes that name something else "
            f"({some(sorted(other), 5)}); --data.boxes crop takes the boxes."
        )
    whole: dict[str, list[Labelled]] = {}
    for image, labels in objects.items():
        kept = [label for label in labels if label[0] in names]
        whole[image] = [(tag, NO_BOX) for tag in tagged[image]] if image in tagged else kept
    return whole
