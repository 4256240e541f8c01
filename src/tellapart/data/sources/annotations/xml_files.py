"""XML annotations: Pascal VOC, a file for each image, and CVAT for images, one file for all."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.parsers import expat

from tellapart.data.sources.annotations.entries import (
    NO_BOX,
    Box,
    Entry,
    Files,
    around,
    attempt,
    label_of,
    number,
    turned,
)
from tellapart.data.sources.listing import clean_label, printable, split_name
from tellapart.errors import DataError


def root_name(path: str) -> str:
    """Return "annotation" (VOC) or "annotations" (CVAT) for an XML file that begins so, else ""."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(4096)
    except OSError:
        return ""
    if b"<" not in head.replace(b"\0", b"") and b"\x4c" in head:
        head = head.decode("cp037").encode()
    head = head.replace(b"\0", b"")
    place = head.find(b"<annotation")
    if place < 0:
        return ""
    return "annotations" if head[place + 11 : place + 12] == b"s" else "annotation"


def parse(text: str, path: str) -> ElementTree.Element:
    """Return the root of XML. A document type or an entity is refused: entities can expand without bound."""

    def refuse(*_: object) -> None:
        raise DataError(
            f"{printable(path)!r} declares a document type or entities, which annotations do not need."
        )

    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate("utf-8")  # whatever it declares: it is already decoded
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(text.encode("utf-8"), True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise DataError(f"{printable(path)!r} is not well-formed XML: {error}.") from error
    return builder.close()


def read_voc(files: Files, source: str) -> Iterator[Entry]:
    """Yield the entry of a Pascal VOC file (VOC devkit, 2012; boxes are xmin, ymin, xmax, ymax in pixels)."""
    path = files.path(source)
    entry = Entry(source, "", own=True)

    def read() -> None:
        tree = parse(files.xml(source), path)
        entry.image = (tree.findtext("filename") or "").strip()
        entry.folder = (tree.findtext("folder") or "").strip()
        for item in tree.iter("object"):
            label = clean_label(item.findtext("name") or "")
            box = item.find("bndbox")
            if not label:
                continue
            where = f"{printable(path)}, object {label!r}"
            entry.objects.append((label, NO_BOX if box is None else _voc_box(box, where)))

    yield attempt(entry, read)


def _voc_box(box: ElementTree.Element, where: str) -> Box:
    x0, y0, x1, y1 = (number(box.findtext(name), where) for name in ("xmin", "ymin", "xmax", "ymax"))
    return x0, y0, x1, y1


def read_cvat(files: Files, source: str) -> Iterator[Entry]:
    """Yield the entries of CVAT XML 1.1 "for images": tags are labels of the image, shapes have boxes.

    ``subset`` gives the split. Tracks, of CVAT "for video", name no image and are refused.
    """
    path = files.path(source)
    tree = parse(files.xml(source), path)
    images = tree.findall("image")
    if not images and tree.find("track") is not None:
        raise DataError(
            f"{printable(path)!r} is CVAT for video, whose tracks name no image files. Export the task as "
            '"CVAT for images 1.1".'
        )
    for image in images:
        entry = Entry(source, image.get("name", "").strip(), split=split_name(image.get("subset", "")))
        where = f"{printable(path)}, image {printable(entry.image)!r}"

        def read(image: ElementTree.Element = image, entry: Entry = entry, where: str = where) -> None:
            for item in image:
                if item.tag == "tag":
                    entry.tags.append(label_of(item.get("label"), where))
                elif item.get("label") is not None and item.get("outside") != "1":
                    entry.objects.append((label_of(item.get("label"), where), _cvat_box(item, where)))

        yield attempt(entry, read)


def _cvat_box(item: ElementTree.Element, where: str) -> Box:
    def value(name: str) -> float:
        return number(item.get(name), f"{where}, {item.tag} {name}")

    if item.tag == "box":
        x0, y0, x1, y1 = (value(name) for name in ("xtl", "ytl", "xbr", "ybr"))
        degrees = number(item.get("rotation", "0"), where)
        return turned((x0, y0, x1, y1), degrees, ((x0 + x1) / 2, (y0 + y1) / 2))
    if item.tag == "ellipse":
        x, y, across, down = (value(name) for name in ("cx", "cy", "rx", "ry"))
        return x - across, y - down, x + across, y + down
    if item.tag == "mask":
        left, top = value("left"), value("top")
        return left, top, left + value("width"), top + value("height")
    if item.tag in ("polygon", "polyline", "points"):
        pairs = [point.split(",") for point in (item.get("points") or "").split(";") if point.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise DataError(f"{where}: the points of a {item.tag} are not x,y;x,y;…")
        return around((pair[0] for pair in pairs), (pair[1] for pair in pairs), where)
    return NO_BOX  # a cuboid or a skeleton: its label counts
