"""Requests and answers of the admin view."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from router.api.types.common import PageLimit
from router.api.types.conversations import Cursor
from router.contract import wire
from router.contract.wire import ConversationId
from router.store.directory import UserState

Place = Annotated[str, Meta(max_length=128, description="`after` of the last answer; 0 begins.")]


class AdminUsersQuery(Struct, frozen=True):
    prefix: Annotated[str, Meta(pattern=wire.NAME_PATTERN, description="With what names begin.")] | None = None
    state: UserState | None = None
    after: Place = "0"
    limit: PageLimit = 50


class AdminUser(Struct, frozen=True):
    """A user. `suspended_until` (ms) is 0 for a suspension without an end, and null for none. `password`: whether they
    log in here."""

    user: str
    state: str
    name: str
    roles: list[str]
    created: int
    password: bool
    suspended_until: int | None
    online: bool | None
    last_seen: int | None


class AdminUsers(Struct, frozen=True):
    """A page of users, in no order. A page may be empty before the end, and a user may come twice."""

    users: list[AdminUser]
    more: bool
    after: str


class AdminConversationsQuery(Struct, frozen=True):
    conversation: ConversationId | None = None
    after: Place = "0"
    limit: PageLimit = 50


class AdminConversation(Struct, frozen=True):
    """A conversation with its settings, and no word of what was written in it."""

    conversation: str
    kind: str
    title: str
    head: int
    count: int
    at: int
    made: int
    size: int
    reacting: str
    posting: str
    adding: str
    slow_s: int


class AdminConversations(Struct, frozen=True):
    """A page of conversations, in no order. A page may be empty before the end, and a conversation may come twice."""

    conversations: list[AdminConversation]
    more: bool
    after: str


class AdminDevicesQuery(Struct, frozen=True):
    cursor: Cursor = 0


class AdminDevice(Struct, frozen=True):
    """A member's device. It has the events up to `acked` (null: it has not asked for this conversation yet), and its
    user has read up to `read`. `gateway`: of its session, null if it has none."""

    user: str
    role: str
    device: str
    online: bool
    gateway: str | None
    acked: int | None
    read: int
    last_seen: int | None


class AdminDevices(Struct, frozen=True):
    """A page of the members' devices; `without`: members on this page who have no device."""

    conversation: str
    head: int
    devices: list[AdminDevice]
    without: list[str]
    more: bool
    cursor: int


class AdminGateway(Struct, frozen=True):
    """A gateway. `lag_ms`: the greatest lag of its event loop, `cpu`: percent of a core, both of the last seconds."""

    node: str
    url: str
    alive: bool
    draining: bool
    connections: int
    started: int
    lag_ms: int
    cpu: int


class AdminRouter(Struct, frozen=True):
    """A router that runs; the figures are as those of a gateway."""

    node: str
    lag_ms: int
    cpu: int


class AdminBacklog(Struct, frozen=True):
    """The conversations that wait for routers, and for how long the oldest of them has been due."""

    conversations: int
    oldest_ms: int


class AdminNodes(Struct, frozen=True):
    gateways: list[AdminGateway]
    routers: list[AdminRouter]
    backlog: AdminBacklog
