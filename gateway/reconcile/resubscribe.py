"""After a lost subscription: hubs and sessions are compared with Redis, because they may have missed events.

Hubs are compared with their heads; for the sessions of user channels `sync` is called. If a comparison gets no answer,
it is repeated until it does, except a comparison of an audit, because the next round audits anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Final

from gateway.delivery.hub import Hub
from gateway.delivery.repair import Repair
from gateway.delivery.session import Session
from gateway.delivery.subscriptions import Subscriptions
from gateway.delivery.user_hub import UserHub
from gateway.reconcile.membership import Membership
from gateway.reconcile.sync import Syncs
from router.contract import metrics
from router.contract.errors import LinnetError
from router.process.isolate import attempt, each
from router.store.conversations import Conversations
from router.store.heads import Head

RETRY_S: Final = 1.0
PER_TURN: Final = 200  # hubs or sessions that one turn of the loop asks for


class Resubscribe:
    """Comparisons after lost subscriptions. `node.py` connects the attribute once."""

    presence_lost: Callable[[], None]  # read presence again: changes may have been missed

    def __init__(
        self,
        subscriptions: Subscriptions,
        conversations: Conversations,
        repair: Repair,
        membership: Membership,
        syncs: Syncs,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._subscriptions = subscriptions
        self._conversations = conversations
        self._repair = repair
        self._membership = membership
        self._syncs = syncs
        self._soon: Callable[..., Any] = loop.call_soon
        self._later: Callable[..., Any] = loop.call_later

    def lost(self) -> None:
        """Count the loss of the bus. Sessions stay, and `restored` finds the events that they miss."""
        metrics.REPAIRS.labels("bus_lost").inc()

    def restored(self) -> None:
        """Compare everything: all channels are subscribed again."""
        users = list(self._subscriptions.users.values())
        for user_hub in users:
            self._subscriptions.confirm_user(user_hub, True)
            for session in user_hub.sessions:
                session.signal_settings = None
        self._compare_all(iter(list(self._subscriptions.hubs)))
        self._ask_all(iter([session for hub in users for session in hub.sessions]))
        self.presence_lost()

    def channels_restored(self, channels: list[bytes]) -> None:
        """Compare what these channels feed: they were lost and are subscribed again."""
        at = [self._subscriptions.at(channel) for channel in channels]
        users = [hub for hub in at if isinstance(hub, UserHub)]
        for user_hub in users:
            for session in user_hub.sessions:
                session.signal_settings = None
        self._compare_all(iter([hub.conversation for hub in at if isinstance(hub, Hub)]))
        self._ask_all(iter([session for hub in users for session in hub.sessions]))
        if None in at:  # a channel of a watched user
            self.presence_lost()

    def _compare_all(self, conversations: Iterator[str]) -> None:
        some = list(islice(conversations, PER_TURN))
        if some:
            attempt("resubscribe", lambda: self.compare(some, "resubscribe"))
            self._soon(self._compare_all, conversations)

    def _ask_all(self, sessions: Iterator[Session]) -> None:
        some = list(islice(sessions, PER_TURN))
        each("resubscribe", partial(self._syncs.ask, cause="resubscribe"), some)
        if some:
            self._soon(self._ask_all, sessions)

    def compare(self, conversations: list[str], cause: str) -> None:
        """Read the heads of these hubs; a hub that is behind its log is repaired."""
        self._conversations.heads(conversations, partial(self._compared, conversations, cause))

    def _compared(
        self, conversations: list[str], cause: str, heads: list[Head | LinnetError | None] | LinnetError
    ) -> None:
        """Compare the hubs whose heads were read; the others again later."""
        answers = [heads] * len(conversations) if isinstance(heads, LinnetError) else heads
        pairs = list(zip(conversations, answers, strict=True))
        unknown = [conversation for conversation, head in pairs if isinstance(head, LinnetError)]
        if unknown and cause != "audit":
            self._later(RETRY_S, self.compare, unknown, cause)
        known = [(conversation, head) for conversation, head in pairs if not isinstance(head, LinnetError)]
        each("compare", partial(self.compare_one, cause), known)

    def compare_one(self, cause: str, found: tuple[str, Head | None]) -> None:
        """Compare a hub with the head that was read; None: the conversation does not exist."""
        conversation, head = found
        hub = self._subscriptions.hubs.get(conversation)
        if hub is not None and not hub.confirmed:
            self._subscriptions.start_hub(hub, [head])
            return
        if hub is None or head is None:
            return
        hub.title, hub.posting, hub.mutes_until = head.title, head.rules.posting, head.mutes_until
        if head.seq == hub.seq:
            hub.size, hub.deleted = head.size, head.deleted
        if head.seq > hub.seq:
            hub.seen = max(hub.seen, head.seq)
            self._repair.start(hub, cause)
        if head.version != hub.version:
            hub.version = head.version
            self._membership.check(hub)
