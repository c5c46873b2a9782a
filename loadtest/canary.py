"""`python -m loadtest canary`: synthetic users send each other stamped messages all the time, through every gateway
that they can reach, and the canary exports metrics about each message.

Each user is a `Device`; its `Ledger` judges every row that the device records. A message is a `Flight` until every
receiver has it. If a connected receiver has not received a message within `LATE_S`, it counts as late, so a
subscription that went deaf is noticed within seconds. If the receiver has been connected for `LOST_S` and still lacks
an acked message, it counts as lost.

The cost is bounded: `--users` connections, two messages each `--every` seconds. The users have reserved names
(`canary-…`), the canary finds its group again after a restart, and its logs are trimmed like all others. Behind a load
balancer it cannot choose gateways. Now and then it therefore reconnects a user whose gateway has other canary users,
so that in time every gateway has one (`linnet_canary_gateways`).

On a cluster with `--shards N`, each of N equal ranges of slots has a group, and users in turn, so that trouble on any
shard is noticed. The canary does not read Redis, so it needs `--numbered-tags` if the deployment has numbered
tags (`contract/tags.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import os
import random
import signal
import time
import urllib.error
from collections import Counter as Tally
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import uvicorn
import uvloop
from prometheus_client import Counter, Gauge, Histogram

from loadtest.api import Api
from loadtest.chaos.device import Device
from loadtest.chaos.proof import history
from loadtest.chaos.proof.history import Rows
from router.contract import keys, metrics
from router.contract.tags import NUMBERED
from router.process import serving
from router.process.admin import Readiness, create_admin
from router.process.isolate import attempt, each
from router.store.redis.slots import SLOTS, slot_of

log = logging.getLogger("linnet.canary")

LATE_S: Final = 5.0
LOST_S: Final = 30.0
FORGOTTEN_S: Final = 600.0
ROTATE_S: Final = 20.0
TOKENS_S: Final = 600.0
RETRY_S: Final = 5.0
DEVICE: Final = "canary"
TITLE: Final = "canary"

SENT = Counter("linnet_canary_sent", "Messages sent")
ACKED = Counter("linnet_canary_acked", "Messages acked")
REFUSED = Counter("linnet_canary_refused", "Error answers to messages, by code", ("code",))
RECEIVED = Counter("linnet_canary_received", "Messages received, counted for each receiver")
LATE = Counter("linnet_canary_late", f"Messages that a connected receiver did not receive within {LATE_S:g} s")
LOST = Counter("linnet_canary_lost", "Acked messages that a receiver did not receive although it was connected")
DUPLICATED = Counter("linnet_canary_duplicated", "Messages delivered twice to one session, or stored twice in a log")
REORDERED = Counter("linnet_canary_reordered", "Messages delivered after a later one")
GAPS = Counter("linnet_canary_gaps", "Announced gaps, by reason", ("reason",))
CLOSES = Counter("linnet_canary_closes", "Connections that the canary did not end, by close code", ("code",))
CONNECTED = Gauge("linnet_canary_connected", "Synthetic users that are connected")
GATEWAYS = Gauge("linnet_canary_gateways", "Gateways that the synthetic users are connected to")
DELIVERY_SECONDS = Histogram(
    "linnet_canary_delivery_seconds",
    "Seconds from a send to its arrival at a connected receiver",
    buckets=metrics._LATENCY,
)


class Flight(msgspec.Struct):
    """A message on its way; `waiting` are the users that have not received it."""

    sent: float
    waiting: set[str]
    acked: bool = False
    late: bool = False


Flights = dict[tuple[str, int], Flight]


class Ledger:
    """The recorder of one user: it judges each row."""

    def __init__(self, user: str, flights: Flights, now: Callable[[], float]) -> None:
        self.user = user
        self.flights = flights
        self.connected_at = 0.0  # 0: the user is not connected
        self.node = ""
        self.groups: set[str] = set()
        self._now = now
        self._last: dict[str, int] = {}
        self._positions: dict[
            tuple[str, int], tuple[str, int]
        ] = {}  # message -> conversation and seq, of the last messages

    def add(self, row: Rows) -> None:
        match row:
            case history.Received(event=history.Entry(kind="message")):
                self._received(row.conversation, row.event)
            case history.Acked():
                self._acked(row)
            case history.Refused():
                REFUSED.labels(row.code).inc()
            case history.Gap():
                GAPS.labels(row.reason).inc()
            case history.Welcomed():
                self.connected_at, self.node, self._last = self._now(), row.node, {}
                self._know(row.conversations)
            case history.Listed():
                self._know(row.conversations)
            case history.Closed():
                self.connected_at, self.node = 0.0, ""
                if not row.ours:
                    CLOSES.labels(str(row.code)).inc()
            case _:
                pass

    def _know(self, conversations: Iterable[history.Known]) -> None:
        for known in conversations:
            self._last.setdefault(known.conversation, known.cursor)
            if known.conversation[0] == keys.GROUP:
                self.groups.add(known.conversation)

    def _acked(self, row: history.Acked) -> None:
        ACKED.inc()
        flight = self.flights.get((self.user, row.n))
        if flight is not None:
            flight.acked = True

    def _received(self, conversation: str, event: history.Entry) -> None:
        RECEIVED.inc()
        position, message = (conversation, event.seq), (event.user, event.n)
        last = self._last.get(conversation, 0)
        self._last[conversation] = max(last, event.seq)
        if self._positions.get(message, position) != position or event.seq == last:
            DUPLICATED.inc()
        elif event.seq < last:
            REORDERED.inc()
        self._remember(message, position)
        flight = self.flights.get(message)
        if flight is not None and self.user in flight.waiting:
            flight.waiting.discard(self.user)
            if self.connected_at and self.connected_at <= flight.sent:
                DELIVERY_SECONDS.observe(self._now() - flight.sent)

    def _remember(self, message: tuple[str, int], position: tuple[str, int]) -> None:
        self._positions[message] = position
        if len(self._positions) > 1000:
            del self._positions[next(iter(self._positions))]


def sweep(flights: Flights, ledgers: dict[str, Ledger], now: float) -> None:
    """Count messages that are late or lost, and forget those that are settled."""
    for message, flight in list(flights.items()):
        age = now - flight.sent
        there = [ledgers[user] for user in flight.waiting if ledgers[user].connected_at]
        if age > LATE_S and not flight.late and flight.acked:
            flight.late = True
            LATE.inc(sum(ledger.connected_at <= flight.sent for ledger in there))
        if age > LOST_S and flight.acked:
            lost = [ledger.user for ledger in there if now - ledger.connected_at > LOST_S]
            LOST.inc(len(lost))
            flight.waiting.difference_update(lost)
        if (flight.acked and not flight.waiting) or age > FORGOTTEN_S:
            del flights[message]


class Canary:
    """The users and their behaviour."""

    def __init__(self, urls: list[str], api: Api, users: int, every_s: float, shards: int = 1) -> None:
        self._api = api
        self._shards = shards
        self._every_s = every_s
        self._rng = random.Random()
        self._tokens: dict[str, str] = {}
        self._flights: Flights = {}
        names = names_over(shards, users)
        self.ledgers = {name: Ledger(name, self._flights, asyncio.get_running_loop().time) for name in names}
        self.devices = [
            Device(
                name, DEVICE, ("json", "msgpack")[number % 2], urls[number % len(urls) :: len(urls)] or urls,
                self._tokens.__getitem__, self.ledgers[name], self._rng,
            )
            for number, name in enumerate(names)
        ]  # fmt: skip
        self.shared: dict[int, str] = {}  # the group of each range of slots

    def observe(self) -> None:
        connected = [ledger.node for ledger in self.ledgers.values() if ledger.connected_at]
        CONNECTED.set(len(connected))
        GATEWAYS.set(len(set(connected)))

    async def run(self) -> None:
        """Run until cancelled."""
        await until(self._refresh)
        async with asyncio.TaskGroup() as tasks:
            for device in self.devices:
                device.go_online()
                tasks.create_task(device.run())
            tasks.create_task(self._tick())
            tasks.create_task(self._keep_tokens())
            tasks.create_task(self._rotate())
            tasks.create_task(self._write())

    async def _refresh(self) -> bool:
        """Fetch new tokens for all users; return whether that worked."""
        try:
            for user in self.ledgers:
                self._tokens[user] = await asyncio.to_thread(self._api.token, user)
        except (urllib.error.URLError, OSError) as error:
            log.warning("cannot get tokens: %s", error)
            return False
        return True

    async def _keep_tokens(self) -> None:
        while True:
            await asyncio.sleep(TOKENS_S)
            await self._refresh()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self.turn(asyncio.get_running_loop().time())

    def turn(self, now: float) -> None:
        """Give every device its tick, then count the messages that are late or lost."""
        each("canary", Device.tick, self.devices)
        attempt("canary", lambda: sweep(self._flights, self.ledgers, now))

    async def _rotate(self) -> None:
        """Reconnect a user whose gateway has other canary users; it may reach another gateway."""
        while True:
            await asyncio.sleep(ROTATE_S * self._rng.uniform(0.5, 1.5))
            on = Tally(ledger.node for ledger in self.ledgers.values() if ledger.connected_at)
            crowded = [device for device in self.devices if on[self.ledgers[device.user].node] > 1 and device.ready]
            if crowded:
                device = self._rng.choice(crowded)
                device.go_offline(politely=True)
                device.go_online()

    async def _write(self) -> None:
        """Let each user in turn write to the group and to the next user."""
        await until(self._gather)
        groups = itertools.cycle(self.shared.values())
        while True:
            for number, device in enumerate(self.devices):
                await asyncio.sleep(self._every_s * self._rng.uniform(0.8, 1.2))
                other = self.devices[(number + 1) % len(self.devices)]
                self._send(device, next(groups), set(self.ledgers))
                self._send(device, f"@{other.user}", {device.user, other.user})

    def _send(self, device: Device, to: str, receivers: set[str]) -> None:
        if not device.ready:
            return
        sent = device.message(to, {"at": time.time()})
        if sent:
            SENT.inc()
            self._flights[device.user, sent] = Flight(asyncio.get_running_loop().time(), receivers)

    async def _gather(self) -> bool:
        """Find or create the groups of all users, who exist once they have connected; return whether that worked."""
        if not all(device.ready for device in self.devices):
            return False
        for group in sorted(set().union(*(ledger.groups for ledger in self.ledgers.values()))):
            self.shared.setdefault(share_of(keys.conversation(group), self._shards), group)
        try:
            while len(self.shared) < self._shards:
                await asyncio.to_thread(self._make)
            for group, user in itertools.product(self.shared.values(), self.ledgers):
                path = f"/conversations/{group}/members/{user}"
                await asyncio.to_thread(self._api.call, "PUT", path, {"role": "member"})
        except (urllib.error.URLError, OSError) as error:
            log.warning("cannot create a group: %s", error)
            return False
        return True

    def _make(self) -> None:
        """Create a group, whose id decides its slot; delete it if its range of slots has one."""
        members = dict.fromkeys(self.ledgers, "member")
        made = self._api.call("POST", "/conversations", {"kind": "group", "title": TITLE, "members": members})
        group = str(made["conversation"])
        if self.shared.setdefault(share_of(keys.conversation(group), self._shards), group) != group:
            self._api.call("DELETE", f"/conversations/{group}")


def share_of(key: str, shards: int) -> int:
    """Return in which of so many equal ranges of slots a key is."""
    return slot_of(key) * shards // SLOTS


def names_over(shards: int, count: int) -> list[str]:
    """Return names of users, the first in the first range of slots, the next in the next, and again."""
    names: list[str] = []
    for number in range(count):
        of_range = (
            f"canary-{i}" for i in itertools.count() if share_of(keys.user(f"canary-{i}"), shards) == number % shards
        )
        names.append(next(name for name in of_range if name not in names))
    return names


async def until(attempt: Callable[[], Awaitable[bool]]) -> None:
    """Call `attempt` until it succeeds."""
    while True:
        if await attempt():
            return
        await asyncio.sleep(RETRY_S)


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = commands.add_parser("canary", help="send stamped messages for ever, and export metrics about them")
    one.add_argument("--target", nargs="+", required=True, metavar="ws://…/ws", help="gateways")
    one.add_argument("--api", required=True, metavar="http://…", help="the router's HTTP API")
    one.add_argument("--listen", default="127.0.0.1:9000", help="host:port of /livez and /metrics (%(default)s)")
    one.add_argument("--users", type=int, default=6, help="synthetic users, at least 2 (%(default)s)")
    one.add_argument("--shards", type=int, default=1, help="ranges of slots with a group each (%(default)s)")
    one.add_argument(
        "--numbered-tags", action="store_true", help="if the field `partitions` of the deployment is `256`"
    )
    one.add_argument("--every", type=float, default=1.0, help="seconds between two messages (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments))
    return 0


async def serve(arguments: argparse.Namespace) -> None:
    """Run until SIGTERM or SIGINT."""
    if arguments.numbered_tags:
        keys.use_tags(NUMBERED)
    api = Api(arguments.api, secret("LINNET_SERVER_KEY"), secret("LINNET_JWT_SECRET"))
    canary = Canary(arguments.target, api, max(2, arguments.users), arguments.every, max(1, arguments.shards))
    admin = uvicorn.Server(serving.config(create_admin(lambda: Readiness(True, "ok"), canary.observe)))
    listening = asyncio.create_task(admin._serve([serving.listening(arguments.listen)]))
    writing = asyncio.create_task(canary.run())
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, writing, listening}, return_when=asyncio.FIRST_COMPLETED)
    admin.should_exit = True
    writing.cancel()
    stopping.cancel()
    outcomes = await asyncio.gather(writing, listening, stopping, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome


def secret(name: str) -> str:
    """Return a secret from the environment, or from the file that the environment names."""
    path = os.environ.get(f"{name}_FILE")
    return Path(path).read_text(encoding="utf-8").strip() if path else os.environ.get(name, "")
