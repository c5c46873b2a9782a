"""The audit: what people who run a group or the deployment did.

Each partition of conversations and of users has a stream of its entries, so there is no key that all acts need. An act
in a conversation is first noted there (`acts`), and a router moves it. Readers merge the streams by the time at which
an entry was added.

Invariants
- An entry is never changed, and is added with the time of its server's clock. A page ends before the present, so an
  entry is never added below the cursor of a reader.
- A page without the entries of a server that does not answer says so (`missing`).
- At most 10,000 entries are kept for each partition.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
from msgspec import Struct

from router.contract import keys
from router.contract.errors import BadCommand, LinnetError, Unavailable, from_function
from router.store.redis.client import Client

SETTLED_MS: Final = 2000  # by how much the clocks of several servers may differ


class Entry(Struct, frozen=True):
    """One act. `actor` is "" for a server key; `at` is the time of the act."""

    id: str
    at: int
    action: str
    actor: str
    user: str = ""
    conversation: str = ""
    seq: int = 0
    report: str = ""
    reason: str = ""


class Page(Struct, frozen=True):
    """Entries, oldest first, and whether there are more. `missing`: streams that could not be read."""

    entries: list[Entry]
    more: bool
    missing: int


class Audit:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def move(self, conv: str) -> int:
        """Move the acts of a conversation to the audit; return their number."""
        where = keys.conversation(conv), keys.audit_of_conversations(keys.partition(conv))
        try:
            return int(await self._client.fcall("move_acts", where, (conv,)))
        except LinnetError as error:
            raise from_function(error) from None

    async def note_reading(self, conv: str, actor: str, reason: str) -> None:
        """Note that `actor` ("" for a server key) is about to read the log of a conversation."""
        where = (keys.audit_of_conversations(keys.partition(conv)),)
        try:
            await self._client.fcall("note_reading", where, (conv, actor, reason))
        except LinnetError as error:
            raise from_function(error) from None

    async def page(self, after: str, limit: int) -> Page:
        """The entries after this id."""
        position = _position(after)
        streams = [keys.audit_of_conversations(part) for part in range(keys.PARTITIONS)]
        streams += [keys.audit_of_users(part) for part in range(keys.PARTITIONS)]
        now = await self._client.clock_ms()
        upto = now - (1 if self._client.one_server else SETTLED_MS)
        found: list[tuple[tuple[int, int, int], bytes]] = []
        missing = 0
        for number, entries in enumerate(await self._read(streams, position, upto, limit + 1)):
            if isinstance(entries, Unavailable):
                missing += 1
                continue
            for id_, fields in entries:
                ms, _, count = id_.decode().partition("-")
                found.append(((int(ms), int(count), number), fields[1]))
        found.sort()
        return Page([_entry(where, packed) for where, packed in found[:limit]], len(found) > limit, missing)

    async def _read(self, streams: list[str], position: tuple[int, int, int], upto: int, limit: int) -> list[Any]:
        ms, count, last = position
        return await self._client.fetch_each(
            ("XRANGE", stream, f"{'(' if number <= last else ''}{ms}-{count}", upto, "COUNT", limit)
            for number, stream in enumerate(streams)
        )


def _position(after: str) -> tuple[int, int, int]:
    """The place of an id among all entries: time, number within it, number of the stream."""
    if after == "0":
        return 0, 0, 2 * keys.PARTITIONS
    parts = after.split(".")
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 15 for part in parts):
        raise BadCommand("`after` must be 0, or the id of an entry")
    ms, count, number = map(int, parts)
    return ms, count, number


def _entry(where: tuple[int, int, int], packed: bytes) -> Entry:
    fields = msgpack.unpackb(packed)
    known = {name: fields[name] for name in Entry.__struct_fields__ if name in fields}
    return Entry(id=".".join(map(str, where)), **known)
