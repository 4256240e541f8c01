"""The most likely encoding of bytes of text: charset-normalizer's candidates, weighted for lists of names.

The detector expects whole sentences; a list of class names is a few words. So its candidates are ranked by how common
the characters are in each encoding, according to their position in its table.
"""

from __future__ import annotations

import re
import unicodedata

_DOUBLE = {  # first and second bytes of the characters that make up nearly all text, and first bytes of rarer ones
    "gb18030": ("b0-d7", "a1-fe"),
    "big5": ("a4-c6", "40-fe"),
    "cp949": ("b0-c8", "a1-fe"),
    "cp932": ("82-83,88-97", "40-fc"),
    "euc_jp": ("a4-a5,b0-cf", "a1-fe"),
}
_SYLLABLES = frozenset(  # of which most Korean words are made
    "가간감강개거경계고공과관교구국그기나내는니다단당대도동라로를리마만말면명모무문물미민반발방보부분비사산상생서선성세소수"
    "스시신실심아안양어에여연오용우원위유은을음의이인일자장재적전점정제조주중지진집차천카코크타토통트티파포프하한해호화"
)
_SINGLE = ["koi8_r", "cp874"] + [f"cp125{n}" for n in range(9)]
_ORDER = ["gb18030", "cp932", "cp949", "big5", "euc_jp", "cp1252", "cp1251", "cp1250", *_SINGLE]
_WORDS = re.compile(rb"[0-9A-Za-z@\[\\\]^_`{|}~\x80-\xff]*[\x80-\xff][0-9A-Za-z@\[\\\]^_`{|}~\x80-\xff]*")


def guess(content: bytes) -> str:
    """Return Python's name of the likeliest encoding of bytes that are not UTF-8, "" for none."""
    from charset_normalizer import from_bytes

    words = b"\n".join(dict.fromkeys(_WORDS.findall(content[: 1 << 20])))[: 1 << 16]
    found = {
        match.encoding: match for match in from_bytes(words, cp_isolation=[*_DOUBLE, *_SINGLE], threshold=0.5)
    }
    ranked = []
    for codec in dict.fromkeys(_ORDER):
        try:
            text = words.decode(codec)
            content.decode(codec)
        except UnicodeDecodeError:
            continue
        mess, coherence = (found[codec].chaos, found[codec].coherence) if codec in found else (0.5, 0.0)
        score = _usual_double(words, codec) if codec in _DOUBLE else _usual_single(text) - mess
        ranked.append((round(score + coherence / 4, 2), codec))
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else ""


def _usual_double(words: bytes, codec: str) -> float:
    """Return how many of the characters beyond ASCII are usual ones of a double-byte encoding, 0 to 1."""
    first, second = (_values(text) for text in _DOUBLE[codec])
    usual = total = kana = korean = 0
    for word in words.split(b"\n"):
        text = word.decode(codec, "ignore")
        for place, character in enumerate(text):
            if character.isascii():
                continue
            raw = character.encode(codec, "ignore")
            total += 1
            fits = len(raw) == 2 and raw[0] in first and raw[1] in second
            before, after = text[place - 1 : place], text[place + 1 : place + 2]
            beside = _is_latin(before) or (raw[-1] < 0x80 and _is_latin(after))
            usual += fits and not beside  # a lone one beside a Latin letter is an accented letter
            kana += "\u3041" <= character <= "\u30ff"
            korean += character in _SYLLABLES
    part = usual / total if total else 0.0
    telling = (codec == "cp949" and 2 * korean >= total) or (codec == "euc_jp" and 3 * kana >= total >= 4)
    return part + 0.1 if telling and part == 1 else part - 0.1 * (codec == "cp949")


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalpha()


def _usual_single(text: str) -> float:
    """Return how many words beyond ASCII are of small letters of one script (the first may be a capital), 0 to 1."""
    words = [word for word in re.split(r"[\s\x00-\x40\[-`{-\x7f]+", text) if word and not word.isascii()]
    return sum(map(_is_word, words)) / len(words) if words else 0.0


def _is_word(word: str) -> bool:
    if all("\u0e01" <= c <= "\u0e4e" for c in word):
        return True  # Thai, whose vowels are no letters
    if not word.isalpha() or word[1:] != word[1:].lower():
        return False
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in word}
    if scripts == {"LATIN"}:
        return 3 * sum(not c.isascii() for c in word) <= 2 * len(word)  # most letters have no accent
    return len(scripts) == 1


def _values(text: str) -> frozenset[int]:
    pairs = (part.split("-") for part in text.split(","))
    return frozenset(value for low, high in pairs for value in range(int(low, 16), int(high, 16) + 1))
