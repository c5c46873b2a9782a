"""A client that follows the advice of the interface: it reconnects when it is closed, and resends until it is answered.

It waits for nothing but events. If a gateway refuses it, it tries the next one at once, so tests are as impatient as
the worst client. `partings` has the code and reason of each close.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests import support
from tests.flow.client import ChatClient, Event

GONE = (OSError, ConnectionClosed, InvalidHandshake, TimeoutError)


class ResilientClient(ChatClient):
    """A client that stays connected to one of `urls`, which may change, from `stay` to the end of the test."""

    def __init__(self, user: str, urls: Sequence[str], device: str = "phone", codec: str = "json") -> None:
        super().__init__(user, device, codec)
        self.urls = urls
        self.partings: list[tuple[int, str]] = []
        self.ready = asyncio.Event()
        self._at = 0
        self._staying: asyncio.Task[None] | None = None

    async def stay(self, at: int = 0) -> None:
        """Connect, to the `at`-th gateway first, and reconnect whenever the connection ends."""
        self._at = at
        self._staying = asyncio.create_task(self._stay())
        await self.ready.wait()

    async def end(self) -> None:
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.wait([self._staying])
        await super().end()

    async def deliver(self, to: str, body: Any, deadline_s: float = support.DEADLINE_S) -> Event:
        """Send a message until it is acked; return the ack."""
        n = self.next_n()

        async def attempt() -> Event:
            await self.ready.wait()
            try:
                answer = await self.send(to, body, n=n)
            except ConnectionClosed:
                return {}
            if answer["type"] == "error" and "retry_after" in answer:
                return {}
            return answer

        ack = await support.eventually(attempt, deadline_s)
        assert ack["type"] == "ack", ack
        return ack

    async def _stay(self) -> None:
        while True:
            url = self.urls[self._at % len(self.urls)]
            self._at += 1
            cursors = {conversation: max(log) for conversation, log in self.received.items() if log}
            try:
                await self.open(url)
                welcome = await self.hello(cursors=cursors)
            except GONE:
                continue
            if welcome["type"] == "welcome":
                self.ready.set()
            code, reason = await self.gone(3600)
            self.ready.clear()
            self.partings.append((code, reason))
