"""G6, deploys are invisible: gateways are drained and replaced under traffic; nothing is lost, nothing comes twice."""

from __future__ import annotations

import asyncio
import signal

from tests import support
from tests.flow.conftest import Start, System
from tests.flow.resilient import ResilientClient
from tests.support import Process

MESSAGES = 120


class Crowd:
    """Six people on the gateways of a system, chatting in a group and in a direct conversation while things happen."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.urls = list(system.urls)
        codecs = ("json", "msgpack", "json", "msgpack", "json", "msgpack")
        self.clients = [ResilientClient(f"user-{i}", self.urls, codec=codec) for i, codec in enumerate(codecs)]
        self.group = ""
        self.direct = ""
        self.said: dict[str, list[object]] = {}
        self.pace = asyncio.Event()

    async def gather(self) -> None:
        self.group = await self.system.group(*(client.user for client in self.clients))
        for i, client in enumerate(self.clients):
            await client.stay(i)
        self.direct = (await self.clients[0].deliver("@user-1", "hi"))["conversation"]
        self.said = {self.group: [], self.direct: ["hi"]}

    async def talk(self, until: asyncio.Event) -> None:
        """All talk until told to stop, each waiting for its ack before it goes on."""

        async def one(client: ResilientClient, conversation: str) -> None:
            i = 0
            while not until.is_set() or i < MESSAGES:
                body = f"{client.user} {i}"
                await client.deliver(conversation, body)
                self.said[conversation].append(body)
                i += 1

        talkers = [(client, self.group) for client in self.clients[2:]]
        talkers += [(client, self.direct) for client in self.clients[:2]]
        await asyncio.gather(*(one(*talker) for talker in talkers))

    async def check(self) -> None:
        """Everybody has everything that was acked, once, in one order, without a gap."""
        ends = {
            self.group: await self.clients[0].deliver(self.group, "end"),
            self.direct: await self.clients[0].deliver(self.direct, "end"),
        }
        for conversation, end in ends.items():
            members = self.clients if conversation == self.group else self.clients[:2]
            for client in members:
                await client.event("message", conversation=conversation, seq=end["seq"])
                assert client.whole(conversation), client.user
                assert not client.gaps()
                assert sorted(client.bodies(conversation)) == sorted(map(str, [*self.said[conversation], "end"]))
            assert len({tuple(client.bodies(conversation)) for client in members}) == 1

    async def drained(self, gateway: Process) -> None:
        """Terminates a gateway and waits for its end."""
        self.urls.remove(gateway.url)
        gateway.send(signal.SIGTERM)
        assert await gateway.ended() == 0, gateway.log[-2000:]


async def test_g6_drain_under_traffic_loses_nothing(start: Start) -> None:
    """After SIGTERM each client gets `drain`, reconnects to another gateway, and the process exits 0 in time."""
    crowd = Crowd(await start())
    await crowd.gather()
    stop = asyncio.Event()
    talking = asyncio.create_task(crowd.talk(stop))
    await crowd.clients[5].has(crowd.group, 50)
    await crowd.drained(crowd.system.gateways[0])
    stop.set()
    await talking
    await crowd.check()
    for i, client in enumerate(crowd.clients):
        if i % 2:
            assert not client.partings
        else:
            ((code, reason),) = client.partings
            drain = await client.event("drain")
            assert code == 1012
            assert 0 < drain["retry_after"] < 60
            assert reason == f"retry_after={drain['retry_after']:.3g}"


async def test_g6_rolling_restart_under_traffic_loses_nothing(start: Start) -> None:
    """Both gateways are replaced one after the other under traffic."""
    crowd = Crowd(await start())
    await crowd.gather()
    stop = asyncio.Event()
    talking = asyncio.create_task(crowd.talk(stop))
    for gateway in list(crowd.system.gateways):
        successor = await crowd.system.gateway().ready()
        crowd.urls.append(successor.url)
        await crowd.drained(gateway)
    stop.set()
    await talking
    await crowd.check()
    assert all(client.partings for client in crowd.clients)
    assert {code for client in crowd.clients for code, _ in client.partings} == {1012}


async def test_draining_gateway_is_not_ready_and_accepts_no_client(start: Start) -> None:
    """It tells load balancers before it closes a connection, and accepts no new one in the end."""
    system = await start(gateways=1, router=False, LINNET_DRAIN_ACCEPT_S="60")
    alice = ResilientClient("alice", system.urls)
    await alice.connect(system.urls[0])
    gateway = system.gateways[0]
    gateway.send(signal.SIGTERM)
    await unready(gateway)
    assert alice.closed is None
    late = ResilientClient("bob", system.urls)
    assert (await late.connect(system.urls[0]))["type"] == "welcome"
    gateway.send(signal.SIGTERM)
    assert (await alice.gone())[0] == 1012
    assert (await late.gone())[0] == 1012
    assert await gateway.ended() == 0


async def test_second_signal_closes_all_at_once(start: Start) -> None:
    """Every client is still notified, and the exit is clean."""
    system = await start(gateways=1, router=False, LINNET_DRAIN_ACCEPT_S="60", LINNET_DRAIN_WINDOW_S="60")
    clients = [ResilientClient(f"user-{i}", system.urls) for i in range(5)]
    for client in clients:
        await client.connect(system.urls[0])
    gateway = system.gateways[0]
    gateway.send(signal.SIGTERM)
    await unready(gateway)
    gateway.send(signal.SIGTERM)
    for client in clients:
        assert (await client.gone())[0] == 1012
        await client.event("drain")
    assert await gateway.ended(30) == 0


async def test_new_gateway_joins_only_once_the_last_one_has_drained(start: Start) -> None:
    """An orchestrator that asks /joinz drains one gateway at a time; for load balancers the new one is ready at
    once."""
    system = await start(gateways=2, router=False, LINNET_DRAIN_ACCEPT_S="60")
    first = system.gateways[0]
    await joins(first)
    first.send(signal.SIGTERM)
    await unready(first)
    successor = await system.gateway().ready()
    assert (await support.http_get(successor.admin_port, "/joinz"))[0] == 503
    first.send(signal.SIGTERM)
    assert await first.ended(30) == 0
    await joins(successor)


async def joins(gateway: Process) -> None:
    async def says_yes() -> bool:
        return (await support.http_get(gateway.admin_port, "/joinz"))[0] == 200

    await support.eventually(says_yes)


async def unready(gateway: Process) -> None:
    async def says_no() -> bool:
        return (await support.http_get(gateway.admin_port, "/readyz"))[0] == 503

    await support.eventually(says_no)
