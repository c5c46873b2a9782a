"""The backlog of a session that is behind, and the next step of its catch-up. No I/O.

Bound: `todo` holds MAX_MOVED conversations that moved live, and those that were listed. If more move, `overflowed` is
set, and everything that moved is asked for again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Final, Protocol

from router.contract import keys

MAX_MOVED: Final = 1024


class Position(Protocol):
    """A hub as a step needs it: the seq up to which its live sessions have received everything."""

    conversation: str
    written: int


class Backlog:
    """The events and changes that one session that is behind still has to receive."""

    __slots__ = ("ahead_since", "claims", "cursors", "list_older", "new_device", "overflowed", "positions", "state",
                 "todo")  # fmt: skip

    def __init__(self) -> None:
        # Conversation → seq to read up to; None: up to the position of its hub.
        self.todo: dict[str, int | None] = {}
        # Conversation → seq up to which the session has received everything, for each of `todo` and each of its hubs.
        self.positions: dict[str, int] = {}
        # Conversations whose cursor is above the head: the head of a direct one as the user's row has it (None without
        # a row), of a group as its hub has it.
        self.claims: dict[str, int | None] = {}
        self.cursors: dict[str, int] = {}  # the cursors of `hello`, until everything is listed
        self.list_older: Callable[[], None] | None = None  # sends the next list; None if everything is listed
        self.new_device = False  # the server has never seen the device
        self.overflowed = False
        self.state: int | None = None  # the version of the user's state, if it moved meanwhile
        self.ahead_since: float | None = None  # when the session was first found to be ahead of every log here

    def forget(self, conversation: str) -> None:
        """Drop a conversation that does not exist."""
        self.todo.pop(conversation, None)
        self.positions.pop(conversation, None)

    def forget_group_claims(self) -> None:
        self.claims = {conv: head for conv, head in self.claims.items() if conv[0] == keys.DIRECT}

    def moved(self, conversation: str, seq: int) -> None:
        """Note that a direct conversation moved up to `seq` while the session is behind."""
        upto = self.todo.get(conversation)
        if upto is not None or len(self.todo) < MAX_MOVED:
            self.todo[conversation] = max(upto or 0, seq)
        else:
            self.overflowed = True


class Step(IntEnum):
    """A step of the catch-up."""

    CHECK_CLAIMS = 0  # read the heads of conversations in which the device's cursor is above the head
    READ = 1  # read the next page of the first conversation in `todo`
    NOTE_MOVED_HUBS = 2  # note the hubs that have written more meanwhile
    LIST_OLDER = 3  # send the next list of conversations
    RESYNC = 4  # ask for everything that moved: the backlog had overflowed
    COMPARE_AHEAD = 5  # read the heads of hubs that are below the device's position
    FLUSH = 6  # write the frames of this turn before live events; this may fill the transport
    GO_LIVE = 7


def next_step(backlog: Backlog, hubs: Iterable[Position], unflushed: bool) -> Step:
    """Return the next step of a session that is behind, has nothing under way, and whose transport takes more."""
    positions = backlog.positions
    if backlog.claims:
        return Step.CHECK_CLAIMS
    if backlog.todo:
        return Step.READ
    ahead = False
    for hub in hubs:
        position = positions[hub.conversation]
        if position < hub.written:
            return Step.NOTE_MOVED_HUBS
        ahead = ahead or position > hub.written
    if backlog.list_older is not None:
        return Step.LIST_OLDER
    if backlog.overflowed:
        return Step.RESYNC
    if ahead:
        return Step.COMPARE_AHEAD
    return Step.FLUSH if unflushed else Step.GO_LIVE
