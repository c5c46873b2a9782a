"""Pages of history, read one after the other while the transport takes more, because each can have a megabyte."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Final

import msgspec

from gateway.commands.rates import Rates
from gateway.delivery.feed import FULL, State
from gateway.delivery.session import Session
from gateway.delivery.shared_frames import readable
from router.contract import wire
from router.contract.addressing import visible
from router.contract.errors import LinnetError, RateLimited
from router.contract.packing import MAX_BODY_BYTES, MAX_INTEGER
from router.store.conversations import Conversations, Page

MAX_PAGES: Final = 64
PAGE_BYTES: Final = (
    MAX_BODY_BYTES  # so many bytes of a page cost as much as one send; a smaller page costs nothing more
)


class History:
    def __init__(self, conversations: Conversations, rates: Rates) -> None:
        self._conversations = conversations
        self._rates = rates

    def history(self, session: Session, command: wire.History) -> None:
        """Queue a request for a page."""
        visible(session.user, command.conversation)
        if session.pages is None:
            session.pages = deque()
        if len(session.pages) >= MAX_PAGES:
            raise RateLimited(f"too many history commands wait: at most {MAX_PAGES} may", 1.0)
        session.pages.append(command)
        self.next_page(session)

    def next_page(self, session: Session) -> None:
        """Read the next page, unless one is under way or the transport is full."""
        if not session.pages or session.paging or session.feed in FULL:
            return
        session.paging = True
        command = session.pages.popleft()
        reply = partial(self._answer, session, command)
        store = self._conversations
        if command.after is not None:
            store.range(command.conversation, session.user, command.after, MAX_INTEGER, command.limit, reply)
        else:
            before = MAX_INTEGER if command.before is None else command.before
            store.range_before(command.conversation, session.user, before, command.limit, reply)

    def _answer(self, session: Session, command: wire.History, page: Page | LinnetError) -> None:
        session.paging = False
        if isinstance(page, LinnetError):
            session.refuse(command, page)
        else:
            # Reading is charged like writing; otherwise a hundred bytes could fetch a megabyte at any rate.
            self._rates.charge(session, self._rates.cost_s * (sum(map(len, page.events)) // PAGE_BYTES))
            events = [msgspec.Raw(event) for event in readable(session.codec.logged, page.events)]
            session.answer(
                wire.HistoryEvent(id=command.id, conversation=command.conversation, events=events, more=page.more)
            )
            session.flush()  # before the next page, so that a full transport is noticed
        if session.state is not State.CLOSED:
            self.next_page(session)
