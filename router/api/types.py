"""Requests and answers of the HTTP API as structs.

Decoding into them validates all fields, so handlers do not check fields again. The OpenAPI document is generated from
them. Unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from router.contract import text, wire
from router.contract.files import MAX_WAVEFORM, FileInfo, GivenFiles, Kind, Sha256
from router.contract.state import StateKey, StatePrefix
from router.contract.wire import ConversationId, Name, Seq

Reacting = Literal["all", "members"]
Role = Literal["owner", "admin", "member", "reader"]
AccountName = Annotated[
    str,
    Meta(
        pattern=wire.NAME_PATTERN.replace("^", r"^(?!\.{1,2}$|[eE][xX][tT]--)", 1),
        description="A user's name, except `.` and `..`, which URL libraries resolve in paths, and except names that"
        f" begin with `{wire.MAPPED}` (in any case), which are reserved for users of the identity provider.",
    ),
]
VISIBLE = "Without control characters and characters that override its direction; not only invisible characters."
Title = Annotated[str, Meta(max_length=256, description=VISIBLE)]
RequestText = Annotated[str, Meta(max_length=200, description=VISIBLE)]
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
    """The code and message of an error; `reason` and `next` explain the `conflict` of an `n`, as on a socket, and
    `version` that of a key of the user's state."""

    code: str
    message: str
    reason: str | None = None
    next: int | None = None
    version: int | None = None


class Error(Struct, frozen=True):
    """The body of every error answer. If a retry can succeed, the answer has a `Retry-After` header."""

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
    """A token, and the URLs of gateways to connect to, the least loaded first."""

    user: str
    device: str
    token: str
    expires_at: int
    gateways: list[str]


class Renewal(Struct, frozen=True):
    """A renewed token, and the URLs of gateways to connect to, the least loaded first."""

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


# -- contacts and blocks


class PageQuery(Struct, frozen=True):
    """A page of users, ordered by name: those after `after`."""

    after: Annotated[str, Meta(max_length=64)] = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


class ContactsQuery(PageQuery, frozen=True):
    state: Literal["contact", "incoming", "outgoing"] | None = None


class ContactRequest(Struct, frozen=True):
    message: RequestText | None = None

    def __post_init__(self) -> None:
        text.check("message", self.message or "", lines=True)


class ContactAnswer(Struct, frozen=True):
    """`contact`, or `outgoing` while the other user has not accepted."""

    user: str
    state: str


class Contact(Struct, frozen=True):
    """A contact, or a request by the user (`outgoing`) or to them (`incoming`). `until`: the end of a request."""

    user: str
    state: str
    message: str | None
    at: int
    until: int | None


class Contacts(Struct, frozen=True):
    contacts: list[Contact]
    more: bool


class Block(Struct, frozen=True):
    user: str
    at: int


class Blocks(Struct, frozen=True):
    blocks: list[Block]
    more: bool


# -- profiles

DisplayName = Annotated[str, Meta(max_length=128, description=f"As others see it. {VISIBLE}")]
About = Annotated[str, Meta(max_length=512, description=VISIBLE)]
StatusText = Annotated[str, Meta(max_length=128, description=VISIBLE)]


class Status(Struct, frozen=True):
    """`until`: the time (ms) at which the status is over."""

    text: StatusText
    until: Annotated[int, Meta(ge=0, le=2**53 - 1)] | None = None

    def __post_init__(self) -> None:
        text.check("status.text", self.text)


class Privacy(Struct, frozen=True):
    """Who may write to the user directly, add them to groups, see their presence; whether requests reach them, and
    whether they send receipts."""

    messages: Literal["everyone", "contacts"]
    groups: Literal["everyone", "contacts"]
    presence: Literal["everyone", "contacts"]
    requests: Literal["everyone", "nobody"]
    receipts: Literal["everyone", "nobody"]


class PrivacyChange(Struct, frozen=True):
    messages: Literal["everyone", "contacts"] | UnsetType | None = UNSET
    groups: Literal["everyone", "contacts"] | UnsetType | None = UNSET
    presence: Literal["everyone", "contacts"] | UnsetType | None = UNSET
    requests: Literal["everyone", "nobody"] | UnsetType | None = UNSET
    receipts: Literal["everyone", "nobody"] | UnsetType | None = UNSET


class ProfileChange(Struct, frozen=True):
    """A change; a field that is left out is not changed, null clears it.

    `avatar`: a picture that the caller has uploaded within a day.
    """

    name: DisplayName | UnsetType | None = UNSET
    about: About | UnsetType | None = UNSET
    avatar: Sha256 | UnsetType | None = UNSET
    status: Status | UnsetType | None = UNSET
    extra: Any = UNSET
    privacy: PrivacyChange | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.name is not UNSET:
            text.check("name", self.name or "")
        if self.about is not UNSET:
            text.check("about", self.about or "", lines=True)


