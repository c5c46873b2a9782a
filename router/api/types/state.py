"""Requests and answers about the user's state."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from router.contract.state import StatePrefix
from router.contract.wire import Seq


class StateQuery(Struct, frozen=True):
    """Changes after a version: without `after`, everything. `cursor`: opaque, of the page before."""

    after: Seq = 0
    prefix: StatePrefix = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200
    cursor: Annotated[str, Meta(max_length=64)] = ""


class StateEntry(Struct, frozen=True):
    key: str
    value: Any
    version: int


class StateEntries(Struct, frozen=True):
    """A page of the user's state; `version` is the user's when it was read, `cursor` empty after the last page."""

    entries: list[StateEntry]
    version: int
    more: bool
    reset: bool
    cursor: str


class StateChange(Struct, frozen=True):
    value: Any
    expect: Seq | None = None


class StateExpected(Struct, frozen=True):
    expect: Seq | None = None


class StateWritten(Struct, frozen=True):
    key: str
    version: int
