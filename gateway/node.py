"""The composition root of one gateway process: it builds every part, and connects the calls that run upward.

It has no logic of its own. Every part gets what it needs as constructor arguments. Where a lower part calls a higher
one, the lower part declares the call (`SessionPorts`, `HubPorts`, an attribute with its type), and the call is
connected here, once.
"""

from __future__ import annotations

import asyncio
import secrets
import time

from gateway.admission import Admission
from gateway.clock import Clock
from gateway.commands.authentication import Authentication
from gateway.commands.connect import ConnectParts, Connects
from gateway.commands.cursors import Cursors
from gateway.commands.dispatch import Dispatch
from gateway.commands.ephemeral import Ephemeral
from gateway.commands.history import History
from gateway.commands.marks import Marks
from gateway.commands.rates import Rates
from gateway.commands.sending import Sends
from gateway.commands.user_state import UserState
from gateway.delivery.catchup import Catchup
from gateway.delivery.deadlines import Deadlines
from gateway.delivery.heartbeats import Heartbeats
from gateway.delivery.hub import Hub, HubPorts
from gateway.delivery.open_sessions import OpenSessions
from gateway.delivery.repair import Repair
from gateway.delivery.session import Session, SessionPorts
from gateway.delivery.shared_frames import cache_statistics
from gateway.delivery.subscriptions import Subscriptions
from gateway.drain import Drain
from gateway.presence.departures import Departures
from gateway.presence.lease import Lease
from gateway.presence.redis_clock import RedisClock
from gateway.presence.watches import Watches
from gateway.reconcile.audits import Audits
from gateway.reconcile.conversation_list import ConversationList
from gateway.reconcile.gone import Gone
from gateway.reconcile.held import Held
from gateway.reconcile.membership import Membership
from gateway.reconcile.outages import Outages
from gateway.reconcile.resubscribe import Resubscribe
from gateway.reconcile.sync import Syncs
from gateway.tasks import Tasks
from router.contract import metrics, wire
from router.contract.settings import Settings
from router.contract.verifier import Verifier
from router.process.hooked import HookedAppends
from router.process.jwks import fetcher
from router.process.loop import Meter
from router.process.send_hook import SendHook
from router.process.tracing import tracer
from router.store.conversations import Conversations
from router.store.deployment import RowFormats
from router.store.direct import DirectConversations
from router.store.durability import durability
from router.store.files import Files
from router.store.observe import RedisObserver
from router.store.pairs import Pairs
from router.store.people import People
from router.store.presence import Presence
from router.store.profiles import Profiles
from router.store.redis import choose
from router.store.redis.client import Client
from router.store.state import State
from router.store.users import Users


