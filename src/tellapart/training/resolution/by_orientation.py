"""Rules about left and right: whether training may mirror the images.

By the name of a known data set, by the names of the classes, and by `mirroring`, which looks at the images. Nothing
that is not said here is ever turned upside down or on its side by default.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tellapart.spec import AugmentSpec
from tellapart.training.resolution.facts import DataFacts

KNOWN = ("digits", "mnist", "emnist", "kmnist", "qmnist", "usps", "svhn", "gtsrb")
_SIDES = (
    ("left", "right"), ("links", "rechts"), ("linke", "rechte"), ("gauche", "droite"), ("izquierda", "derecha"),
    ("izquierdo", "derecho"), ("sinistra", "destra"), ("esquerda", "direita"), ("lewo", "prawo"), ("lewa", "prawa"),
    ("clockwise", "counterclockwise"), ("clockwise", "anticlockwise"), ("левый", "правый"), ("лево", "право"),
    ("hidari", "migi"), ("左", "右"), ("왼쪽", "오른쪽"), ("←", "→"), ("⇐", "⇒"), ("⬅", "➡"), ("◀", "▶"), ("<-", "->"),
)  # fmt: skip
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@dataclass(frozen=True)
class Sided:
    """Why images must not be mirrored; ``signs``: they are digits or letters, so turning them a little is harmless."""

    reason: str
    signs: bool = False


def unmirrored(wanted: AugmentSpec, data: DataFacts) -> tuple[AugmentSpec, dict[str, str]]:
    """Return what is wanted without mirroring where it does harm, and the reason of each field that is filled in."""
    if wanted.hflip is not None:
        return wanted, {}
    found = sided(data)
    if found is None:
        return wanted, {}
    values: dict[str, Any] = {"hflip": 0.0}
    if found.signs:
        values |= {"rotation": 10.0, "scale": (0.9, 1.1)}
    free = {name: value for name, value in values.items() if getattr(wanted, name) is None}
    return dataclasses.replace(wanted, **free), {
        **dict.fromkeys(free, "in place of mirroring"),
        "hflip": found.reason,
    }


def sided(data: DataFacts) -> Sided | None:
    """Return why training must not mirror these images, or None.

    Names of classes that differ in a direction decide by themselves. Single digits and letters do, unless the images
    were measured and mirroring changes nothing: folders are often just numbered.
    """
    if data.name in KNOWN:
        return Sided("a mirrored digit is another sign, or none", signs=True)
    pair = directions(data.classes)
    if pair:
        return Sided(f"{pair[0]} and {pair[1]} are classes, and mirroring swaps them")
    seen = data.mirroring()
    if are_signs(data.classes) and not (seen and seen.harmless):
        return Sided("the classes are digits or letters, which mirrored are others, or none", signs=True)
    return Sided(seen.words()) if seen and seen.matters else None


def directions(classes: Sequence[str]) -> tuple[str, str] | None:
    """Return two classes whose names are the same but for a direction (turn-left, turn-right), if there are any."""
    known = {_plain(name): name for name in classes}
    for name in classes:
        for one, other in _SIDES:
            opposite = known.get(_plain(name).replace(one, other), name) if one in _plain(name) else name
            if opposite != name:
                return name, opposite
    return None


def are_signs(classes: Sequence[str]) -> bool:
    """Whether at least half of the classes, and two, are single digits or letters, or digits in words."""
    single = [name for name in map(_plain, classes) if re.fullmatch(r"[0-9a-z]", name) or name in _NUMBERS]
    return len(single) >= 2 and 2 * len(single) >= len(classes)


def _plain(name: str) -> str:
    folded = unicodedata.normalize("NFKD", name.casefold())
    return "".join(letter for letter in folded if not unicodedata.combining(letter)).strip()
