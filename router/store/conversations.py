"""Conversations in their slot: appending events, reading the log, membership, titles, signals.

What lives here: keys, arguments and replies of the functions that touch `{c<p>}`, and nothing they decide. What never
does: a user's own view (`users`), what routers still have to finish (`dirty`), retries.

Invariants
- A function is the only writer of its keys and is atomic; so no method here reads in order to write.
- Hot methods take `reply`, which gets the value or a `LinnetError`, once, later; they never raise. Cold ones are
  coroutines and raise.
- Whoever may not see a conversation gets `NotFound`, the same as for one that does not exist.

A user sees the events whose seq is in [joined, left]: joined = 0 for founders and in channels, else the seq of the
`member` event that let her in; left = the seq of the one that put her out.

Rejected: members in a hash of their own above some size (HMGET costs the same in a large hash; two places to look
cost a call per append).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar

import msgspec

from router.contract import keys
from router.contract.errors import LinnetError, from_function
from router.contract.stamp import Tail
from router.store.client import Client

T = TypeVar("T")
Reply = Callable[[T | LinnetError], None]

Action = Literal["message", "edit", "delete", "react"]
MemberAction = Literal["put", "remove", "join"]

ROLES: Final = {"owner": "o", "admin": "a", "member": "m", "reader": "r"}
ROLE_NAMES: Final = {char: name for name, char in ROLES.items()}
MAX_MEMBERS: Final = 100_000
CREATE_LIMIT: Final = 1000
HEAD: Final = 2**53 - 1  # `upto` of a read that wants all there is


class Append(msgspec.Struct, frozen=True):
    """One event to append. `n` = 0: no row that would tell a resend, and no rate; `server`: no rate."""

    conversation: str
    user: str
    device: str
    n: int
    done: int
    fingerprint: bytes
    tail: Tail
    action: Action = "message"
    target: int = 0
    seen: int = 0
    server: bool = False


class Appended(msgspec.Struct, frozen=True):
    """What became of it. `prev` and `count` are 0 for a duplicate; so is `at` when its event has left the log."""

    seq: int
    prev: int
    count: int
    at: int
    duplicate: bool
    replid: bytes


class Change(msgspec.Struct, frozen=True):
    """What a membership call did; for `none` the slots are 0 but `seq`, the seq of the user's last change."""

    action: Literal["add", "role", "remove", "none"]
    seq: int
    role: str
    prev: int
    count: int
    at: int


class Head(msgspec.Struct, frozen=True):
    """Where a conversation stands. `at`: of the last event (of its making before the first)."""

    seq: int
    count: int
    at: int
    version: int
    floor: int
    routed: int
    kind: str
    title: str


class Page(msgspec.Struct, frozen=True):
    """Events of a log, ascending. `position`: the reader has now everything up to there (backwards: from there on)."""

    events: list[bytes]
    position: int
    floor: int
    more: bool


class Place(msgspec.Struct, frozen=True):
    """A seq clamped to what the user sees, and how many messages there were up to it."""

    seq: int
    count: int
    size: int
    kind: str


class Members(msgspec.Struct, frozen=True):
    """Some of the present members and their roles; `cursor` = 0 after the last page."""

    roles: dict[str, str]
    cursor: int


class Description(msgspec.Struct, frozen=True):
    """A conversation for the API; `role` is that of the user who asked ("" for the server)."""

    conversation: str
    kind: str
    title: str
    head: int
    count: int
    at: int
    made: int
    size: int
    version: int
    role: str


class Conversations:
    """`cap`: events a log may have at worst, when no router trims it."""

    def __init__(self, client: Client, cap: int = 20_000) -> None:
        self._client = client
        self._cap = cap

    def append(self, a: Append, reply: Reply[Appended]) -> None:
        """Append an event, once for its (user, device, n)."""
        raise NotImplementedError

    async def create(
        self, conv: str, kind: str, title: str, members: Mapping[str, str], cost_us: int, burst_us: int
    ) -> bool:
        """Make a conversation with its founders (user → role char); False if it is there already."""
        raise NotImplementedError

    def create_direct(self, user: str, other: str, cost_us: int, burst_us: int, reply: Reply[bool]) -> None:
        """Make the direct conversation of two users; False if it is there already."""
        raise NotImplementedError

    async def member(
        self,
        conv: str,
        actor: str | None,
        user: str,
        action: MemberAction,
        role: str = "m",
        *,
        device: str = "",
        max_members: int = MAX_MEMBERS,
    ) -> Change:
        """Put, remove or join; `actor` None is the server, who may do anything."""
        raise NotImplementedError

    async def title(self, conv: str, actor: str | None, title: str, *, device: str = "") -> Appended:
        """Give a group or channel a title."""
        raise NotImplementedError

    async def remove_conversation(self, conv: str, actor: str | None) -> int:
        """Take the conversation out of the world; answers the seq of that change. Every call is `NotFound` then."""
        raise NotImplementedError

    async def gone(self, conv: str) -> int:
        """The seq at which the conversation was removed; 0 if it was not."""
        raise NotImplementedError

    def heads(self, convs: Sequence[str], reply: Reply[list[Head | None]]) -> None:
        """Heads in the order asked for; None for what does not exist (any more)."""
        raise NotImplementedError

    def range(self, conv: str, user: str | None, after: int, upto: int, limit: int, reply: Reply[Page]) -> None:
        """Events in (after, upto], as `user` sees them; None sees all."""
        raise NotImplementedError

    def before(self, conv: str, user: str | None, before: int, limit: int, reply: Reply[Page]) -> None:
        """The last events below `before`."""
        raise NotImplementedError

    def place(self, conv: str, user: str, seq: int, reply: Reply[Place]) -> None:
        """Where a read mark of the user lands."""
        raise NotImplementedError

    def start(self, conv: str, user: str, read: int, reply: Reply[int]) -> None:
        """The cursor at which a device new to the server starts."""
        raise NotImplementedError

    def whisper(self, conv: str, user: str, payload: bytes, reply: Reply[int] | None = None) -> None:
        """Publish a signal on the conversation's channel for a present member; answers the conversation's size."""
        raise NotImplementedError

    async def members(self, conv: str, user: str | None = None, cursor: int = 0) -> Members:
        """A page of the present members, of a removed conversation too if the server asks (`user` None)."""
        raise NotImplementedError

    def roles(self, conv: str, users: Sequence[str], reply: Reply[list[str]]) -> None:
        """The role char of each user, "" for who is no present member."""
        raise NotImplementedError

    async def describe(self, conv: str, user: str | None) -> Description:
        """All about a conversation, for a present member or the server."""
        raise NotImplementedError
