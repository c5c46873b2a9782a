"""From `hello` to `welcome`, and the conversations that a session comes into later.

The order is what makes it lossless: subscribe the user's channel and wait for the confirmation → `sync` registers the
session and says what there is → subscribe the groups and wait → read the heads of hubs that are new to this node →
`welcome` → feed from the log, newest first. What comes live meanwhile is noted in `behind`, so the feed reaches it.
Where a device begins that the server has never seen is settled (`start`, `set_starts`) before it is fed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import uniform
from time import perf_counter
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from gateway.commands.sending import visible
from gateway.delivery.catchup import Behind
from gateway.delivery.hub import Hub
from gateway.delivery.session import MAX_DIRECT, Session, State
from router.contract import errors, keys, metrics, packing, wire
from router.contract.errors import LinnetError, NotFound, Unauthorized
from router.contract.packing import MAX_INTEGER
from router.contract.tokens import Identity, UnknownKey
from router.store.conversations import ROLE_NAMES
from router.store.users import Page, Row, Synced

if TYPE_CHECKING:
    from gateway.node import Node

OTHER_CLOCK_MS: Final = 10_000  # as SKEW_MS in store/functions/prelude.lua: a time beyond is of another clock


class Countdown:
    """Calls `done` when everything that was begun is finished."""

    __slots__ = ("_done", "_left")

    def __init__(self, done: Callable[[], None]) -> None:
        self._left = 1
        self._done = done

    def begin(self) -> None:
        self._left += 1

    def finish(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._done()


class Connect:
    """One connect under way."""

    __slots__ = ("began", "command")

    def __init__(self, command: wire.Hello) -> None:
        self.command = command
        self.began = perf_counter()


class Connects:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._started = 0

    # -- hello

    def hello(self, session: Session, command: wire.Hello) -> None:
        """Checks the token at once; only a key that is not here yet makes it wait."""
        token = command.token or session.token
        if token is None:
            raise Unauthorized("hello needs a token")
        session.state = State.CONNECTING
        session.connection.pause_reading()
        try:
            identity = self._node.verifier.check(token, self._node.now_ms())
        except UnknownKey:
            self._node.spawn(self._ask(session, command, token))
        except LinnetError as error:
            self.refuse(session, command, error)
        else:
            self._known(session, command, identity)

    async def _ask(self, session: Session, command: wire.Hello, token: str) -> None:
        try:
            identity = await self._node.verifier.identity(token, self._node.now_ms())
        except LinnetError as error:
            self.refuse(session, command, error)
        else:
            self._known(session, command, identity)

    def refuse(self, session: Session, command: wire.Hello, error: LinnetError) -> None:
        """An error, and the end of the connection."""
        metrics.CONNECTS.labels(error.code).inc()
        event = wire.ErrorEvent(id=command.id, code=error.code, message=error.message, retry_after=error.retry_after)
        session.answer(event)
        code = errors.CLOSE_OF.get(error.code, errors.CLOSE_INTERNAL)
        retry = error.retry_after or uniform(0.5, 2)
        session.close(code, errors.retry_reason(retry) if code < errors.CLOSE_REPLACED else error.code)

    def _known(self, session: Session, command: wire.Hello, identity: Identity) -> None:
        if session.state is not State.CONNECTING:
            return
        session.user, session.device = identity.user, command.device
        session.expires_at = identity.expires_at
        session.instance = command.instance or ""
        session.id = secrets.token_hex(8)
        session.started = self._next_start()
        session.token = None
        session.behind = Behind()
        metrics.SESSIONS_BEHIND.inc()
        ready = partial(self._subscribed, session, Connect(command))
        session.user_hub = self._node.subscriptions.user(session.user, ready)

    def _next_start(self) -> int:
        """Return when a session starts, by Redis's clock, and never the same time twice. After the clock was put back,
        the order begins anew: else every later session would start in the future, and lose against an older one."""
        now_ms = self._node.lease.now_ms()
        last = self._started if self._started <= now_ms + OTHER_CLOCK_MS else 0
        self._started = max(now_ms, last + 1)
        return self._started

    def _subscribed(self, session: Session, connect: Connect, _: bool) -> None:
        if session.state is not State.CONNECTING:
            return
        # `ready` may come while `user()` is still running, so the hub is looked up.
        session.user_hub = self._node.subscriptions.users[session.user]
        session.user_hub.sessions.append(session)
        self._register(session, connect, None)

    def _register(self, session: Session, connect: Connect, living: tuple[str, ...] | None) -> None:
        question = replace(
            self._node.audits.question(session),
            register=True,
            cursors=connect.command.cursors or None,
            living=living,
        )
        self._node.users.sync(question, partial(self._synced, session, connect))

    def _synced(self, session: Session, connect: Connect, answer: Synced | LinnetError) -> None:
        if session.state is not State.CONNECTING or session.behind is None:
            return
        if isinstance(answer, LinnetError):
            self.refuse(session, connect.command, answer)
            return
        if answer.status == "crowded":
            lease = self._node.lease
            now_ms = lease.now_ms()
            living = [name for name, row in lease.alive().items() if row.alive(now_ms)]
            self._register(session, connect, (*living, self._node.name))
            return
        if answer.status != "ok":
            self._node.audits.end(session, answer.status, "")
            return
        session.since = answer.since
        session.behind.new_device = answer.new_device
        session.behind.more_below = answer.below if answer.more else None
        self._begin(session, answer.rows, not answer.more, partial(self._begun, session, connect, answer.rows))

    def _begun(self, session: Session, connect: Connect, rows: list[Row], starts: dict[str, int]) -> None:
        gone: list[wire.ConversationState] = []
        countdown = Countdown(partial(self._welcome, session, connect, rows, starts, gone))
        countdown.begin()
        self._node.gone.entries(session, rows, partial(_found, gone, countdown))
        for row in rows:
            if row.kind != keys.DIRECT and not row.left:
                countdown.begin()
                self._node.subscriptions.hub(row.conversation, partial(self._entered, session, countdown, row))
        countdown.finish()

    def _entered(self, session: Session, countdown: Countdown, row: Row, exists: bool) -> None:
        hub = self._node.subscriptions.hubs.get(row.conversation)
        if exists and hub is not None and session.state is State.CONNECTING:
            hub.add(session)
            session.hubs.append(hub)
        countdown.finish()

    def _welcome(
        self,
        session: Session,
        connect: Connect,
        rows: list[Row],
        starts: dict[str, int],
        gone: list[wire.ConversationState],
    ) -> None:
        node, behind = self._node, session.behind
        if session.state is not State.CONNECTING or behind is None:
            return
        states = [*gone, *self._list(session, rows, starts)]
        behind.cursors = connect.command.cursors
        self._unlisted(session, behind, gone)
        session.state = State.READY
        node.clock.ready(session)
        settings = node.settings
        session.answer(
            wire.Welcome(
                id=connect.command.id,
                user=session.user,
                device=session.device,
                session=session.id,
                gateway=node.name,
                heartbeat_s=settings.heartbeat_s,
                expires_at=session.expires_at,
                limits=wire.Limits(
                    wire.MAX_FRAME_BYTES, packing.MAX_BODY_BYTES, settings.sends_per_s, settings.send_burst
                ),
                conversations=states[: wire.WELCOME_LIMIT],
                more=len(states) > wire.WELCOME_LIMIT or behind.more_below is not None,
            )
        )
        if len(states) > wire.WELCOME_LIMIT:
            rest = states[wire.WELCOME_LIMIT :]
            session.answer(wire.ConversationsEvent(conversations=rest, more=behind.more_below is not None))
        metrics.CONNECTS.labels("ok").inc()
        metrics.CONNECT_SECONDS.observe(perf_counter() - connect.began)
        node.audits.first(session)
        session.connection.resume_reading()
        early, session.early = session.early, None
        for data, text in early or ():
            session.message_received(data, text)
        node.catchup.pump(session)

    # -- where a device begins

    def _begin(self, session: Session, rows: list[Row], last: bool, done: Callable[[dict[str, int]], None]) -> None:
        """Settles where the device begins where it has no cursor: in all if it is new to the server, in channels anyway
        (their history is public, and long). In a group it begins at its user's beginning, which is noted, so that who
        is put out before anything came is still given what was hers. `last`: with these rows the device is known."""
        starts: dict[str, int] = {}
        countdown = Countdown(partial(self._settled, session, starts, last, done))
        new = session.behind is not None and session.behind.new_device
        for row in rows:
            if row.kind != keys.DIRECT and not row.left:
                countdown.begin()
                reply_role = partial(_role, session, row.conversation, countdown)
                self._node.conversations.roles(row.conversation, [session.user], reply_role)
            if row.cursor is not None or row.left:
                continue
            if new or row.kind == keys.CHANNEL:
                countdown.begin()
                reply = partial(_start, starts, row.conversation, countdown)
                self._node.conversations.start(row.conversation, session.user, row.read, reply)
            elif row.kind == keys.GROUP:
                starts[row.conversation] = 0
        countdown.finish()

    def _settled(
        self, session: Session, starts: dict[str, int], last: bool, done: Callable[[dict[str, int]], None]
    ) -> None:
        new = session.behind is not None and session.behind.new_device
        if starts or (new and last):
            known = last and new
            self._node.users.set_starts(session.user, session.device, session.id, starts, known, _ignore)
        done(starts)

    # -- lists of conversations

    def _list(self, session: Session, rows: list[Row], starts: dict[str, int]) -> list[wire.ConversationState]:
        """Notes where the session stands in each and what it lacks; the states, newest first."""
        hubs, behind = self._node.subscriptions.hubs, self._node.catchup.start(session)
        listed: list[_Listed] = []
        for row in rows:
            conversation = row.conversation
            hub = hubs.get(conversation)
            if row.left or (row.kind != keys.DIRECT and (hub is None or session not in hub.members)):
                if row.left and row.cursor is not None:  # a device that never had it has nothing to be told
                    behind.positions.setdefault(conversation, row.cursor)
                    behind.todo[conversation] = MAX_INTEGER
                continue
            cursor = row.cursor if row.cursor is not None else starts.get(conversation, 0)
            behind.positions.setdefault(conversation, cursor)
            if hub is None and cursor > row.head and behind.positions[conversation] == cursor:
                behind.claims[conversation] = row.head
            head, count, at = (row.head, row.count, row.score) if hub is None else (hub.seq, hub.count, hub.at * 1000)
            listed.append((at, head > cursor, head, state_of(session, row, cursor, head, count, hub)))
        listed.sort(key=_newest_first)
        for _, lacks, head, state in listed:
            if lacks:
                behind.todo.setdefault(state.conversation, head if state.conversation[0] == keys.DIRECT else None)
        return [state for _, _, _, state in listed]

    def _unlisted(self, session: Session, behind: Behind, gone: list[wire.ConversationState]) -> None:
        """Once all is listed: cursors of direct conversations that the user does not have and did not lose otherwise,
        because a failover took them back. Bound: the newest MAX_DIRECT that could be the user's."""
        if behind.cursors and gone:
            lost = {state.conversation for state in gone}
            behind.cursors = {conv: cursor for conv, cursor in behind.cursors.items() if conv not in lost}
        if behind.more_below is not None:
            return
        cursors, behind.cursors = behind.cursors, {}
        for conversation, cursor in cursors.items():
            if conversation[0] != keys.DIRECT or conversation in behind.positions or len(behind.claims) >= MAX_DIRECT:
                continue
            with suppress(NotFound):
                behind.positions[visible(session, conversation)] = cursor
                behind.claims[conversation] = None

    def further(self, session: Session, below: int) -> None:
        """The next page of older conversations."""
        self._node.users.page(session.user, session.device, below, partial(self._page, session, below))

    def _page(self, session: Session, below: int, page: Page | LinnetError) -> None:
        behind = session.behind
        if behind is None or session.state is not State.READY:
            return
        if isinstance(page, LinnetError):
            self._node.later(1.0, self.further, session, below)
            return
        behind.more_below = page.below if page.more else None
        ready = partial(self._further_gone, session, page)
        self._begin(session, page.rows, not page.more, ready)

    def _further_gone(self, session: Session, page: Page, starts: dict[str, int]) -> None:
        self._node.gone.entries(session, page.rows, partial(self._further, session, page, starts))

    def _further(
        self, session: Session, page: Page, starts: dict[str, int], gone: list[wire.ConversationState]
    ) -> None:
        if session.behind is not None and session.state is State.READY:
            states = [*gone, *self._list(session, page.rows, starts)]
            self._unlisted(session, session.behind, gone)
            session.answer(wire.ConversationsEvent(conversations=states, more=page.more))
            self._node.catchup.listed(session)

    # -- coming into a group or channel later

    def join(self, session: Session, row: Row) -> None:
        self._begin(session, [row], False, partial(self._enter, session, row))

    def _enter(self, session: Session, row: Row, starts: dict[str, int]) -> None:
        self._node.subscriptions.hub(row.conversation, partial(self._joined, session, row, starts))

    def _joined(self, session: Session, row: Row, starts: dict[str, int], exists: bool) -> None:
        hub = self._node.subscriptions.hubs.get(row.conversation)
        if not exists or hub is None or session in hub.members or session.state is not State.READY:
            return
        behind = self._node.catchup.start(session)
        session.untold(row.conversation)
        hub.add(session)
        session.hubs.append(hub)
        # Who was here before on this connection was given more than the cursor says, which is acked a while later.
        stood = max(session.direct.pop(row.conversation, 0), behind.positions.get(row.conversation, 0))
        cursor = max(stood, row.cursor if row.cursor is not None else starts.get(row.conversation, 0))
        behind.positions[row.conversation] = cursor
        behind.todo.pop(row.conversation, None)
        state = state_of(session, row, cursor, hub.seq, hub.count, hub)
        session.answer(wire.ConversationsEvent(conversations=[state], more=False))
        self._node.catchup.pump(session)


