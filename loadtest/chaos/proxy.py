"""A TCP proxy between two processes, whose links can be cut, held, delayed and forgotten. It needs no privileges.

One `Proxy` listens in front of one address. Its faults apply to present and future connections:
`cut`      connections are reset, and new ones are reset at once
`hold`     nothing passes in either direction and no end notices, as with a pulled cable; bytes wait in socket buffers
`delay`    every chunk passes later by so much, in order
`stutter`  now and then everything waits for a while, as TCP does on a lossy line
`vanish`   the ends of clients are dropped, those of the server stay open and silent, as when phones leave the network
`heal` ends all faults; held bytes pass on.

Bound: if an end does not accept more, the proxy stops reading from the other (flow control passes through). A held or
delayed direction holds at most one read per `delay`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Coroutine
from typing import Any, Final, cast

HIGH_WATER: Final = 65_536
STUTTER_S: Final = (0.2, 1.0)
STUTTER_EVERY_S: Final = 0.5


class _End(asyncio.Protocol):
    """One end of a link; it passes what it reads to `other`, if the faults allow that."""

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.other: _End
        self.transport: asyncio.Transport | None = None
        self.waiting: deque[tuple[float, bytes]] = deque()
        self.ended = False
        self.full = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(HIGH_WATER)
        self.link.made(self)

    def data_received(self, data: bytes) -> None:
        proxy = self.link.proxy
        if proxy.held or proxy.delay_s or self.waiting or self.other.transport is None:
            self.waiting.append((proxy.loop.time() + proxy.delay_s, data))
            self.link.wake()
            if proxy.held or self.other.transport is None or len(self.waiting) > 64:
                self.pause()
        else:
            self.other.write(data)

    def pass_on(self, now: float) -> float | None:
        """Pass all bytes that are due, and return when the next are."""
        if self.other.transport is None:
            return None
        while self.waiting and self.waiting[0][0] <= now:
            self.other.write(self.waiting.popleft()[1])
        if self.waiting:
            return self.waiting[0][0]
        if self.ended:
            self.other.end()
        elif not self.other.full:
            self.resume()
        return None

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def pause(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()

    def resume(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        self.full = True
        self.other.pause()

    def resume_writing(self) -> None:
        self.full = False
        if not self.link.proxy.held:
            self.other.resume()

    def end(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.link.lost(self)


class _Link:
    """A connection through the proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client, self.server = _End(self), _End(self)
        self.client.other, self.server.other = self.server, self.client
        self.forgotten = False
        self._timer: asyncio.Handle | None = None

    def made(self, end: _End) -> None:
        if end is self.client:
            if self.proxy.cutting:
                end.abort()
                return
            end.pause()
            self.proxy.links[self] = None
            self.proxy.spawn(self._dial())
        elif self.client.ended:
            end.abort()
        elif self.proxy.held:
            self.server.pause()
        else:
            self.client.resume()
            self.wake()

    async def _dial(self) -> None:
        try:
            async with asyncio.timeout(5):
                await self.proxy.loop.create_connection(lambda: self.server, "127.0.0.1", self.proxy.to_port)
        except (OSError, TimeoutError):
            self.client.abort()

    def lost(self, end: _End) -> None:
        if self.client.ended and (self.server.ended or self.server.transport is None):
            self.proxy.links.pop(self, None)
        if self.forgotten or self.proxy.held:
            return  # the other end must not notice
        if end.waiting:
            self.wake()
        else:
            end.other.end()

    def wake(self) -> None:
        if self._timer is None and not self.proxy.held:
            self._timer = self.proxy.loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        self._timer = None
        if self.proxy.held:
            return
        now = self.proxy.loop.time()
        due = [when for end in (self.client, self.server) if (when := end.pass_on(now)) is not None]
        if due:
            self._timer = self.proxy.loop.call_at(max(min(due), now + 0.001), self._pass_on)

    def thaw(self) -> None:
        """Pass held bytes on, and close the ends whose other end has closed meanwhile."""
        for end in (self.client, self.server):
            if end.ended and not end.waiting and not self.forgotten:
                end.other.end()
            elif not end.waiting and not end.other.full:
                end.resume()
        self.wake()

    def forget(self) -> None:
        """Drop the client's end without closing the server's."""
        self.forgotten = True
        self.client.abort()

    def abort(self) -> None:
        self.client.abort()
        self.server.abort()


class Proxy:
    """Listens on `port` and connects to `to_port`, both on loopback."""

    def __init__(self, port: int, to_port: int) -> None:
        self.port = port
        self.to_port = to_port
        self.loop = asyncio.get_running_loop()
        self.links: dict[_Link, None] = {}
        self.cutting = self.held = False
        self.delay_s = 0.0
        self._stuttering: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await self.loop.create_server(lambda: _Link(self).client, "127.0.0.1", self.port, backlog=1024)

    async def close(self) -> None:
        self.heal()
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- faults

    def cut(self) -> None:
        self.cutting = True
        for link in list(self.links):
            link.abort()

    def hold(self) -> None:
        self.held = True
        for link in self.links:
            link.client.pause()
            link.server.pause()

    def release(self) -> None:
        self.held = False
        for link in list(self.links):
            link.thaw()

    def delay(self, seconds: float) -> None:
        self.delay_s = seconds

    def stutter(self, rng: random.Random) -> None:
        self._stuttering = self.loop.create_task(self._stutter(rng))

    async def _stutter(self, rng: random.Random) -> None:
        while True:
            await asyncio.sleep(rng.expovariate(1 / STUTTER_EVERY_S))
            self.hold()
            await asyncio.sleep(rng.uniform(*STUTTER_S))
            self.release()

    def vanish(self) -> int:
        """Drop the clients' ends, and return how many."""
        links = list(self.links)
        for link in links:
            link.forget()
        return len(links)

    def heal(self) -> None:
        if self._stuttering is not None:
            self._stuttering.cancel()
            self._stuttering = None
        self.cutting = False
        self.delay_s = 0.0
        self.release()
