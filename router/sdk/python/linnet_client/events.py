"""The events that the application receives: one frozen class per kind.

Events with a `seq` come from the log of a conversation, in its order. Ephemeral events (`Receipt`, `Typing`,
`Presence`) have none and are not repeated after a disconnect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """Base of the events of a conversation's log. `at` is in ms since the epoch; `count` the messages so far."""

    conversation: str
    seq: int
    prev: int
    count: int
    at: int
    sender: str
    device: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Logged):
    """A message. `server`: a backend wrote it in the name of `sender`; `files`: as the server knows them."""

    body: Any
    media: str = "text"
    reply_to: int | None = None
    server: bool = False
    files: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit(Logged):
    """The message `target` has a new body."""

    target: int
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete(Logged):
    """The message `target` was deleted."""

    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class React(Logged):
    """`sender` added the reaction `emoji` to the message `target`, or removed it."""

    target: int
    emoji: str
    remove: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Member(Logged):
    """A change of members: `action` is `add`, `remove`, `role`, `mute` or `unmute`.

    `banned`: the removal is a ban. `until`: the end of a ban or mute (ms), None if it has none.
    """

    user: str
    action: str
    role: str | None = None
    banned: bool = False
    until: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Title(Logged):
    """The title, and what else of the conversation has changed."""

    title: str
    reacting: str | None = None
    avatar: str | None = None
    posting: str | None = None
    adding: str | None = None
    slow_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Events `first` to `last` are gone: `expired` (they are no longer kept) or `failover` (they never existed)."""

    conversation: str
    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """The conversation is gone for this user: `deleted`, `removed` or `user_deleted`."""

    conversation: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The user has a conversation that this client did not know. Its state is in `Client.conversations`."""

    conversation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """`user` has read the conversation up to the seq `read`."""

    conversation: str
    user: str
    read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Typing:
    """`sender` is typing."""

    conversation: str
    sender: str


@dataclass(frozen=True, slots=True)
class Online:
    """Whether a user is online. `last_seen` is in ms since the epoch, None for a user who was never online."""

    online: bool | None
    last_seen: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """The presence of watched users has changed."""

    users: dict[str, Online]


LoggedEvent = Message | Edit | Delete | React | Member | Title
Event = LoggedEvent | Gap | Gone | Joined | Receipt | Typing | Presence


def _base(raw: dict[str, Any]) -> dict[str, Any]:
    names = ("conversation", "seq", "prev", "count", "at", "device", "n")
    return {name: raw[name] for name in names} | {"sender": raw["from"]}


LOGGED: Final[dict[str, Callable[[dict[str, Any]], LoggedEvent]]] = {
    "message": lambda raw: Message(
        **_base(raw),
        body=raw["body"],
        media=raw.get("media", "text"),
        reply_to=raw.get("reply_to"),
        server=raw.get("server", False),
        files=raw.get("files"),
    ),
    "edit": lambda raw: Edit(**_base(raw), target=raw["target"], body=raw["body"]),
    "delete": lambda raw: Delete(**_base(raw), target=raw["target"]),
    "react": lambda raw: React(
        **_base(raw), target=raw["target"], emoji=raw["emoji"], remove=raw.get("remove", False)
    ),
    "member": lambda raw: Member(
        **_base(raw),
        user=raw["user"],
        action=raw["action"],
        role=raw.get("role"),
        banned=raw.get("banned", False),
        until=raw.get("until"),
    ),
    "title": lambda raw: Title(
        **_base(raw),
        title=raw["title"],
        reacting=raw.get("reacting"),
        avatar=raw.get("avatar"),
        posting=raw.get("posting"),
        adding=raw.get("adding"),
        slow_s=raw.get("slow_s"),
    ),
}  # fmt: skip


def online(users: dict[str, Any]) -> dict[str, Online]:
    """Return the users of a `presence` event."""
    return {user: Online(state["online"], state.get("last_seen")) for user, state in users.items()}
