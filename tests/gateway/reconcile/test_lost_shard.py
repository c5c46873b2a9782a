"""One server of a real cluster is gone, with all that is in its slots: sessions go on with everything else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

import pytest

from router.contract import keys
from router.contract.errors import Unavailable
from router.store.appends import Appended
from router.store.redis import choose
from tests import support
from tests.cluster import Cluster, slot
from tests.gateway.reconcile.test_held import entry, returned
from tests.gateway.world import World, serving, token

# A server that is slow is not dead: if one of the two that live took the other for dead, it would refuse all calls.
NODE_TIMEOUT_MS: Final = 60_000

_numbers = count()


@pytest.fixture(scope="module")
def cluster(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries without replicas."""
    made = Cluster(tmp_path_factory.mktemp("cluster"), (0, 0, 0), timeout_ms=NODE_TIMEOUT_MS)
    support.run(made.start())
    yield made
    made.close()


@asynccontextmanager
async def gateway(cluster: Cluster) -> AsyncIterator[World]:
    where = cluster.url
    async with serving(await choose.connected(where, "cluster"), durability="memory") as of:
        yield of


def at(number: int, key_of: Callable[[str], str], make: Callable[[], str]) -> str:
    """A name whose key is at this one of the three primaries, which have a third of the slots each."""
    while slot(key_of(name := make())) * 3 // 16384 != number:
        pass
    return name


def user_at(number: int) -> str:
    return at(number, keys.user, lambda: f"user-{next(_numbers)}")


async def group_at(of: World, number: int, *users: str) -> str:
    conv = at(number, keys.conversation, lambda: keys.new_conversation(keys.GROUP))
    return await of.group(*users, conv=conv)


async def say_when_back(of: World, user: str, conv: str, body: str) -> Appended:
    """Say it as soon as this gateway knows that the server is back, which another one may know before."""

    async def accepted() -> Appended:
        try:
            return await of.say(user, conv, body)
        except Unavailable as error:
            raise AssertionError("the server is not back for this gateway") from error

    return await support.eventually(accepted)


async def test_lost_server_costs_its_own_conversations_and_users_alone(cluster: Cluster) -> None:
    lost_server = cluster.primaries[2]
    ann, bob, far = user_at(0), user_at(1), user_at(2)
    async with gateway(cluster) as of:
        lost, kept = await group_at(of, 2, ann, bob), await group_at(of, 1, ann, bob)
        await of.people(far)
        here = await of.client(ann).connected()
        await (await of.client(bob).connected()).ask("ping", "pong")
        said = await of.say(ann, lost, "before")
        await here.event("message", seq=said.seq)
        lost_server.kill()
        await support.eventually(lambda: not of.node.bus.reaches(of.redis.channels.conversation(lost)))

        async with gateway(cluster) as fresh:  # a gateway that starts meanwhile
            for place in (of, fresh):
                session = await place.client(bob, "tablet").connected()
                assert (entry(session, lost)["held"], entry(session, kept).get("held")) == (True, None)
                acked = await here.ask("send", "ack", to=kept, n=next(_numbers) + 1, media="text", body=place.node.name)
                await session.event("message", conversation=kept, seq=acked["seq"])
                assert (await session.ask("history", "error", conversation=lost, before=0))["code"] == "unavailable"
                seen = await session.ask("presence", "presence", users=[far, ann])
                assert seen["users"][far]["online"] is None
                refused = place.client(far)
                refused.say("hello", id=1, token=token(place.node, far), device="phone")
                assert (await refused.event("error", id=1))["code"] == "unavailable"
                assert (await refused.closed())[0] == 4000
                if place is of:
                    session.end()

            lost_server.spawn()
            lost_server.wait_ready()
            assert "cursor" in await returned(session, lost)
            await session.event("message", conversation=lost, body="before")
            after = await say_when_back(of, ann, lost, "after")
            for client in (here, session):
                await client.event("message", seq=after.seq)
                assert client.bodies(lost) == ["before", "after"]
            await fresh.client(far).connected()
