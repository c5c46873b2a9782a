"""What hundreds of processes ask tens of servers about the map: a simulation with the real topology and routing.

No machine of a developer has that many processes. So all of them share one event loop here, and connections are faked:
each command is counted, and answered a moment later by servers that exist only as a map. The loop's clock jumps to the
next timer, so that the load of this machine changes nothing. All else is the code that runs in production.
"""

from __future__ import annotations

import asyncio
import selectors
from bisect import bisect_left
from collections import Counter
from contextvars import ContextVar
from typing import Any

import pytest

from router.contract.errors import Unavailable
from router.store.redis import functions
from router.store.redis.cluster import Cluster
from router.store.redis.cluster_client import ClusterClient
from router.store.redis.connection import RedisArg
from router.store.redis.pipeline import HotConnection, Reply
from router.store.redis.slots import SLOTS

PROCESSES = 200
SHARDS = 24
ANSWER_S = 0.002
TOGETHER_S = 0.05
MOST = 1 / 3  # twice the average: delays are random, and of 200 processes up to 0.29 were seen together


class JumpingLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__(_NoWait(self))
        self.now = 1000.0

    def time(self) -> float:
        return self.now


class _NoWait(selectors.DefaultSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.now += timeout or 0.0
        return super().select(0)


process: ContextVar[int] = ContextVar("process")


class Servers:
    """The servers as a map; `asked` has all commands about it, with their times."""

    def __init__(self) -> None:
        self.epoch = SHARDS
        self.silent = False
        self.ports = list(range(7000, 7000 + SHARDS))
        self.asked: list[tuple[float, int, str]] = []

    def fail_over(self, shard: int) -> None:
        self.epoch += 1
        self.ports[shard] += 1000

    def answer(self, command: str) -> Any:
        if self.silent:
            return Unavailable(retry_after=1)
        match command:
            case "CLUSTER INFO":
                return f"cluster_state:ok\r\ncluster_current_epoch:{self.epoch}\r\n".encode()
            case "CLUSTER SLOTS":
                return [
                    [i * SLOTS // SHARDS, (i + 1) * SLOTS // SHARDS - 1, [b"127.0.0.1", port, b"%040d" % port, []]]
                    for i, port in enumerate(self.ports)
                ]
            case "TIME":
                return [b"1700000000", b"0"]
        return b"OK"

    def counts(self, command: str, since: float) -> Counter[int]:
        return Counter(who for at, who, what in self.asked if what == command and at >= since)

    def largest_share(self, command: str, since: float) -> float:
        """The largest share of all processes that have asked within TOGETHER_S."""
        times = sorted(at for at, _, what in self.asked if what == command and at >= since)
        return max(bisect_left(times, at + TOGETHER_S) - i for i, at in enumerate(times)) / PROCESSES


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Servers:
    made = Servers()

    def start(self: HotConnection) -> None:
        self.up = True
        asyncio.get_running_loop().call_soon(self.opened)

    def call(self: HotConnection, command: tuple[RedisArg, ...], reply: Reply) -> None:
        what, loop = " ".join(map(str, command)), asyncio.get_running_loop()
        made.asked.append((loop.time(), process.get(), what))
        loop.call_later(ANSWER_S, reply, made.answer(what))

    async def close(self: HotConnection) -> None:
        self.closed("")

    for name, fake in (("start", start), ("call", call), ("close", close)):
        monkeypatch.setattr(HotConnection, name, fake)
    return made


async def follow(number: int, library: functions.Library) -> tuple[ClusterClient, asyncio.Task[None]]:
    process.set(number)
    client = ClusterClient(Cluster("redis+cluster://127.0.0.1:7000,127.0.0.1:7001"), library)
    client._hot.start()
    return client, asyncio.create_task(client.map.follow())


def test_doubt_lasts_until_a_server_answers(servers: Servers) -> None:
    """All servers are down for a while, and return with other addresses; no epoch tells that."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(new_addresses(servers))


async def new_addresses(servers: Servers) -> None:
    client, following = await asyncio.create_task(follow(0, functions.build()))
    await asyncio.sleep(3.0)
    servers.silent = True
    client.doubt()
    await asyncio.sleep(3.0)
    servers.silent = False
    servers.ports = [port + 1000 for port in servers.ports]
    await asyncio.sleep(3.0)
    owner = client.routing.owner(0)
    assert owner is not None
    assert owner.address.port == servers.ports[0]
    following.cancel()
    for connection in (client._hot, *client.routing.lines.values()):
        connection.closed("")


def test_processes_ask_little_and_not_at_once(servers: Servers) -> None:
    """At rest three short questions a second; at a failover that all notice at once, at most two maps each, spread."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(many_processes(servers))


async def many_processes(servers: Servers) -> None:
    library = functions.build()
    loop = asyncio.get_running_loop()
    made = [await asyncio.create_task(follow(number, library)) for number in range(PROCESSES)]
    clients = [client for client, _ in made]
    await asyncio.sleep(3.0)
    assert all(client.routing.serving == client.routing.primaries for client in clients)

    rest = loop.time()
    await asyncio.sleep(3.0)
    assert not servers.counts("CLUSTER SLOTS", rest)
    assert sum(servers.counts("CLUSTER INFO", rest).values()) / PROCESSES / 3.0 <= 3.1

    servers.fail_over(5)
    began = loop.time()
    for client in clients:
        client.doubt()
    await asyncio.sleep(3.0)
    maps = servers.counts("CLUSTER SLOTS", began)
    assert len(maps) == PROCESSES
    assert max(maps.values()) <= 2
    assert servers.largest_share("CLUSTER SLOTS", began) <= MOST
    for client in clients:
        owner = client.routing.owner(5 * SLOTS // SHARDS)
        assert owner is not None
        assert owner.address.port == servers.ports[5]
    for client, following in made:
        following.cancel()
        for connection in (client._hot, *client.routing.lines.values()):
            connection.closed("")
