"""Requests and answers about conversations and their members."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from router.api.types.common import VISIBLE, PageLimit
from router.contract import text
from router.contract.files import Sha256
from router.contract.wire import Name

Reacting = Literal["all", "members"]
Allowed = Literal["all", "admins"]
Role = Literal["owner", "admin", "member", "reader"]
Title = Annotated[str, Meta(max_length=256, description=VISIBLE)]
Cursor = Annotated[int, Meta(ge=0, le=2**63 - 1, description="Opaque: `cursor` of the page before.")]
MEMBERS_AT_ONCE = 1000
MAX_SLOW_S = 21_600


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

    `role` is the caller's own. If the caller is muted there, `muted_until` is the end (ms), null if it has none.
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
    posting: Allowed = "all"
    adding: Allowed = "admins"
    slow_s: int = 0
    muted_until: int | UnsetType | None = UNSET


class CreatedConversation(Conversation, frozen=True, kw_only=True):
    """`not_added`: users who cannot be added by the caller."""

    not_added: list[str]


class ListedConversation(Struct, frozen=True, kw_only=True):
    """A conversation in the user's list; `with` is the other user of a direct one.

    `role` is the user's. Of a group or channel, `posting` says who may send and edit. If the user is muted there,
    `muted_until` is the end (ms), null if it has none.
    """

    conversation: str
    kind: str
    title: str
    head: int
    read: int
    unread: int
    with_: str | None = field(name="with", default=None)
    role: str
    posting: Allowed | UnsetType = UNSET
    muted_until: int | UnsetType | None = UNSET


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

    `avatar`: a picture that the caller has uploaded within a day; null removes it. `posting`: who may send and edit.
    `adding`: who may add members and readers. `slow_s`: the seconds between two messages of a member, 0 for none.
    """

    title: Title | UnsetType = UNSET
    reacting: Reacting | UnsetType = UNSET
    avatar: Sha256 | UnsetType | None = UNSET
    posting: Allowed | UnsetType = UNSET
    adding: Allowed | UnsetType = UNSET
    slow_s: Annotated[int, Meta(ge=0, le=MAX_SLOW_S)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if all(getattr(self, name) is UNSET for name in self.__struct_fields__):
            raise ValueError(f"name what is to change: {', '.join(self.__struct_fields__)}")
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
