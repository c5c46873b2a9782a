"""The members of conversations, page by page. A mute is in a member's row, so it is looked up beside the role."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import msgspec

from router.contract import keys
from router.contract.errors import LinnetError, NotFound
from router.store.answers import Reply
from router.store.redis.client import Client
from router.store.redis.decoding import unreadable

MEMBERS_STEP: Final = 1000


class MembersPage(msgspec.Struct, frozen=True):
    """Some of the present members and their roles; `cursor` = 0 after the last page."""

    roles: dict[str, str]
    cursor: int


class Members:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def page(self, conv: str, user: str | None = None, cursor: int = 0) -> MembersPage:
        """A page of the present members; for the server (`user` None) also of a removed conversation."""
        key = keys.conversation(conv)
        if user is not None and not present_roles(await self._client.fetch("HMGET", key, "m", f"u:{user}"))[0]:
            raise NotFound
        following, found = await self._client.fetch("HSCAN", key, cursor, "MATCH", "u:*", "COUNT", MEMBERS_STEP)
        rows = zip(found[::2], found[1::2], strict=True)
        roles = {name[2:].decode(): chr(row[0]) for name, row in rows if row[:1] != b"-"}
        return MembersPage(await self.unmuted(key, roles), int(following))

    def mutes(self, user: str, convs: Sequence[str], reply: Reply[dict[str, int]]) -> None:
        """Read until when (ms; 0: for ever) the user is muted in each of these conversations, which are not empty.

        A conversation where the user has no mute, or whose server does not answer, is left out. A mute may be over.
        """
        MutesRead(self._client, user, convs, reply)

    async def unmuted(self, key: str, roles: dict[str, str]) -> dict[str, str]:
        """The roles that these members have apart from mutes: the row of a muted member has the role `r`."""
        readers = [user for user, role in roles.items() if role == "r"]
        mutes = await self._client.fetch("HMGET", key, *(f"x:{user}" for user in readers)) if readers else ()
        # `-`: muted as no member, and added since by a node of a release without mutes, as a reader.
        found = {user: chr(mute[0]) for user, mute in zip(readers, mutes, strict=True) if mute and mute[:1] != b"-"}
        return roles | found

    async def all(self, conv: str) -> set[str]:
        """All present members of a small conversation, for the server."""
        found: set[str] = set()
        cursor, more = 0, True
        while more:
            page = await self.page(conv, None, cursor)
            found |= page.roles.keys()
            cursor, more = page.cursor, page.cursor != 0
        return found

    async def heir(self, conv: str, leaving: str) -> str:
        """The user who becomes owner after `leaving`; "" if there is none.

        Admins come before members, and members before readers of a group; of the same role, the user who was added
        first. Readers of a channel may have joined by themselves, so they never become owner.
        """
        ranks = "am" if conv[0] == keys.CHANNEL else "amr"
        rows: dict[str, bytes] = {}
        added: dict[str, int] = {}
        cursor = -1
        while cursor:
            following, found = await self._client.fetch(
                "HSCAN", keys.conversation(conv), max(cursor, 0), "MATCH", "[ua]:*", "COUNT", MEMBERS_STEP
            )
            cursor = int(following)
            for field, value in zip(found[::2], found[1::2], strict=True):
                user = field[2:].decode()
                if field[:1] == b"a":
                    added[user] = int(value)
                elif user != leaving and value[:1] != b"-":
                    rows[user] = value
        roles = await self.unmuted(keys.conversation(conv), {user: chr(row[0]) for user, row in rows.items()})
        order = [
            (ranks.index(roles[user]), added.get(user, int(row.split()[1])), user)
            for user, row in rows.items()
            if roles[user] in ranks
        ]
        return min(order)[2] if order else ""


class MutesRead:
    """The pipelined reads of one `mutes` call, and its one reply."""

    __slots__ = ("_ends", "_missing", "_reply")

    def __init__(self, client: Client, user: str, convs: Sequence[str], reply: Reply[dict[str, int]]) -> None:
        self._reply = reply
        self._missing = len(convs)
        self._ends: dict[str, int] = {}
        for conv in convs:
            client.command("HGET", keys.conversation(conv), f"x:{user}", reply=partial(self._received, conv))

    def _received(self, conv: str, value: Any) -> None:
        if value is not None and not isinstance(value, LinnetError):
            try:
                self._ends[conv] = int(value[2:])  # after the role and a space
            except (ValueError, TypeError) as error:
                unreadable(error)
        self._missing -= 1
        if not self._missing:
            self._reply(self._ends)


def present_roles(value: Any) -> list[str]:
    """Role chars from a reply of (m, member row …)."""
    m, *rows = value
    return ["" if m is None or row is None or row[:1] == b"-" else chr(row[0]) for row in rows]
