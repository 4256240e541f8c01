"""The health of a data set: what is in it, what is broken, repeated, leaking, unbalanced or odd.

One pass reads every file once with a pool of threads and keeps some 500 bytes of numbers for each image, so
memory stays bounded for any number of images (200,000: about 200 MB). Everything is judged without a model.
Knows nothing of training; its advice names flags of the spec. Pages with pictures are made elsewhere.

`result` holds what is found, `measure` the numbers of one image, `duplicates`, `suspects` and `findings` what
is judged by them, `text` the words for a terminal; `examination` puts them together.
"""

from tellapart.data.health.duplicates import BANDS, HASH_RADIUS, PAIR_BUDGET, Pairs, near_pairs
from tellapart.data.health.examination import examine
from tellapart.data.health.findings import TEXTS
from tellapart.data.health.measure import FEATURES, Table, dhash
from tellapart.data.health.result import (
    Bad,
    Finding,
    Group,
    Health,
    Image,
    Level,
    Pixels,
    Read,
    Suspect,
)
from tellapart.data.health.suspects import MAX_SUSPECTS, SUSPECT_SCORE, robust_scores
from tellapart.data.health.text import render

__all__ = [
    "BANDS",
    "FEATURES",
    "HASH_RADIUS",
    "MAX_SUSPECTS",
    "PAIR_BUDGET",
    "SUSPECT_SCORE",
    "TEXTS",
    "Bad",
    "Finding",
    "Group",
    "Health",
    "Image",
    "Level",
    "Pairs",
    "Pixels",
    "Read",
    "Suspect",
    "Table",
    "dhash",
    "examine",
    "near_pairs",
    "render",
    "robust_scores",
]
