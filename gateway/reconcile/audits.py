"""Audits: once per heartbeat, Redis is compared with the hubs and sessions of this node.

They are the third layer of delivery: they find what the live path and the repairs have missed. Once per hub, its head
and membership version are compared. For sessions, `sessions_to_sync` asks in one call for many of them whether `sync`
would find something, and the answer is nearly always no. If a hub seems to miss an event, it is compared again
RECHECK_S later, because the event may just be under way on the other connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, Final

from gateway.delivery.feed import Asking, State
from gateway.delivery.hub import Hub
from gateway.delivery.session import Session
from gateway.reconcile.resubscribe import Resubscribe
from gateway.reconcile.sync import AUDITED, Syncs
from router.contract import metrics
from router.contract.errors import LinnetError
from router.process.isolate import attempt, each
from router.store.conversations import Conversations
from router.store.heads import Head
from router.store.users import Users

RECHECK_S: Final = 0.5
FIRST_AUDIT_S: Final = 2.0
HUBS_PER_CALL: Final = 200


class Audits:
    def __init__(
        self,
        hubs: Mapping[str, Hub],
        users: Users,
        conversations: Conversations,
        syncs: Syncs,
        resubscribe: Resubscribe,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._hubs = hubs
        self._users = users
        self._conversations = conversations
        self._syncs = syncs
        self._resubscribe = resubscribe
        self._soon: Callable[..., Any] = loop.call_soon
        self._later: Callable[..., Any] = loop.call_later
        self._time = loop.time
        self._new: deque[tuple[float, Session]] = deque()  # sessions of the last FIRST_AUDIT_S, in that order

    # -- sessions

    def first(self, session: Session) -> None:
        """Plan the first audit of a session soon after its connect, when a missed event is most likely."""
        self._new.append((self._time() + FIRST_AUDIT_S, session))

    def new_sessions(self, now: float) -> None:
        """Audit the sessions that connected FIRST_AUDIT_S ago."""
        due = []
        while self._new and self._new[0][0] <= now:
            due.append(self._new.popleft()[1])
        self.sessions([session for session in due if session.state is State.READY])

    def sessions(self, sessions: list[Session]) -> None:
        """Audit these sessions. One call finds the sessions that need a `sync` of their own; nearly always none
        does."""
        quiet = [session for session in sessions if session.backlog is None and session.asking is Asking.NOTHING]
        for start in range(0, len(quiet), self._users.max_per_call):
            some = quiet[start : start + self._users.max_per_call]
            if not attempt("audits", partial(self._ask_which_to_sync, some)):
                self._ask_each(some)
        self._ask_each(
            [session for session in sessions if session.backlog is not None or session.asking is not Asking.NOTHING]
        )

    def _ask_each(self, sessions: list[Session]) -> None:
        each("audits", partial(self._syncs.ask, cause="audit"), sessions)

    def _ask_which_to_sync(self, sessions: list[Session]) -> None:
        self._users.sessions_to_sync(
            [self._syncs.question(session) for session in sessions], partial(self._sync_some, sessions)
        )

    def _sync_some(self, sessions: list[Session], numbers: list[int] | LinnetError) -> None:
        if isinstance(numbers, LinnetError):
            metrics.AUDITS.labels(numbers.code).inc(len(sessions))
            return
        AUDITED["ok"].inc(len(sessions) - len(numbers))
        self._ask_each([sessions[number] for number in numbers])

    # -- hubs

    def hubs(self) -> None:
        """Compare every hub with its conversation's head, some in each turn of the loop."""
        self._some_hubs(iter([hub.conversation for hub in self._hubs.values() if hub.confirmed]))

    def _some_hubs(self, conversations: Iterator[str]) -> None:
        some = list(islice(conversations, HUBS_PER_CALL))
        if some:
            attempt("audits", lambda: self._conversations.heads(some, partial(self._suspect, some)))
            self._soon(self._some_hubs, conversations)

    def _suspect(self, conversations: list[str], heads: list[Head | LinnetError | None] | LinnetError) -> None:
        """Compare the hubs that may have missed an event once more, a little later."""
        if isinstance(heads, LinnetError):
            return
        suspects = [
            conversation
            for conversation, head in zip(conversations, heads, strict=True)
            if isinstance(head, Head)
            and (hub := self._hubs.get(conversation)) is not None
            and (head.seq > hub.seq or head.version != hub.version)
        ]
        if suspects:
            self._later(RECHECK_S, self._resubscribe.compare, suspects, "audit")
