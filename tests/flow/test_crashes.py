"""G1, acked means kept: the router, Valkey and gateways are killed under traffic, and all devices still agree."""

from __future__ import annotations

import asyncio
import itertools
import signal

from tests import support
from tests.flow.client import ChatClient
from tests.flow.conftest import Start
from tests.flow.resilient import ResilientClient
from tests.store.conftest import proxied


async def test_chat_goes_on_without_a_router(start: Start) -> None:
    """The router is killed: messages are still delivered; work that a gateway left undone is done by the next
    router."""
    system = await start()
    group = await system.group("ann", "ben")
    ann, ben = ChatClient("ann"), ChatClient("ben", codec="msgpack")
    async with proxied(system.valkey.url) as proxy:
        doomed = await system.gateway(LINNET_REDIS_URL=proxy.url).ready()
        await ann.connect(doomed.url)
        await ben.connect(system.urls[0])
        direct = (await ann.sent("@ben", "before"))["conversation"]
        assert system.router is not None
        system.router.kill()
        for i in range(20):
            await ann.sent(group, i)
            await ben.sent(direct, i)
        assert await ben.has(group, 20) == list(range(20))
        proxy.swallow = True
        await ann.say("send", to="@ben", n=ann.next_n(), body="orphan")
        with system.valkey.client() as redis:
            key = next(redis.scan_iter(match=f"*:log:{direct}"))
            await support.eventually(lambda: redis.xlen(key) == 22)
        doomed.kill()
    assert await ben.has(direct, 22) == ["before", *range(20), "orphan"]
    assert ben.whole(direct)
    waiting = system.unfinished()
    assert waiting
    system.router = await system.start("router").ready()
    await support.eventually(lambda: not waiting & system.unfinished())


async def test_g1_valkey_killed_and_restarted_loses_nothing_acked(start: Start) -> None:
    """After `kill -9` of Valkey sockets stay open and get `unavailable`; after its restart all acked events are
    there."""
    system = await start()
    group = await system.group("ann", "ben", "cem")
    clients = [ResilientClient(user, system.urls) for user in ("ann", "ben", "cem")]
    ann, ben, cem = clients
    for i, client in enumerate(clients):
        await client.stay(i)
    direct = (await ann.deliver("@ben", "hi"))["conversation"]
    acked: dict[str, list[str]] = {group: [], direct: []}
    stop = asyncio.Event()

    async def talk(client: ResilientClient, conversation: str) -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            body = f"{client.user} {i}"
            await client.deliver(conversation, body)
            acked[conversation].append(body)

    talking = asyncio.gather(talk(ann, direct), talk(ben, group), talk(cem, group), talk(ann, group))
    for _ in range(2):
        await ann.more(100)
        system.valkey.kill()
        answer = await cem.send(group, "nobody hears this yet", n=cem.next_n())
        assert (answer["type"], answer.get("code")) == ("error", "unavailable")
        assert answer["retry_after"] > 0
        assert (await ann.ask("ping"))["type"] == "pong"
        system.valkey.start()
    await ann.more(100)
    stop.set()
    await talking
    ends = {group: (await ben.deliver(group, "end"))["seq"], direct: (await ben.deliver(direct, "end"))["seq"]}
    for client in clients:
        mine = {name: seq for name, seq in ends.items() if name == group or client is not cem}
        await client.reaches(mine)
        for conversation in mine:
            bodies = client.bodies(conversation)
            assert set(acked[conversation]) <= set(bodies)
            assert client.in_order(conversation)
            sends = [(event["from"], event["n"]) for event in client.received[conversation].values()]
            assert len(set(sends)) == len(sends), "nothing twice"
        assert not client.partings, "no socket was closed"
    assert ann.bodies(group) == ben.bodies(group) == cem.bodies(group)
    assert ann.bodies(direct) == ben.bodies(direct)
    late = ChatClient("ann", "tablet", codec="msgpack")
    await late.connect(system.urls[0])
    await late.reaches(ends)
    tail = late.bodies(group)
    assert tail == ann.bodies(group)[-len(tail) :]


