"""The relation of two users: contacts, requests and blocks, in the record of their direct conversation.

The record is in the hash of the direct conversation, which may have it before the conversation exists. The users' slots
have copies of it (`people`, `state`); `contacts` writes them.

Invariants
- Only the function `pair` changes a record, and with it the roles that `append` reads. So of any two changes one is
  first, and a role always says what the record says.
- Each reason against writing counts for itself: a block by either user, messages from contacts only, an ended account.
- A change of which the users' slots need a copy stays marked in `dirty` until `copied` is called with its number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from router.contract import keys
from router.contract.errors import FunctionError, LinnetError, from_function
from router.store.redis.client import Client
from router.store.redis.decoding import answer

PairAction: TypeAlias = Literal[
    "ask", "accept", "remove", "block", "unblock", "only", "ended", "unseen", "ahead", "look"
]
ContactState: TypeAlias = Literal["contact", "incoming", "outgoing"]

MARK: Final = "="  # before the conversation's id in `dirty`: copies are out of date


class Side(Struct, frozen=True):
    """The part of a record that one of the two users has caused; times in milliseconds, 0 for never."""

    contact_n: int = 0
    block_n: int = 0
    blocked: int = 0
    only: bool = False
    only_n: int = 0
    wrote: bool = False
    ended: bool = False
    asked: int = 0
    ends: int = 0
    message: str = ""
    shown: bool = False
    quiet: int = 0


class Entry(Struct, frozen=True):
    """A user's contact, or request to or from another user. `until` is the end of a request, else 0."""

    state: ContactState
    at: int
    until: int = 0
    message: str = ""


class Record(Struct, frozen=True):
    """The record of two users. `n` is the number of its last change; `contact`: since when they are contacts, or 0."""

    n: int
    of: dict[str, Side]
    contact: int = 0

    def entry(self, user: str, other: str, now: int) -> Entry | None:
        """Return the entry of `other` in the contacts of `user`."""
        if self.contact:
            return Entry("contact", self.contact)
        mine, theirs = self.of[user], self.of[other]
        if mine.ends > now:
            return Entry("outgoing", mine.asked, mine.ends, mine.message)
        if theirs.shown and theirs.ends > now:
            return Entry("incoming", theirs.asked, theirs.ends, theirs.message)
        return None

    @property
    def hidden(self) -> bool:
        """Whether one of the two blocks the other, so that neither sees the other's presence."""
        return any(side.blocked for side in self.of.values())


class Change(Struct, frozen=True):
    """The state of a pair after a call. `role` and `others_role` are the roles as `append` reads them; `now` is
    the server's time in ms.
    """

    conversation: str
    record: Record | None
    replid: bytes
    now: int
    role: str
    others_role: str

    @property
    def copies_outdated(self) -> bool:
        """Whether the users' slots may lack the last change. If there is no record, they may have one that is gone."""
        record = self.record
        return record is None or any(record.n in (side.contact_n, side.block_n) for side in record.of.values())

    def entry(self, user: str, other: str) -> Entry | None:
        return self.record.entry(user, other, self.now) if self.record else None


_record = msgspec.msgpack.Decoder(Record).decode


class Pairs:
    def __init__(self, client: Client) -> None:
        self._client = client

    def change(
        self,
        user: str,
        other: str,
        action: PairAction,
        argument: str,
        number: int,
        reply: Callable[[Change | LinnetError], None],
    ) -> None:
        """Let `user` do something about `other`, who is another user; pair.lua has the actions.

        `NotFound`: there is nothing to accept; `Conflict`: a request to a user whom the user blocks.
        """
        conv = keys.direct(user, other)
        self._client.call(
            "pair", _where(conv), (conv, user, other, action, argument, number), partial(answer, reply, _changed(conv))
        )

    def may_open(self, user: str, other: str, contacts_only: bool, reply: Callable[[bool | LinnetError], None]) -> None:
        """Ask whether `user` may write the first message to `other`, whose setting this is: True or `Blocked`."""
        conv = keys.direct(user, other)
        read = partial(answer, reply, lambda value: from_function(value) if isinstance(value, LinnetError) else True)
        self._client.read("may_open", (keys.conversation(conv),), (user, other, int(contacts_only)), read)

    def read(self, user: str, other: str, reply: Callable[[Record | LinnetError | None], None]) -> None:
        """Read the record; None if there is none. Requests in it may be over."""
        self._client.command(
            "HGET", keys.conversation(keys.direct(user, other)), "pair", reply=partial(answer, reply, _read)
        )

    async def read_all(self, user: str, others: list[str]) -> list[Record | None]:
        """The records of a user with many others."""
        found = await asyncio.gather(
            *(self._client.fetch("HGET", keys.conversation(keys.direct(user, other)), "pair") for other in others)
        )
        return [_record(packed) if packed else None for packed in found]

    async def copied(self, conv: str, record: Record | None) -> None:
        """Unmark a record of which the users' slots have all copies, unless it has changed since."""
        try:
            await self._client.fcall("mark_pair_copied", _where(conv), (conv, record.n if record else 0))
        except LinnetError as error:
            raise from_function(error) from None


def _where(conv: str) -> tuple[str, str]:
    return keys.conversation(conv), keys.dirty(keys.partition(conv))


def _changed(conv: str) -> Callable[[Any], Change | LinnetError]:
    def read(value: Any) -> Change | LinnetError:
        if isinstance(value, FunctionError):
            return from_function(value)
        if isinstance(value, LinnetError):
            return value
        packed, replid, now, role, others = value
        record = _record(packed) if packed else None
        return Change(conv, record, replid, int(now), role.decode(), others.decode())

    return read


def _read(value: Any) -> Record | LinnetError | None:
    if isinstance(value, LinnetError):
        return value
    return _record(value) if value else None
