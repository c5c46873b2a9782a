"""One gateway process: its parts, and what they share.

`Node` holds no logic of its own beyond the loop's turn and the end of a session.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any

from gateway.clock import Clock
from gateway.commands.connect import Connects
from gateway.commands.dispatch import CommandHandlers
from gateway.commands.sending import Sends
from gateway.delivery.catchup import Catchup
from gateway.delivery.hub import Hub
from gateway.delivery.session import Session
from gateway.delivery.shared_frames import cache_statistics
from gateway.delivery.subscriptions import Subscriptions
from gateway.drain import Drain
from gateway.presence.lease import Lease
from gateway.presence.watches import Watches
from gateway.reconcile.audits import Audits
from gateway.reconcile.gone import Gone
from router.contract import metrics
from router.contract.settings import Settings
from router.contract.tokens import Verifier
from router.process.isolate import fault
from router.process.jwks import fetcher
from router.process.tracing import tracer
from router.store.conversations import Conversations
from router.store.durability import durability
from router.store.observe import RedisObserver
from router.store.presence import Presence
from router.store.redis.client import Client
from router.store.redis.pubsub import Bus
from router.store.users import Users


class Node:
    """The parts of one gateway. Made and used on one event loop."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self.settings = settings
        self.client = client
        self.name = secrets.token_hex(6)
        scheme = "wss" if settings.tls_cert else "ws"
        self.url = settings.gateway_url or f"{scheme}://{settings.listen}/ws"
        self.draining = False
        self.loop = asyncio.get_running_loop()
        self.soon: Callable[..., Any] = self.loop.call_soon
        self.later: Callable[..., Any] = self.loop.call_later
        self.tracer = tracer(settings, "linnet-gateway", self.name)
        self.verifier = Verifier(
            settings, fetcher(settings.jwks_url) if settings.jwks_url else None, clocks=client.clocks
        )
        self.conversations = Conversations(client, 2 * settings.retention_events)
        self.users = Users(client)
        self.presence = Presence(client)
        self.durability = durability(settings.durability, client, settings.replicas)
        self.subscriptions = Subscriptions(self)
        self.catchup = Catchup(self)
        self.audits = Audits(self)
        self.gone = Gone(self)
        self.connects = Connects(self)
        self.commands = CommandHandlers(self)
        self.sends = Sends(self)
        self.watches = Watches(self)
        self.lease = Lease(self)
        self.drain = Drain(self)
        self.bus = Bus(
            client,
            client.channels.echo(self.name),
            self.subscriptions.received,
            self.subscriptions.lost,
            self.subscriptions.restored,
            self.subscriptions.channel_restored,
        )
        self.sessions: dict[Session, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._redis = RedisObserver(client, self.bus)
        self._cache = (0, 0)
        self._to_flush: list[Session] = []
        metrics.CONNECTION_LIMIT.set(settings.max_connections)
        self.clock = Clock(self)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs one of the few things that must wait; never per message."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            fault("tasks", error)

    async def close(self) -> None:
        self.clock.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.durability.close()
        await self.bus.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    @staticmethod
    def now_ms() -> int:
        return time.time_ns() // 1_000_000

    def observe(self) -> None:
        """Gauges that are read when somebody scrapes."""
        self._redis.observe()
        metrics.HUBS.set(len(self.subscriptions.hubs))
        metrics.IN_FLIGHT.set(self.sends.in_flight)
        hits, misses = cache_statistics()
        metrics.FRAME_CACHE.labels("hit").inc(hits - self._cache[0])
        metrics.FRAME_CACHE.labels("miss").inc(misses - self._cache[1])
        self._cache = (hits, misses)
        behind = [session for session in self.sessions if session.behind is not None]
        metrics.WRITE_BUFFER_BYTES.set(sum(session.connection.transport.get_write_buffer_size() for session in behind))

    # -- what hubs ask for

    def repair(self, hub: Hub, cause: str) -> None:
        self.subscriptions.repair(hub, cause)

    def member_left(self, hub: Hub, user: str) -> None:
        self.subscriptions.member_left(hub, user)

    # -- the loop's turn

    def to_flush(self, session: Session) -> None:
        """Joins what this turn of the loop has for a session into one write at its end."""
        if not self._to_flush:
            self.soon(self._flush)
        self._to_flush.append(session)

    def _flush(self) -> None:
        sessions, self._to_flush = self._to_flush, []
        for session in sessions:
            try:
                session.flush()
            except Exception as error:  # noqa: BLE001 - what this turn has for the other sessions must leave
                fault("flush", error)

    # -- sessions

    def opened(self, session: Session) -> None:
        self.sessions[session] = None
        metrics.CONNECTIONS.set(len(self.sessions))
        self.clock.add(session)

    def closed(self, session: Session, code: int) -> None:
        """The connection is gone: nothing of the session stays but what Redis keeps."""
        if self.sessions.pop(session, self) is self:
            return
        metrics.CONNECTIONS.set(len(self.sessions))
        metrics.CLOSES.labels(str(code) if code in KNOWN_CODES else "other").inc()
        self.clock.remove(session)
        self.watches.drop(session)
        for hub in session.hubs:
            hub.remove(session)
            self.subscriptions.release(hub)
        session.hubs = []
        if session.user_hub is not None:
            (metrics.SESSIONS_LIVE if session.behind is None else metrics.SESSIONS_BEHIND).dec()
            if session in session.user_hub.sessions:
                session.user_hub.sessions.remove(session)
            self.subscriptions.release_user(session.user_hub)
            self.clock.write_marks(session)
            self.lease.away(session)
        session.behind = None


KNOWN_CODES = frozenset((*range(1000, 1004), *range(1005, 1013), *range(4000, 4004), 4008, 4409, *range(4500, 4505)))