async def test_gateway_that_stalls_repairs_its_sessions(start: Start) -> None:
    """It is stopped for longer than its subscription lives, and repairs the missed events when it goes on."""
    system = await start(LINNET_HEARTBEAT_S="30")
    group = await system.group("ann", "ben")
    ann, ben = ChatClient("ann"), ChatClient("ben")
    await ann.connect(system.urls[0])
    await ben.connect(system.urls[1])
    direct = (await ann.sent("@ben", "before"))["conversation"]
    await ann.sent(group, "before")
    await ben.has(group, 1)
    await ben.has(direct, 1)
    stalled = system.gateways[1]
    stalled.send(signal.SIGSTOP)
    with system.valkey.client() as redis:
        for i in range(50):
            await ann.sent(group, i)
            await ann.sent(direct, i)
        await support.eventually(lambda: redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))
        await ann.sent(group, "unheard")
        await ann.sent(direct, "unheard")
    stalled.send(signal.SIGCONT)
    for talk in (group, direct):
        assert await ben.has(talk, 52) == ["before", *range(50), "unheard"]
    assert await system.metric('linnet_gateway_repairs_total{cause="resubscribe"}', stalled) >= 2
    for talk in (group, direct):
        await ann.sent(talk, "after")
        await ben.has(talk, 53)
        assert ben.whole(talk)
    assert ben.duplicates == 0
    assert ben.closed is None


async def test_g1_gateways_killed_under_traffic_lose_nothing_acked(start: Start) -> None:
    """Gateways are killed one after the other under traffic: clients resend, and no event is lost or doubled."""
    system = await start()
    urls = list(system.urls)
    group = await system.group("ann", "ben", "cem")
    codecs = {"ann": "json", "ben": "msgpack", "cem": "json"}
    clients = [ResilientClient(user, urls, codec=codec) for user, codec in codecs.items()]
    for i, client in enumerate(clients):
        await client.stay(i)
    said: list[str] = []
    stop = asyncio.Event()

    async def talk(client: ResilientClient) -> None:
        for i in itertools.count():
            if stop.is_set():
                return
            await client.deliver(group, f"{client.user} {i}")
            said.append(f"{client.user} {i}")

    talking = asyncio.gather(*map(talk, clients))
    for gateway in system.gateways:
        successor = await system.gateway().ready()
        await clients[0].more(50)
        urls.append(successor.url)
        urls.remove(gateway.url)
        gateway.kill()
    await clients[0].more(50)
    stop.set()
    await talking
    end = await clients[0].deliver(group, "end")
    for client in clients:
        await client.reaches({group: end["seq"]})
        assert client.whole(group)
        assert sorted(client.bodies(group)) == sorted([*said, "end"])
        assert client.partings
        assert not client.gaps()


async def test_clients_that_connect_during_a_redis_outage_get_in_afterwards(start: Start) -> None:
    """They wait, or get `unavailable` and retry: at the end all are connected and have all events."""
    system = await start()
    group = await system.group("ann", "ben")
    ann, ben = ChatClient("ann"), ResilientClient("ben", system.urls)
    await ann.connect(system.urls[0])
    await ann.sent(group, "before")
    system.valkey.kill()
    staying = asyncio.create_task(ben.stay())
    assert (await ann.send(group, "lost"))["code"] == "unavailable"
    await ann.ask("ping")
    system.valkey.start()
    await staying
    await support.eventually(lambda: sent_again(ann, group))
    await ben.has(group, 2)
    assert ben.bodies(group) == ["before", "after"]
    assert {code for code, _ in ben.partings} <= {4000}


async def sent_again(client: ChatClient, group: str) -> bool:
    return bool((await client.send(group, "after"))["type"] == "ack")
