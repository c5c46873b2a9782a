"""A user's state: keys with values that follow the user to every device, such as drafts, contacts and settings.

Clients and the server write different keys (`contract/state.py`) by one function, `write_state`, which has the rules of
versions. A device reads what changed after the version it has.

Invariants
- Versions of a user only rise and are never used twice, over failovers too. A device that has a version that was lost,
  or that no longer says what it has missed, gets everything anew (`Entries.reset`).
- A removed key keeps its version for `write_state`'s REMOVED_US, so a device that was away learns of the removal.
- Of the server's writes of a key the one with the highest change number stays, in whatever order they arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct as Packing
from typing import Any, Final

from msgspec import Struct

from router.contract import keys, signals
from router.contract.errors import BadCommand, FunctionError, LinnetError, RateLimited, from_function
from router.store.redis.client import Client, RedisArg
from router.store.redis.decoding import answer

PAGE_BYTES: Final = 1 << 20  # of keys and values
_ROW: Final = Packing(">QQ")  # version, change number of the server


class Written(Struct, frozen=True):
    """The result of a write: the key's new version, and the user's version before it. They are equal if the server has
    written the same value again. `replid`: the server that executed it (`durability`)."""

    version: int
    prev: int
    replid: bytes


class Entry(Struct, frozen=True):
    """A key, the version of its last change, and its value as msgpack; None if the key was removed."""

    key: str
    version: int
    value: bytes | None


class Entries(Struct, frozen=True):
    """A page of changes, ascending by version. `version` is the user's when the page was read.

    `reset`: the changes since the asked version cannot be told, so this is the first page of everything. `cursor` is
    where the next page begins; empty if there is none.
    """

    entries: list[Entry]
    version: int
    reset: bool
    cursor: str


class State:
    def __init__(self, client: Client, rate_us: tuple[int, int]) -> None:
        """`rate_us`: cost and burst of the writes of one user's clients, in µs."""
        self._client = client
        self._rate_us = rate_us

    def write(
        self,
        user: str,
        key: str,
        value: bytes | None,
        expect: int | None,
        reply: Callable[[Written | LinnetError], None],
    ) -> None:
        """Write a key for one of the user's clients; None removes it.

        `expect`: the version that the key must have, 0 for an absent one, else `Conflict` with the version; None: any.
        `RateLimited` and `Quota` count all clients of the user together.
        """
        self._write(user, key, value, "" if expect is None else str(expect), "", partial(answer, reply, _written))

    def put(
        self,
        user: str,
        key: str,
        value: bytes | None,
        change: int,
        reply: Callable[[Written | LinnetError | None], None],
    ) -> None:
        """Write a key that only the server writes: a copy, as of the change `change` of what it copies.

        None if the key has that change or a later one already. It may be repeated, and come late.
        """
        self._write(user, key, value, "", str(change), partial(answer, reply, _put))

    def _write(
        self, user: str, key: str, value: bytes | None, expect: str, change: str, reply: Callable[[object], None]
    ) -> None:
        names = (
            keys.user(user),
            keys.state(user),
            keys.versions(user),
            keys.removed(user),
            keys.convs(user),
            keys.recent(user),
            keys.push(keys.partition(user)),
        )
        args: tuple[RedisArg, ...] = (
            key,
            value or b"",
            self._client.channels.user(user),
            signals.state_signal(key),
            expect,
            change,
            *self._rate_us,
        )
        self._client.call("write_state", names, args, reply)

    async def read(self, user: str, key: str) -> Entry | None:
        """The entry of a key; None if it is absent or was removed."""
        row: bytes | None = await self._client.fetch("HGET", keys.state(user), key)
        if row is None or len(row) == _ROW.size:
            return None
        return Entry(key, _ROW.unpack_from(row)[0], row[_ROW.size :])

    async def values(self, user: str, names: Sequence[str]) -> list[bytes | None]:
        """The values of these keys, in their order; None for one that is absent or was removed."""
        rows = await self._client.fetch("HMGET", keys.state(user), *names)
        return [None if row is None or len(row) == _ROW.size else row[_ROW.size :] for row in rows]

    async def entries(self, user: str, after: int, prefix: str, limit: int, cursor: str = "") -> Entries:
        """The keys with this prefix that changed after a version, at most `limit` and `PAGE_BYTES`.

        `cursor`, of the page before, continues there. It also contains the version up to which the caller knows of
        removals: a page of everything does not begin anew because keys were removed before its first page.
        """
        known = after
        if cursor:
            known, after = _position(cursor)
        try:
            version, reset, more, upto, flat = await self._client.fcall(
                "state_after",
                (keys.state(user), keys.versions(user)),
                (known, after, prefix, limit, PAGE_BYTES),
            )
        except FunctionError as error:
            raise from_function(error) from None
        parts = iter(flat)
        rows = zip(parts, parts, parts, strict=True)
        found = [Entry(key.decode(), written, value or None) for key, written, value in rows]
        # The version up to which the reader of this page knows of removals; a reader of everything had no keys before.
        known = version if reset or after == 0 else max(known if cursor else 0, upto)
        return Entries(found, version, bool(reset), f"{known}-{upto}" if more else "")


def _position(cursor: str) -> tuple[int, int]:
    known, _, after = cursor.partition("-")
    if not (known.isdecimal() and after.isdecimal() and len(cursor) <= 40):
        raise BadCommand("`cursor` must be the one of the page before")
    return int(known), int(after)


def _written(value: Any) -> Written | LinnetError:
    if isinstance(value, LinnetError):
        return _refusal(value)
    return Written(*value)


def _put(value: Any) -> Written | LinnetError | None:
    return None if value is None else _written(value)


def _refusal(error: LinnetError) -> LinnetError:
    if isinstance(error, FunctionError) and error.reply_code == "RATE":
        return RateLimited("too many changes of one user's state", max(0.001, round(int(error.detail) / 1e6, 3)))
    return from_function(error)
