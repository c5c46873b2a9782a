"""The rule for names and titles that other users see.

Refused are characters that can make a line look like different text: controls (line breaks too), and those that
override or isolate the direction of text. A text of invisible characters alone is refused because it looks empty. The
marks that right-to-left languages need (LRM, RLM), joiners and variation selectors within visible text are allowed.
"""

from __future__ import annotations

from typing import Final
from unicodedata import category

_DIRECTIONS: Final = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_REFUSED: Final = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, separators of lines and paragraphs
_BLANK: Final = ("Cc", "Cf", "Cn", "Zl", "Zp", "Zs")
# Invisible characters whose category is not in _BLANK: fillers, a joiner, a blank, variation selectors.
_INVISIBLE: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0\u180b\u180c\u180d\u180f")


def check(field: str, text: str, lines: bool = False) -> None:
    """Raise ValueError if the text breaks the rule; an empty text is allowed. `lines`: it may have several lines."""
    plain = text.replace("\n", "") if lines else text
    if any(character in _DIRECTIONS or category(character) in _REFUSED for character in plain):
        raise ValueError(f"`{field}` must not contain control characters or characters that override its direction")
    if text and all(map(_invisible, text)):
        raise ValueError(f"`{field}` must be empty or contain a visible character")


def _invisible(character: str) -> bool:
    selector = "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"
    return selector or character in _INVISIBLE or category(character) in _BLANK
