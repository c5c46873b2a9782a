"""router/jobs/upgrades.py: users' rows of format 2 are written once every gateway and router reads them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.load import Load
from router.contract.settings import Settings
from router.jobs.upgrades import SETTLED_S, Upgrades
from router.store.answers import reply_of
from router.store.deployment import RowFormats, deployment_check
from router.store.presence import LEASE_S
from tests.router.world import World, world


class Dial:
    """Routers of a deployment of this format, on a clock that a test turns."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.now = 100.0
        self.routers = [
            Upgrades(RowFormats(w.client), w.presence, f"router-{i}", Load, lambda: self.now) for i in range(2)
        ]

    async def steps(self, seconds: float) -> None:
        """Let this much time pass between two steps of each router."""
        for router in self.routers:
            await router.step()
        self.now += seconds
        for router in self.routers:
            await router.step()

    async def lease(self, hash_name: str, node: str, *row: object) -> None:
        """A lease as an earlier release writes it: it does not say which rows it reads."""
        until = await self.w.presence.clock_ms() + LEASE_S * 1000
        fields = ("ws://old", until, 0, 0, False) if hash_name == keys.GATEWAYS else (until, *row)
        await self.w.client.fetch("HSET", hash_name, node, msgspec.msgpack.encode(fields))

    async def format(self) -> str:
        found: bytes = await self.w.client.fetch("HGET", keys.DEPLOYMENT, "format")
        return found.decode()


@asynccontextmanager
async def dial(valkey: EmbeddedValkey, form: str) -> AsyncIterator[Dial]:
    async with world(valkey) as w:
        await deployment_check(w.client, Settings(jwt_secret="a" * 32))
        await w.client.fetch("HSET", keys.DEPLOYMENT, "format", form)
        yield Dial(w)


async def written(w: World) -> bytes:
    """The first byte of a row that is written now."""
    direct = await w.direct("ann", "bob")
    await w.say("ann", direct)
    row: bytes = await w.client.fetch("HGET", keys.convs("bob"), direct)
    return row[:1]


@pytest.mark.parametrize(
    ("hash_name", "row"), [(keys.GATEWAYS, ()), (keys.ROUTERS, (keys.ROWS_1,)), (keys.ROUTERS, ())]
)
async def test_format_1_is_written_while_one_process_reads_no_other(
    valkey: EmbeddedValkey, hash_name: str, row: tuple[int, ...]
) -> None:
    """A gateway or router whose lease does not say that it reads format 2. Once its lease has ended, and a while after,
    format 2 is written."""
    async with dial(valkey, keys.READING) as d:
        await reply_of(d.w.presence.renew, "new", "ws://new", 0, 0, await d.w.presence.clock_ms())
        await d.lease(hash_name, "old", *row)
        await d.steps(10 * SETTLED_S)
        assert (await d.format(), await written(d.w)) == (keys.READING, b"d")
        await d.w.client.fetch("HDEL", hash_name, "old")
        await d.steps(SETTLED_S - 1)
        assert (await d.format(), await written(d.w)) == (keys.READING, b"d")
        await d.steps(2)
        assert (await d.format(), await written(d.w)) == (keys.ROWS, b"\x02")


async def test_older_process_that_starts_late_begins_the_wait_anew(valkey: EmbeddedValkey) -> None:
    """It read the deployment just before that moved, and wrote its lease just after."""
    async with dial(valkey, keys.READING) as d:
        await d.steps(SETTLED_S - 1)
        await d.lease(keys.GATEWAYS, "old")
        await d.steps(SETTLED_S)
        await d.w.client.fetch("HDEL", keys.GATEWAYS, "old")
        await d.steps(SETTLED_S - 1)
        assert await d.format() == keys.READING


@pytest.mark.parametrize("form", [keys.PLAIN, keys.MOVING, keys.OWN])
async def test_format_that_an_operator_has_not_moved_stays(valkey: EmbeddedValkey, form: str) -> None:
    """Routers of an earlier release have no lease, so only an operator knows that there are none."""
    async with dial(valkey, form) as d:
        await d.steps(10 * SETTLED_S)
        assert (await d.format(), await written(d.w)) == (form, b"d")


async def test_new_deployment_writes_format_2_and_a_lost_hash_changes_nothing(valkey: EmbeddedValkey) -> None:
    async with dial(valkey, keys.NEWEST) as d:
        await d.steps(1)
        assert await written(d.w) == b"\x02"
        await d.w.client.fetch("DEL", keys.DEPLOYMENT)
        await d.steps(1)
        assert await written(d.w) == b"\x02"


async def test_ended_leases_of_routers_do_not_count_and_are_removed(valkey: EmbeddedValkey) -> None:
    async with dial(valkey, keys.READING) as d:
        now = await d.w.presence.clock_ms()
        for node, until in (("just", now - 1), ("long", now - 3_600_000), ("ahead", now + 3_600_000)):
            await d.w.client.fetch("HSET", keys.ROUTERS, node, msgspec.msgpack.encode((until, keys.ROWS_1)))
        await d.steps(SETTLED_S)
        assert await d.format() == keys.ROWS
        left = {node.decode() for node in await d.w.client.fetch("HKEYS", keys.ROUTERS)}
        assert left == {"just", "router-0", "router-1"}
