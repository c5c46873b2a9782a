"""One clock for all sessions: heartbeats, audits, deadlines and the writing of marks; no timer per session.

Each session sits in one bucket of a wheel that turns once per heartbeat, so that pings and audits spread evenly, and in
one bucket of seconds for the next of its deadlines (no hello in time, token expired, too old). Cursors and read marks
are noted and written at most once a second per session, a few at a time: thousands in one go would hold up
everybody's messages, here and in Redis. What Redis cannot take is noted again. Of a session that has ended it is tried
once more. What is lost then: the device says itself what it has when it comes back, and may get a push for that before;
a group in which its user has written stays unread until she reads or writes there.

Invariant: a session that raises in a round costs itself only (`isolate.each`); the wheel turns on.

Bound: all of these hold each session once, and let go of it when it closes; notes hold each conversation once.
"""

from __future__ import annotations

from functools import partial
from random import uniform
from typing import TYPE_CHECKING, Final

from gateway.delivery.session import Session, State
from router.contract import errors, metrics
from router.contract.errors import LinnetError, Unavailable
from router.process.isolate import attempt, each

if TYPE_CHECKING:
    from gateway.node import Node

HELLO_S: Final = 10.0
LOST_AFTER_HEARTBEATS: Final = 2.0
# Nothing is read from a client that does not read, so its silence says less; it costs a bounded buffer, no more.
STALLED_FOR_HEARTBEATS: Final = 10.0
STEP: Final = 50  # marks that are written together, or those of one session
STEP_S: Final = 0.002


