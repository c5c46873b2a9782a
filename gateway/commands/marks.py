"""Acks and read marks of sessions: noted, and written at most once a second per session.

They are written a few at a time, because thousands at once would delay all messages, here and in Redis. If Redis does
not take a mark, it is noted again; for a session that has ended it is tried once more. If that fails too, the device
sends its cursors when it reconnects, and may get a push before that; a group in which the user has written stays unread
until the user reads or writes there again.

Bound: each session is noted once, and each conversation once in a session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gateway.delivery.feed import State
from gateway.delivery.session import Session
from router.contract.errors import LinnetError, Unavailable
from router.process.isolate import each
from router.store.users import Users

MARKS_AT_ONCE: Final = 50  # or all marks of one session
PAUSE_S: Final = 0.002


class Marks:
    def __init__(self, users: Users, loop: asyncio.AbstractEventLoop) -> None:
        self._users = users
        self._later: Callable[..., Any] = loop.call_later
        self._noted: dict[Session, None] = {}  # sessions with marks that were noted since the last turn
        self._writing: dict[Session, None] = {}  # sessions of earlier turns whose marks are still to be written

    def acked(self, session: Session, conversation: str, seq: int) -> None:
        """Note that the device has everything up to `seq`."""
        session.acks = acks = session.acks if session.acks is not None else {}
        if seq > acks.get(conversation, 0):
            acks[conversation] = seq
            self.note(session)

    def acked_gone(self, session: Session, conversation: str) -> None:
        """Note that the device knows that the conversation is gone, if it acks one of which it was notified."""
        if session.gone is not None and conversation in session.gone:
            session.acks = session.acks if session.acks is not None else {}
            session.acks[f"-{conversation}"] = session.gone[conversation]
            self.note(session)

    def read(self, session: Session, conversation: str, seq: int, count: int) -> None:
        """Note that the user has read up to `seq`, the `count`-th message."""
        if session.state is not State.CLOSED:
            session.reads = session.reads if session.reads is not None else {}
            session.reads[conversation] = (seq, count)
            self.note(session)

    def note(self, session: Session) -> None:
        """Write the session's acks and read marks in a later turn."""
        self._noted[session] = None

    def turn(self) -> None:
        if not self._writing:
            self._writing, self._noted = self._noted, {}
            self._write_some()

    def _write_some(self) -> None:
        room = MARKS_AT_ONCE
        while self._writing and room > 0:
            session = next(iter(self._writing))
            del self._writing[session]
            room -= len(session.acks or ()) + len(session.reads or ())
            each("marks", lambda one: self.write(one, last=one.state is State.CLOSED), (session,))
        if self._writing:
            self._later(PAUSE_S, self._write_some)

    def write_ended(self, session: Session) -> None:
        """Write the marks of a session that has ended. A session that never registered has none."""
        if session.user_hub is not None:
            self.write(session)

    def write(self, session: Session, last: bool = False) -> None:
        """Write the noted marks of a session. If Redis does not take them, note them again, unless it is the `last`
        try."""
        acks, session.acks = session.acks, None
        reads, session.reads = session.reads, None
        users = self._users
        if acks:
            users.ack(session.user, session.device, session.id, acks, partial(self._acked, session, acks, last))
        for conversation, place in (reads or {}).items():
            users.read(session.user, conversation, *place, partial(self._read, session, conversation, place, last))

    def _acked(self, session: Session, acks: dict[str, int], last: bool, answer: bool | LinnetError) -> None:
        if isinstance(answer, Unavailable) and not last:
            newer = session.acks or {}
            session.acks = acks | {conv: max(seq, acks.get(conv, 0)) for conv, seq in newer.items()}
            self.note(session)

    def _read(
        self, session: Session, conversation: str, place: tuple[int, int], last: bool, answer: bool | LinnetError
    ) -> None:
        if isinstance(answer, Unavailable) and not last:
            session.reads = session.reads or {}
            session.reads[conversation] = max(place, session.reads.get(conversation, place))
            self.note(session)
