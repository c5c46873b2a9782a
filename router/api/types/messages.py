"""Requests and answers about messages and other events."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

from router.api.types.common import PageLimit
from router.contract import wire
from router.contract.files import GivenFiles
from router.contract.wire import Name, Seq


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
