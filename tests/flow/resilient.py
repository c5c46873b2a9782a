"""A client that does what the interface advises: comes back when it was sent away, resends until it is answered.

It waits for nothing but events: a gateway that refuses is left for the next one at once, so tests are as impatient as
the worst client. What it was told when it was sent away is kept (`partings`).
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
    """Stays connected to one of `urls`, which may change, from `stay` to the end of the test."""

    def __init__(self, user: str, urls: Sequence[str], device: str = "phone", codec: str = "json") -> None:
        super().__init__(user, device, codec)
        self.urls = urls
        self.partings: list[tuple[int, str]] = []
        self.ready = asyncio.Event()
        self._at = 0
        self._staying: asyncio.Task[None] | None = None

    async def stay(self, at: int = 0) -> None:
        """Connects, to the `at`-th gateway first, and from then on comes back whenever it is cut off."""
        self._at = at
        self._staying = asyncio.create_task(self._stay())
        await self.ready.wait()

    async def end(self) -> None:
        if self._staying is not None:
            self._staying.cancel()
            await asyncio.wait([self._staying])
        await super().end()

    async def deliver(self, to: str, body: Any, deadline_s: float = 30.0) -> Event:
        """Sends the same again until it is acked; the ack."""
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
                welcome = await self.connect(url, cursors=cursors)
            except GONE:
                continue
            if welcome["type"] == "welcome":
                self.ready.set()
            code, reason = await self.gone(3600)
            self.ready.clear()
            self.partings.append((code, reason))
