"""Conversations that are held out of sessions, because their part of Redis does not answer.

On a cluster, one part can fail while the others serve. A session must not wait for it: it goes on without the
conversations there. Each of them is noted in `session.held`, with what the session has received of it, so that no later
event counts as delivered. They are asked for again every ASK_S. Once one answers, the session gets it as if it had just
connected: an entry without `held`, then the events that it lacks.

Invariant: a conversation that is held is in none of the session's hubs, and not in its backlog.
Bound: the conversations of the sessions here. An answer makes at most PER_TURN sessions return in one turn of the loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from random import uniform
from typing import Any, Final

from msgspec.structs import replace

from gateway.delivery.catchup import Catchup
from gateway.delivery.feed import State
from gateway.delivery.session import Holding, Session
from gateway.delivery.subscriptions import Subscriptions
from gateway.reconcile.conversation_list import ConversationList, held_state, is_new, state_of
from gateway.reconcile.membership import Membership
from router.contract import keys, wire
from router.contract.errors import LinnetError
from router.process.isolate import attempt, each
from router.store.conversations import Conversations
from router.store.heads import Head
from router.store.rows import Row
from router.store.users import Users

ASK_S: Final = 1.0
PER_CALL: Final = 200
PER_TURN: Final = 100


class Held:
    def __init__(
        self,
        users: Users,
        conversations: Conversations,
        subscriptions: Subscriptions,
        catchup: Catchup,
        conversation_list: ConversationList,
        membership: Membership,
        apart: Callable[[], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._users = users
        self._conversations = conversations
        self._subscriptions = subscriptions
        self._catchup = catchup
        self._list = conversation_list
        self._membership = membership
        self._apart = apart
        self._soon: Callable[..., Any] = loop.call_soon
        self._later: Callable[..., Any] = loop.call_later
        self._waiting: dict[str, dict[Session, None]] = {}  # conversation -> the sessions that it is held out of
        self._returning: deque[tuple[Session, str]] = deque()
        self._asking = False

    def __len__(self) -> int:
        """How many conversations are held out of a session, counted for each session."""
        return sum(map(len, self._waiting.values())) + len(self._returning)

    # -- held

    def add(self, session: Session, conversation: str, new: bool | None, position: int = 0, head: int = 0) -> None:
        """Ask for the conversation until it answers. The other arguments: of its `Holding`."""
        if session.state is State.CLOSED:
            return
        session.held = session.held if session.held is not None else {}
        session.held[conversation] = Holding(position, is_new(session) if new is None else new, head)
        self._waiting.setdefault(conversation, {})[session] = None
        self._ask_later()

    def hold(self, session: Session, conversation: str) -> bool:
        """Take a conversation, which could not be read, out of the session's backlog and hubs, and notify the client.
        False if Redis has only one part, or if the user's does not answer either: then all of Redis may be down."""
        backlog, user = session.backlog, self._subscriptions.users.get(session.user)
        if backlog is None or user is None or not self._apart() or not self._subscriptions.reaches(user):
            return False
        backlog.todo.pop(conversation, None)
        claimed = conversation in backlog.claims
        backlog.claims.pop(conversation, None)
        position = backlog.positions.get(conversation, 0)
        hub = next((hub for hub in session.hubs if hub.conversation == conversation), None)
        if hub is not None:
            hub.remove_member(session)
            session.hubs.remove(hub)
            self._subscriptions.release(hub)
        if claimed or hub is not None:
            backlog.positions.pop(conversation, None)
        if claimed:
            position = 0  # Redis has what the device claims, and will compare it with the head
            session.direct.pop(conversation, None)
        self.add(session, conversation, None, position)
        reply = partial(self._notify, session, conversation)
        self._users.device_row(session.user, session.device, conversation, reply)
        return True

    def _notify(self, session: Session, conversation: str, row: Row | LinnetError | None) -> None:
        waits = session.held is not None and conversation in session.held and session.state is State.READY
        if waits and isinstance(row, Row) and not row.left:
            session.answer(wire.ConversationsEvent(conversations=[held_state(session, row)], more=False))

    def drop(self, session: Session) -> None:
        """Hold no conversations out of a session that has ended."""
        for conversation in session.held or ():
            waiting = self._waiting.get(conversation, {})
            waiting.pop(session, None)
            if not waiting:
                self._waiting.pop(conversation, None)
        session.held = None

    # -- asked for

    def _ask_later(self) -> None:
        if not self._asking:
            self._asking = True
            self._later(ASK_S * uniform(0.5, 1.5), self._ask)

    def _ask(self) -> None:
        self._asking = False
        if self._waiting:
            self._ask_later()
        self._some(iter([conv for conv in self._waiting if self._subscriptions.reaches_conversation(conv)]))

    def _some(self, conversations: Iterator[str]) -> None:
        some = list(islice(conversations, PER_CALL))
        if some:
            attempt("held", lambda: self._conversations.heads(some, partial(self._answered, some)))
            self._soon(self._some, conversations)

    def _answered(self, conversations: list[str], heads: list[Head | LinnetError | None] | LinnetError) -> None:
        if isinstance(heads, LinnetError):
            return
        for conversation, head in zip(conversations, heads, strict=True):
            if not isinstance(head, LinnetError):
                self._return(conversation)

    # -- returned

    def _return(self, conversation: str) -> None:
        if not self._returning:
            self._soon(self._some_return)
        self._returning += [(session, conversation) for session in self._waiting.pop(conversation, ())]

    def _some_return(self) -> None:
        each("held", self._read, [self._returning.popleft() for _ in range(min(PER_TURN, len(self._returning)))])
        if self._returning:
            self._soon(self._some_return)

    def _read(self, returning: tuple[Session, str]) -> None:
        session, conversation = returning
        if session.held is not None and conversation in session.held:
            reply = partial(self._returned, session, conversation)
            self._users.device_row(session.user, session.device, conversation, reply)

    def _returned(self, session: Session, conversation: str, row: Row | LinnetError | None) -> None:
        """Give the session the conversation, as its user's row is now."""
        if session.held is None or session.state is not State.READY or conversation not in session.held:
            return
        holding = session.held[conversation]
        if isinstance(row, LinnetError):
            self.add(session, conversation, holding.new, holding.position, holding.head)
            return
        del session.held[conversation]
        if row is None:
            return
        if row.cursor is not None or holding.position:
            row = replace(row, cursor=max(row.cursor or 0, holding.position))
        row = replace(row, head=max(row.head, holding.head))
        if row.left:
            if row.cursor is not None:  # else the device never had the conversation
                backlog = self._catchup.fall_behind(session)
                backlog.positions.setdefault(conversation, row.cursor)
                self._catchup.read_left(session, backlog, conversation)
        elif row.kind != keys.DIRECT:
            self._membership.enter(session, row, holding.new)
        else:
            done = partial(self._direct, session, row, holding.new)
            self._list.settle_starts(session, [row], False, done, holding.new)

    def _direct(self, session: Session, row: Row, new: bool, starts: dict[str, int]) -> None:
        conversation = row.conversation
        if session.state is not State.READY:
            return
        if self._list.lacks_start(session, row, starts, new):
            self.add(session, conversation, new, head=row.head)
            return
        cursor = row.cursor if row.cursor is not None else starts.get(conversation, 0)
        session.answer(
            wire.ConversationsEvent(
                conversations=[state_of(session, row, cursor, row.head, row.count, None)], more=False
            )
        )
        backlog = self._catchup.fall_behind(session)
        position = backlog.positions.setdefault(conversation, session.direct.get(conversation, cursor))
        if position > row.head:
            backlog.claims[conversation] = row.head
        backlog.moved(conversation, row.head)
        self._catchup.pump(session)
