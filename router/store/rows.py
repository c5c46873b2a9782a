"""A user's rows of conversations, as the functions pack them, and pages of them."""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct as Packing
from struct import error as StructError  # noqa: N812 - a class, whatever its name
from typing import Any, Final

from msgspec import Struct

from router.contract import keys
from router.store.redis.decoding import unreadable

PAGE: Final = 200

_STATE: Final = keys.STATE.encode()
# The two formats of a row (functions/prelude_user.lua): kind, mark and numbers; in format 2 behind its version and the
# bytes before the title, and with role and flags. The title follows.
_ROW: Final = Packing(">ccQQQQQ")
_ROW_2: Final = Packing(">BBcccBQQQQQ")
_IN_FORMAT_2: Final = 2


class Row(Struct, frozen=True):
    """A user's row of one conversation. `head` and `count` of groups and channels are in their `Head`, and 0 here.

    `changed`: the last change of the membership, 0 in a present direct one. `left`: the user has left it, or it is
    gone, as of that change; `gone_acked`: this device has acked that; `title` of a direct one is the other user;
    `cursor` is None if this device has none yet; `score` orders rows by the last change; `deleted_above` counts the
    deleted messages above `read` in a direct one. `role` is the user's role char; None in a row of format 1, which has
    none.
    """

    conversation: str
    kind: str
    title: str
    left: bool
    head: int
    count: int
    read: int
    read_count: int
    cursor: int | None
    score: int
    deleted_above: int = 0
    changed: int = 0
    gone_acked: bool = False
    role: str | None = None

    def unread(self, count: int, deleted: Sequence[int]) -> int:
        """Messages above the read mark, of `count` in all; `deleted` are seqs of deleted messages (Head)."""
        gone = self.deleted_above
        if deleted and self.kind != keys.DIRECT:
            gone = sum(seq > self.read for seq in deleted)
        return max(0, count - self.read_count - gone)


class Page(Struct, frozen=True):
    """Rows by their last change, newest first; if `more`, the next page is below `below`."""

    rows: list[Row]
    below: int
    more: bool


def page_of(value: Any) -> Page:
    more, below, rows = value
    return Page(rows_of(rows), int(below), bool(more))


def rows_of(flat: list[Any]) -> list[Row]:
    """Rows from a flat list of conversation, packed row, score and cursor; damaged rows are left out."""
    parts, rows = iter(flat), []
    for row in zip(parts, parts, parts, parts, strict=True):
        if row[0].startswith(b"~"):
            continue
        try:
            rows.append(_row(*row))
        except (ValueError, TypeError, IndexError, StructError) as error:
            unreadable(error)
    return rows


def state_of(flat: list[Any]) -> int | None:
    """The version of the user's state, if it is among the rows."""
    return int.from_bytes(flat[flat.index(_STATE) + 1]) if _STATE in flat else None


def _row(conv: bytes, packed: bytes, score: bytes, cursor: bytes | None) -> Row:
    role = None
    if packed[0] == _IN_FORMAT_2:
        _, size, kind, mark, char, _, head, count, read, read_count, changed = _ROW_2.unpack_from(packed)
        if not _ROW_2.size <= size <= len(packed):
            raise ValueError("a row is cut short")
        role = char.decode()
    else:
        kind, mark, head, count, read, read_count, changed = _ROW.unpack_from(packed)
        size = _ROW.size
    present = mark == b" "
    return Row(
        conv.decode(),
        kind.decode(),
        packed[size:].decode(),
        mark in (b"-", b"="),
        head,
        count,
        read,
        read_count,
        None if cursor is None else int(cursor),
        int(float(score)),  # Redis prints a score as a double
        changed if present and kind == b"d" else 0,
        0 if present and kind == b"d" else changed,
        mark == b"=",
        role,
    )
