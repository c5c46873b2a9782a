"""Groups and channels that a session's user enters or leaves while the session is open."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final

from gateway.delivery.catchup import Catchup
from gateway.delivery.feed import State
from gateway.delivery.hub import Hub
from gateway.delivery.session import Session
from gateway.delivery.subscriptions import Subscriptions
from gateway.reconcile.conversation_list import ConversationList, state_of
from router.contract import wire
from router.contract.errors import LinnetError
from router.store.conversations import Conversations
from router.store.rows import Row

USERS_PER_CALL: Final = 200


class Membership:
    def __init__(
        self,
        hubs: Mapping[str, Hub],
        subscriptions: Subscriptions,
        catchup: Catchup,
        conversations: Conversations,
        conversation_list: ConversationList,
    ) -> None:
        self._hubs = hubs
        self._subscriptions = subscriptions
        self._catchup = catchup
        self._conversations = conversations
        self._list = conversation_list

    def apply(self, session: Session, row: Row) -> None:
        """Enter or leave the group or channel of a row that changed; nothing if only its read mark changed."""
        if session.waits_for(row.conversation):
            return  # its row is read again once its part of Redis answers
        hub = self._hubs.get(row.conversation)
        inside = hub is not None and session in hub.members
        if row.left and inside and hub is not None:
            self._subscriptions.leave(session, hub)
        elif row.left and session.entering is not None:
            session.entering.discard(row.conversation)
        elif not row.left and not inside:
            self.enter(session, row)

    def check(self, hub: Hub) -> None:
        """Ask for the roles of the users here: the membership changed by an event that this hub did not receive."""
        users = sorted({session.user for session in hub.members})
        for start in range(0, len(users), USERS_PER_CALL):
            some = users[start : start + USERS_PER_CALL]
            self._conversations.roles(hub.conversation, some, partial(self._checked, hub, some))

    def _checked(self, hub: Hub, users: list[str], roles: list[str] | LinnetError) -> None:
        if isinstance(roles, LinnetError):
            hub.version = -1  # the next round asks again
            return
        for user, role in zip(users, roles, strict=True):
            if not role:
                self._subscriptions.member_left(hub, user)

    # -- entering

    def enter(self, session: Session, row: Row, new: bool | None = None) -> None:
        """Subscribe the session to a group or channel that its user has entered. `new`: the server had never seen the
        device; None: as the backlog says. If the user leaves it meanwhile (`apply`), the session does not enter."""
        session.entering = session.entering if session.entering is not None else set()
        session.entering.add(row.conversation)
        self._list.settle_starts(session, [row], False, partial(self._subscribe, session, row, new), new)

    def _subscribe(self, session: Session, row: Row, new: bool | None, starts: dict[str, int]) -> None:
        if self._list.lacks_start(session, row, starts, new):
            self._list.hold(session, row.conversation, new)
            return
        entered = partial(self._entered, session, row, starts)

        def subscribe() -> None:
            self._subscriptions.hub(row.conversation, entered)

        self._list.read_mutes_in(session, [row.conversation], subscribe)

    def _entered(self, session: Session, row: Row, starts: dict[str, int], exists: bool) -> None:
        hub = self._hubs.get(row.conversation)
        if session.entering is None or row.conversation not in session.entering:
            return
        session.entering.discard(row.conversation)
        if not exists or hub is None or session in hub.members or session.state is not State.READY:
            return
        backlog = self._catchup.fall_behind(session)
        session.forget_gone(row.conversation)
        hub.add_member(session)
        session.hubs.append(hub)
        # A user who was a member before on this connection may have received more events than the acked cursor says.
        received = max(session.direct.pop(row.conversation, 0), backlog.positions.get(row.conversation, 0))
        cursor = max(received, row.cursor if row.cursor is not None else starts.get(row.conversation, 0))
        backlog.positions[row.conversation] = cursor
        backlog.todo.pop(row.conversation, None)
        state = state_of(session, row, cursor, hub.seq, hub.count, hub)
        session.answer(wire.ConversationsEvent(conversations=[state], more=False))
        self._catchup.pump(session)
