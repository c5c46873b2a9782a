"""The states of a session's feed, cell by cell."""

from __future__ import annotations

import pytest

from gateway.delivery.feed import FULL, NEXT_FEED, RESYNCING, Feed, FeedEvent

L, F, R, Y, FF, FR, FY = Feed  # LIVE, FEEDING, READING, RESYNCING, and the last three while the transport is full
NO = None

# Rows: the event. Columns: the state before it, in the order of `Feed`.
TABLE = {
    FeedEvent.FALL_BEHIND: (F, F, R, Y, FF, FR, FY),
    FeedEvent.FILL: (FF, FF, FR, FY, FF, FR, FY),
    FeedEvent.DRAIN: (L, F, R, Y, F, R, Y),
    FeedEvent.READ: (NO, R, NO, NO, NO, NO, NO),
    FeedEvent.RESYNC: (NO, Y, NO, NO, NO, NO, NO),
    FeedEvent.ANSWER: (NO, NO, F, F, NO, FF, FF),
    FeedEvent.CATCH_UP: (NO, L, NO, NO, NO, NO, NO),
}


@pytest.mark.parametrize("event", FeedEvent)
def test_table_of_transitions_is_as_written_here(event: FeedEvent) -> None:
    assert tuple(NEXT_FEED.get((feed, event)) for feed in Feed) == TABLE[event]


def test_no_step_is_taken_while_the_transport_is_full() -> None:
    """A step asks Redis (READ, RESYNC) or ends the feed (CATCH_UP)."""
    steps = {FeedEvent.READ, FeedEvent.RESYNC, FeedEvent.CATCH_UP}
    assert not [feed for feed, event in NEXT_FEED if event in steps and feed in FULL]


def test_at_most_one_question_is_under_way() -> None:
    asking = {R, Y, FR, FY}
    assert not [feed for feed, event in NEXT_FEED if event in {FeedEvent.READ, FeedEvent.RESYNC} and feed in asking]
    assert {Y, FY} == RESYNCING