class Node:
    """The parts of one gateway. Made and used on one event loop."""

    def __init__(self, settings: Settings, client: Client) -> None:
        self.settings = settings
        self.client = client
        self.name = secrets.token_hex(6)
        self.url = settings.gateway_url or f"{'wss' if settings.tls_cert else 'ws'}://{settings.listen}/ws"
        loop = self.loop = asyncio.get_running_loop()
        self.tasks = Tasks(loop)
        self.tracer = tracer(settings, "linnet-gateway", self.name)

        # the store
        self.conversations = Conversations(client, 2 * settings.retention_events)
        self.users = Users(client)
        self.presence = Presence(client)
        self.people = People(client)
        self.profiles = Profiles(client)
        self.durability = durability(settings.durability, client, settings.replicas)
        self.files = Files(client, kept=self.durability.when_file_kept)

        # delivery
        hubs: dict[str, Hub] = {}
        self.session_ports = SessionPorts(hubs, self.tracer, now_ms)
        hub_ports = HubPorts(loop.call_soon, now_ms, self.tracer)
        self.repair = Repair(self.conversations, hubs, loop.call_later)
        self.catchup = Catchup(
            self.conversations,
            self.users,
            hubs,
            self.repair,
            lambda: client.failover_grace_s,
            lambda: client.certain_at,
            loop,
        )
        self.subscriptions = Subscriptions(client.channels, hubs, hub_ports, self.conversations, self.catchup, loop)
        self.sessions = OpenSessions(self.subscriptions, loop.call_soon)
        self.deadlines = Deadlines(settings.max_age_s, lambda: client.clocks.moments(now_ms()), loop.time)
        self.heartbeats = Heartbeats(settings.heartbeat_s)

        # presence
        self.meter = Meter()
        self.redis_clock = RedisClock(self.presence.clock_ms, now_ms())
        self.lease = Lease(
            self.name,
            self.url,
            self.presence,
            client,
            RowFormats(client),
            self.redis_clock,
            self.sessions,
            self.tasks.spawn,
            loop,
            self.meter.load,
        )
        self.departures = Departures(self.users, loop.time, settings.max_connections)
        self.watches = Watches(self.presence, self.people, self.subscriptions, self.lease, self.redis_clock, loop)

        # reconcile
        self.gone = Gone(self.users, self.conversations)
        self.conversation_list = ConversationList(hubs, self.users, self.conversations, self.catchup, self.gone, loop)
        self.membership = Membership(hubs, self.subscriptions, self.catchup, self.conversations, self.conversation_list)
        self.held = Held(
            self.users,
            self.conversations,
            self.subscriptions,
            self.catchup,
            self.conversation_list,
            self.membership,
            self._apart,
            loop,
        )
        self.syncs = Syncs(self.name, self.users, self.catchup, self.membership, self.gone, loop)
        self.resubscribe = Resubscribe(
            self.subscriptions, self.conversations, self.repair, self.membership, self.syncs, loop
        )
        self.audits = Audits(hubs, self.users, self.conversations, self.syncs, self.resubscribe, loop)
        self.outages = Outages(
            hubs, self.conversations, self.resubscribe, self._apart, self.subscriptions.reaches_part, loop
        )

        # commands
        rates = Rates(settings.sends_per_s, settings.send_burst, loop.time)
        rate_us = round(rates.cost_s * 1e6), round(rates.burst_s * 1e6)
        self.direct = DirectConversations(self.users, self.conversations, Pairs(client), self.profiles, rate_us)
        verifier = Verifier(settings, fetcher(settings.jwks_url) if settings.jwks_url else None, clocks=client.clocks)
        self.authentication = Authentication(verifier, now_ms, self.tasks.spawn, self.deadlines, self.users, self.syncs)
        self.marks = Marks(self.users, loop)
        self.ephemeral = Ephemeral(self.users, self.conversations, self.profiles, loop.time)
        self.cursors = Cursors(self.users, self.conversations, self.marks, self.ephemeral)
        self.history = History(self.conversations, rates)
        self.hooked = None
        if settings.send_hook_url:
            self.hooked = HookedAppends(self.conversations, self.direct, SendHook(settings))
        self.sends = Sends(
            self.conversations,
            self.hooked or self.conversations,
            self.users,
            self.direct,
            self.durability,
            self.marks,
            self.lease,
            self.files,
            self.tracer,
        )
        self.user_state = UserState(State(client, rate_us), self.durability, self.lease)
        connects = Connects(
            ConnectParts(
                node=self.name,
                settings=settings,
                authentication=self.authentication,
                subscriptions=self.subscriptions,
                users=self.users,
                syncs=self.syncs,
                conversation_list=self.conversation_list,
                gone=self.gone,
                catchup=self.catchup,
                audits=self.audits,
                deadlines=self.deadlines,
                lease=self.lease,
                clock=self.redis_clock,
                apart=self._apart,
                later=loop.call_later,
                time=loop.time,
                spawn=self.tasks.spawn,
            )
        )
        self.dispatch = Dispatch(
            connects.hello,
            {
                wire.Auth: self.authentication.auth,
                wire.Send: self.sends.send,
                wire.Edit: self.sends.edit,
                wire.Delete: self.sends.delete,
                wire.React: self.sends.react,
                wire.Ack: self.cursors.ack,
                wire.Read: self.cursors.read,
                wire.Typing: self.ephemeral.typing,
                wire.History: self.history.history,
                wire.Presence: self.watches.presence,
                wire.State: self.user_state.write,
                wire.Ping: ping,
            },
            rates,
        )

        # the process
        self.admission = Admission(settings)
        self.drain = Drain(
            settings.drain_accept_s, settings.drain_window_s, self.sessions, self.lease, self._busy, loop.time
        )
        self.bus = choose.bus(
            client,
            self.name,
            self.subscriptions.received,
            self.resubscribe.lost,
            self.resubscribe.restored,
            self.resubscribe.channels_restored,
        )
        self._connect(hub_ports)
        self._redis = RedisObserver(client, self.bus)
        self._cache = (0, 0)
        metrics.CONNECTION_LIMIT.set(settings.max_connections)
        self.clock = Clock(
            self.heartbeats,
            self.audits,
            self.outages,
            self.watches,
            self.deadlines,
            self.marks,
            self.departures,
            self.lease,
            self.meter,
            loop,
        )

    def _connect(self, hub_ports: HubPorts) -> None:
        """Connect the calls that run upward."""
        ports = self.session_ports
        ports.handle = self.dispatch.handle
        ports.closed = self.sessions.closed
        ports.flush_later = self.sessions.flush_later
        ports.fall_behind = self.catchup.transport_full
        ports.resume = self.catchup.transport_drained
        ports.read_direct = self.catchup.read_direct
        ports.ask = self.syncs.ask
        ports.replaced = self.syncs.replaced
        hub_ports.repair = self.repair.start
        hub_ports.member_left = self.subscriptions.member_left
        self.catchup.hold = self.held.hold
        self.conversation_list.hold = self.held.add
        self.conversation_list.apart = self._apart
        self.conversation_list.now_ms = self.redis_clock.now_ms
        self.catchup.resume_history = self.history.next_page
        self.subscriptions.bus = self.bus
        self.subscriptions.presence_changed = self.watches.touched
        self.subscriptions.visibility_changed = self.watches.look_who_sees
        self.subscriptions.profile_changed = self.watches.profile_changed
        self.subscriptions.hidden_from = self.people.hidden_from
        self.resubscribe.presence_lost = self.watches.bus_lost
        self.lease.renewed = self.watches.decide_all
        self.sessions.began = (self.heartbeats.add, self.deadlines.add)
        self.sessions.ended = (
            self.admission.ended,
            self.heartbeats.remove,
            self.deadlines.remove,
            self.watches.drop,
            self.held.drop,
            self.marks.write_ended,
            self.departures.add,
        )

    def _apart(self) -> bool:
        """Whether parts of Redis can fail one by one."""
        return not self.client.one_server

    def _busy(self) -> bool:
        return bool(self.sends.in_flight or self.user_state.in_flight or self.client.busy)

    async def close(self) -> None:
        """Stop the clock, the tasks and the connections of this node."""
        self.clock.stop()
        await self.tasks.cancel()
        if self.hooked is not None:
            await self.hooked.close()
        await self.durability.close()
        await self.bus.close()
        if self.tracer is not None:
            await asyncio.to_thread(self.tracer.close)

    def observe(self) -> None:
        """Set the gauges and counters that are computed only when Prometheus scrapes."""
        self._redis.observe()
        metrics.HUBS.set(len(self.subscriptions.hubs))
        metrics.HELD.set(len(self.held))
        metrics.SILENT.set(len(self.outages))
        metrics.IN_FLIGHT.set(self.sends.in_flight)
        hits, misses = cache_statistics()
        metrics.FRAME_CACHE.labels("hit").inc(hits - self._cache[0])
        metrics.FRAME_CACHE.labels("miss").inc(misses - self._cache[1])
        self._cache = (hits, misses)
        behind = [session for session in self.sessions.all if session.backlog is not None]
        metrics.WRITE_BUFFER_BYTES.set(sum(session.connection.transport.get_write_buffer_size() for session in behind))


def now_ms() -> int:
    """Return the time of the wall clock, by which tokens are judged."""
    return time.time_ns() // 1_000_000


def ping(session: Session, command: wire.Ping) -> None:
    """Answer a client's `ping` command."""
    session.answer(wire.Pong(id=command.id, at=now_ms()))
