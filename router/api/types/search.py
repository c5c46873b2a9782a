"""Requests and answers of search."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from router.contract.wire import ConversationId, Name, Seq

Millisecond = Annotated[int, Meta(ge=0, le=2**42)]


class SearchQuery(Struct, frozen=True, kw_only=True):
    """What is searched: words, "phrases", and the beginning of the last word.

    `in`: one conversation; `from`: an author; `before` and `after`: times in ms; `has`: a kind of file, or a link;
    `cursor`: that of the answer before.
    """

    q: Annotated[str, Meta(min_length=1, max_length=256)]
    in_: ConversationId | None = field(name="in", default=None)
    from_: Name | None = field(name="from", default=None)
    before: Millisecond | None = None
    after: Millisecond | None = None
    has: Literal["file", "image", "voice", "video", "link"] | None = None
    cursor: Annotated[str, Meta(max_length=40)] = ""
    limit: Annotated[int, Meta(ge=1, le=100)] = 20


class Hit(Struct, frozen=True):
    """A message that was found. `marks` are the places in `snippet`, code points [start, end)."""

    conversation: str
    seq: Seq
    at: int
    from_: str = field(name="from")
    snippet: str
    marks: list[tuple[int, int]]


class Found(Struct, frozen=True):
    """Hits, the newest first. `more`: ask again with `cursor`. `incomplete`: a part of the index is being built, or
    cannot be reached, so there may be further hits."""

    hits: list[Hit]
    more: bool
    cursor: str
    incomplete: bool
