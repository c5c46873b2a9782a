"""Sessions that are connected while a part of Redis stops answering are notified, and again once it answers.

A part that has not answered for SILENT_S is *silent*. The members here of each group and channel in it get an entry
with `held`, the same bytes for all. Once the part answers, the heads of these conversations are read and compared with
the hubs. Then the members get an entry that takes the first one back. Nothing else happens to the sessions: they stay
in their hubs, and hubs are repaired from the log (`resubscribe.py`). Sessions that connect, or read a log, meanwhile
are held out of these conversations (`held.py`).

Invariant: entries of one conversation are written in the order in which its part became silent and answered.
Bounds: the hubs here; PER_TURN sessions in each turn of the event loop, PER_CALL heads in a call. While all parts
answer, the cost is one look at each of them in a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from gateway.delivery.feed import State
from gateway.delivery.hub import Hub
from gateway.delivery.shared_frames import control_frames
from gateway.reconcile.resubscribe import Resubscribe
from router.contract import keys, wire
from router.contract.errors import LinnetError
from router.process.isolate import attempt
from router.store.conversations import Conversations
from router.store.heads import Head

SILENT_S: Final = 5.0  # longer than a failover of a cluster with the node timeout that deploy/README.md advises
PER_CALL: Final = 200
PER_TURN: Final = 200


class Outages:
    def __init__(
        self,
        hubs: Mapping[str, Hub],
        conversations: Conversations,
        resubscribe: Resubscribe,
        apart: Callable[[], bool],
        reaches: Callable[[bytes], bool],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._hubs = hubs
        self._conversations = conversations
        self._resubscribe = resubscribe
        self._apart = apart
        self._reaches = reaches
        self._soon: Callable[..., Any] = loop.call_soon
        self._parts = [tag.encode() for tag in keys.tags("c")]
        self._since: dict[int, float] = {}  # part that does not answer -> since when
        self._silent: set[int] = set()
        self._notified: dict[int, dict[str, None]] = {}  # part -> its conversations whose members are notified
        self._writing: deque[Iterator[None]] = deque()  # each step writes an entry to one session

    def __len__(self) -> int:
        """How many groups and channels with members here are in silent parts."""
        return sum(map(len, self._notified.values()))

    def turn(self, now: float) -> None:
        """Look at every part: which is silent now, and which answers again?"""
        if not self._apart():
            return
        down = [part for part, name in enumerate(self._parts) if not self._reaches(name)]
        self._since = {part: self._since.get(part, now) for part in down}
        silent = {part for part, since in self._since.items() if now - since >= SILENT_S}
        if silent - self._silent:
            self._notify(silent - self._silent)
        self._silent = silent
        for part in [part for part in self._notified if part not in self._since]:
            self._compare(part)

    def _notify(self, parts: set[int]) -> None:
        for hub in self._hubs.values():
            part = keys.partition(hub.conversation)
            if part in parts and hub.confirmed:
                self._notified.setdefault(part, {})[hub.conversation] = None
                self._write(hub, True)

    # -- a part that answers again

    def _compare(self, part: int) -> None:
        """Read the heads of the part's conversations; those that are not read stay, and are asked for again."""
        conversations = [conv for conv in self._notified[part] if conv in self._hubs]
        if not conversations:
            del self._notified[part]
        for start in range(0, len(conversations), PER_CALL):
            some = conversations[start : start + PER_CALL]
            attempt("outages", partial(self._conversations.heads, some, partial(self._compared, part, some)))

    def _compared(
        self, part: int, conversations: list[str], heads: list[Head | LinnetError | None] | LinnetError
    ) -> None:
        waiting = self._notified.get(part, {})
        answers = [heads] * len(conversations) if isinstance(heads, LinnetError) else heads
        for conversation, head in zip(conversations, answers, strict=True):
            if isinstance(head, LinnetError) or conversation not in waiting:
                continue
            del waiting[conversation]
            attempt("outages", partial(self._resubscribe.compare_one, "resubscribe", (conversation, head)))
            hub = self._hubs.get(conversation)
            if hub is not None:
                self._write(hub, False)

    # -- entries

    def _write(self, hub: Hub, held: bool) -> None:
        if not self._writing:
            self._soon(self._some)
        self._writing.append(_entries(hub, held))

    def _some(self) -> None:
        attempt("outages", self._step)
        if self._writing:
            self._soon(self._some)

    def _step(self) -> None:
        for _ in range(PER_TURN):
            while self._writing and next(self._writing[0], self) is self:
                self._writing.popleft()


def _entries(hub: Hub, held: bool) -> Iterator[None]:
    """Write the entry to all members here, one at each step."""
    kind = keys.KIND_NAMES[hub.conversation[0]]
    state = wire.ConversationState(conversation=hub.conversation, kind=kind, title=hub.title, held=held)
    frames = control_frames(wire.ConversationsEvent(conversations=[state], more=False))
    for session in list(hub.members):
        if session.state is State.READY and session in hub.members:
            session.write(frames[session.variant])
        yield
