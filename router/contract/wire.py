"""The client protocol: commands and events as typed structs.

A command is one JSON object (text frame) or one msgpack map (binary frame) whose `type` names it (`codecs.py`).
Decoding validates all fields, so handlers do not check them again; `packing.py` validates bodies. The JSON Schema that
is served is generated from these structs.

Events of a log are not encoded from their struct here: `stamp.py` makes their bytes once for all readers.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, Struct, UnsetType, field

from router.contract.files import FileInfo, GivenFiles
from router.contract.packing import (
    MAX_INTEGER,
)
from router.contract.state import StateKey

MAX_FRAME_BYTES: Final = 131_072
MAX_ID: Final = 256
HISTORY_LIMIT: Final = 200
PRESENCE_LIMIT: Final = 200
WELCOME_LIMIT: Final = 200

# In Python `$` alone accepts a newline at the end, so the lookahead refuses it; in ECMAScript it has no effect.
NAME_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$(?!\n)"

_name = re.compile(NAME_PATTERN)

MAPPED: Final = "ext--"  # prefix of user names that are made from a claim that is no Linnet name (`tokens.mapped`)
Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="A user or device: 1-64 of A-Z a-z 0-9 . _ -")]
ConversationId = Annotated[str, Meta(min_length=1, max_length=160, description="Made by the server, opaque.")]
Target = Annotated[str, Meta(min_length=1, max_length=160, description="A conversation id, or @user.")]
Seq = Annotated[int, Meta(ge=0, le=MAX_INTEGER)]
N = Annotated[int, Meta(ge=1, le=MAX_INTEGER)]
CommandId = Annotated[str, Meta(max_length=MAX_ID)] | Annotated[int, Meta(ge=-MAX_INTEGER, le=MAX_INTEGER)] | None
Short = Annotated[str, Meta(min_length=1, max_length=64)]
Instance = Annotated[str, Meta(max_length=64)]
Token = Annotated[str, Meta(max_length=8192)]


def is_name(text: str) -> bool:
    """Whether the text can name a user or a device."""
    return _name.match(text) is not None


class Command(Struct, tag_field="type", kw_only=True, frozen=True):
    """Base of all commands; the direct answer repeats their `id`."""

    id: CommandId = None


class Hello(Command, tag="hello", frozen=True, kw_only=True):
    token: Token | None = None
    device: Name = "default"
    instance: Instance | None = None
    cursors: Annotated[dict[ConversationId, Seq], Meta(max_length=10_000)] = {}


class Auth(Command, tag="auth", frozen=True, kw_only=True):
    token: Token


class Send(Command, tag="send", frozen=True, kw_only=True):
    to: Target
    n: N
    body: Any
    media: Short = "text"
    reply_to: Seq | None = None
    done: Seq = 0
    files: GivenFiles = []


class Edit(Command, tag="edit", frozen=True, kw_only=True):
    conversation: ConversationId
    seq: Seq
    n: N
    body: Any
    done: Seq = 0


class Delete(Command, tag="delete", frozen=True, kw_only=True):
    conversation: ConversationId
    seq: Seq
    n: N
    done: Seq = 0


class React(Command, tag="react", frozen=True, kw_only=True):
    conversation: ConversationId
    seq: Seq
    n: N
    emoji: Short
    remove: bool = False
    done: Seq = 0


class Ack(Command, tag="ack", frozen=True, kw_only=True):
    conversation: ConversationId | None = None
    seq: Seq = 0
    cursors: Annotated[dict[ConversationId, Seq], Meta(max_length=1000)] = {}


class Read(Command, tag="read", frozen=True, kw_only=True):
    conversation: ConversationId
    seq: Seq


class Typing(Command, tag="typing", frozen=True, kw_only=True):
    to: Target


class History(Command, tag="history", frozen=True, kw_only=True):
    conversation: ConversationId
    before: Seq | None = None
    after: Seq | None = None
    limit: Annotated[int, Meta(ge=1, le=HISTORY_LIMIT)] = 50

    def __post_init__(self) -> None:
        if self.before is not None and self.after is not None:
            raise ValueError("give `before` or `after`, not both")


class Presence(Command, tag="presence", frozen=True, kw_only=True):
    users: Annotated[list[Name], Meta(max_length=PRESENCE_LIMIT)]
    watch: bool = False


class State(Command, tag="state", frozen=True, kw_only=True):
    """Write a key of the user's state; null removes it. `expect`: the version that the key must have, 0 for absent."""

    key: StateKey
    value: Any
    expect: Seq | None = None


class Ping(Command, tag="ping", frozen=True, kw_only=True):
    pass


Commands = Hello | Auth | Send | Edit | Delete | React | Ack | Read | Typing | History | Presence | State | Ping


class Event(Struct, tag_field="type", kw_only=True, frozen=True, omit_defaults=True):
    """Base of all events."""


class Answer(Event, frozen=True, kw_only=True):
    """Base of direct answers: `id` is the command's, and left out if the command has none."""

    id: CommandId = None


class Limits(Struct, frozen=True):
    frame_bytes: int
    body_bytes: int
    sends_per_s: float
    send_burst: int


