"""Requests and answers about contacts and blocks."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from router.api.types.common import VISIBLE
from router.contract import text

RequestText = Annotated[str, Meta(max_length=200, description=VISIBLE)]


class PageQuery(Struct, frozen=True):
    """A page of users, ordered by name: those after `after`."""

    after: Annotated[str, Meta(max_length=64)] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


class ContactsQuery(PageQuery, frozen=True):
    state: Literal["contact", "incoming", "outgoing"] | None = None


class ContactRequest(Struct, frozen=True):
    message: RequestText | None = None

    def __post_init__(self) -> None:
        text.check("message", self.message or "", lines=True)


class ContactAnswer(Struct, frozen=True):
    """`contact`, or `outgoing` while the other user has not accepted."""

    user: str
    state: str


class Contact(Struct, frozen=True):
    """A contact, or a request by the user (`outgoing`) or to them (`incoming`). `until`: the end of a request."""

    user: str
    state: str
    message: str | None
    at: int
    until: int | None


class Contacts(Struct, frozen=True):
    contacts: list[Contact]
    more: bool


class Block(Struct, frozen=True):
    user: str
    at: int


class Blocks(Struct, frozen=True):
    blocks: list[Block]
    more: bool
