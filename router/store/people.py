"""The people of a user, in the user's slot: contacts, requests and blocks, as copies of the pairs' records.

From these rows the API lists and counts, and presence learns from whom a user is hidden. `pairs` has the records.

Invariants
- A row has the number of the change that it copies, and the higher one wins, so a copy may be repeated and come late.
- A request that is over counts as absent, whether its row is there or not.
- A pair whose row changes is marked in the same slot, for a check some time later: `contacts.check`.
- The user's hash has `hides` exactly while a row is hidden, so that nothing is loaded for users without blocks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from struct import Struct as Packing
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct

from router.contract import keys, signals
from router.contract.errors import LinnetError, from_function
from router.store.due import parts_due
from router.store.redis.client import Client
from router.store.redis.decoding import answer

PAGE: Final = 200
_ROW: Final = Packing(">QcBBQQ")

Kind: TypeAlias = Literal["c", "o", "i", "-"]


class Ahead(Struct, frozen=True):
    """The number of a row that a copy did not replace, because it is of a later change."""

    number: int


Related: TypeAlias = Literal["copied", "gone", "full", "crowded"] | Ahead


class Person(Struct, frozen=True):
    """Another user, as a user's slot has them. Times are in ms, 0 for none.

    `kind`: `c` contact, `o` outgoing request, `i` incoming request, `-` none of these.
    `blocks`: the user blocks them. `hidden`: one of the two blocks the other.
    """

    number: int
    kind: str
    blocks: bool
    hidden: bool
    at: int
    until: int
    message: str = ""

    def counts(self, now: int) -> bool:
        """Whether there is a contact, or a request that is not over."""
        return self.kind == "c" or (self.kind in ("o", "i") and self.until > now)


class Counts(Struct, frozen=True):
    contacts: int
    outgoing: int
    incoming: int
    blocks: int


class People:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._channels = client.channels

    async def set_relation(self, user: str, other: str, person: Person, *, checks: bool = False) -> Related:
        """Copy what `other` is to `user`. `gone`: no such user; `full`: no room for an incoming request;
        `crowded`: none for another user's block; `Ahead`: the row is of a later change.

        A pair whose row changes is due for a check some time later; `checks`: this call is part of that check.
        """
        args = (
            other,
            person.number,
            person.kind,
            int(person.blocks),
            int(person.hidden),
            person.at,
            person.until,
            person.message,
            self._channels.user(user),
            signals.encode(signals.Hidden(user)),
            self._channels.presence(user),
            signals.encode(signals.Hidden(user)),
            keys.direct(user, other),
            int(checks),
        )
        names = keys.user(user), keys.people(user), keys.ends(user), keys.copied(keys.partition(user))
        value = await self._fcall("set_relation", names, args)
        if isinstance(value, list):
            return Ahead(*value)
        return "copied" if value == 1 else value.decode()

    async def claims(self, parts: Sequence[int], limit: int, lease_ms: int) -> list[list[str] | LinnetError]:
        """Claim up to `limit` pairs of each partition that are due to be checked, for `lease_ms`."""
        try:
            found = await self._client.fcall_each("claim", list(map(keys.copied, parts)), (limit, lease_ms, 1))
        except LinnetError as error:
            raise from_function(error) from None
        return [
            from_function(pairs) if isinstance(pairs, LinnetError) else [pair.decode() for pair in pairs]
            for pairs in found
        ]

    async def due(self) -> Sequence[int]:
        """The partitions with pairs that are due to be checked."""
        return await parts_due(self._client, [keys.copied(part) for part in range(keys.PARTITIONS)])

    async def counts(self, user: str) -> Counts:
        """How many of each the user has now."""
        return Counts(*await self._fcall("count_relations", (keys.people(user), keys.ends(user)), ()))

    async def page(self, user: str, cursor: int = 0) -> tuple[dict[str, Person], int]:
        """Some of the user's people, and the cursor of the next page, 0 after the last. They have no order."""
        following, found = await self._client.fetch("HSCAN", keys.people(user), cursor, "COUNT", PAGE)
        pairs = zip(found[::2], found[1::2], strict=True)
        return {name.decode(): person_of(row) for name, row in pairs if name[:1] != b"#"}, int(following)

    async def everybody(self, user: str) -> dict[str, Person]:
        """All of the user's people."""
        people, cursor = await self.page(user)
        while cursor:
            more, cursor = await self.page(user, cursor)
            people |= more
        return people

    async def among(self, user: str, others: Iterable[str]) -> dict[str, Person]:
        """Those of `others` about whom the user has a row."""
        names = list(dict.fromkeys(others))
        if not names:
            return {}
        rows = await self._client.fetch("HMGET", keys.people(user), *names)
        return {name: person_of(row) for name, row in zip(names, rows, strict=True) if row is not None}

    def hidden_from(self, user: str, viewers: list[str], reply: Callable[[frozenset[str] | LinnetError], None]) -> None:
        """Find from which of the viewers the user's presence is hidden; never from the user."""
        args = [viewer for viewer in viewers if viewer != user]
        if not args:
            reply(frozenset())
            return
        names = (keys.user(user), keys.people(user))
        self._client.call("hidden_from", names, args, partial(answer, reply, partial(_hidden, args)))

    async def hiding(self, users: Iterable[str]) -> list[str]:
        """Those of `users` who are hidden from somebody by a block."""
        names = list(users)
        found = await asyncio.gather(*(self._client.fetch("HEXISTS", keys.user(user), "hides") for user in names))
        return [user for user, hides in zip(names, found, strict=True) if hides]

    async def _fcall(self, function: str, names: tuple[str, ...], args: tuple[Any, ...]) -> Any:
        try:
            return await self._client.fcall(function, names, args)
        except LinnetError as error:
            raise from_function(error) from None


def _hidden(viewers: list[str], value: Any) -> frozenset[str] | LinnetError:
    if isinstance(value, LinnetError):
        return from_function(value)
    flags = value.decode()
    return frozenset(viewer for viewer, flag in zip(viewers, flags, strict=bool(flags)) if flag == "1")


def person_of(row: bytes) -> Person:
    """Unpack a row of the key `people`."""
    number, kind, blocks, hidden, at, until = _ROW.unpack_from(row)
    return Person(number, kind.decode(), bool(blocks), bool(hidden), at, until, row[_ROW.size :].decode())
