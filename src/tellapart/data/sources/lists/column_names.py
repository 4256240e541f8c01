"""The usual names of columns, in the languages that lists are written in, and how names are compared.

Knows nothing of what is in a column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PATHS = """
    path filepath file filename image imagepath imagefile imagefilename imagefilepath img imgpath imgfile imgname
    imagename imageid imgid imageindex filenames filepaths imagepaths images picture photo fname uri
    idcode fileid id name 文件名 文件 路径 图片 图像 图片名 图片路径 檔名 圖片 datei dateiname dateipfad bild
    bildname pfad
"""
_LABELS = """
    label labels class classes cls classname category categoryname target labelname breed species dx diagnosis
    choice classid categoryid labelid tag tags finding findinglabels disease celltype emotion expression
    groundtruth gt annotation level grade y type kind genre style artist 标签 类别 分类 標籤 類別 klasse kategorie
    etikett beschriftung
"""
PATH = _PATHS.split()
LABEL = _LABELS.split()
WEAK_LABEL = ("name", "id")
SPLIT = ("split", "subset", "partition")
WEAK_SPLIT = (
    "划分",
    "数据划分",
    "aufteilung",
    "set",
    "fold",
    "usage",
    "phase",
    "dataset",
    "datasplit",
    "stage",
    "purpose",
    "mode",
    "kfold",
)
FLAGS = {
    "val": ("isvalid", "isval", "isvalidation", "valid", "val", "validation"),
    "test": ("istest", "istesting", "test"),
    "train": ("istrain", "istraining", "istrainingimage", "train"),
}


def plain(name: str) -> str:
    """Return a column's name as names are compared: without case, spaces and marks."""
    return re.sub(r"[\W_]", "", name).casefold()


def pick(columns: Sequence[str], names: Sequence[str]) -> str:
    """Return the first of ``names`` that is a column, in any spelling, else ""."""
    lower = {plain(column): column for column in reversed(columns)}
    return next((lower[name] for name in names if name in lower), "")
