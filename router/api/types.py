"""What the HTTP API takes and gives, as structs: decoding them is all the validation there is, and the OpenAPI document
is made from them. Unknown fields are ignored. No handler checks a field again, and nothing else crosses the wire.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from router.contract import text, wire
from router.contract.wire import ConversationId, Name, Seq

Reacting = Literal["all", "members"]
Role = Literal["owner", "admin", "member", "reader"]
AccountName = Annotated[
    str,
    Meta(
        pattern=wire.NAME_PATTERN.replace("^", r"^(?!\.{1,2}$|[eE][xX][tT]--)", 1),
        description="A user's name but `.` and `..`, which URL libraries take for other places in a path, and none that"
        f" begins with `{wire.MAPPED}` (in any case), which is reserved for users of the identity provider.",
    ),
]
VISIBLE = "No control characters, none that override its direction, and not only invisible ones."
Title = Annotated[str, Meta(max_length=256, description=VISIBLE)]
Password = Annotated[str, Meta(min_length=1, max_length=256)]
NewPassword = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        description="At least `LINNET_PASSWORD_MIN` (8) characters, none of them a control or invisible one; not the"
        " user's name. Compared in its composed form (RFC 8265, OpaqueString).",
    ),
]
PageLimit = Annotated[int, Meta(ge=1, le=200)]
Cursor = Annotated[int, Meta(ge=0, le=2**63 - 1, description="Opaque: `cursor` of the page before.")]

MEMBERS_AT_ONCE = 1000


class ErrorBody(Struct, frozen=True, omit_defaults=True):
    """`reason` and `next` explain the `conflict` of an `n`, as on a socket."""

    code: str
    message: str
    reason: str | None = None
    next: int | None = None


class Error(Struct, frozen=True):
    """Every refusal, whatever its status. `Retry-After` stands beside it where trying again helps."""

    error: ErrorBody


# -- accounts


class NewAccount(Struct, frozen=True):
    user: AccountName
    password: NewPassword
    name: Annotated[str, Meta(max_length=128, description=f"As others see it. {VISIBLE}")] = ""

    def __post_init__(self) -> None:
        text.check("name", self.name)


class AccountMade(Struct, frozen=True):
    user: str
    name: str


class LoginRequest(Struct, frozen=True):
    user: Name
    password: Password
    device: Name = "default"


class LoginAnswer(Struct, frozen=True):
    """`gateways`: where to connect, the least loaded first."""

    user: str
    device: str
    token: str
    expires_at: int
    gateways: list[str]


class Renewal(Struct, frozen=True):
    """`gateways`: where to connect, the least loaded first."""

    token: str
    expires_at: int
    gateways: list[str]


class Gateways(Struct, frozen=True):
    """URLs of the live gateways, the least loaded first."""

    gateways: list[str]


class TokenRequest(Struct, frozen=True):
    user: Name


class TokenAnswer(Struct, frozen=True):
    user: str
    token: str
    expires_at: int


# -- conversations


class NewConversation(Struct, frozen=True):
    """Its maker becomes owner; `members` are names, or names with their roles."""

    kind: Literal["group", "channel"]
    title: Title = ""
    members: (
        Annotated[list[Name], Meta(max_length=MEMBERS_AT_ONCE)]
        | Annotated[dict[Name, Role], Meta(max_length=MEMBERS_AT_ONCE)]
    ) = []

    def __post_init__(self) -> None:
        text.check("title", self.title)


class Conversation(Struct, frozen=True, kw_only=True):
    """`members` holds at most 1000 of the `size`; `more_members`: ask for the list. `role`: the caller's own."""

    conversation: str
    kind: str
    title: str
    members: dict[str, str]
    more_members: bool
    size: int
    head: int
    count: int
    at: int
    made: int
    role: str | None
    reacting: Reacting


class ListedConversation(Struct, frozen=True, kw_only=True):
    """A conversation as the user finds it; `with` is the other user of a direct one."""

    conversation: str
    kind: str
    title: str
    head: int
    read: int
    unread: int
    with_: str | None = field(name="with", default=None)


class ListQuery(Struct, frozen=True):
    cursor: Cursor = 0
    limit: PageLimit = 50


class ConversationList(Struct, frozen=True):
    """What moved last comes first."""

    conversations: list[ListedConversation]
    more: bool
    cursor: int


class Reads(Struct, frozen=True):
    """The seq up to which each present member has read."""

    reads: dict[str, int]


class ConversationChange(Struct, frozen=True):
    """What is left out stays. `reacting`: whether readers may react, too (`all`), or `members` alone."""

    title: Title | UnsetType = UNSET
    reacting: Reacting | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.title is UNSET and self.reacting is UNSET:
            raise ValueError("name what is to change: `title` or `reacting`")
        if self.title is not UNSET:
            text.check("title", self.title)


class NewRole(Struct, frozen=True):
    """Without `role` a member keeps the role, and anybody else becomes `member`."""

    role: Role | None = None


class MemberQuery(Struct, frozen=True):
    cursor: Cursor = 0


class Member(Struct, frozen=True):
    user: str
    role: str


class MemberList(Struct, frozen=True):
    """In no order; a page may be shorter than others, and a member may come twice while the list changes."""

    members: list[Member]
    more: bool
    cursor: int


class Membership(Struct, frozen=True):
    """`seq` is that of the `member` event that last changed it."""

    conversation: str
    user: str
    role: str
    seq: int


# -- messages


class NewMessage(Struct, frozen=True, kw_only=True):
    """With `n` (and `device`) a resend counts once, as on a socket; so does one with the same `Idempotency-Key`."""

    to: wire.Target
    body: Any
    media: wire.Short = "text"
    reply_to: Seq | None = None
    from_: Name | None = field(name="from", default=None)
    device: Name | None = None
    n: wire.N | None = None
    done: Seq = 0


class Sent(Struct, frozen=True):
    """`at` is 0 for a resend whose event is no longer in the log."""

    conversation: str
    seq: int
    at: int
    device: str
    n: int
    duplicate: bool


class EventsQuery(Struct, frozen=True):
    """Without `after` and `before`: the newest."""

    after: Seq | UnsetType = UNSET
    before: Seq | UnsetType = UNSET
    limit: PageLimit = 50

    def __post_init__(self) -> None:
        if self.after is not UNSET and self.before is not UNSET:
            raise ValueError("give `before` or `after`, not both")


LoggedEvent = (
    wire.MessageEvent | wire.EditEvent | wire.DeleteEvent | wire.ReactEvent | wire.MemberEvent | wire.TitleEvent
)


class Events(Struct, frozen=True):
    """Ascending. Events up to `floor` may be gone."""

    conversation: str
    events: list[LoggedEvent]
    more: bool
    floor: int


# -- presence


class PresenceQuery(Struct, frozen=True):
    users: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9._-]{1,64}(,[A-Za-z0-9._-]{1,64}){0,199}$(?!\n)",
            description="At most 200 names, with commas between them.",
        ),
    ]


class PresenceAnswer(Struct, frozen=True):
    users: dict[str, wire.PresenceState]


class PathParameters(Struct, frozen=True, kw_only=True):
    """What may stand in a path, each by its name there."""

    user: Name = ""
    device: Name = ""
    conversation: ConversationId = ""
