"""Requests and answers of moderation: mutes and bans in groups and channels."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from router.api.types.common import PageLimit
from router.api.types.conversations import Cursor
from router.contract import text
from router.contract.wire import ConversationId, Name, Seq
from router.store.accounts import Role
from router.store.reports import ReportState

Reason = Annotated[str, Meta(max_length=500, description="Not in any event; the audit has it.")]
Until = Annotated[int, Meta(ge=1, le=2**53 - 1)]


class Restraint(Struct, frozen=True):
    """A mute or ban. `until` (ms) is its end by Redis's clock; null or absent: it has no end."""

    until: Until | None = None
    reason: Reason = ""

    def __post_init__(self) -> None:
        text.check("reason", self.reason)


class Ban(Struct, frozen=True):
    """A ban; `by` is null if a server key decided it, or a moderator whom the caller may not see."""

    user: str
    until: int | None
    at: int
    by: str | None
    reason: str


class BansQuery(Struct, frozen=True):
    cursor: Cursor = 0


class Bans(Struct, frozen=True):
    """A page of the bans that are not over, in no order; pages differ in length."""

    bans: list[Ban]
    more: bool
    cursor: int


class NewRoles(Struct, frozen=True):
    """The roles that a user has in the deployment, instead of those before."""

    roles: list[Role]


class Roles(Struct, frozen=True):
    user: str
    roles: list[str]


class AuditQuery(Struct, frozen=True):
    after: Annotated[str, Meta(max_length=64, description="`id` of the last entry that is known; 0 begins.")] = "0"
    limit: PageLimit = 100


class Target(Struct, frozen=True, omit_defaults=True):
    """The things that an act is about."""

    user: str | None = None
    conversation: str | None = None
    seq: int | None = None
    report: str | None = None


class AuditEntry(Struct, frozen=True):
    """One act. `actor` is null for a server key; `at` is the time of the act, by the clock of its server."""

    id: str
    at: int
    actor: str | None
    action: str
    target: Target
    reason: str | None


class Audit(Struct, frozen=True):
    """Entries in the order in which they were added.

    `missing`: how many of the audit's 512 parts could not be read, because their server does not answer. Their entries
    are not on the page, so ask again with the same `after` later.
    """

    entries: list[AuditEntry]
    more: bool
    missing: int


class NewReport(Struct, frozen=True):
    """What is reported: the message `seq` of `conversation`, or `user`."""

    reason: Reason
    conversation: ConversationId | None = None
    seq: Seq | None = None
    user: Name | None = None

    def __post_init__(self) -> None:
        text.check("reason", self.reason)
        message = self.conversation is not None and self.seq is not None
        if message == (self.user is not None) or (self.user is not None and self.conversation is not None):
            raise ValueError("name either `conversation` and `seq`, or `user`")


class MadeReport(Struct, frozen=True):
    id: str


class ReportsQuery(Struct, frozen=True):
    state: ReportState | None = None
    after: Annotated[str, Meta(max_length=80, description="`id` of the last report that is known; 0 begins.")] = "0"
    limit: PageLimit = 50


class Report(Struct, frozen=True):
    """A report. `user` is the author of the message, or the user who is reported; `event` a copy of the message."""

    id: str
    at: int
    reporter: str
    conversation: str | None
    seq: int | None
    user: str
    reason: str
    state: str
    note: str | None
    event: Any


class Reports(Struct, frozen=True):
    """Reports, oldest first.

    `missing`: how many of 512 parts could not be read, because their server does not answer. Their reports are not on
    the page, so ask again with the same `after` later.
    """

    reports: list[Report]
    more: bool
    missing: int


class ReportChange(Struct, frozen=True):
    """A change; a field that is left out is not changed."""

    state: ReportState | UnsetType = UNSET
    note: Reason | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.state is UNSET and self.note is UNSET:
            raise ValueError("name what is to change: `state` or `note`")
        if self.note is not UNSET:
            text.check("note", self.note)
