"""The conversations of a session's user: the position at which a device begins in each, and the lists for the client.

If the server has never seen a device, Redis computes and stores the position at which it begins in each conversation
(`settle_starts`) before the device is fed. In a channel every device without a cursor begins in this way, because a
channel's history is public and long. In a group a known device without a cursor begins at the user's beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from gateway.delivery.backlog import Backlog
from gateway.delivery.catchup import Catchup
from gateway.delivery.feed import State
from gateway.delivery.hub import Hub
from gateway.delivery.session import MAX_DIRECT, Session
from gateway.reconcile.gone import Gone
from router.contract import keys, wire
from router.contract.addressing import visible
from router.contract.errors import LinnetError, NotFound
from router.contract.packing import MAX_INTEGER
from router.store.conversations import ROLE_NAMES, Conversations
from router.store.openings import Opening, Wanted
from router.store.rows import Page, Row
from router.store.users import Users

RETRY_S: Final = 1.0

Starts = dict[str, int]


class Countdown:
    """Calls `done` once every `begin`, and the one of its construction, has had its `finish`."""

    __slots__ = ("_done", "_left")

    def __init__(self, done: Callable[[], None]) -> None:
        self._left = 1
        self._done = done

    def begin(self) -> None:
        self._left += 1

    def finish(self) -> None:
        self._left -= 1
        if self._left == 0:
            done, self._done = self._done, _nothing  # it may refer to the owner of this countdown
            done()


def _nothing() -> None:
    """Called by no countdown: each has had its last `finish` by then."""


class ConversationList:
    """`node.py` connects the attributes once."""

    apart: Callable[[], bool]  # whether parts of Redis can fail one by one
    hold: Callable[[Session, str, bool | None], None]  # wait for a conversation; whether the device is new
    now_ms: Callable[[], int]  # by Redis's clock

    def __init__(
        self,
        hubs: Mapping[str, Hub],
        users: Users,
        conversations: Conversations,
        catchup: Catchup,
        gone: Gone,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._hubs = hubs
        self._users = users
        self._conversations = conversations
        self._catchup = catchup
        self._gone = gone
        self._later: Callable[..., Any] = loop.call_later

    # -- the positions at which a device begins

    def settle_starts(
        self, session: Session, rows: list[Row], last: bool, done: Callable[[Starts], None], new: bool | None = None
    ) -> None:
        """Determine and store the position at which the device begins in each row without a cursor.

        `new`: the server had never seen the device; None: as the backlog says. `last`: no further rows of a new device
        follow. After that Redis has a row of the device. The beginning of a group is stored too, so that a user who is
        removed before any event came still receives the events before the removal.
        """
        starts: Starts = {}
        wanted: list[Wanted] = []
        new = is_new(session) if new is None else new
        for row in rows:
            if row.left:
                continue
            if row.cursor is None and (new or row.kind == keys.CHANNEL):
                wanted.append(Wanted(row.conversation, row.read))
            elif row.kind != keys.DIRECT:
                if row.role is None:
                    wanted.append(Wanted(row.conversation, None))
                if row.cursor is None:
                    starts[row.conversation] = 0
        if wanted:
            opened = partial(self._opened, session, wanted, starts, last, done)
            self._conversations.openings(session.user, wanted, opened)
        else:
            self._settled(session, starts, last, done)

    def _opened(
        self,
        session: Session,
        wanted: list[Wanted],
        starts: Starts,
        last: bool,
        done: Callable[[Starts], None],
        openings: list[Opening | None] | LinnetError,
    ) -> None:
        """Note the starts, and the roles, which the entries of the client's lists contain. While one is missing, the
        device is not known to Redis, so its next connect asks again."""
        if isinstance(openings, LinnetError):
            self._settled(session, starts, False, done)
            return
        roles = session.roles = session.roles or {}
        for want, opening in zip(wanted, openings, strict=True):
            if opening is None:
                last = False
                continue
            if opening.start is not None:
                starts[want.conversation] = opening.start
            if opening.role and want.conversation[0] != keys.DIRECT:
                roles[want.conversation] = ROLE_NAMES.get(opening.role, "member")
        self._settled(session, starts, last, done)

    def _settled(self, session: Session, starts: Starts, last: bool, done: Callable[[Starts], None]) -> None:
        new = is_new(session)
        if starts or (new and last):
            self._users.set_starts(session.user, session.device, session.id, starts, last and new, _ignore)
        done(starts)

    def lacks_start(self, session: Session, row: Row, starts: Starts, new: bool | None = None) -> bool:
        """Whether it is not known where the device begins, because the conversation's part of Redis does not answer."""
        if row.cursor is not None or row.left or row.conversation in starts or not self.apart():
            return False
        return row.kind == keys.CHANNEL or (is_new(session) if new is None else new)

    # -- mutes

    def read_mutes(self, session: Session, done: Callable[[], None]) -> None:
        """Note the user's mutes in those of the session's hubs in which some user may be muted."""
        now_ms = self.now_ms()
        asked = [hub.conversation for hub in session.hubs if hub.mutes_until > now_ms]
        if asked:
            self.read_mutes_in(session, asked, done)
        else:
            done()

    def read_mutes_in(self, session: Session, conversations: Sequence[str], done: Callable[[], None]) -> None:
        """Note the user's mutes in these conversations, until the entries with them are sent to the client."""
        noted = partial(self._noted_mutes, session, done)
        self._conversations.members.mutes(session.user, conversations, noted)

    def _noted_mutes(self, session: Session, done: Callable[[], None], ends: dict[str, int] | LinnetError) -> None:
        if ends and not isinstance(ends, LinnetError):
            now_ms = self.now_ms()
            session.mutes = (session.mutes or {}) | {conv: end for conv, end in ends.items() if not 0 < end <= now_ms}
        done()

    # -- the lists

    def note(
        self, session: Session, rows: list[Row], starts: Starts, held: Collection[str] = ()
    ) -> list[wire.ConversationState]:
        """Note the session's position in each conversation, and the events that it lacks; return the states, newest
        first. `held`: conversations whose part of Redis does not answer."""
        backlog = self._catchup.fall_behind(session)
        listed: list[_Listed] = []
        for row in rows:
            conversation = row.conversation
            if conversation in held or self.lacks_start(session, row, starts):
                self.hold(session, conversation, None)
                listed.append((row.score, False, 0, held_state(session, row)))
                continue
            hub = self._hubs.get(conversation)
            if row.left or (row.kind != keys.DIRECT and (hub is None or session not in hub.members)):
                if row.left and row.cursor is not None:  # else the device never had the conversation
                    backlog.positions.setdefault(conversation, row.cursor)
                    backlog.todo[conversation] = MAX_INTEGER
                continue
            cursor = row.cursor if row.cursor is not None else starts.get(conversation, 0)
            backlog.positions.setdefault(conversation, cursor)
            head, count, at = (row.head, row.count, row.score) if hub is None else (hub.seq, hub.count, hub.at * 1000)
            if cursor > head and backlog.positions[conversation] == cursor:
                backlog.claims[conversation] = head
            listed.append((at, head > cursor, head, state_of(session, row, cursor, head, count, hub)))
        listed.sort(key=_newest_first)
        for _, lacks, head, state in listed:
            if lacks:
                backlog.todo.setdefault(state.conversation, head if state.conversation[0] == keys.DIRECT else None)
        return [state for _, _, _, state in listed]

    def note_unlisted(self, user: str, backlog: Backlog, gone: list[wire.ConversationState]) -> None:
        """Once everything is listed, note the cursors of direct conversations that the user does not have and is not
        notified to have lost: a failover rolled them back. Bound: the newest MAX_DIRECT that could be the user's."""
        if backlog.cursors and gone:
            lost = {state.conversation for state in gone}
            backlog.cursors = {conv: cursor for conv, cursor in backlog.cursors.items() if conv not in lost}
        if backlog.list_older is not None:
            return
        cursors, backlog.cursors = backlog.cursors, {}
        for conversation, cursor in cursors.items():
            if conversation[0] != keys.DIRECT or conversation in backlog.positions or len(backlog.claims) >= MAX_DIRECT:
                continue
            with suppress(NotFound):
                backlog.positions[visible(user, conversation)] = cursor
                backlog.claims[conversation] = None

    def list_older(self, session: Session, below: int) -> None:
        """Send the next list of older conversations; `Backlog.list_older` if there is more than one list."""
        self._users.page(session.user, session.device, below, self._catchup.applying(session, self._page, below))

    def _page(self, session: Session, below: int, page: Page | LinnetError) -> None:
        backlog = session.backlog
        if backlog is None or session.state is not State.READY:
            return
        if isinstance(page, LinnetError):
            self._later(RETRY_S, self.list_older, session, below)
            return
        self.continue_at(session, backlog, page.below if page.more else None)
        self.settle_starts(session, page.rows, not page.more, self._catchup.applying(session, self._find_gone, page))

    def continue_at(self, session: Session, backlog: Backlog, below: int | None) -> None:
        """Continue the list below this score; None: the list is complete."""
        backlog.list_older = None if below is None else partial(self.list_older, session, below)

    def _find_gone(self, session: Session, page: Page, starts: Starts) -> None:
        self._gone.entries(session, page.rows, self._catchup.applying(session, self._send, page, starts))

    def _send(self, session: Session, page: Page, starts: Starts, gone: list[wire.ConversationState]) -> None:
        if session.backlog is not None and session.state is State.READY:
            states = [*gone, *self.note(session, page.rows, starts)]
            self.note_unlisted(session.user, session.backlog, gone)
            session.answer(wire.ConversationsEvent(conversations=states, more=page.more))
            self._catchup.answered(session)


