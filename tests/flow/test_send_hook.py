"""The pre-send hook with real processes: gateways and router ask it, and it is killed under traffic."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.flow.client import ChatClient
from tests.flow.conftest import Start
from tests.flow.hook_process import HookProcess
from tests.flow.resilient import ResilientClient
from tests.process.hook_server import SECRET


@asynccontextmanager
async def hooking() -> AsyncIterator[HookProcess]:
    hook = HookProcess()
    await hook.start()
    try:
        yield hook
    finally:
        hook.kill()


def checked(body: str) -> str:
    return body.replace("rude", "****")


@pytest.mark.parametrize("policy", ["accept", "reject"])
async def test_hook_killed_under_traffic_keeps_policy_order_and_exactly_once(start: Start, policy: str) -> None:
    """All that was acked is there once, for everybody in one order. With `reject` nothing passes unchecked; with
    `accept` it does while the hook is dead. What was acked is acked again."""
    async with hooking() as hook:
        system = await start(
            LINNET_SEND_HOOK_URL=hook.url,
            LINNET_SEND_HOOK_SECRET=SECRET,
            LINNET_SEND_HOOK_TIMEOUT_MS="5000",
            LINNET_SEND_HOOK_ON_FAILURE=policy,
        )
        group = await system.group("ann", "ben", "cem")
        codecs = {"ann": "json", "ben": "msgpack", "cem": "json"}
        clients = [ResilientClient(user, system.urls, codec=codec) for user, codec in codecs.items()]
        ann = clients[0]
        for i, client in enumerate(clients):
            await client.stay(i)
        said: list[str] = ["rude first"]
        n = ann.next_n()
        first = await ann.sent(group, "rude first", n=n)
        assert (await ann.send(group, "banned words"))["code"] == "rejected"
        direct = (await ann.sent("@ben", "rude direct"))["conversation"]
        assert await clients[1].has(direct, 1) == ["**** direct"]
        stop = asyncio.Event()

        async def talk(client: ResilientClient) -> None:
            for i in itertools.count():
                if stop.is_set():
                    return
                body = f"{'rude' if i % 3 == 0 else 'kind'} {client.user} {i}"
                await client.deliver(group, body)
                said.append(body)

        talking = asyncio.gather(*map(talk, clients))
        await ann.more(30)
        hook.kill()
        again = await ann.sent(group, "rude first", n=n)
        assert (again["seq"], again["duplicate"]) == (first["seq"], True)
        if policy == "accept":
            await ann.sent(group, "rude while it is dead")
            said.append("rude while it is dead")
            await ann.more(30)
        else:
            refused = await ann.send(group, "kind while it is dead")
            assert (refused["code"], refused["retry_after"] > 0) == ("unavailable", True)
        await hook.start()
        await ann.more(30)
        stop.set()
        await talking
        end = await ann.deliver(group, "end")
        for client in clients:
            await client.reaches({group: end["seq"]})
            assert client.whole(group)
            assert client.bodies(group) == ann.bodies(group)
        bodies = Counter(ann.bodies(group))
        assert Counter(map(checked, bodies.elements())) == Counter([*map(checked, said), "end"])
        unchecked = [body for body in bodies if "rude" in body]
        assert ("rude while it is dead" in unchecked) if policy == "accept" else unchecked == []


async def test_api_asks_about_users_and_not_about_backends(start: Start) -> None:
    """The API asks about users, not about backends."""
    async with hooking() as hook:
        system = await start(1, LINNET_SEND_HOOK_URL=hook.url, LINNET_SEND_HOOK_SECRET=SECRET)
        group = await system.group("ann", "ben")
        ben = ChatClient("ben")
        await ben.connect(system.urls[0])
        await system.api("POST", "/v1/messages", {"to": group, "body": "rude by HTTP"}, user="ann")
        assert await ben.has(group, 1) == ["**** by HTTP"]
        await system.api("POST", "/v1/messages", {"to": group, "body": "rude by a backend", "from": "ann"})
        assert (await ben.has(group, 2))[1] == "rude by a backend"
