"""The third layer of certainty: what Redis says against what is here, once per heartbeat.

Once per hub: head and membership version. Once per session: `news`, many sessions in one call, says to which of them
`sync` has something to say, and nearly always to none; `sync` says whether the session is still its device's (or was
replaced, or kicked), and which of the user's conversations moved. What looks missing is looked at again `RECHECK_S`
later, because the event itself may just be under way on the other connection; what is still missing then is repaired
from the log and counted, so that an operator sees when the fast path lost something.

An audit that gets no answer waits for the next heartbeat. What was said while the bus was lost does not: that question
is asked until it is answered, one at a time for each session, as the commands' connection may come up after the bus.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import islice
from random import uniform
from typing import TYPE_CHECKING, Final

from gateway.delivery.hub import Hub
from gateway.delivery.session import Session, State
from router.contract import errors, keys, metrics
from router.contract.errors import Blocked, LinnetError
from router.process.isolate import attempt, each
from router.store.users import Row, Sync, Synced

if TYPE_CHECKING:
    from gateway.node import Node

RECHECK_S: Final = 0.5
FIRST_AUDIT_S: Final = 2.0
STEP: Final = 200
AUDITED: Final = {status: metrics.AUDITS.labels(status) for status in ("ok", "replaced", "kicked", "evicted")}


class Audits:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._new: deque[tuple[float, Session]] = deque()  # who connected in the last FIRST_AUDIT_S, in that order

    # -- sessions

    def first(self, session: Session) -> None:
        """The first audit comes soon after connecting: that is when most can have been missed."""
        self._new.append((self._node.loop.time() + FIRST_AUDIT_S, session))

    def new(self, now: float) -> None:
        """Audits those who connected `FIRST_AUDIT_S` ago."""
        due = []
        while self._new and self._new[0][0] <= now:
            due.append(self._new.popleft()[1])
        self.sessions([session for session in due if session.state is State.READY])

    def sessions(self, sessions: list[Session]) -> None:
        """Audits these. One question tells which of them need a look of their own, and nearly always none does."""
        quiet = [session for session in sessions if session.behind is None and not session.syncing]
        for start in range(0, len(quiet), self._node.users.one_call):
            some = quiet[start : start + self._node.users.one_call]
            if not attempt("audits", partial(self._ask_news, some)):
                each("audits", partial(self.sync, cause="audit"), some)  # the others of this call have their own
        apart = [session for session in sessions if session.behind is not None or session.syncing]
        each("audits", partial(self.sync, cause="audit"), apart)

    def _ask_news(self, sessions: list[Session]) -> None:
        self._node.users.news([self.question(session) for session in sessions], partial(self._news, sessions))

    def _news(self, sessions: list[Session], news: list[int] | LinnetError) -> None:
        if isinstance(news, LinnetError):
            metrics.AUDITS.labels(news.code).inc(len(sessions))
            return
        AUDITED["ok"].inc(len(sessions) - len(news))
        each("audits", partial(self.sync, cause="audit"), [sessions[number] for number in news])

    def sync(self, session: Session, cause: str = "") -> None:
        """Asks what moved since the last time. `cause` names the repairs that follow; a hint has none."""
        if session.state is not State.READY:
            return
        if session.syncing:
            session.again = True  # what is to be found may be younger than the answer that is under way
            return
        session.syncing, session.again = True, False
        try:
            self._node.users.sync(self.question(session), partial(self._synced, session, cause, ""))
        except BaseException:
            session.syncing = False  # no answer comes; the next audit asks again
            raise

    def _ask_again(self, session: Session, cause: str) -> None:
        session.syncing = False
        self.sync(session, cause)

    def replaced(self, session: Session, instance: str) -> None:
        """Another session of the device says it has registered; whether it is the later one is not for it to say."""
        if session.state is State.READY:
            self._node.users.sync(self.question(session), partial(self._synced, session, "", instance))

    def question(self, session: Session) -> Sync:
        return Sync(
            user=session.user,
            device=session.device,
            session=session.id,
            node=self._node.name,
            started=session.started,
            instance=session.instance,
            since=session.since,
        )

    def _synced(self, session: Session, cause: str, instance: str, answer: Synced | LinnetError) -> None:
        session.syncing = False
        if session.state is not State.READY:
            return
        if isinstance(answer, LinnetError):
            metrics.AUDITS.labels(answer.code).inc()
            if isinstance(answer, Blocked):  # the user was deleted
                session.close(errors.CLOSE_BANNED, answer.code)
            elif session.again or cause == "resubscribe" or (session.behind is not None and session.behind.resyncing):
                session.syncing = True  # whoever asks until then is answered by that
                cause = "resubscribe" if session.again else cause  # the other question may have been that one
                self._node.later(FIRST_AUDIT_S * uniform(0.5, 1.5), self._ask_again, session, cause)
            return
        AUDITED[answer.status].inc()
        if answer.status != "ok":
            self.end(session, answer.status, instance)
            return
        self._apply(session, answer.rows, cause)
        behind = session.behind
        noted = behind is None or not behind.resync
        if noted:  # else it is asked for again from there, once there is room
            session.since = answer.since
        if session.again or (noted and answer.more):
            self.sync(session, cause)
        elif behind is not None and behind.resyncing:
            behind.resyncing = False
            self._node.catchup.listed(session)
        else:
            self._node.catchup.pump(session)

    def end(self, session: Session, status: str, instance: str) -> None:
        """The session is not its device's any more. The same client process may come back; another must not."""
        if status == "kicked":
            session.close(errors.CLOSE_ENDED, "ended")
        elif status == "evicted":
            session.close(errors.CLOSE_REPLACED, "another device took the place of this one: a user has at most 16")
        elif instance and instance == session.instance:
            session.close(errors.CLOSE_UNAVAILABLE, errors.retry_reason(0.1))
        else:
            session.close(errors.CLOSE_REPLACED, "this device is connected elsewhere")

    def _apply(self, session: Session, rows: list[Row], cause: str) -> None:
        missing: list[tuple[str, int]] = []
        for row in rows:
            session.has_read(row.conversation, row.read)  # the receipt may not have come, or come too early
            if row.left and self._node.gone.tell(session, row) and row.kind == keys.DIRECT:
                self._node.catchup.left(session, self._node.catchup.start(session), row.conversation)
            if row.kind != keys.DIRECT:
                self._membership(session, row)
            elif row.left or (session.given(row.conversation) or row.cursor or 0) >= row.head:
                continue
            elif session.behind is not None:
                session.behind.moved(row.conversation, row.head)
            else:
                missing.append((row.conversation, row.head))
        if missing:
            self._node.later(RECHECK_S, self._recheck, session, missing, cause)

    def _recheck(self, session: Session, missing: list[tuple[str, int]], cause: str) -> None:
        if session.state is not State.READY:
            return
        for conversation, head in missing:
            if session.given(conversation) < head:  # to one that fell behind meanwhile it is noted all the same
                self._node.catchup.hole(session, conversation, head, cause)

    def _membership(self, session: Session, row: Row) -> None:
        """A group or channel that the user came into, or left, or that merely was read elsewhere."""
        hub = self._node.subscriptions.hubs.get(row.conversation)
        inside = hub is not None and session in hub.members
        if row.left and inside and hub is not None:
            self._node.subscriptions.leave(session, hub)
        elif not row.left and not inside:
            self._node.connects.join(session, row)

    # -- hubs

    def hubs(self) -> None:
        """Compares every hub with its conversation's head, some each turn of the loop."""
        conversations = iter([hub.conversation for hub in self._node.subscriptions.hubs.values() if hub.confirmed])

        def go_on() -> None:
            step = list(islice(conversations, STEP))
            if step:
                attempt("audits", lambda: self._node.conversations.heads(step, partial(self._suspect, step)))
                self._node.soon(go_on)

        go_on()

    def _suspect(self, conversations: list[str], heads: object) -> None:
        """Only hubs that may have missed something are compared for good, a little later."""
        if not isinstance(heads, list):
            return
        hubs = self._node.subscriptions.hubs
        behind = [
            conversation
            for conversation, head in zip(conversations, heads, strict=True)
            if head is not None
            and (hub := hubs.get(conversation)) is not None
            and (head.seq > hub.seq or head.version != hub.version)
        ]
        if behind:
            self._node.later(RECHECK_S, self._compare, behind)

    def _compare(self, conversations: list[str]) -> None:
        self._node.subscriptions.compare(conversations, "audit")

    def members(self, hub: Hub) -> None:
        """The membership changed in a way this hub did not see: ask again for the users that are here."""
        users = sorted({session.user for session in hub.members})
        for start in range(0, len(users), STEP):
            some = users[start : start + STEP]
            self._node.conversations.roles(hub.conversation, some, partial(self._roles, hub, some))

    def _roles(self, hub: Hub, users: list[str], roles: list[str] | LinnetError) -> None:
        if isinstance(roles, LinnetError):
            hub.version = -1  # the next round asks again
            return
        for user, role in zip(users, roles, strict=True):
            if not role:
                self._node.subscriptions.member_left(hub, user)