class User(Struct, frozen=True, kw_only=True):
    """A user's profile as others see it."""

    user: str
    name: str
    about: str | None
    avatar: str | None
    status: Any
    extra: Any


class Me(User, frozen=True, kw_only=True):
    """The caller's own profile. `roles` in the deployment: none yet."""

    privacy: Privacy
    roles: list[str]


class UsersQuery(Struct, frozen=True):
    """Either names, or the start of a name or display name."""

    users: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9._-]{1,64}(,[A-Za-z0-9._-]{1,64}){0,199}$(?!\n)",
                description="At most 200 names, with commas between them.",
            ),
        ]
        | None
    ) = None
    prefix: Annotated[str, Meta(min_length=1, max_length=128)] | None = None

    def __post_init__(self) -> None:
        if (self.users is None) == (self.prefix is None):
            raise ValueError("give `users` or `prefix`")


class Users(Struct, frozen=True):
    users: list[User]
    more: bool


# -- conversations


class NewConversation(Struct, frozen=True):
    """A conversation to create. The creator becomes owner; `members` are names, or names with their roles."""

    kind: Literal["group", "channel"]
    title: Title = ""
    members: (
        Annotated[list[Name], Meta(max_length=MEMBERS_AT_ONCE)]
        | Annotated[dict[Name, Role], Meta(max_length=MEMBERS_AT_ONCE)]
    ) = []

    def __post_init__(self) -> None:
        text.check("title", self.title)


class Conversation(Struct, frozen=True, kw_only=True):
    """A conversation. `members` has at most 1000 of the `size`; if `more_members`, read the member list.

    `role` is the caller's own.
    """

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
    avatar: str | None = None


class CreatedConversation(Conversation, frozen=True, kw_only=True):
    """`not_added`: users who cannot be added by the caller."""

    not_added: list[str]


class ListedConversation(Struct, frozen=True, kw_only=True):
    """A conversation in the user's list; `with` is the other user of a direct one."""

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
    """A page of conversations, the last changed first."""

    conversations: list[ListedConversation]
    more: bool
    cursor: int


class Reads(Struct, frozen=True):
    """The seq up to which each present member has read."""

    reads: dict[str, int]


class ConversationChange(Struct, frozen=True):
    """A change; a field that is left out is not changed. `reacting`: `all` lets readers react, too; else `members`.

    `avatar`: a picture that the caller has uploaded within a day; null removes it.
    """

    title: Title | UnsetType = UNSET
    reacting: Reacting | UnsetType = UNSET
    avatar: Sha256 | UnsetType | None = UNSET

    def __post_init__(self) -> None:
        if self.title is UNSET and self.reacting is UNSET and self.avatar is UNSET:
            raise ValueError("name what is to change: `title`, `reacting` or `avatar`")
        if self.title is not UNSET:
            text.check("title", self.title)


class NewRole(Struct, frozen=True):
    """The role to give. Without `role` a member keeps their role, and another user becomes `member`."""

    role: Role | None = None


class MemberQuery(Struct, frozen=True):
    cursor: Cursor = 0


class Member(Struct, frozen=True):
    user: str
    role: str


class MemberList(Struct, frozen=True):
    """A page of members, in no order; pages differ in length, and a member may appear twice while the list changes."""

    members: list[Member]
    more: bool
    cursor: int


class Membership(Struct, frozen=True):
    """A membership; `seq` is that of the `member` event that last changed it."""

    conversation: str
    user: str
    role: str
    seq: int


# -- messages


class NewMessage(Struct, frozen=True, kw_only=True):
    """A message to send. A resend with the same `n` (and `device`) or `Idempotency-Key` takes effect once."""

    to: wire.Target
    body: Any
    media: wire.Short = "text"
    reply_to: Seq | None = None
    from_: Name | None = field(name="from", default=None)
    device: Name | None = None
    n: wire.N | None = None
    done: Seq = 0
    files: GivenFiles = []


class Sent(Struct, frozen=True):
    """A sent message; `at` is 0 for a resend whose event is no longer in the log."""

    conversation: str
    seq: int
    at: int
    device: str
    n: int
    duplicate: bool


class EventsQuery(Struct, frozen=True):
    """A page of events; without `after` and `before`, the newest ones."""

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
    """Events in ascending order. Events up to `floor` may be trimmed."""

    conversation: str
    events: list[LoggedEvent]
    more: bool
    floor: int