def state_of(session: Session, row: Row, cursor: int, head: int, count: int, hub: Hub | None) -> wire.ConversationState:
    """Return the state of one conversation for a user's device; a direct conversation has no hub."""
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
        role=_role(session, row),
        posting=None if hub is None else hub.posting,
        muted_until=UNSET if session.mutes is None else _mute(session.mutes, row.conversation),
    )


def held_state(session: Session, row: Row) -> wire.ConversationState:
    """Return the state of a conversation whose part of Redis does not answer, as far as the user's row knows it."""
    state = state_of(session, row, row.cursor or 0, row.head, row.count, None)
    state = replace(state, cursor=UNSET if row.cursor is None else row.cursor, held=True)
    return state if row.kind == keys.DIRECT else replace(state, head=UNSET, unread=UNSET)


def is_new(session: Session) -> bool:
    """Whether the session connects, or catches up, as a device that the server had never seen."""
    return session.backlog is not None and session.backlog.new_device


def _role(session: Session, row: Row) -> str | None:
    """The user's role: the one that was asked for, if any, else that of the row."""
    asked = session.roles.pop(row.conversation, None) if session.roles else None
    return asked or (None if row.role is None else ROLE_NAMES.get(row.role, "member"))


def _mute(mutes: dict[str, int], conversation: str) -> int | UnsetType | None:
    """The end of the user's mute, None if it has none; UNSET without a mute. An entry is sent once."""
    end = mutes.pop(conversation, UNSET)
    return end if end is UNSET else end or None


_Listed = tuple[int, bool, int, wire.ConversationState]  # when it moved, whether the device lacks events, its head


def _newest_first(item: _Listed) -> int:
    return -item[0]


def _ignore(_: object) -> None:
    """A start that was not stored is found again by the next connect of the device."""
