"""What a session that is behind still has to be given, and what its catch-up does next. No I/O.

Bound: `todo` holds MAX_MOVED conversations that moved live, and those that were listed; beyond that `overflowed` says
that everything that moved is to be asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, Protocol

MAX_MOVED: Final = 1024


class Position(Protocol):
    """As much of a hub as a step depends on: up to which seq its live sessions have everything."""

    conversation: str
    written: int


class Backlog:
    """`todo`: conversation → seq to read up to (None: up to what its hub has written). `positions`: conversation → seq
    up to which the session was given everything, for each of `todo` and each of its hubs."""

    __slots__ = ("ahead_since", "claims", "cursors", "list_older", "new_device", "overflowed", "positions", "todo")

    def __init__(self) -> None:
        self.todo: dict[str, int | None] = {}
        self.positions: dict[str, int] = {}
        # Direct conversations whose cursor is above the head: the head as the user's row has it, None without a row.
        self.claims: dict[str, int | None] = {}
        self.cursors: dict[str, int] = {}  # of `hello`, until everything is listed
        self.list_older: Callable[[], None] | None = None  # continues with conversations that were not listed yet
        self.new_device = False  # whether the server has never seen the device
        self.overflowed = False
        self.ahead_since: float | None = None  # when the session was first found to be ahead of every log here

    def forget(self, conversation: str) -> None:
        """The conversation does not exist."""
        self.todo.pop(conversation, None)
        self.positions.pop(conversation, None)

    def moved(self, conversation: str, seq: int) -> None:
        """A direct conversation moved while the session could not be given the event."""
        upto = self.todo.get(conversation)
        if upto is not None or len(self.todo) < MAX_MOVED:
            self.todo[conversation] = max(upto or 0, seq)
        else:
            self.overflowed = True


class Step(IntEnum):
    CHECK_CLAIMS = 0  # the device claims more of direct conversations than there is
    READ = 1  # the next page of the first conversation in `todo`
    NOTE_MOVED_HUBS = 2  # hubs have written more meanwhile
    LIST_OLDER = 3  # the device is told of further conversations
    RESYNC = 4  # the backlog had overflowed
    COMPARE_AHEAD = 5  # the device has more than a hub here
    FLUSH = 6  # what this turn has for the session leaves before what is live, and may fill the transport
    GO_LIVE = 7


def next_step(backlog: Backlog, hubs: Iterable[Position], unflushed: bool) -> Step:
    """Decide the next step of a session that is behind, has nothing under way and whose transport takes more."""
    positions = backlog.positions
    if backlog.claims:
        return Step.CHECK_CLAIMS
    if backlog.todo:
        return Step.READ
    if any(positions[hub.conversation] < hub.written for hub in hubs):
        return Step.NOTE_MOVED_HUBS
    if backlog.list_older is not None:
        return Step.LIST_OLDER
    if backlog.overflowed:
        return Step.RESYNC
    if any(positions[hub.conversation] > hub.written for hub in hubs):
        return Step.COMPARE_AHEAD
    return Step.FLUSH if unflushed else Step.GO_LIVE
