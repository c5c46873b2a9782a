"""The words of a text, as search compares them: the same for every engine of search.

A word is a run of letters, digits and marks. Scripts that put no space between words (Chinese, Japanese, Thai, Lao,
Khmer, Burmese) have one word for each character, and a symbol such as an emoji is a word of its own. A query asks for
neighbouring words of this kind as a phrase.

Words are compared in one form: compatibility forms resolved (NFKD), case folded, and without the marks that people
often leave out: accents of Latin, Greek and Cyrillic, points of Hebrew, vowels of Arabic. Marks that make another
letter, as in the scripts of India or in Japanese, stay.

Invariants
- The form of a character never depends on what is before or behind it, so a word is the same in every text.
- A position counts code points of the text as it is given, so a client can mark what was found.
- Text of any kind gives words or nothing, never an error, in time that is linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from unicodedata import category, normalize

from msgspec import Struct

MAX_WORD: Final = 64  # code points of a word that are compared: a longer word is found by its beginning

# Of Latin, Greek and Cyrillic, of Hebrew, of Arabic; joiners, and selectors of a symbol's look.
_LEFT_OUT: Final = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20ff"
    "\ufe00-\ufe0f\ufe20-\ufe2f\U0001f3fb-\U0001f3ff]"
)
# Scripts without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED: Final = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b\u3041-\u312f"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua9e0-\ua9fe\uaa60-\uaa7f\uf900-\ufaff\U0001b000-\U0001b16f"
    "\U00020000-\U000323af]"
)
_ASCII_WORD: Final = re.compile(r"[a-z0-9]+")


class Word(Struct, frozen=True):
    """A word in the form that is compared, and where it stands in the text: code points [start, end)."""

    text: str
    start: int
    end: int


class _Form(Struct, frozen=True):
    """What a character is in a word. `text` is "" between words, None for a character that is left out."""

    text: str | None
    alone: bool = False


_BETWEEN: Final = _Form("")
_NOTHING: Final = _Form(None)


def words(text: str) -> list[Word]:
    """The words of a text, in order."""
    if text.isascii():
        return [Word(one[0][:MAX_WORD], one.start(), one.end()) for one in _ASCII_WORD.finditer(text.lower())]
    found: list[Word] = []
    parts: list[str] = []  # of the word that has begun at `start`
    start = 0
    for at, character in enumerate(text):
        form = _form(character)
        if form.text is None:
            continue
        if parts and (form.alone or not form.text):
            found.append(_joined(parts, start, at))
            parts = []
        if form.alone:
            found += [Word(one, at, at + 1) for one in form.text]
        elif form.text:
            start = start if parts else at
            parts.append(form.text)
    if parts:
        found.append(_joined(parts, start, len(text)))
    return found


def plain(found: Sequence[Word]) -> str:
    """The words as an engine stores them, with spaces between: no word contains one."""
    return " ".join(word.text for word in found)


def _joined(parts: Sequence[str], start: int, end: int) -> Word:
    return Word(normalize("NFC", "".join(parts))[:MAX_WORD], start, end)  # NFC joins the parts of Korean syllables


@lru_cache(maxsize=1 << 14)
def _form(character: str) -> _Form:
    folded = normalize("NFKD", normalize("NFKD", character).casefold())
    kept = _LEFT_OUT.sub("", folded)
    if not kept:
        return _NOTHING
    text = "".join(one for one in kept if category(one)[0] in "LNM" or category(one) == "So")
    return _Form(text, any(_UNSPACED.match(one) or category(one) == "So" for one in text)) if text else _BETWEEN
