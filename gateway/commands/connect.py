"""From `hello` to `welcome`: one object per connect, whose methods are in the order in which they run.

This order loses no event: subscribe to the user's channel and wait for the confirmation → `sync` registers the session
and answers with the user's conversations → subscribe to the groups, wait, and read the heads of hubs that are new to
this node → `welcome` → feed the session from the log, newest conversations first. Live events that arrive meanwhile are
noted in the backlog, so the feed includes them.

If the part of Redis with the user cannot be reached, the connect is refused. Where parts can fail one by one, the
connect goes on without the groups of a part that does not answer (`reconcile/held.py`). Both are checked every LOOK_S.
A part that is only slow is waited for: a client that is refused connects again, which is more load.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine
from functools import partial
from random import uniform
from time import perf_counter
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from gateway.commands.authentication import Authentication, Deadlines
from gateway.delivery.catchup import Catchup
from gateway.delivery.feed import State
from gateway.delivery.session import Session
from gateway.delivery.subscriptions import Subscriptions
from gateway.presence.lease import Lease
from gateway.presence.redis_clock import RedisClock
from gateway.reconcile.audits import Audits
from gateway.reconcile.conversation_list import ConversationList, Countdown, Starts
from gateway.reconcile.gone import Gone
from gateway.reconcile.sync import Syncs, end
from router.contract import errors, keys, metrics, packing, wire
from router.contract.errors import LinnetError, Unauthorized, Unavailable
from router.contract.settings import Settings
from router.contract.tokens import Identity
from router.process.isolate import each
from router.store.rows import Row
from router.store.sync import Synced
from router.store.users import Users

OLDER: Final = ("replaced", "kicked")  # a session that seems to have started before another one, or before a kick
LOOK_S: Final = 1.0
STEP_MS: Final = 500  # Redis's clock and this node's idea of it drift less than this between two questions
OTHER_CLOCK_MS: Final = 10_000  # like SKEW_MS in store/functions/prelude.lua: a time beyond it is from another clock


class ConnectParts(msgspec.Struct, frozen=True):
    """The parts of the node that a connect uses."""

    node: str
    settings: Settings
    authentication: Authentication
    subscriptions: Subscriptions
    users: Users
    syncs: Syncs
    conversation_list: ConversationList
    gone: Gone
    catchup: Catchup
    audits: Audits
    deadlines: Deadlines
    lease: Lease
    clock: RedisClock
    apart: Callable[[], bool]
    later: Callable[..., Any]
    time: Callable[[], float]
    spawn: Callable[[Coroutine[Any, Any, None]], None]


class Connects:
    """The handler of `hello`."""

    def __init__(self, parts: ConnectParts) -> None:
        self._parts: Final = parts
        self._last: dict[int, int] = {}  # the last start, by the partition of its user
        self._looks: dict[Connect, float] = {}  # the connects under way, in the order in which they are looked at
        self._timed = False  # `_look` will be called

    def hello(self, session: Session, command: wire.Hello) -> None:
        """Begin to connect the session."""
        token = command.token or session.token
        if token is None:
            raise Unauthorized("no token: send one in hello or with the upgrade")
        session.state = State.CONNECTING
        session.connection.pause_reading()
        connect = Connect(self._parts, self, session, command)
        self._parts.authentication.check(token, connect.identified)

    def look_later(self, connect: Connect) -> None:
        """Look at a connect LOOK_S later; one timer for all, because nearly all have ended by then."""
        self._looks[connect] = self._parts.time() + LOOK_S
        self._set_timer(LOOK_S)

    def ended(self, connect: Connect) -> None:
        self._looks.pop(connect, None)

    def _set_timer(self, in_s: float) -> None:
        if not self._timed:
            self._timed = True
            self._parts.later(in_s, self._look)

    def _look(self) -> None:
        self._timed = False
        now, due = self._parts.time(), []
        for connect, at in self._looks.items():
            if at > now:
                self._set_timer(max(at - now, LOOK_S / 10))
                break
            due.append(connect)
        for connect in due:
            del self._looks[connect]
        each("connects", Connect.look, due)

    def unique_start(self, user: str, at_ms: int) -> int:
        """Return a start of a session at this time, and never the same for two sessions of a user. If the clock was put
        back, the order begins anew: otherwise every later session would start in the future and lose against an older
        one."""
        part = keys.partition(user) if self._parts.apart() else 0  # otherwise there is one clock
        last = self._last.get(part, 0)
        self._last[part] = max(at_ms, last + 1) if last <= at_ms + OTHER_CLOCK_MS else at_ms
        return self._last[part]


class Connect:
    """One connect under way. Each method does nothing if the session has ended meanwhile."""

    __slots__ = ("_began", "_clock_asked", "_command", "_connects", "_countdown", "_entering", "_held", "_parts",
                 "_session", "_subscribed")  # fmt: skip

    def __init__(self, parts: ConnectParts, connects: Connects, session: Session, command: wire.Hello) -> None:
        self._parts = parts
        self._connects = connects
        self._session = session
        self._command = command
        self._subscribed = False  # to the user's channel
        self._began = perf_counter()
        self._clock_asked = False
        self._countdown: Countdown | None = None  # of the groups and notices that the welcome waits for
        self._entering: dict[str, Callable[[bool], None]] = {}  # the groups among them, and what their hubs call
        self._held: set[str] = set()  # groups that the welcome does not wait for

    def identified(self, identity: Identity | LinnetError) -> None:
        session = self._session
        if session.state is not State.CONNECTING:
            return
        if isinstance(identity, LinnetError):
            self._refuse(identity)
            return
        session.user, session.device = identity.user, self._command.device
        session.expires_at, session.token_id = identity.expires_at, identity.token
        session.instance = self._command.instance or ""
        session.id = secrets.token_hex(8)
        if self._parts.apart():
            self._parts.spawn(self._ask_start())
        else:
            session.started = self._connects.unique_start(session.user, self._parts.clock.now_ms())
        session.token = None
        self._parts.catchup.begin(session)
        session.user_hub = self._parts.subscriptions.user(session.user, self._user_confirmed)
        self._connects.look_later(self)

    def look(self) -> None:
        """Wait for nothing that cannot be reached, nor for anything if the session has ended."""
        session, subscriptions = self._session, self._parts.subscriptions
        hub = subscriptions.users.get(session.user)
        waits = hub is not None and self._user_confirmed in hub.waiting
        if session.state is State.CONNECTING and waits and hub is not None and not subscriptions.reaches(hub):
            self._refuse(Unavailable("the part of Redis with this user does not answer"))
        if session.state is State.CONNECTING:
            self._hold_unreachable()
            self._connects.look_later(self)
            return
        if hub is not None:
            subscriptions.give_up(hub, self._user_confirmed)
        for conversation in list(self._entering):
            self._give_up(conversation)

    def _refuse(self, error: LinnetError) -> None:
        """Answer with the error and end the connection."""
        metrics.CONNECTS.labels(error.code).inc()
        event = wire.ErrorEvent(
            id=self._command.id, code=error.code, message=error.message, retry_after=error.retry_after
        )
        self._session.answer(event)
        code = errors.CLOSE_OF.get(error.code, errors.CLOSE_INTERNAL)
        retry = error.retry_after or uniform(0.5, 2)
        self._session.close(code, errors.retry_reason(retry) if code < errors.CLOSE_REPLACED else error.code)

    async def _ask_start(self) -> None:
        """Set the session's start by the clock of the user's server: with that it is compared, and gateways may follow
        other servers. It is asked for while the channel is subscribed. A delayed answer makes the start earlier."""
        session = self._session
        try:
            started = await self._start_by_redis()
        except LinnetError as error:
            if session.state is State.CONNECTING:
                self._refuse(error)
            return
        session.started = self._connects.unique_start(session.user, started)
        if session.state is State.CONNECTING and self._subscribed:
            self._register(None)

    async def _start_by_redis(self) -> int:
        """The time at which this connect began, by the clock of the user's server."""
        parts = self._parts
        if parts.apart():
            now_ms = await parts.users.clock_ms(self._session.user)
        else:
            await parts.lease.set_clock()
            now_ms = parts.clock.now_ms()
        return now_ms - round((perf_counter() - self._began) * 1000)

    def _user_confirmed(self, _: bool) -> None:
        session = self._session
        if session.state is not State.CONNECTING:
            return
        # `subscriptions.user` may call this before it returns, so the hub is looked up.
        hub = self._parts.subscriptions.users[session.user]
        session.user_hub = hub
        hub.sessions.append(session)
        self._subscribed = True
        if session.started:
            self._register(None)

    def _register(self, living: tuple[str, ...] | None, devices: tuple[str, ...] = ()) -> None:
        cursors = self._command.cursors or None
        question = replace(
            self._parts.syncs.question(self._session), register=True, cursors=cursors, living=living, devices=devices
        )
        self._parts.users.sync(question, self._registered)

    def _registered(self, answer: Synced | LinnetError) -> None:
        session, parts = self._session, self._parts
        backlog = session.backlog
        if session.state is not State.CONNECTING or backlog is None:
            return
        if isinstance(answer, LinnetError):
            self._refuse(answer)
            return
        if answer.status == "crowded":
            now_ms = parts.clock.now_ms()
            living = [name for name, row in parts.lease.alive().items() if row.alive(now_ms)]
            self._register((*living, parts.node), answer.devices)
            return
        if answer.status in OLDER and not self._clock_asked:
            self._clock_asked = True
            parts.spawn(self._ask_clock(answer.status))
            return
        if answer.status != "ok":
            end(session, answer.status)
            return
        session.since = answer.since
        session.sent_state = answer.state or 0
        backlog.new_device = answer.new_device
        parts.conversation_list.continue_at(session, backlog, answer.below if answer.more else None)
        settled = partial(self._subscribe_groups, answer.rows)
        parts.conversation_list.settle_starts(session, answer.rows, not answer.more, settled)

    async def _ask_clock(self, status: str) -> None:
        """Register again if Redis's clock has stepped before this node noticed: then the session only seems to be older
        than the device's earlier one, or than a kick. Otherwise it ends."""
        session = self._session
        try:
            began_ms = await self._start_by_redis()
        except LinnetError as error:
            if session.state is State.CONNECTING:
                self._refuse(error)
            return
        if session.state is not State.CONNECTING:
            return
        if abs(began_ms - session.started) < STEP_MS:
            end(session, status)
            return
        session.started = began_ms
        self._register(None)

    def _subscribe_groups(self, rows: list[Row], starts: Starts) -> None:
        gone: list[wire.ConversationState] = []
        countdown = self._countdown = Countdown(partial(self._read_mutes, rows, starts, gone))
        countdown.begin()
        self._parts.gone.entries(self._session, rows, partial(_found, gone, countdown))
        apart, hub = self._parts.apart(), self._parts.subscriptions.hub
        for row in rows:
            if row.kind == keys.DIRECT or row.left:
                continue
            if apart and not self._parts.subscriptions.reaches_conversation(row.conversation):
                self._held.add(row.conversation)
            elif not self._parts.conversation_list.lacks_start(self._session, row, starts):
                countdown.begin()
                ready = self._entering[row.conversation] = partial(self._entered, countdown, row.conversation)
                hub(row.conversation, ready)
        self._hold_unreachable()
        countdown.finish()

    def _entered(self, countdown: Countdown, conversation: str, exists: bool) -> None:
        session, hub = self._session, self._parts.subscriptions.hubs.get(conversation)
        self._entering.pop(conversation, None)
        if exists and hub is not None and session.state is State.CONNECTING:
            hub.add_member(session)
            session.hubs.append(hub)
        countdown.finish()

    def _hold_unreachable(self) -> None:
        """Go on without the groups whose part of Redis does not answer."""
        subscriptions = self._parts.subscriptions
        if not self._parts.apart():
            return
        for conversation in list(self._entering):
            hub = subscriptions.hubs.get(conversation)
            if hub is not None and not subscriptions.reaches(hub):
                self._held.add(conversation)
                self._give_up(conversation)

    def _give_up(self, conversation: str) -> None:
        hub, ready = self._parts.subscriptions.hubs.get(conversation), self._entering.pop(conversation)
        if hub is not None:
            self._parts.subscriptions.give_up(hub, ready)
        if self._countdown is not None:
            self._countdown.finish()

    def _read_mutes(self, rows: list[Row], starts: Starts, gone: list[wire.ConversationState]) -> None:
        self._parts.conversation_list.read_mutes(self._session, partial(self._welcome, rows, starts, gone))

    def _welcome(self, rows: list[Row], starts: Starts, gone: list[wire.ConversationState]) -> None:
        session, parts = self._session, self._parts
        backlog = session.backlog
        if session.state is not State.CONNECTING or backlog is None:
            return
        states = [*gone, *parts.conversation_list.note(session, rows, starts, self._held)]
        backlog.cursors = self._command.cursors
        parts.conversation_list.note_unlisted(session.user, backlog, gone)
        session.state = State.READY
        self._connects.ended(self)
        parts.deadlines.ready(session)
        settings, more = parts.settings, backlog.list_older is not None
        session.answer(
            wire.Welcome(
                id=self._command.id,
                user=session.user,
                device=session.device,
                session=session.id,
                gateway=parts.node,
                heartbeat_s=settings.heartbeat_s,
                expires_at=session.expires_at,
                limits=wire.Limits(
                    wire.MAX_FRAME_BYTES, packing.MAX_BODY_BYTES, settings.sends_per_s, settings.send_burst
                ),
                state=session.sent_state,
                conversations=states[: wire.WELCOME_LIMIT],
                more=len(states) > wire.WELCOME_LIMIT or more,
            )
        )
        if len(states) > wire.WELCOME_LIMIT:
            session.answer(wire.ConversationsEvent(conversations=states[wire.WELCOME_LIMIT :], more=more))
        metrics.CONNECTS.labels("ok").inc()
        metrics.CONNECT_SECONDS.observe(perf_counter() - self._began)
        parts.audits.first(session)
        session.connection.resume_reading()
        early, session.early = session.early, None
        for data, text in early or ():
            session.message_received(data, text)
        parts.catchup.pump(session)


def _found(gone: list[wire.ConversationState], countdown: Countdown, entries: list[wire.ConversationState]) -> None:
    gone += entries
    countdown.finish()
