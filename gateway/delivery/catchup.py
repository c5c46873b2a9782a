"""Feeds sessions that are behind from the log, in pages, under flow control.

A session is behind right after connecting, when its connection is slow, and when a direct conversation has a hole.
It then has a list of conversations with the position it stands at; a page of the log is read, written at once, and the
next page is asked for only while its transport takes it: at most one page waits per session, so memory is bounded
whatever the reader does. Newest conversations come first. It joins the live set in the very turn of the loop in which
it stands at what each of its hubs has written and nothing else is left; never past `hub.written`, or an event that is
still pending there would come twice. A device that comes with more than a hub here has (the hub lost its subscription a
moment ago) waits until the hub has been repaired.

Rejected: a queue per slow session (unbounded, or lossy), cutting slow readers off (they come back and are slower).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from gateway.delivery.session import Session, State
from gateway.delivery.shared_frames import event_frames
from router.contract import keys, metrics, stamp
from router.contract.errors import LinnetError, NotFound
from router.contract.packing import MAX_INTEGER
from router.store.conversations import Head, Page

if TYPE_CHECKING:
    from gateway.node import Node

PAGE_EVENTS: Final = 100
MAX_MOVED: Final = 1024
RETRY_S: Final = 1.0
LAG_S: Final = 0.1
SERVER_ID: Final = 16  # bytes of `since` that name the server


class Behind:
    """What a session that is behind still has to be given.

    `todo`: conversation → seq to read up to (None: up to what its hub has written). `positions`: where the session
    stands, in each of these and in each of its hubs. `more_below`: conversations that were not listed yet, of a device
    that is new to the server or not.
    """

    __slots__ = (
        "ahead_since",
        "claims",
        "cursors",
        "more_below",
        "new_device",
        "paused",
        "positions",
        "reading",
        "resync",
        "resyncing",
        "todo",
    )

    def __init__(self) -> None:
        self.todo: dict[str, int | None] = {}
        self.positions: dict[str, int] = {}
        self.ahead_since: float | None = None  # when it was first found to have what no log here has
        # Direct conversations whose cursor lies above the head: the head as the user's row has it, None without a row.
        self.claims: dict[str, int | None] = {}
        self.cursors: dict[str, int] = {}  # of `hello`, until everything is listed
        self.more_below: int | None = None
        self.new_device = False
        self.paused = False
        self.reading = False
        self.resync = False  # too much moved to note: ask again what did …
        self.resyncing = False  # … and that question is under way

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
            self.resync = True


class Catchup:
    """The ways into being behind, and the one way out."""

    def __init__(self, node: Node) -> None:
        self._node = node

    # -- ways in

    def start(self, session: Session) -> Behind:
        """The session leaves the live set; where it stood in each hub is noted."""
        behind = session.behind
        if behind is None:
            behind = session.behind = Behind()
            for hub in session.hubs:
                behind.positions[hub.conversation] = hub.leave(session)
            metrics.SESSIONS_LIVE.dec()
            metrics.SESSIONS_BEHIND.inc()
        return behind

    def paused(self, session: Session) -> None:
        """The connection is slow."""
        if session.behind is None:
            metrics.FELL_BEHIND.inc()
        self.start(session).paused = True
        session.connection.pause_reading()  # else answers to what it goes on asking would pile up

    def resumed(self, session: Session) -> None:
        if session.behind is not None:
            session.behind.paused = False
            session.connection.resume_reading()
            self._node.commands.next_page(session)
            self.pump(session)

    def hole(self, session: Session, conversation: str, upto: int, cause: str = "") -> None:
        """A direct conversation is to be read up to `upto`: events were lost (`cause`), or it moves here first."""
        if cause:
            metrics.REPAIRS.labels(cause).inc()
        self.start(session).moved(conversation, upto)
        self.pump(session)

    # -- the way out

    def pump(self, session: Session) -> None:
        """Goes on feeding, unless something is under way or the transport is full; joins when nothing is left."""
        behind = session.behind
        while behind is not None and not behind.reading and not behind.paused and session.state is State.READY:
            if behind.claims:
                behind.reading = True
                claimed = list(behind.claims)
                self._node.conversations.heads(claimed, partial(self._claimed, session, behind, claimed))
            elif behind.todo:
                self._feed(session, behind, *next(iter(behind.todo.items())))
            elif self._moved_hubs(session, behind):
                continue
            elif behind.more_below is not None:
                behind.reading = True
                self._node.connects.further(session, behind.more_below)
            elif behind.resync:
                behind.resync, behind.resyncing, behind.reading = False, True, True
                self._node.audits.sync(session)
            elif ahead := [hub for hub in session.hubs if behind.positions[hub.conversation] > hub.written]:
                behind.reading = True
                conversations = [hub.conversation for hub in ahead]
                self._node.conversations.heads(conversations, partial(self._ahead, session, behind, conversations))
            elif session.out:
                session.flush()  # it comes before what is live, and may fill the transport
            else:
                self._join(session, behind)
                return

    def listed(self, session: Session) -> None:
        """What `pump` asked for is there, or may be asked for again."""
        if session.behind is not None:
            session.behind.reading = False
            self.pump(session)

    def _claimed(
        self, session: Session, behind: Behind, conversations: list[str], heads: list[Head | None] | LinnetError
    ) -> None:
        """The device says that it has more of these direct conversations than there is. It starts from the head, or
        events that are still to come would count as delivered. If another server wrote the head, a failover took back
        what the device has: that is announced. As in `_ahead`, only when no successor of the server can be in doubt."""
        if session.behind is not behind or session.state is not State.READY:
            return
        if isinstance(heads, LinnetError):
            self._again(session)
            return
        found = dict(zip(conversations, heads, strict=True))
        ends = {conv: head.seq if head is not None else 0 for conv, head in found.items()}
        if any(end < behind.positions[conv] for conv, end in ends.items()) and self._doubted(behind):
            self._node.later(LAG_S, self.listed, session)
            return
        lowered: dict[str, int] = {}
        for conversation, head in found.items():
            known, position = behind.claims.pop(conversation), behind.positions[conversation]
            end = ends[conversation]
            if known is not None and not self._node.client.doubt_s:
                end = min(end, known)  # what came since the device said so it cannot have had
            if end >= position:
                continue
            if head is None or head.server != session.since[:SERVER_ID]:
                session.gap(conversation, end + 1, position, "failover")
            behind.positions[conversation] = lowered[conversation] = end
            if ends[conversation] > end:
                behind.moved(conversation, ends[conversation])
        self._lower(session, lowered)
        self.listed(session)

    def _lower(self, session: Session, cursors: dict[str, int]) -> None:
        if cursors:
            self._node.users.lower(session.user, session.device, session.id, cursors, _ignore)

    def _ahead(
        self, session: Session, behind: Behind, conversations: list[str], heads: list[Head | None] | LinnetError
    ) -> None:
        """The device has more than hubs here have written: they lag, and must not give it that again; or the log was
        rolled back, and the device has what never was. Where it could be a server that has been succeeded, that is told
        only when it has had time to be left: a void that was none is given again, out of order."""
        if session.behind is not behind or session.state is not State.READY:
            return
        if isinstance(heads, LinnetError):
            self._again(session)
            return
        lagging = False
        for conversation, head in zip(conversations, heads, strict=True):
            hub, position = self._node.subscriptions.hubs.get(conversation), behind.positions[conversation]
            if hub is None or head is None or hub.written >= position:
                continue
            if max(head.seq, hub.seq) < position and self._doubted(behind):
                lagging = True
                continue
            if max(head.seq, hub.seq) < position:
                session.gap(conversation, max(head.seq, hub.seq) + 1, position, "failover")
                behind.positions[conversation] = max(head.seq, hub.seq)
                self._lower(session, {conversation: behind.positions[conversation]})
            lagging = lagging or behind.positions[conversation] > hub.written
            if head.seq > hub.seq:
                self._node.repair(hub, "ahead")
        if lagging:
            self._node.later(LAG_S, self.listed, session)
        else:
            self.listed(session)

    def _doubted(self, behind: Behind) -> bool:
        """Whether it may still be that we ask a server which has been succeeded and knows less than the device."""
        now = self._node.loop.time()
        behind.ahead_since = now if behind.ahead_since is None else behind.ahead_since
        return now - behind.ahead_since < self._node.client.doubt_s

    def _moved_hubs(self, session: Session, behind: Behind) -> bool:
        for hub in session.hubs:
            if behind.positions[hub.conversation] < hub.written:
                behind.todo[hub.conversation] = None
        return bool(behind.todo)

    def _join(self, session: Session, behind: Behind) -> None:
        hubs = {hub.conversation for hub in session.hubs}
        for conversation, position in reversed(behind.positions.items()):  # the newest last: they stay
            if conversation not in hubs:
                session.has(conversation, position)
        session.behind = None
        for hub in session.hubs:
            hub.join(session)
        metrics.SESSIONS_BEHIND.dec()
        metrics.SESSIONS_LIVE.inc()

    def _feed(self, session: Session, behind: Behind, conversation: str, upto: int | None) -> None:
        """Asks for the next page of one conversation, or finds it level."""
        if upto is None:
            hub = self._node.subscriptions.hubs.get(conversation)
            upto = hub.written if hub is not None else 0
        if conversation in session.direct:
            behind.positions.setdefault(conversation, session.direct[conversation])
        position = behind.positions.get(conversation)
        if position is None:
            behind.reading = True
            reply = partial(self._cursor, session, behind, conversation)
            self._node.users.cursor(session.user, session.device, conversation, reply)
        elif position >= upto:
            del behind.todo[conversation]
        else:
            behind.reading = True
            reply = partial(self._page, session, behind, conversation, upto)
            self._node.conversations.range(conversation, session.user, position, upto, PAGE_EVENTS, reply)

    def _cursor(self, session: Session, behind: Behind, conversation: str, seq: int | LinnetError) -> None:
        if isinstance(seq, LinnetError):
            self._again(session)
        else:
            position = behind.positions.setdefault(conversation, seq)
            if position > (behind.todo.get(conversation) or MAX_INTEGER):
                behind.claims[conversation] = None
            self.listed(session)

    def _again(self, session: Session) -> None:
        self._node.later(RETRY_S, self.listed, session)

    def _page(self, session: Session, behind: Behind, conversation: str, upto: int, page: Page | LinnetError) -> None:
        if session.behind is not behind or session.state is not State.READY:
            return
        if isinstance(page, NotFound):  # gone meanwhile
            behind.positions[conversation] = upto
            if conversation[0] == keys.DIRECT:  # it may begin anew
                behind.forget(conversation)
                session.direct.pop(conversation, None)
        elif isinstance(page, LinnetError):
            self._again(session)
            return
        else:
            self._write(session, behind, conversation, page)
            if not page.more:
                self._read_through(behind, conversation, upto, page.position)
        self.listed(session)

    def _read_through(self, behind: Behind, conversation: str, upto: int, position: int) -> None:
        """The log has no more up to `upto`. Where it ends before that, the server has lost what was heard, or was
        succeeded and does not know: a direct conversation stays where it is, so that the next event or the audit shows
        what there is by then; in a hub the session stands where all stand."""
        if conversation[0] != keys.DIRECT and upto < MAX_INTEGER:
            behind.positions[conversation] = max(position, upto)
        elif position < upto and behind.todo.get(conversation) == upto:  # else more was asked for meanwhile
            del behind.todo[conversation]

    def _write(self, session: Session, behind: Behind, conversation: str, page: Page) -> None:
        position = behind.positions[conversation]
        if page.floor > position:
            session.gap(conversation, position + 1, page.floor, "expired")
        behind.positions[conversation] = max(position, page.position)
        if not page.events:
            return
        prev = stamp.slots(page.events[0])[1]
        if prev < position:
            session.gap(conversation, prev + 1, position, "failover")
        session.flush()  # what this turn had for it comes first
        frames = event_frames(page.events, session.variant)
        session.connection.write(frames)
        metrics.DELIVERIES_REPLAY.inc(len(page.events))
        metrics.WRITTEN_BYTES.inc(len(frames))

    def left(self, session: Session, behind: Behind, conversation: str) -> None:
        """The session's user left a group: what was before that is still the user's to have. Where it stands `start`
        has noted, or else, while it connects, Redis."""
        behind.todo[conversation] = MAX_INTEGER
        self.pump(session)


def _ignore(_: object) -> None:
    """A cursor that was not lowered is found again by the next connect of the device."""