class ConversationState(Struct, kw_only=True, frozen=True, omit_defaults=True):
    """One conversation of a device: the device has all events up to `cursor`, the user has read up to `read`.

    If `gone` is true, the only other field is the `reason`: `deleted`, `removed` (the user is no longer a member) or
    `user_deleted` (the other user of a direct conversation). The entry is repeated at every `hello` until the device
    acks the conversation.

    If `held` is true, the conversation's part of Redis does not answer: `head`, `unread` and `posting` of a group or
    channel are left out, and so is `cursor` if it is not known where the device begins. Another entry without `held`
    follows. A session that was connected before gets only `kind`, `title` and `held`, for groups and channels alone;
    the entry that follows has the same, with `held` false.

    Of a group or channel, `posting` says who may send and edit: `all`, or `admins`. If the user is muted there,
    `muted_until` is the end (ms), null if it has none.
    """

    conversation: str
    kind: str
    title: str | UnsetType = UNSET
    head: int | UnsetType = UNSET
    cursor: int | UnsetType = UNSET
    read: int | UnsetType = UNSET
    unread: int | UnsetType = UNSET
    with_: str | None = field(name="with", default=None)
    role: str | None = None
    posting: str | None = None
    muted_until: int | UnsetType | None = UNSET
    gone: bool = False
    reason: str | None = None
    held: bool | UnsetType = UNSET


class Welcome(Answer, tag="welcome", frozen=True, kw_only=True):
    user: str
    device: str
    session: str
    gateway: str
    heartbeat_s: float
    expires_at: int
    limits: Limits
    state: int
    conversations: list[ConversationState]
    more: bool


class ConversationsEvent(Event, tag="conversations", frozen=True, kw_only=True):
    """Further conversations after `welcome`, one that the user was just added to, or one that is gone."""

    conversations: list[ConversationState]
    more: bool


class Logged(Event, frozen=True, kw_only=True):
    """Base of the events in a conversation's log: `prev` is the seq before this one, `count` the messages so far."""

    conversation: str
    seq: int
    prev: int
    count: int
    at: int
    from_: str = field(name="from")
    device: str
    n: int


class MessageEvent(Logged, tag="message", frozen=True, kw_only=True):
    """A message. If `server` is true, a backend wrote it in the user's name, so it does not move their read mark."""

    media: str
    body: Any
    reply_to: int | None = None
    server: bool = False
    files: list[FileInfo] = []


class EditEvent(Logged, tag="edit", frozen=True, kw_only=True):
    target: int
    body: Any


class DeleteEvent(Logged, tag="delete", frozen=True, kw_only=True):
    target: int


class ReactEvent(Logged, tag="react", frozen=True, kw_only=True):
    target: int
    emoji: str
    remove: bool


class MemberEvent(Logged, tag="member", frozen=True, kw_only=True):
    """A change of one member. `action`: `add`, `remove`, `role`, `mute` or `unmute`; a ban is a `remove` with `banned`.
    `until` (ms) is the end of the mute or ban, null if it has none."""

    user: str
    action: str
    role: str | None = None
    banned: bool = False
    until: int | None = None


class TitleEvent(Logged, tag="title", frozen=True, kw_only=True):
    """A change of the title, of the avatar or of rules; the title is given even if it has not changed.

    `avatar` is the sha256 of a file, null if it was removed.
    """

    title: str
    reacting: str | None = None
    avatar: str | UnsetType | None = UNSET
    posting: str | None = None
    adding: str | None = None
    slow_s: int | None = None


class AckEvent(Answer, tag="ack", frozen=True, kw_only=True):
    n: int
    conversation: str
    seq: int
    at: int
    duplicate: bool


class ReceiptEvent(Event, tag="receipt", frozen=True, kw_only=True):
    conversation: str
    user: str
    read: int


class TypingEvent(Event, tag="typing", frozen=True, kw_only=True):
    conversation: str
    from_: str = field(name="from")


class PresenceState(Struct, frozen=True):
    """A user's presence; `last_seen` is in milliseconds since the epoch, null for a user who was never online.

    `online` is null if it is not known now, because the part of Redis that knows it does not answer.
    """

    online: bool | None
    last_seen: int | None


class PresenceEvent(Answer, tag="presence", frozen=True, kw_only=True):
    users: dict[str, PresenceState]


class StateEvent(Answer, tag="state", frozen=True, kw_only=True):
    """A change of the user's state. `version` is the user's after it, `prev` before it; `value` null: the key was
    removed. Without `key`: the state has this version, ask for what changed.
    """

    key: str | UnsetType = UNSET
    value: Any = UNSET
    version: int
    prev: int | UnsetType = UNSET


class ProfileEvent(Event, tag="profile", frozen=True, kw_only=True):
    """The profile of a user whose presence the client watches has changed: ask for it."""

    user: str


class GapEvent(Event, tag="gap", frozen=True, kw_only=True):
    """Events from `from` to `to`, both included, were trimmed (`expired`) or lost in a failover (`failover`)."""

    conversation: str
    from_: int = field(name="from")
    to: int
    reason: str


class DrainEvent(Event, tag="drain", frozen=True, kw_only=True):
    retry_after: float


class Ok(Answer, tag="ok", frozen=True, kw_only=True):
    expires_at: int


class HistoryEvent(Answer, tag="history", frozen=True, kw_only=True):
    """A page of a log. `events` are `msgspec.Raw` of the log's bytes in the codec's form, so none is encoded again."""

    conversation: str
    events: list[Any]
    more: bool


class Pong(Answer, tag="pong", frozen=True, kw_only=True):
    at: int


class ErrorEvent(Answer, tag="error", frozen=True, kw_only=True):
    """An error; `reason` and `next` explain the `conflict` of an `n`, `version` that of a state (`errors.Conflict`)."""

    code: str
    message: str
    retry_after: float | None = None
    n: int | None = None
    reason: str | None = None
    next: int | None = None
    version: int | None = None


Events = (
    Welcome
    | ConversationsEvent
    | MessageEvent
    | EditEvent
    | DeleteEvent
    | ReactEvent
    | MemberEvent
    | TitleEvent
    | AckEvent
    | ReceiptEvent
    | TypingEvent
    | PresenceEvent
    | StateEvent
    | ProfileEvent
    | GapEvent
    | DrainEvent
    | Ok
    | HistoryEvent
    | Pong
    | ErrorEvent
)
