"""The history of a web page: what its person did, and what the page showed, with digests of bodies. Rows as in
`history.py`. `Content` is what the log makes of a message that a page may show.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from loadtest.chaos.proof.history import Row


class ShownMessage(msgspec.Struct, frozen=True, array_like=True):
    """A message as a page shows it. `seq` 0: it is on its way; `state`: what is said of an own message."""

    seq: int
    mine: bool
    body: str
    edited: bool = False
    deleted: bool = False
    files: int = 0
    answers: bool = False
    reactions: dict[str, int] = {}
    state: str = ""


class Asked(Row, frozen=True, array_like=True, tag="asked"):
    """The person wants something. `target`: of an edit, delete or react; the `body` of a reaction is its emoji."""

    kind: str
    conversation: str
    body: str
    target: int = 0


class Shows(Row, frozen=True, array_like=True, tag="shows"):
    """The page shows these messages of a conversation; `typing`: also that somebody types."""

    conversation: str
    messages: list[ShownMessage]
    typing: bool = False


class Raised(Row, frozen=True, array_like=True, tag="raised"):
    """The page raised an error, or did not do what its person wanted."""

    what: str


PageRows = Asked | Shows | Raised


class Content(msgspec.Struct, frozen=True):
    """A message that the log has, with its edits and reactions (emoji -> users) in their order."""

    conversation: str
    seq: int
    user: str
    body: str
    edits: list[str] = []
    files: int = 0
    answers: bool = False
    reactions: dict[str, list[str]] = {}

    @property
    def bodies(self) -> list[str]:
        return [self.body, *self.edits]


class PageHistory:
    """Reads the history of a page; can be iterated more than once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __iter__(self) -> Iterator[PageRows]:
        decode = msgspec.json.Decoder(PageRows).decode
        with self._path.open("rb") as file:
            for line in file:
                yield decode(line)
