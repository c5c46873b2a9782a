"""Types of the wire, from the schema that the router serves (`/v1/schema.json`): `make sdk`."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class FileInfo(TypedDict):
    sha256: str
    type: str
    kind: Literal["file", "image", "video", "voice"]
    size: int
    name: NotRequired[str]
    width: NotRequired[int | None]
    height: NotRequired[int | None]
    duration: NotRequired[int | None]
    waveform: NotRequired[list[int] | None]
    previews: NotRequired[list[int]]
    poster: NotRequired[Poster | None]


class Poster(TypedDict):
    sha256: str
    type: str
    size: int
    width: int
    height: int
    previews: NotRequired[list[int]]


SharedFile = TypedDict(
    "SharedFile",
    {
        "sha256": str,
        "in": NotRequired[str | None],
        "poster": NotRequired[str | None],
    },
)


class Hello(TypedDict):
    type: Literal["hello"]
    id: NotRequired[str | int | None]
    token: NotRequired[str | None]
    device: NotRequired[str]
    instance: NotRequired[str | None]
    cursors: NotRequired[dict[str, int]]


class Auth(TypedDict):
    type: Literal["auth"]
    id: NotRequired[str | int | None]
    token: str


class Send(TypedDict):
    type: Literal["send"]
    id: NotRequired[str | int | None]
    to: str
    n: int
    body: Any
    media: NotRequired[str]
    reply_to: NotRequired[int | None]
    done: NotRequired[int]
    files: NotRequired[list[str | SharedFile]]


class Edit(TypedDict):
    type: Literal["edit"]
    id: NotRequired[str | int | None]
    conversation: str
    seq: int
    n: int
    body: Any
    done: NotRequired[int]


class Delete(TypedDict):
    type: Literal["delete"]
    id: NotRequired[str | int | None]
    conversation: str
    seq: int
    n: int
    done: NotRequired[int]


class React(TypedDict):
    type: Literal["react"]
    id: NotRequired[str | int | None]
    conversation: str
    seq: int
    n: int
    emoji: str
    remove: NotRequired[bool]
    done: NotRequired[int]


class Ack(TypedDict):
    type: Literal["ack"]
    id: NotRequired[str | int | None]
    conversation: NotRequired[str | None]
    seq: NotRequired[int]
    cursors: NotRequired[dict[str, int]]


class Read(TypedDict):
    type: Literal["read"]
    id: NotRequired[str | int | None]
    conversation: str
    seq: int


class Typing(TypedDict):
    type: Literal["typing"]
    id: NotRequired[str | int | None]
    to: str


class History(TypedDict):
    type: Literal["history"]
    id: NotRequired[str | int | None]
    conversation: str
    before: NotRequired[int | None]
    after: NotRequired[int | None]
    limit: NotRequired[int]


class Presence(TypedDict):
    type: Literal["presence"]
    id: NotRequired[str | int | None]
    users: list[str]
    watch: NotRequired[bool]


class State(TypedDict):
    type: Literal["state"]
    id: NotRequired[str | int | None]
    key: str
    value: Any
    expect: NotRequired[int | None]


class Ping(TypedDict):
    type: Literal["ping"]
    id: NotRequired[str | int | None]


class Welcome(TypedDict):
    type: Literal["welcome"]
    id: NotRequired[str | int | None]
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


class Limits(TypedDict):
    frame_bytes: int
    body_bytes: int
    sends_per_s: float
    send_burst: int


ConversationState = TypedDict(
    "ConversationState",
    {
        "conversation": str,
        "kind": str,
        "title": NotRequired[str],
        "head": NotRequired[int],
        "cursor": NotRequired[int],
        "read": NotRequired[int],
        "unread": NotRequired[int],
        "with": NotRequired[str | None],
        "role": NotRequired[str | None],
        "posting": NotRequired[str | None],
        "muted_until": NotRequired[int | None],
        "gone": NotRequired[bool],
        "reason": NotRequired[str | None],
        "held": NotRequired[bool],
    },
)


class ConversationsEvent(TypedDict):
    type: Literal["conversations"]
    conversations: list[ConversationState]
    more: bool


MessageEvent = TypedDict(
    "MessageEvent",
    {
        "type": Literal["message"],
        "conversation": str,
        "seq": int,
        "prev": int,
        "count": int,
        "at": int,
        "from": str,
        "device": str,
        "n": int,
        "media": str,
        "body": Any,
        "reply_to": NotRequired[int | None],
        "server": NotRequired[bool],
        "files": NotRequired[list[FileInfo]],
    },
)


EditEvent = TypedDict(
    "EditEvent",
    {
        "type": Literal["edit"],
        "conversation": str,
        "seq": int,
        "prev": int,
        "count": int,
        "at": int,
        "from": str,
        "device": str,
        "n": int,
        "target": int,
        "body": Any,
    },
)


DeleteEvent = TypedDict(
    "DeleteEvent",
    {
        "type": Literal["delete"],
        "conversation": str,
        "seq": int,
        "prev": int,
        "count": int,
        "at": int,
        "from": str,
        "device": str,
        "n": int,
        "target": int,
    },
)


ReactEvent = TypedDict(
    "ReactEvent",
    {
        "type": Literal["react"],
        "conversation": str,
        "seq": int,
        "prev": int,
        "count": int,
        "at": int,
        "from": str,
        "device": str,
        "n": int,
        "target": int,
        "emoji": str,
        "remove": bool,
    },
)


MemberEvent = TypedDict(
    "MemberEvent",
    {
        "type": Literal["member"],
        "conversation": str,
        "seq": int,
        "prev": int,
        "count": int,
        "at": int,
        "from": str,
        "device": str,
        "n": int,
        "user": str,
        "action": str,
        "role": NotRequired[str | None],
        "banned": NotRequired[bool],
        "until": NotRequired[int | None],
    },
)


TitleEvent = TypedDict(
    "TitleEvent",
    {
        "type": Literal["title"],
        "conversation": str,
        "seq": int,
        "prev": int,
        "count": int,
        "at": int,
        "from": str,
        "device": str,
        "n": int,
        "title": str,
        "reacting": NotRequired[str | None],
        "avatar": NotRequired[str | None],
        "posting": NotRequired[str | None],
        "adding": NotRequired[str | None],
        "slow_s": NotRequired[int | None],
    },
)


class AckEvent(TypedDict):
    type: Literal["ack"]
    id: NotRequired[str | int | None]
    n: int
    conversation: str
    seq: int
    at: int
    duplicate: bool


class ReceiptEvent(TypedDict):
    type: Literal["receipt"]
    conversation: str
    user: str
    read: int


TypingEvent = TypedDict(
    "TypingEvent",
    {
        "type": Literal["typing"],
        "conversation": str,
        "from": str,
    },
)


class PresenceEvent(TypedDict):
    type: Literal["presence"]
    id: NotRequired[str | int | None]
    users: dict[str, PresenceState]


class PresenceState(TypedDict):
    online: bool | None
    last_seen: int | None


class StateEvent(TypedDict):
    type: Literal["state"]
    id: NotRequired[str | int | None]
    key: NotRequired[str]
    value: NotRequired[Any]
    version: int
    prev: NotRequired[int]


class ProfileEvent(TypedDict):
    type: Literal["profile"]
    user: str


GapEvent = TypedDict(
    "GapEvent",
    {
        "type": Literal["gap"],
        "conversation": str,
        "from": int,
        "to": int,
        "reason": str,
    },
)


class DrainEvent(TypedDict):
    type: Literal["drain"]
    retry_after: float


class Ok(TypedDict):
    type: Literal["ok"]
    id: NotRequired[str | int | None]
    expires_at: int


class HistoryEvent(TypedDict):
    type: Literal["history"]
    id: NotRequired[str | int | None]
    conversation: str
    events: list[Any]
    more: bool


class Pong(TypedDict):
    type: Literal["pong"]
    id: NotRequired[str | int | None]
    at: int


class ErrorEvent(TypedDict):
    type: Literal["error"]
    id: NotRequired[str | int | None]
    code: str
    message: str
    retry_after: NotRequired[float | None]
    n: NotRequired[int | None]
    reason: NotRequired[str | None]
    next: NotRequired[int | None]
    version: NotRequired[int | None]


AnyCommand = Hello | Auth | Send | Edit | Delete | React | Ack | Read | Typing | History | Presence | State | Ping
AnyEvent = (
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
