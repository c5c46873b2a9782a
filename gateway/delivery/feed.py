"""How a session is fed: the states, and the events that change them.

Theory of operation
1. A session as a whole is *live* or *behind*, because it is the connection that is slow, not one conversation.
2. LIVE: hubs and the user's channel write to the session directly, and it has no backlog.
3. Every other state is *behind*: the session is in the live set of no hub, has a backlog, and is fed from the log by
   the catch-up, one step at a time. Live events that arrive meanwhile are only noted in the backlog.
4. FEEDING: the catch-up may take the next step at once.
5. READING and RESYNCING: a step asked Redis, and the answer leads to the next step. RESYNCING is the step that asks for
   everything that moved, because more moved than the backlog can note; its answer comes through `reconcile/sync.py`.
6. FULL, FULL_READING, FULL_RESYNCING: the same three, while the transport is above its high mark. No step is taken; an
   answer that arrives is applied, since it was already asked for. At most one page of the log waits per session.
7. CATCH_UP is only possible in FEEDING: nothing is under way, and the transport takes more.

A pair of state and event that is not in the table is a bug and raises KeyError.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class State(IntEnum):
    """The life of a session; `commands/dispatch.py` has the table of the commands that each state allows."""

    HELLO = 0
    CONNECTING = 1  # `hello` is being answered; further messages wait
    READY = 2
    CLOSED = 3


class Asking(IntEnum):
    """Whether a session's `sync`, which asks Redis what moved, is under way (`reconcile/sync.py`)."""

    NOTHING = 0
    ASKED = 1
    ASK_AGAIN = 2  # the reason to ask may be newer than the answer under way: ask once more after it


class Feed(IntEnum):
    """How a session receives events; the module's docstring explains the states."""

    LIVE = 0
    FEEDING = 1
    READING = 2
    RESYNCING = 3
    FULL = 4
    FULL_READING = 5
    FULL_RESYNCING = 6


class FeedEvent(IntEnum):
    """The causes of a change of a feed's state."""

    FALL_BEHIND = 0  # the session leaves the live sets
    FILL = 1  # the transport passed its high mark
    DRAIN = 2  # the transport fell below its low mark
    READ = 3  # a step asked Redis
    RESYNC = 4  # a step asked for everything that moved
    ANSWER = 5  # the answer came, or its retry is due
    CATCH_UP = 6  # the backlog is empty


_EVENTS: Final[dict[FeedEvent, dict[Feed, Feed]]] = {
    FeedEvent.FALL_BEHIND: {Feed.LIVE: Feed.FEEDING} | {feed: feed for feed in Feed if feed is not Feed.LIVE},
    FeedEvent.FILL: {
        Feed.LIVE: Feed.FULL,
        Feed.FEEDING: Feed.FULL,
        Feed.READING: Feed.FULL_READING,
        Feed.RESYNCING: Feed.FULL_RESYNCING,
        Feed.FULL: Feed.FULL,
        Feed.FULL_READING: Feed.FULL_READING,
        Feed.FULL_RESYNCING: Feed.FULL_RESYNCING,
    },
    FeedEvent.DRAIN: {
        Feed.LIVE: Feed.LIVE,
        Feed.FEEDING: Feed.FEEDING,
        Feed.READING: Feed.READING,
        Feed.RESYNCING: Feed.RESYNCING,
        Feed.FULL: Feed.FEEDING,
        Feed.FULL_READING: Feed.READING,
        Feed.FULL_RESYNCING: Feed.RESYNCING,
    },
    FeedEvent.READ: {Feed.FEEDING: Feed.READING},
    FeedEvent.RESYNC: {Feed.FEEDING: Feed.RESYNCING},
    FeedEvent.ANSWER: {
        Feed.READING: Feed.FEEDING,
        Feed.RESYNCING: Feed.FEEDING,
        Feed.FULL_READING: Feed.FULL,
        Feed.FULL_RESYNCING: Feed.FULL,
    },
    FeedEvent.CATCH_UP: {Feed.FEEDING: Feed.LIVE},
}
NEXT_FEED: Final = {(feed, event): after for event, row in _EVENTS.items() for feed, after in row.items()}

FULL: Final = frozenset((Feed.FULL, Feed.FULL_READING, Feed.FULL_RESYNCING))
RESYNCING: Final = frozenset((Feed.RESYNCING, Feed.FULL_RESYNCING))
