"""Repairs of hubs: the events that a hub misses are read from the log, in pages, from its position to the log's end.

A live event that arrives meanwhile only raises `hub.seen`, the seq to read up to. A hub has at most one repair under
way. If a page cannot be read or accepted, it is read again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from gateway.delivery.hub import Hub
from router.contract import metrics, stamp
from router.contract.errors import LinnetError
from router.contract.packing import MAX_INTEGER
from router.process.isolate import attempt
from router.store.conversations import Conversations, Page

REPAIR_EVENTS: Final = 256
RETRY_S: Final = 1.0


class Repair:
    def __init__(self, conversations: Conversations, hubs: Mapping[str, Hub], later: Callable[..., Any]) -> None:
        self._conversations = conversations
        self._hubs = hubs
        self._later = later

    def start(self, hub: Hub, cause: str) -> None:
        """Read the log from the hub's position to its end."""
        if not hub.repairing:
            hub.repairing = True
            metrics.REPAIRS.labels(cause).inc()
            self._read(hub)

    def _read(self, hub: Hub) -> None:
        if self._hubs.get(hub.conversation) is hub:
            reply = partial(self._apply, hub)
            self._conversations.range(hub.conversation, None, hub.seq, MAX_INTEGER, REPAIR_EVENTS, reply)

    def _apply(self, hub: Hub, page: Page | LinnetError) -> None:
        if isinstance(page, LinnetError) or not attempt("repair", lambda: self._accept(hub, page)):
            self._later(RETRY_S, self._read, hub)
            return
        # An event that was seen live is in the log, unless a failover rolled the log back. So an empty page ends the
        # repair, even if an event above it was seen.
        if page.more or (page.events and hub.seen > hub.seq):
            self._read(hub)
        else:
            hub.repairing = False

    @staticmethod
    def _accept(hub: Hub, page: Page) -> None:
        if page.floor > hub.seq:
            hub.expired(page.floor)
        for event in page.events:
            seq, prev, count, at = stamp.slots(event)
            if prev < hub.seq:
                hub.void(prev)
            hub.accept(event, seq, count, at)
        metrics.REPAIRED_EVENTS.inc(len(page.events))
        hub.flush()