class Clock:
    """Turned once a second (oftener where heartbeats are shorter than that)."""

    def __init__(self, node: Node) -> None:
        self._node = node
        heartbeat = node.settings.heartbeat_s
        self.turn_s = min(1.0, heartbeat / 2)
        self._wheel: list[dict[Session, None]] = [{} for _ in range(max(2, round(heartbeat / self.turn_s)))]
        self._bucket_of: dict[Session, int] = {}
        self._hand = 0
        self._deadlines: dict[int, dict[Session, None]] = {}
        self._looked_at = int(node.loop.time())
        self._marked: dict[Session, None] = {}  # since the last turn
        self._writing: dict[Session, None] = {}  # what is still to be written of those before
        self._due = node.loop.time() + self.turn_s
        self._timer = node.loop.call_at(self._due, self._turn)

    def stop(self) -> None:
        self._timer.cancel()

    # -- sessions

    def add(self, session: Session) -> None:
        bucket = len(self._bucket_of) % len(self._wheel)
        self._bucket_of[session] = bucket
        self._wheel[bucket][session] = None
        session.age_deadline = self._node.loop.time() + self._node.settings.max_age_s * uniform(0.75, 1)
        self._at(session, self._node.loop.time() + HELLO_S)

    def remove(self, session: Session) -> None:
        self._wheel[self._bucket_of.pop(session)].pop(session, None)
        self._deadlines.get(session.deadline, {}).pop(session, None)

    def ready(self, session: Session) -> None:
        """The session has said hello, or has a new token: its deadline is now its token's or its age's."""
        expires_in = (session.expires_at - max(self._node.verifier.clocks.moments(self._node.now_ms()))) / 1000
        self._at(session, min(session.age_deadline, self._node.loop.time() + expires_in))

    def marked(self, session: Session) -> None:
        """The session has cursors or read marks to write."""
        self._marked[session] = None

    def _at(self, session: Session, when: float) -> None:
        self._deadlines.get(session.deadline, {}).pop(session, None)
        session.deadline = max(int(when) + 1, self._looked_at + 1)
        self._deadlines.setdefault(session.deadline, {})[session] = None

    # -- turning

    def _turn(self) -> None:
        node, now = self._node, self._node.loop.time()
        metrics.LOOP_LAG_SECONDS.observe(max(0.0, now - self._due))
        self._due = max(self._due + self.turn_s, now)
        self._timer = node.loop.call_at(self._due, self._turn)
        self._hand = (self._hand + 1) % len(self._wheel)
        if self._hand == 0:
            attempt("audits", node.audits.hubs)
            attempt("watches", lambda: node.watches.touched(*node.watches.users))
        self._beat(now)
        attempt("audits", lambda: node.audits.new(now))
        while self._looked_at < int(now):
            self._looked_at += 1
            each("deadlines", lambda session: self._expired(session, now), self._deadlines.pop(self._looked_at, ()))
        if not self._writing:
            self._writing, self._marked = self._marked, {}
            self._write_some()
        attempt("lease", node.lease.turn)

    def _write_some(self) -> None:
        room = STEP
        while self._writing and room > 0:
            session = next(iter(self._writing))
            del self._writing[session]
            room -= len(session.acks or ()) + len(session.reads or ())
            each("marks", lambda one: self.write_marks(one, last=one.state is State.CLOSED), (session,))
        if self._writing:
            self._node.later(STEP_S, self._write_some)

    def _beat(self, now: float) -> None:
        """Pings and audits of the sessions whose turn it is."""
        heartbeat = self._node.settings.heartbeat_s
        audited: list[Session] = []

        def beat(session: Session) -> None:
            quiet = now - session.connection.last_received
            stalled = session.behind is not None and session.behind.paused
            if quiet > heartbeat * (STALLED_FOR_HEARTBEATS if stalled else LOST_AFTER_HEARTBEATS):
                session.close(errors.CLOSE_HEARTBEAT_LOST, errors.retry_reason(0.1))
                return
            if quiet > heartbeat / 2 and not stalled:
                session.connection.ping()
            if session.state is State.READY:
                audited.append(session)

        each("heartbeats", beat, list(self._wheel[self._hand]))
        attempt("audits", lambda: self._node.audits.sessions(audited))

    def _expired(self, session: Session, now: float) -> None:
        if session.state is not State.READY:
            if session.state is State.HELLO:
                session.close(errors.CLOSE_SLOW_HANDSHAKE, errors.retry_reason(uniform(0.5, 2)))
            else:
                session.close(errors.CLOSE_UNAVAILABLE, errors.retry_reason(uniform(1, 5)))
            return
        moments = self._node.verifier.clocks.moments(self._node.now_ms())
        if session.expires_at <= min(moments):
            session.close(errors.CLOSE_TOKEN_EXPIRED, "token expired")
        elif session.expires_at <= max(moments):  # by one of two clocks that do not agree
            session.close(errors.CLOSE_UNAVAILABLE, errors.retry_reason(uniform(1, 5)))
        elif session.age_deadline <= now:
            self._node.drain.rotate(session, errors.CLOSE_MAX_AGE)
        else:
            self.ready(session)

    def write_marks(self, session: Session, last: bool = False) -> None:
        """Writes what the session has acked and read since the last time, for the last time or to be tried again."""
        acks, session.acks = session.acks, None
        reads, session.reads = session.reads, None
        users = self._node.users
        if acks:
            users.ack(session.user, session.device, session.id, acks, partial(self._acked, session, acks, last))
        for conversation, place in (reads or {}).items():
            users.read(session.user, conversation, *place, partial(self._read, session, conversation, place, last))

    def _acked(self, session: Session, acks: dict[str, int], last: bool, answer: bool | LinnetError) -> None:
        if isinstance(answer, Unavailable) and not last:
            newer = session.acks or {}
            session.acks = acks | {conv: max(seq, acks.get(conv, 0)) for conv, seq in newer.items()}
            self.marked(session)

    def _read(
        self, session: Session, conversation: str, place: tuple[int, int], last: bool, answer: bool | LinnetError
    ) -> None:
        if isinstance(answer, Unavailable) and not last:
            session.reads = session.reads or {}
            session.reads[conversation] = max(place, session.reads.get(conversation, place))
            self.marked(session)
