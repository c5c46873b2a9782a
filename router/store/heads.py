"""Heads of conversations: their counters and titles, read for many conversations at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from struct import Struct as Packing
from struct import unpack as struct_unpack
from typing import Any, Final

import msgspec

from router.contract import keys
from router.contract.errors import LinnetError, from_function
from router.store.answers import Reply
from router.store.redis.client import Client
from router.store.redis.decoding import unreadable
from router.store.rules import DEFAULTS, Rules, rules_of

# The packed counters `m`: last seq, messages, rate (two numbers), replid of the last writer, time of the last event.
META: Final = Packing(">QQII16sQ")
_HEAD_FIELDS: Final = (
    "m",
    "ver",
    "floor",
    "routed",
    "kind",
    "title",
    "size",
    "deleted",
    "freed",
    "rules",
    "acts",
    "mutes",
)


class Head(msgspec.Struct, frozen=True):
    """The state of a conversation. `at` is the time of the last event, or of the creation if there is none.

    `deleted`: seqs of the messages that were deleted last, the newest deletion last. `server`: the replication id of
    the server that wrote last.
    """

    seq: int
    count: int
    at: int
    version: int
    floor: int
    routed: int
    kind: str
    title: str
    size: int = 0
    deleted: tuple[int, ...] = ()
    server: bytes = b""
    freed: bytes = b""  # hashes of files, 32 bytes each, that the last message has left
    rules: Rules = DEFAULTS
    acts: bool = False  # there are acts that the audit does not have
    mutes_until: int = 0  # ms; until then some user may be muted here, 0: no user is


class HeadsRead:
    """The pipelined reads of one `heads` call, and its one reply."""

    __slots__ = ("_heads", "_missing", "_reply")

    def __init__(self, client: Client, convs: Sequence[str], reply: Reply[list[Head | LinnetError | None]]) -> None:
        self._reply = reply
        self._missing = len(convs)
        self._heads: list[Head | LinnetError | None] = [None] * len(convs)
        if not convs:
            asyncio.get_running_loop().call_soon(reply, self._heads)
        for at, conv in enumerate(convs):
            client.command("HMGET", keys.conversation(conv), *_HEAD_FIELDS, reply=partial(self._received, at))

    def _received(self, at: int, value: Any) -> None:
        try:
            self._heads[at] = from_function(value) if isinstance(value, LinnetError) else _head(value)
        except Exception as error:  # noqa: BLE001 - one damaged conversation must not cost the others their answer
            unreadable(error)
        self._missing -= 1
        if not self._missing:
            first = self._heads[0]
            failed = isinstance(first, LinnetError) and all(isinstance(head, LinnetError) for head in self._heads)
            self._reply(first if failed and isinstance(first, LinnetError) else self._heads)


def _head(value: Any) -> Head | None:
    m, version, floor, routed, kind, title, size, deleted, freed, rules, acts, mutes = value
    if m is None:
        return None
    seq, count, _, _, server, at = META.unpack(m)
    where = seq, count, at, int(version), int(floor or 0), int(routed or 0)
    gone = struct_unpack(f">{len(deleted) // 8}Q", deleted) if deleted else ()
    more = gone, server, freed or b"", rules_of(rules), acts is not None, int(mutes or 0)
    return Head(*where, kind.decode(), title.decode(), int(size or 0), *more)
