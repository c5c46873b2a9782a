"""Connections whose end has begun: none outlives its close frame by more than CLOSE_WAIT_S.

One timer per event loop drops the connections that are still there after that time.
"""

import asyncio
import logging
from typing import Final, Protocol
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

CLOSE_WAIT_S: Final = 5.0


class Closing(Protocol):
    """A connection as this file needs it."""

    transport: asyncio.Transport


class ClosingConnections:
    """The closing connections of one event loop."""

    def __init__(self) -> None:
        self._since: dict[
            Closing, float
        ] = {}  # in the order of the deadlines, because all connections wait equally long
        self._armed = False

    def add(self, connection: Closing) -> None:
        loop = asyncio.get_running_loop()
        self._since.setdefault(connection, loop.time())
        if not self._armed:
            self._armed = True
            loop.call_later(CLOSE_WAIT_S, self._sweep)

    def discard(self, connection: Closing) -> None:
        self._since.pop(connection, None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() - CLOSE_WAIT_S
        for connection in [waiting for waiting, since in self._since.items() if since <= due]:
            self.discard(connection)
            try:
                connection.transport.abort()
            except Exception:  # one connection that raises must neither keep the others nor stop the timer
                logger.exception("a connection that did not close in time could not be aborted")
        self._armed = bool(self._since)
        if self._armed:
            loop.call_later(next(iter(self._since.values())) - due, self._sweep)


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, ClosingConnections] = WeakKeyDictionary()


def closing_of(loop: asyncio.AbstractEventLoop) -> ClosingConnections:
    """Return the closing connections of an event loop."""
    return _by_loop.get(loop) or _by_loop.setdefault(loop, ClosingConnections())
