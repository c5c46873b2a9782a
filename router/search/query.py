"""What somebody asks for: words, "phrases", and the beginning of the last word; and what of a text it finds.

Invariants
- A text is found if it has every word and every phrase of the query. A word of the query whose form has several words
  (an address, Chinese) is a phrase.
- `found` decides alone what is a hit: an index may only narrow down the texts that are worth a look.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from router.contract.errors import BadCommand
from router.contract.words import Word, words

MAX_QUERY: Final = 256  # characters
MAX_QUERY_WORDS: Final = 32
MAX_MARKS: Final = 32
SNIPPET: Final = 160  # code points
BEFORE: Final = 40  # of them before the first mark

_PARTS: Final = re.compile(r'"([^"]*)"?|[^\s"]+')


class Phrase(Struct, frozen=True):
    """Words that stand one behind the other. `begins`: the last of them is the beginning of a word."""

    words: tuple[str, ...]
    begins: bool = False


class Snippet(Struct, frozen=True):
    """A part of a text, and what was found in it: code points [start, end) of the part."""

    text: str
    marks: list[tuple[int, int]]


def phrases_of(query: str) -> tuple[Phrase, ...]:
    """The phrases of a query; `BadCommand` if it has no word, or too many."""
    if len(query) > MAX_QUERY:
        raise BadCommand(f"`q` must have at most {MAX_QUERY} characters")
    found: list[Phrase] = []
    for part in _PARTS.finditer(query):
        quoted = part[1]
        asked = tuple(word.text for word in words(part[0] if quoted is None else quoted))
        if asked:
            found.append(Phrase(asked, begins=quoted is None and part.end() == len(query.rstrip())))
    if not found:
        raise BadCommand("`q` must contain a word")
    if sum(len(phrase.words) for phrase in found) > MAX_QUERY_WORDS:
        raise BadCommand(f"`q` must have at most {MAX_QUERY_WORDS} words")
    return tuple(dict.fromkeys(found))


def found(phrases: Sequence[Phrase], text: str) -> Snippet | None:
    """The part of the text around the first mark; None if the text lacks a phrase."""
    standing = words(text)
    marks: list[tuple[int, int]] = []
    for phrase in phrases:
        spans = _spans(phrase, standing)
        if not spans:
            return None
        marks += spans
    return _snippet(text, _merged(marks))


def _spans(phrase: Phrase, standing: Sequence[Word]) -> list[tuple[int, int]]:
    length = len(phrase.words)
    return [
        (standing[at].start, standing[at + length - 1].end)
        for at in range(len(standing) - length + 1)
        if _stands(phrase, standing, at)
    ]


def _stands(phrase: Phrase, standing: Sequence[Word], at: int) -> bool:
    *before, last = phrase.words
    if any(standing[at + i].text != word for i, word in enumerate(before)):
        return False
    ends = standing[at + len(before)].text
    return ends.startswith(last) if phrase.begins else ends == last


def _merged(marks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The marks in order, without overlaps."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted(marks):
        if merged and start < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _snippet(text: str, marks: Sequence[tuple[int, int]]) -> Snippet:
    start = max(0, min(marks[0][0] - BEFORE, len(text) - SNIPPET))
    end = start + SNIPPET
    inside = [(first - start, min(last, end) - start) for first, last in marks if first < end]
    return Snippet(text[start:end], inside[:MAX_MARKS])
