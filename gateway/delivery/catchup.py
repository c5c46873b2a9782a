"""Feeds sessions that are behind from the log, in pages, under flow control (`feed.py` has the states).

A session is behind right after connecting, when its connection is slow, and when a direct conversation misses an event.
A page of the log is written as soon as it is read, and the next page is read only while the transport takes more. So at
most one page waits per session, and memory is bounded whatever the client does. The newest conversations come first.
The session goes live in the turn of the event loop in which its position in each hub is `hub.written` and its backlog
is empty. It never goes past `hub.written`, because events that are pending there would be written to it twice. If the
device is ahead of a hub (the hub has just lost its subscription), the session waits until the hub is repaired.

`next_step` (`backlog.py`) decides; `pump` applies its decisions until one of them waits for Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.delivery.backlog import Backlog, Step, next_step
from gateway.delivery.feed import Feed, FeedEvent, State
from gateway.delivery.hub import Hub
from gateway.delivery.repair import Repair
from gateway.delivery.session import Session
from gateway.delivery.shared_frames import event_frames
from router.contract import errors, keys, metrics, stamp
from router.contract.errors import LinnetError, NotFound, Unavailable
from router.contract.packing import MAX_INTEGER
from router.process.isolate import fault
from router.store.conversations import Conversations, Page
from router.store.heads import Head
from router.store.users import Users

PAGE_EVENTS: Final = 100
RETRY_S: Final = 1.0
LAG_S: Final = 0.1
SERVER_ID: Final = 16  # bytes of `since` that name the server

Heads = list[Head | LinnetError | None]


class Catchup:
    """The ways to fall behind, and the one way to go live. `node.py` connects the attributes once."""

    resume_history: Callable[[Session], None]  # go on with pages of history that waited for the transport
    # Hold a conversation whose part of Redis does not answer out of a session, so that it keeps the other conversations
    # from no client. False if Redis has only one part: then the others do not answer either.
    hold: Callable[[Session, str], bool]

    def __init__(
        self,
        conversations: Conversations,
        users: Users,
        hubs: Mapping[str, Hub],
        repair: Repair,
        failover_grace_s: Callable[[], float],
        certain_at: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._conversations = conversations
        self._users = users
        self._hubs = hubs
        self._repair = repair
        self._failover_grace_s = failover_grace_s
        self._certain_at = certain_at
        self._later: Callable[..., Any] = loop.call_later
        self._time = loop.time
        self._steps: Final[dict[Step, Callable[[Session, Backlog], None]]] = {
            Step.CHECK_CLAIMS: self._check_claims,
            Step.READ: self._read,
            Step.NOTE_MOVED_HUBS: self._note_moved_hubs,
            Step.LIST_OLDER: self._list_older,
            Step.RESYNC: self._resync,
            Step.COMPARE_AHEAD: self._compare_ahead,
            Step.FLUSH: self._flush,
            Step.GO_LIVE: self._go_live,
        }

    # -- ways to fall behind

    def fall_behind(self, session: Session) -> Backlog:
        """Remove the session from the live sets, and note its position in each hub."""
        backlog = session.backlog
        if backlog is None:
            backlog = self.begin(session)
            for hub in session.hubs:
                backlog.positions[hub.conversation] = hub.stop_live(session)
            metrics.SESSIONS_LIVE.dec()
        return backlog

    def begin(self, session: Session) -> Backlog:
        """Give a backlog to a session that is in no hub's live set."""
        session.fed(FeedEvent.FALL_BEHIND)
        backlog = session.backlog = Backlog()
        metrics.SESSIONS_BEHIND.inc()
        return backlog

    def transport_full(self, session: Session) -> None:
        """Fall behind and stop reading: the transport passed its high mark."""
        if session.backlog is None:
            metrics.FELL_BEHIND.inc()
        self.fall_behind(session)
        session.fed(FeedEvent.FILL)
        session.connection.pause_reading()  # else answers to further commands would pile up

    def transport_drained(self, session: Session) -> None:
        """Read again and go on feeding the session."""
        if session.backlog is not None:
            session.fed(FeedEvent.DRAIN)
            session.connection.resume_reading()
            self.resume_history(session)
            self.pump(session)

    def read_direct(self, session: Session, conversation: str, upto: int, cause: str = "") -> None:
        """Read a direct conversation up to `upto`: events were missed (`cause`), or it moves here for the first
        time."""
        if session.waits_for(conversation):
            return
        if cause:
            metrics.REPAIRS.labels(cause).inc()
        self.fall_behind(session).moved(conversation, upto)
        self.pump(session)

    def read_left(self, session: Session, backlog: Backlog, conversation: str) -> None:
        """Read the events up to the user's removal from a conversation. The session's position is the one that
        `fall_behind` has noted, or, while the session connects, the device's cursor in Redis."""
        backlog.todo[conversation] = MAX_INTEGER
        self.pump(session)

    # -- the way to go live

    def pump(self, session: Session) -> None:
        """Take steps until one waits for Redis or for the transport, or the session is live."""
        while session.feed is Feed.FEEDING and session.state is State.READY:
            backlog = session.backlog
            assert backlog is not None  # noqa: S101 - the session's invariant
            self._steps[next_step(backlog, session.hubs, bool(session.out))](session, backlog)

    def applying(self, session: Session, apply: Callable[..., None], *given: object) -> Callable[..., None]:
        """Return the callback of a step's reply: `apply` with the session, the `given` values, and the reply.

        If `apply` raises, the session ends with `internal`, because no other reply would move its feed on.
        """

        def applied(*reply: object) -> None:
            try:
                apply(session, *given, *reply)
            except Exception as error:  # noqa: BLE001 - whatever raised, the client must not wait for ever
                fault("catchup", error)
                session.close(errors.CLOSE_INTERNAL, "internal")

        return applied

    def answered(self, session: Session) -> None:
        """Go on after the answer to a step, or when the step is to be retried."""
        if session.backlog is not None:
            session.fed(FeedEvent.ANSWER)
            self.pump(session)

    def _retry(self, session: Session) -> None:
        self._later(RETRY_S, self.answered, session)

    def _list_older(self, session: Session, backlog: Backlog) -> None:
        if backlog.list_older is not None:
            session.fed(FeedEvent.READ)
            backlog.list_older()

    def _resync(self, session: Session, backlog: Backlog) -> None:
        backlog.overflowed = False
        session.fed(FeedEvent.RESYNC)
        session.ports.ask(session)

    def _flush(self, session: Session, _: Backlog) -> None:
        session.flush()

    def _go_live(self, session: Session, backlog: Backlog) -> None:
        hubs = {hub.conversation for hub in session.hubs}
        for conversation, position in reversed(
            backlog.positions.items()
        ):  # newest last, because the oldest are dropped
            if conversation not in hubs:
                session.note_received(conversation, position)
        session.fed(FeedEvent.CATCH_UP)
        session.backlog = None
        for hub in session.hubs:
            hub.go_live(session)
        metrics.SESSIONS_BEHIND.dec()
        metrics.SESSIONS_LIVE.inc()
        if backlog.state is not None and backlog.state != session.sent_state:
            session.send_state_version(backlog.state, "behind")

    def _note_moved_hubs(self, session: Session, backlog: Backlog) -> None:
        for hub in session.hubs:
            if backlog.positions[hub.conversation] < hub.written:
                backlog.todo[hub.conversation] = None

    # -- a device that is ahead

    def _check_claims(self, session: Session, backlog: Backlog) -> None:
        claimed = list(backlog.claims)
        session.fed(FeedEvent.READ)
        self._conversations.heads(claimed, self.applying(session, self._checked, backlog, claimed))

    def _checked(
        self, session: Session, backlog: Backlog, conversations: list[str], heads: Heads | LinnetError
    ) -> None:
        """Lower the position to the head where the device's cursor is above it; otherwise the next events would count
        as delivered. If another server wrote the head, a failover rolled back events that the device has: announce
        them as a gap, but, as in `_compared`, not within the failover's grace. In a group they are always announced."""
        if session.backlog is not backlog or session.state is not State.READY:
            return
        found = self._read_heads(session, conversations, heads)
        if found is None:
            self._retry(session)
            return
        ends = {
            conv: head.seq if head is not None else 0 if conv[0] == keys.DIRECT else backlog.positions[conv]
            for conv, head in found.items()  # a group without a head was deleted meanwhile
        }
        ahead = any(end < backlog.positions[conv] for conv, end in ends.items())
        if ahead and self._within_failover_grace(backlog):
            backlog.forget_group_claims()  # `_compared` settles them later; they need not keep other events back
            self._later(LAG_S, self.answered, session)
            return
        lowered: dict[str, int] = {}
        for conversation, head in found.items():
            known, position = backlog.claims.pop(conversation), backlog.positions[conversation]
            end, direct = ends[conversation], conversation[0] == keys.DIRECT
            # The device cannot have events that were written after its claim. A hub may lag behind the log, so its
            # position is taken only for a claim that was wrong.
            if known is not None and not self._failover_grace_s() and (direct or end < position):
                end = min(end, known)
            if end >= position:
                continue
            if not direct or head is None or head.server != session.since[:SERVER_ID]:
                session.gap(conversation, end + 1, position, "failover")
            backlog.positions[conversation] = lowered[conversation] = end
            if direct and ends[conversation] > end:  # a group is read up to its hub
                backlog.moved(conversation, ends[conversation])
        self._lower(session, lowered)
        self.answered(session)

    def _lower(self, session: Session, cursors: dict[str, int]) -> None:
        if cursors:
            self._users.lower(session.user, session.device, session.id, cursors, _ignore)

    def _compare_ahead(self, session: Session, backlog: Backlog) -> None:
        ahead = [hub.conversation for hub in session.hubs if backlog.positions[hub.conversation] > hub.written]
        session.fed(FeedEvent.READ)
        self._conversations.heads(ahead, self.applying(session, self._compared, backlog, ahead))

    def _compared(
        self, session: Session, backlog: Backlog, conversations: list[str], heads: Heads | LinnetError
    ) -> None:
        """Decide why the device is ahead of hubs here. Either a hub lags: then the session waits, because the hub would
        deliver the events a second time. Or a failover rolled the log back: then a gap is announced. While the server
        that answers may be a primary that was replaced, nothing is announced yet, because the events may still exist
        and would be delivered later, out of order."""
        if session.backlog is not backlog or session.state is not State.READY:
            return
        found = self._read_heads(session, conversations, heads)
        if found is None:
            self._retry(session)
            return
        lagging = False
        for conversation, head in found.items():
            hub, position = self._hubs.get(conversation), backlog.positions[conversation]
            if hub is None or head is None or hub.written >= position:
                continue
            if max(head.seq, hub.seq) < position and self._within_failover_grace(backlog):
                lagging = True
                continue
            if max(head.seq, hub.seq) < position:
                session.gap(conversation, max(head.seq, hub.seq) + 1, position, "failover")
                backlog.positions[conversation] = max(head.seq, hub.seq)
                self._lower(session, {conversation: backlog.positions[conversation]})
            lagging = lagging or backlog.positions[conversation] > hub.written
            if head.seq > hub.seq:
                self._repair.start(hub, "ahead")
        if lagging:
            self._later(LAG_S, self.answered, session)
        else:
            self.answered(session)

    def _read_heads(
        self, session: Session, conversations: list[str], heads: Heads | LinnetError
    ) -> dict[str, Head | None] | None:
        """The heads that were read; the other conversations are held. None if all are to be asked for again."""
        answers = [heads] * len(conversations) if isinstance(heads, LinnetError) else heads
        found: dict[str, Head | None] = {}
        for conversation, head in zip(conversations, answers, strict=True):
            if not isinstance(head, LinnetError):
                found[conversation] = head
            elif not (isinstance(head, Unavailable) and self.hold(session, conversation)):
                return None
        return found

    def _within_failover_grace(self, backlog: Backlog) -> bool:
        """Return whether the server that answers may still be a replaced primary, which has less than the device. It is
        none if it was known not to be replaced after the device was found ahead."""
        now = self._time()
        backlog.ahead_since = now if backlog.ahead_since is None else backlog.ahead_since
        return now - backlog.ahead_since < self._failover_grace_s() and self._certain_at() <= backlog.ahead_since

    # -- pages

    def _read(self, session: Session, backlog: Backlog) -> None:
        """Ask for the next page of the first conversation; drop the conversation if it is complete."""
        conversation, upto = next(iter(backlog.todo.items()))
        if upto is None:
            hub = self._hubs.get(conversation)
            upto = hub.written if hub is not None else 0
        if conversation in session.direct:
            backlog.positions.setdefault(conversation, session.direct[conversation])
        position = backlog.positions.get(conversation)
        if position is None:
            session.fed(FeedEvent.READ)
            reply = self.applying(session, self._cursor, backlog, conversation)
            self._users.cursor(session.user, session.device, conversation, reply)
        elif position >= upto:
            del backlog.todo[conversation]
        else:
            session.fed(FeedEvent.READ)
            page = self.applying(session, self._page, backlog, conversation, upto)
            self._conversations.range(conversation, session.user, position, upto, PAGE_EVENTS, page)

    def _cursor(self, session: Session, backlog: Backlog, conversation: str, seq: int | LinnetError) -> None:
        if isinstance(seq, Unavailable):  # the user's part of Redis, not the conversation's
            self._retry(session)
        elif isinstance(seq, LinnetError):
            self._retry_later(session, backlog, conversation, seq)
        else:
            position = backlog.positions.setdefault(conversation, seq)
            if position > (backlog.todo.get(conversation) or MAX_INTEGER):
                backlog.claims[conversation] = None
            self.answered(session)

    def _page(self, session: Session, backlog: Backlog, conversation: str, upto: int, page: Page | LinnetError) -> None:
        if session.backlog is not backlog or session.state is not State.READY:
            return
        if isinstance(page, NotFound):  # deleted meanwhile
            backlog.positions[conversation] = upto
            if conversation[0] == keys.DIRECT:  # it may be created again
                backlog.forget(conversation)
                session.direct.pop(conversation, None)
        elif isinstance(page, LinnetError):
            self._retry_later(session, backlog, conversation, page)
            return
        else:
            self._write(session, backlog, conversation, page)
            if not page.more:
                self._read_through(backlog, conversation, upto, page.position)
        self.answered(session)

    def _retry_later(self, session: Session, backlog: Backlog, conversation: str, error: LinnetError) -> None:
        """Read the conversation again. If Redis answers and it cannot be read (its row or log is damaged), the other
        conversations, and hubs that have moved meanwhile, come first: it must not keep their events from the client. If
        its part of Redis does not answer, it is held."""
        if isinstance(error, Unavailable) and self.hold(session, conversation):
            self.answered(session)
            return
        if not isinstance(error, Unavailable) and conversation in backlog.todo:
            self._note_moved_hubs(session, backlog)
            backlog.todo[conversation] = backlog.todo.pop(conversation)
        self._retry(session)

    def _read_through(self, backlog: Backlog, conversation: str, upto: int, position: int) -> None:
        """Note that the log has no more events up to `upto`. If it ends before `upto`, the server has lost events that
        were seen live, or it is a primary that was replaced. Then the position in a direct conversation stays, so that
        the next event or the audit finds the difference; in a group the session takes the hub's position."""
        if conversation[0] != keys.DIRECT and upto < MAX_INTEGER:
            backlog.positions[conversation] = max(position, upto)
        elif position < upto and backlog.todo.get(conversation) == upto:  # else `upto` was raised meanwhile
            del backlog.todo[conversation]

    def _write(self, session: Session, backlog: Backlog, conversation: str, page: Page) -> None:
        position = backlog.positions[conversation]
        if page.floor > position:
            session.gap(conversation, position + 1, page.floor, "expired")
        backlog.positions[conversation] = max(position, page.position)
        if not page.events:
            return
        prev = stamp.slots(page.events[0])[1]
        if prev < position:
            session.gap(conversation, prev + 1, position, "failover")
        session.flush()  # the frames of this turn are written first
        frames = event_frames(page.events, session.variant)
        session.connection.write(frames)
        metrics.DELIVERIES_REPLAY.inc(len(page.events))
        metrics.WRITTEN_BYTES.inc(len(frames))


def _ignore(_: object) -> None:
    """Ignore the answer: if a cursor was not lowered, the next connect of the device finds it again."""