def state_of(session: Session, row: Row, cursor: int, head: int, count: int, hub: Hub | None) -> wire.ConversationState:
    """One conversation as its user's device finds it; a direct one has no hub."""
    direct = row.kind == keys.DIRECT
    title, deleted = (row.title, ()) if hub is None else (hub.title, hub.deleted)
    return wire.ConversationState(
        conversation=row.conversation,
        kind=keys.KIND_NAMES[row.kind],
        title="" if direct else title,
        head=head,
        cursor=cursor,
        read=row.read,
        unread=row.unread(count, deleted),
        with_=keys.other_party(row.conversation, session.user) if direct else None,
        role="member" if direct else (session.roles or {}).pop(row.conversation, None),
    )


_Listed = tuple[int, bool, int, wire.ConversationState]  # when it moved, whether the device lacks events, its head


def _role(session: Session, conversation: str, countdown: Countdown, roles: list[str] | LinnetError) -> None:
    if not isinstance(roles, LinnetError) and roles[0]:
        session.roles = session.roles or {}
        session.roles[conversation] = ROLE_NAMES.get(roles[0], "member")
    countdown.finish()


def _newest_first(item: _Listed) -> int:
    return -item[0]


def _found(gone: list[wire.ConversationState], countdown: Countdown, entries: list[wire.ConversationState]) -> None:
    gone += entries
    countdown.finish()


def _start(starts: dict[str, int], conversation: str, countdown: Countdown, seq: int | LinnetError) -> None:
    if not isinstance(seq, LinnetError):
        starts[conversation] = seq
    countdown.finish()


def _ignore(_: object) -> None:
    """A start that was not stored is found again by the next connect of the device."""