# -- passwords and sessions


class PasswordChange(Struct, frozen=True):
    old: Password
    new: NewPassword


class ResetRequest(Struct, frozen=True):
    user: Name


class ResetToken(Struct, frozen=True):
    user: str
    token: str
    expires_at: int


class PasswordReset(Struct, frozen=True):
    token: Annotated[str, Meta(max_length=256)]
    new: NewPassword


class SessionEntry(Struct, frozen=True):
    """The last session of a device; times in milliseconds since the epoch."""

    device: str
    online: bool
    started: int
    last_seen: int | None
    current: bool


class Sessions(Struct, frozen=True):
    sessions: list[SessionEntry]


class Logout(Struct, frozen=True):
    """Which tokens end; without a field the calling one."""

    everywhere: bool = False
    others: bool = False
    device: Name | None = None

    def __post_init__(self) -> None:
        if self.everywhere + self.others + (self.device is not None) > 1:
            raise ValueError("give one of `everywhere`, `others` and `device`")


# -- the user's state


class StateQuery(Struct, frozen=True):
    """Changes after a version: without `after`, everything. `cursor`: opaque, of the page before."""

    after: Seq = 0
    prefix: StatePrefix = ""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200
    cursor: Annotated[str, Meta(max_length=64)] = ""


class StateEntry(Struct, frozen=True):
    key: str
    value: Any
    version: int


class StateEntries(Struct, frozen=True):
    """A page of the user's state; `version` is the user's when it was read, `cursor` empty after the last page."""

    entries: list[StateEntry]
    version: int
    more: bool
    reset: bool
    cursor: str


class StateChange(Struct, frozen=True):
    value: Any
    expect: Seq | None = None


class StateExpected(Struct, frozen=True):
    expect: Seq | None = None


class StateWritten(Struct, frozen=True):
    key: str
    version: int


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


# -- files

Preview = Literal[320, 1600]
FILES_AT_ONCE = 100
LONGEST_MS = 86_400_000


class UploadQuery(Struct, frozen=True):
    """What a file is: `kind` if it is not to be found out; of voice and video `duration` (ms) and `waveform`."""

    kind: Kind | None = None
    duration: Annotated[int, Meta(ge=0, le=LONGEST_MS)] | None = None
    waveform: (
        Annotated[
            str,
            Meta(
                pattern=r"^[0-9]{1,3}(,[0-9]{1,3}){0,99}$(?!\n)",
                description=f"At most {MAX_WAVEFORM} levels of 0 to 255, comma-separated.",
            ),
        ]
        | None
    ) = None

    def __post_init__(self) -> None:
        if self.levels is None and self.waveform is not None:
            raise ValueError("`waveform` must have levels of 0 to 255")

    @property
    def levels(self) -> bytes | None:
        if self.waveform is None:
            return None
        levels = [int(level) for level in self.waveform.split(",")]
        return bytes(levels) if max(levels) <= 255 else None


class Uploaded(FileInfo, frozen=True, kw_only=True, omit_defaults=False):
    """An uploaded file, to be sent by its `sha256` within a day."""

    url: str


class FileQuery(Struct, frozen=True):
    """`in`: a conversation with a message that has the file, or `@user` for an avatar; without it your own upload."""

    in_: Annotated[str, Meta(min_length=1, max_length=160)] | None = field(name="in", default=None)
    preview: Preview | None = None


class LinkRequest(Struct, frozen=True):
    """Files to link to, all seen in the same conversation, or without `in` your own uploads."""

    files: Annotated[list[Sha256], Meta(max_length=FILES_AT_ONCE)]
    in_: Annotated[str, Meta(min_length=1, max_length=160)] | None = field(name="in", default=None)


class MadeLink(Struct, frozen=True):
    """A link to a file, and to its previews by their edge."""

    url: str
    previews: dict[str, str]


class LinksMade(Struct, frozen=True):
    """Links by file; all of them work at least until `expires_at`."""

    links: dict[str, MadeLink]
    expires_at: int


class LinkQuery(Struct, frozen=True):
    d: Annotated[str, Meta(max_length=2048)]
    ends: Annotated[int, Meta(ge=0, le=2**53 - 1)]
    sig: Annotated[str, Meta(max_length=64)]


class PathParameters(Struct, frozen=True, kw_only=True):
    """The parameters of paths."""

    user: Name = ""
    device: Name = ""
    conversation: ConversationId = ""
    sha256: Sha256 = "0" * 64
    key: StateKey = ""
    upload: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}$(?!\n)")] = "0" * 32
