"""Profiles and privacy of users, in the user's hash.

The key `me` of the user's state is a copy, with the number of the change, and the pairs' records know who takes
messages from contacts only. A change marks the user in `dirty` first, so a router settles both (`contacts.settle`). It
also has the files of former avatars looked at (`jobs/freeing.py`).

Invariants
- Each field is set on its own, so two calls that change different fields at once both hold.
- An avatar is the hash of a file that was pinned for the user before (`store/files.py`).
- A field that is absent has its default, so users who change nothing have no fields, and reading costs nothing more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Struct

from router.contract import keys, signals
from router.contract.errors import FunctionError, LinnetError, RateLimited, from_function
from router.contract.packing import pack, unpack
from router.store.redis.client import Client
from router.store.redis.decoding import answer

MARK: Final = "@"  # before the user's name in `dirty`
SETTLE_MS: Final = 1000  # by then a direct conversation that is being created has its rows
MESSAGES_COST_US, MESSAGES_BURST_US = 360_000_000, 3_600_000_000  # 10 an hour

Audience: TypeAlias = Literal["everyone", "contacts", "nobody"]
PRIVACY: Final = ("messages", "groups", "presence", "requests", "receipts")
_PACKED: Final = ("about", "status", "extra")
_FIELDS: Final = ("created", "profile_n", "messages_n", "name", "avatar", "roles", *_PACKED, *PRIVACY)


class Privacy(Struct, frozen=True):
    messages: Audience = "everyone"
    groups: Audience = "everyone"
    presence: Audience = "everyone"
    requests: Audience = "everyone"
    receipts: Audience = "everyone"


class Profile(Struct, frozen=True):
    """`number` is that of the last change, `messages_n` that of the last change of `privacy.messages`; 0 for none."""

    number: int
    messages_n: int
    name: str
    about: str | None
    avatar: str | None
    status: dict[str, Any] | None
    extra: Any
    privacy: Privacy
    roles: tuple[str, ...] = ()


class MessagesFrom(Struct, frozen=True):
    """From whom a user takes messages, and the number of that setting; 0 if it was never changed."""

    contacts_only: bool
    number: int


class SignalSettings(Struct, frozen=True):
    """The settings that a user's own sessions observe.

    `hides`: a block hides the user from others; `receipts`: they send receipts.
    """

    hides: bool = False
    receipts: bool = True


class Profiles:
    def __init__(self, client: Client) -> None:
        self._client = client
        self._channels = client.channels

    async def change(self, user: str, changes: Mapping[str, Any]) -> None:
        """Change these fields, None clears one; names of PRIVACY are fields, too. `RateLimited` for `messages`.

        `avatar` is the pin of its file (`Attached.pins`). After the change the user is marked once more, because a
        router may have settled the first mark before a change that took long.
        """
        await self.mark(user)
        await self._change(user, changes)
        await self.mark(user)

    async def _change(self, user: str, changes: Mapping[str, Any]) -> None:
        args: list[Any] = [
            MESSAGES_COST_US,
            MESSAGES_BURST_US,
            self._channels.presence(user),
            signals.encode(signals.Profile(user)),
            self._channels.user(user),
            signals.encode(signals.Hidden(user)),
        ]
        for name, value in changes.items():
            args += (name, _stored(name, value))
        try:
            await self._client.fcall("profile", (keys.user(user),), args)
        except FunctionError as error:
            if error.reply_code == "RATE":
                wait_s = max(0.001, round(int(error.detail) / 1e6, 3))
                raise RateLimited("`privacy.messages` was changed too often", wait_s) from None
            raise from_function(error) from None

    async def read(self, user: str) -> Profile | None:
        """The user's profile; None if there is no such user."""
        (found,) = await self.read_all([user])
        return found

    async def read_all(self, users: Iterable[str]) -> list[Profile | None]:
        """The profiles of many users, in their order."""
        rows = await asyncio.gather(*(self._client.fetch("HMGET", keys.user(user), *_FIELDS) for user in users))
        return [_profile(row) for row in rows]

    def messages_from(self, user: str, reply: Callable[[MessagesFrom | LinnetError | None], None]) -> None:
        """Read from whom the user takes messages; None if there is no such user."""
        fields = ("created", "messages", "messages_n")
        self._client.command("HMGET", keys.user(user), *fields, reply=partial(answer, reply, _messages_from))

    def signal_settings(self, user: str, reply: Callable[[SignalSettings | LinnetError], None]) -> None:
        """Read what the user's own sessions observe."""
        self._client.command(
            "HMGET", keys.user(user), "hides", "receipts", reply=partial(answer, reply, _signal_settings)
        )

    async def mark(self, user: str) -> None:
        """Mark the user: a router settles what follows from the profile."""
        await self._mark(user, settled=False)

    async def settled(self, user: str) -> None:
        """Unmark the user, unless they were marked again meanwhile."""
        await self._mark(user, settled=True)

    async def _mark(self, user: str, settled: bool) -> None:
        args = (f"{MARK}{user}", SETTLE_MS, int(settled))
        try:
            await self._client.fcall("mark_user", (keys.dirty(keys.partition(user)),), args)
        except LinnetError as error:
            raise from_function(error) from None


def _stored(name: str, value: Any) -> str | bytes:
    if value is None or (name in PRIVACY and value == "everyone"):
        return b""
    if name == "avatar":
        return bytes(value)
    return pack(value) if name in _PACKED else str(value)


def _profile(row: list[bytes | None]) -> Profile | None:
    fields = dict(zip(_FIELDS, row, strict=True))
    if fields["created"] is None:
        return None
    packed = {name: unpack(value) if (value := fields[name]) else None for name in _PACKED}
    privacy = {name: value.decode() for name in PRIVACY if (value := fields[name])}
    return Profile(
        number=int(fields["profile_n"] or 0),
        messages_n=int(fields["messages_n"] or 0),
        name=(fields["name"] or b"").decode(),
        avatar=avatar.hex() if (avatar := fields["avatar"]) else None,
        **packed,
        privacy=msgspec.convert(privacy, Privacy),
        roles=tuple((fields["roles"] or b"").decode().split()),
    )


def _messages_from(value: Any) -> MessagesFrom | LinnetError | None:
    if isinstance(value, LinnetError):
        return value
    created, messages, number = value
    return None if created is None else MessagesFrom(messages is not None, int(number or 0))


def _signal_settings(value: Any) -> SignalSettings | LinnetError:
    if isinstance(value, LinnetError):
        return value
    hides, receipts = value
    return SignalSettings(hides is not None, receipts is None)
