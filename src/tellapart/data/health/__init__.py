"""The health of a data set: what is in it, what is broken, repeated, leaking, unbalanced or odd.

One pass reads every file once with a pool of threads and keeps some 1,300 bytes of numbers for each image, so
memory stays bounded for any number of images (200,000: about 350 MB). Everything is judged without a model.
Knows nothing of training; its advice names flags of the spec. Pages with pictures are made elsewhere.

`result` holds what is found, `measure` the numbers of one image, `near_copies` (candidates), `alignment` (their
comparison), `duplicates`, `suspects` and `findings` what is judged by them, `text` the words for a terminal;
`examination` puts them together.
"""

from tellapart.data.health.examination import examine
from tellapart.data.health.findings import TEXTS
from tellapart.data.health.measure import FEATURES, Table
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
    "FEATURES",
    "MAX_SUSPECTS",
    "SUSPECT_SCORE",
    "TEXTS",
    "Bad",
    "Finding",
    "Group",
    "Health",
    "Image",
    "Level",
    "Pixels",
    "Read",
    "Suspect",
    "Table",
    "examine",
    "render",
    "robust_scores",
]
