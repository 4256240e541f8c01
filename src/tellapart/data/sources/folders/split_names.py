"""Names of splits: which of train, val and test a folder, a file or a cell of a list means, if any.

Knows words in English, Chinese and German; knows nothing of what is in a folder.
"""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

EVAL = "eval"
"""A split called "evaluation": the test split, unless there is a test split beside it (then val)."""

_WORDS = {
    "train": "train training trainval trn",
    "val": "val valid validate validation validating dev devel development",
    "test": "test testing tst holdout",
    EVAL: "eval evaluate evaluation evaluating",
}
_MEANING = {word: split for split, words in _WORDS.items() for word in words.split()}
_CHINESE = (
    (re.compile("训练|訓練"), "train"),
    (re.compile("验证|驗證|开发集|開發集"), "val"),
    (re.compile("测试|測試|留出"), "test"),
    (re.compile("评估|評估|评测"), EVAL),
)
_CHINESE_NOISE = re.compile("[集组組的]|数据|數據|資料|图像|圖像|图片|圖片|照片|样本|樣本|文件夹|资料|目录")
_GERMAN = (
    (re.compile(r"trainings?(?:daten|bilder|satz|menge|sätze)"), "train"),
    (re.compile(r"validierungs?(?:daten|bilder|satz|menge|sätze)?"), "val"),
    (re.compile(r"test(?:daten|bilder|satz|menge|sätze)"), "test"),
)
_NOISE_WORDS = """
    set sets data dataset datasets image images img imgs picture pictures pic pics photo photos dir dirs
    directory folder folders split splits part parts sample samples file files input inputs subset fold the of
    for public private full final all raw original orig jpg jpeg png resized cropped new my and
"""
_NOISE = frozenset(_NOISE_WORDS.split())
_COMPOUND = re.compile(
    r"(train(?:ing|val)?|valid(?:ation)?|val|test(?:ing)?|dev|eval(?:uation)?|holdout)"
    r"(?:set|data|dataset|dir|folder|images?|imgs?|pics?|photos?|split|part|samples?)s?"
)
_USAGE = {"publictest": "val", "privatetest": "test"}  # FER2013's words


@dataclass(frozen=True)
class Meaning:
    """What a name says about a split: ``split`` ("train", "val", "test", `EVAL` or ""), and whether the name is
    one of the plain words (``exact``) or says nothing else at all (``pure``: "train_images", but not
    "flowers_train").
    """

    split: str = ""
    exact: bool = False
    pure: bool = False


@functools.lru_cache(4096)
def meaning(name: str) -> Meaning:
    """Return what the words of a name say about a split.

    >>> meaning("seg_train").split, meaning("Validation").exact, meaning("3_test_images").pure
    ('train', True, True)
    """
    plain = name.strip().casefold()
    if plain in _MEANING or plain in _USAGE:
        return Meaning(_MEANING.get(plain) or _USAGE[plain], exact=True, pure=True)
    chinese = {split for pattern, split in _CHINESE if pattern.search(name)}
    if len(chinese) == 1:
        rest = functools.reduce(lambda text, pair: pair[0].sub("", text), _CHINESE, name)
        rest = _CHINESE_NOISE.sub("", rest)
        return Meaning(chinese.pop(), pure=not re.search(r"[^\W\d_]", rest))
    spaced = re.sub(
        r"hold[\W_]?out", "holdout", re.sub(r"(?<=[a-zäöüß])(?=[A-Z])", " ", name.strip()), flags=re.I
    )
    words = [word.casefold() for word in re.findall(r"[^\W\d_]+", spaced)]
    found = {split for word in words if (split := _word(word))}
    if found == {"train", "val"}:
        found = {"train"}
    if len(found) != 1:
        return Meaning()
    return Meaning(found.pop(), pure=all(_word(word) or word in _NOISE for word in words))


def _word(word: str) -> str:
    if word in _MEANING:
        return _MEANING[word]
    compound = _COMPOUND.fullmatch(word)
    if compound:
        return _MEANING[compound[1]]
    return next((split for pattern, split in _GERMAN if pattern.fullmatch(word)), "")


def frame(name: str) -> tuple[str, ...]:
    """Return the words of a name without those that name a split: equal for `asl_train` and `asl_test`."""
    text = functools.reduce(lambda text, pair: pair[0].sub(" ", text), _CHINESE, name)
    text = _CHINESE_NOISE.sub("", text)
    return tuple(word.casefold() for word in re.findall(r"[^\W\d_]+", text) if not _word(word.casefold()))


def settle(splits: Mapping[str, str]) -> dict[str, str]:
    """Return ``splits`` with `EVAL` made test, or val where something else is test already."""
    other = "val" if "test" in splits.values() else "test"
    return {name: other if split == EVAL else split for name, split in splits.items()}


def split_name(text: str) -> str:
    """Return "train", "val" or "test" for a name that says a split and nothing else, else ""."""
    found = meaning(text)
    return ("test" if found.split == EVAL else found.split) if found.pure else ""


def is_plain(name: str) -> bool:
    """Return whether a name is one of the words that need no message: not dev, eval or PublicTest."""
    return name.strip().casefold() in ("train", "training", "val", "valid", "validation", "test", "testing")


def split_of_folders(path: str) -> str:
    """Return the split that a folder of ``path`` names (``train2017`` counts too), the outermost first, else ""."""
    return next((split for part in path.split("/")[:-1] if (split := split_name(part))), "")


def split_of_stem(path: str) -> str:
    """Return the split named by a word of the file's own name (``instances_val2017.json``), else ""."""
    found = meaning(pathlib.PurePosixPath(path).stem).split
    return "test" if found == EVAL else found


def split_of_file(path: str) -> str:
    """Return the split that a file's own name or else a folder on the way to it names, else ""."""
    return split_of_stem(path) or split_of_folders(path)


def split_cells(cells: Iterable[str]) -> dict[str, str]:
    """Return the split of each different cell of a list's column; "" for an empty or undecided one, and no
    entry for what is not understood.
    """
    found: dict[str, str] = {}
    for cell in dict.fromkeys(cells):
        if cell.casefold() in ("", "unassigned", "none", "nan", "unused", "-"):
            found[cell] = ""
        elif meaning(cell).pure:
            found[cell] = meaning(cell).split
    return settle(found)
