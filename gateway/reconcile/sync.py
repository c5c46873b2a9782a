"""A session's question to Redis: is the session still its device's, and which conversations moved since the last time?

`sync` is one function with one set of rules: it registers a session, audits it, answers a session whose backlog
overflowed, and delivers kicks. Each session has at most one such question under way (`Asking`). If another reason to
ask comes meanwhile, the session asks again after the answer, because the reason may be newer than the answer.

If an event seems to be missing, it is looked for again RECHECK_S later, because it may just be under way on the other
connection. If it is still missing then, it is read from the log, and the repair is counted. If the question of an audit
gets no answer, the next heartbeat asks again. A question after a lost subscription is repeated until it is answered,
because the connection for commands may return later than the bus.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import uniform
from typing import Any, Final

from gateway.delivery.catchup import Catchup
from gateway.delivery.feed import RESYNCING, Asking, State
from gateway.delivery.session import Session
from gateway.reconcile.gone import Gone
from gateway.reconcile.membership import Membership
from router.contract import errors, keys, metrics
from router.contract.errors import Blocked, LinnetError, Unauthorized
from router.store.rows import Row
from router.store.sync import Sync, Synced
from router.store.users import Users

RECHECK_S: Final = 0.5
ASK_AGAIN_S: Final = 2.0
SERVER_ID: Final = 16  # bytes of `since` that name the server
AUDITED: Final = {status: metrics.AUDITS.labels(status) for status in ("ok", "replaced", "kicked", "evicted")}


class Syncs:
    def __init__(
        self,
        node: str,
        users: Users,
        catchup: Catchup,
        membership: Membership,
        gone: Gone,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._node = node
        self._users = users
        self._catchup = catchup
        self._membership = membership
        self._gone = gone
        self._later: Callable[..., Any] = loop.call_later

    def question(self, session: Session) -> Sync:
        return Sync(
            user=session.user,
            device=session.device,
            session=session.id,
            node=self._node,
            started=session.started,
            instance=session.instance,
            since=session.since,
            token=session.token_id,
            token_expires_s=session.expires_at // 1000,
        )

    def ask(self, session: Session, cause: str = "") -> None:
        """Ask which conversations moved since the last answer. `cause` labels the repairs that follow; a hint has
        none."""
        if session.state is not State.READY:
            return
        if session.asking is not Asking.NOTHING:
            session.asking = Asking.ASK_AGAIN
            return
        session.asking = Asking.ASKED
        try:
            self._users.sync(self.question(session), partial(self._answered, session, cause, ""))
        except BaseException:
            session.asking = Asking.NOTHING  # no answer comes; the next audit asks again
            raise

    def _ask_again(self, session: Session, cause: str) -> None:
        session.asking = Asking.NOTHING
        self.ask(session, cause)

    def replaced(self, session: Session, instance: str) -> None:
        """Ask Redis which session is the later one: another session of the device says that it has registered."""
        if session.state is State.READY:
            self._users.sync(self.question(session), partial(self._answered, session, "", instance))

    def _answered(self, session: Session, cause: str, instance: str, answer: Synced | LinnetError) -> None:
        ask_again = session.asking is Asking.ASK_AGAIN
        session.asking = Asking.NOTHING
        if session.state is not State.READY:
            return
        if isinstance(answer, LinnetError):
            self._failed(session, cause, answer, ask_again)
            return
        AUDITED[answer.status].inc()
        if answer.status != "ok":
            end(session, answer.status, instance)
            return
        if answer.state is not None:
            self._state(session, answer.state, went_back=answer.since[:SERVER_ID] != session.since[:SERVER_ID])
        self._apply(session, answer.rows, cause)
        backlog = session.backlog
        noted = backlog is None or not backlog.overflowed
        if noted:  # else the next question starts from the old position, once there is room
            session.since = answer.since
        if ask_again or (noted and answer.more):
            self.ask(session, cause)
        elif session.feed in RESYNCING:
            self._catchup.answered(session)
        else:
            self._catchup.pump(session)

    def _failed(self, session: Session, cause: str, error: LinnetError, ask_again: bool) -> None:
        metrics.AUDITS.labels(error.code).inc()
        if isinstance(error, Blocked):  # the user was deleted
            session.close(errors.CLOSE_BANNED, error.code)
        elif isinstance(error, Unauthorized):  # the session's token was ended
            session.close(errors.CLOSE_UNAUTHORIZED, error.code)
        elif ask_again or cause == "resubscribe" or session.feed in RESYNCING:
            session.asking = Asking.ASKED  # the repeated question also answers questions that come until then
            cause = "resubscribe" if ask_again else cause  # the question that waited may have had this cause
            self._later(ASK_AGAIN_S * uniform(0.5, 1.5), self._ask_again, session, cause)

    def _state(self, session: Session, version: int, *, went_back: bool) -> None:
        """Compare the version of the user's state with what was sent. A lower one counts only from another server,
        which may have lost changes; from the same one, the change is newer than the answer."""
        if session.backlog is not None:
            known = session.sent_state if session.backlog.state is None else session.backlog.state
            if version > known or went_back:
                session.backlog.state = version
        elif version < session.sent_state and went_back:
            session.send_state_version(version, "audit")
        elif version > session.sent_state:
            self._later(RECHECK_S, self._recheck_state, session, version)

    def _recheck_state(self, session: Session, version: int) -> None:
        if session.state is not State.READY or session.sent_state >= version:
            return
        if session.backlog is None:
            session.send_state_version(version, "audit")
        else:
            session.backlog.state = max(version, session.backlog.state or 0)

    def _apply(self, session: Session, rows: list[Row], cause: str) -> None:
        missing: list[tuple[str, int]] = []
        for row in rows:
            session.send_read(row.conversation, row.read)  # the receipt may have been lost, or have come too early
            if row.left and self._gone.notify(session, row) and row.kind == keys.DIRECT:
                self._catchup.read_left(session, self._catchup.fall_behind(session), row.conversation)
            if row.kind != keys.DIRECT:
                self._membership.apply(session, row)
            elif row.left or session.waits_for(row.conversation):
                pass
            elif (session.received_upto(row.conversation) or row.cursor or 0) >= row.head:
                continue
            elif session.backlog is not None:
                session.backlog.moved(row.conversation, row.head)
            else:
                missing.append((row.conversation, row.head))
        if missing:
            self._later(RECHECK_S, self._recheck, session, missing, cause)

    def _recheck(self, session: Session, missing: list[tuple[str, int]], cause: str) -> None:
        if session.state is not State.READY:
            return
        for conversation, head in missing:
            if session.received_upto(conversation) < head:  # also if the session has fallen behind meanwhile
                self._catchup.read_direct(session, conversation, head, cause)


def end(session: Session, status: str, instance: str = "") -> None:
    """Close a session that is no longer its device's session. The same client process may reconnect, others not."""
    if status == "kicked":
        session.close(errors.CLOSE_ENDED, "ended")
    elif status == "evicted":
        session.close(errors.CLOSE_REPLACED, "another device took the place of this one: a user has at most 16")
    elif instance and instance == session.instance:
        session.close(errors.CLOSE_UNAVAILABLE, errors.retry_reason(0.1))
    else:
        session.close(errors.CLOSE_REPLACED, "this device is connected elsewhere")
