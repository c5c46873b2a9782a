"""All users and conversations of a deployment, page by page, for its admins.

Both are walks over keys (`redis/scans.py`): a page has no order, may be empty before the end, and an entry may come
twice. A page takes at most `STEPS` steps, so no call takes long. A step looks at `STEP` keys for users, and at as many
keys as a page has entries for conversations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, Literal, TypeAlias

from msgspec import Struct

from router.contract import keys
from router.contract.errors import BadCommand
from router.store.redis.client import Client
from router.store.redis.scans import scan

STEP: Final = 500
STEPS: Final = 20
BEGIN: Final = "0"
LAST: Final = 2**64 - 1  # a cursor of SCAN beyond it is an error of the server

UserState: TypeAlias = Literal["active", "suspended", "deleted"]


class KnownUser(Struct, frozen=True):
    """A user. `suspended_until` (ms) is None if they are not suspended, and 0 if that has no end."""

    user: str
    state: UserState
    name: str
    roles: tuple[str, ...]
    created: int
    password: bool
    suspended_until: int | None


class Directory:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def users(self, prefix: str, state: UserState | None, after: str, limit: int) -> tuple[list[KnownUser], str]:
        """Users whose names begin so, and the place of the next page; "" after the last. `limit` may be exceeded by
        less than a step. The user with exactly this name comes first."""
        place, found = _place(after), []
        if prefix and not place:
            found = await self._read([prefix], state)
        for _ in range(STEPS):
            named, place = await scan(self._client, _matching(prefix), place, STEP)
            found += await self._read({keys.user_of(key) for key in named}, state)
            if not place or len(found) >= limit:
                break
        return list({one.user: one for one in found}.values()), place

    async def conversations(self, after: str, limit: int) -> tuple[list[str], str]:
        """Conversations, and the place of the next page; "" after the last. `limit` may be exceeded by less than a
        step."""
        place = _place(after)
        found: list[str] = []
        for _ in range(STEPS):
            named, place = await scan(self._client, keys.EVERY_CONVERSATION, place, limit)
            found += [keys.conversation_of(key) for key in named]
            if not place or len(found) >= limit:
                break
        return list(dict.fromkeys(found)), place

    async def _read(self, users: Iterable[str], state: UserState | None) -> list[KnownUser]:
        fields = "created", "deleted", "suspended", "name", "roles", "pw"
        names = list(users)
        rows = await asyncio.gather(*(self._client.fetch("HMGET", keys.user(user), *fields) for user in names))
        now = await self._client.clock_ms()
        known = (_known(user, row, now) for user, row in zip(names, rows, strict=True))
        return [one for one in known if one is not None and state in (None, one.state)]


def _matching(prefix: str) -> str:
    """Names have no character that is special in a pattern."""
    return f"{keys.EVERY_USER.removesuffix('*')}{prefix}*"


def _place(after: str) -> str:
    """The walk's place from what a client sent back."""
    if after == BEGIN:
        return ""
    cursor = after.rpartition(" ")[2]
    if not (cursor.isascii() and cursor.isdigit() and int(cursor) <= LAST):
        raise BadCommand("`after` must be 0, or the `after` of an answer")
    return after


def _known(user: str, row: list[bytes | None], now: int) -> KnownUser | None:
    created, deleted, suspended, name, roles, password = row
    until = None if suspended is None else int(suspended)
    if until and until <= now:
        until = None
    if created is None and deleted is None:
        return None
    return KnownUser(
        user=user,
        state="deleted" if created is None else "active" if until is None else "suspended",
        name=(name or b"").decode(errors="replace"),
        roles=tuple((roles or b"").decode().split()),
        created=int(created or 0),
        password=password is not None,
        suspended_until=until,
    )
