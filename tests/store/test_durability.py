"""Durability: when an append counts as kept, at each level, with missing replicas and failovers."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import StartupError, Unavailable
from router.store import durability as module
from router.store.answers import reply_of
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.durability import Replicated, durability
from router.store.redis.client import Client
from tests import support
from tests.store.calling import Store

pytestmark = pytest.mark.usefixtures("either_loop")


class Servers:
    """A primary and one replica."""

    def __init__(self, folder: Path) -> None:
        ports = support.free_ports(2)
        self.primary, self.replica = (EmbeddedValkey(folder / str(port), port) for port in ports)
        self.replica.replica_of = ports[0]

    async def start(self) -> None:
        for server in (self.primary, self.replica):
            server.start()
        await self.linked()

    async def linked(self) -> None:
        with self.replica.client() as redis:
            await support.eventually(lambda: redis.info("replication")["master_link_status"] == "up")

    def stall(self) -> None:
        """The replica takes nothing and answers nothing from here on."""
        os.kill(self.replica.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.replica.pid, signal.SIGCONT)

    def calls(self, command: str) -> int:
        with self.primary.client() as redis:
            return int(redis.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))

    def close(self) -> None:
        self.primary.kill()
        self.replica.kill()


@pytest.fixture
def servers(starts_processes: None, tmp_path: Path) -> Iterator[Servers]:
    made = Servers(tmp_path)
    yield made
    made.close()


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """For who waits it out; everybody else is answered before, however slow the machine is."""
    monkeypatch.setattr(module, "WAIT_MS", 1000)


@asynccontextmanager
async def replicated(servers: Servers, replicas: int = 1) -> AsyncIterator[tuple[Store, Replicated]]:
    await servers.start()
    client = await Client.connect(servers.primary.url)
    kept = durability("replicated", client, replicas)
    assert isinstance(kept, Replicated)
    try:
        await kept.connect(10)
        yield Store(client, Conversations(client, 20_000), Dirty(client)), kept
    finally:
        await kept.close()
        await client.close()


async def test_memory_and_fsync_keep_at_once(valkey: EmbeddedValkey) -> None:
    """The reply was the proof; no further call is made."""
    client = await Client.connect(valkey.url)
    for level in ("memory", "fsync"):
        told: list[object] = []
        kept = durability(level, client, 1)
        await kept.connect(1)
        kept.when_kept(b"any", told.append)
        assert told == [None]
        await kept.close()
    await client.close()


async def test_kept_append_is_on_the_replica(servers: Servers) -> None:
    """At the reply the event is in the replica's log; for a first send, and for its duplicate."""
    async with replicated(servers) as (store, kept):
        group = await store.group(ann="o")
        with servers.replica.client() as redis:
            for n in range(1, 50):
                first = await store.send(group, "ann", n)
                await reply_of(kept.when_kept, first.replid)
                assert redis.xlen(keys.log(group)) == n
                again = await store.send(group, "ann", n)
                assert again.duplicate
                await reply_of(kept.when_kept, again.replid)


@pytest.mark.usefixtures("short_wait")
async def test_missing_replica_stops_acks_and_delays_no_other_call(servers: Servers) -> None:
    """`unavailable` after the wait, for a duplicate too; appends and reads go on meanwhile. Later it is kept."""
    async with replicated(servers) as (store, kept):
        group = await store.group(ann="o")
        servers.stall()
        first = await store.send(group, "ann", 1)
        began = time.monotonic()
        waiting = asyncio.ensure_future(reply_of(kept.when_kept, first.replid))
        with servers.primary.client() as redis:
            await support.eventually(lambda: redis.info("clients")["blocked_clients"] == 1 or waiting.done())
        await asyncio.gather(*(store.send(group, "ann", n) for n in range(2, 20)))
        assert not waiting.done() or time.monotonic() - began > 0.9, "the machine may be as slow as the wait"
        with pytest.raises(Unavailable):
            await waiting
        duplicate = await store.send(group, "ann", 1)
        with pytest.raises(Unavailable):
            await reply_of(kept.when_kept, duplicate.replid)
        servers.resume()
        await servers.linked()
        await reply_of(kept.when_kept, (await store.send(group, "ann", 1)).replid)


@pytest.mark.usefixtures("short_wait")
async def test_all_configured_replicas_are_required(servers: Servers) -> None:
    """One of two replicas is not enough."""
    async with replicated(servers, replicas=2) as (store, kept):
        group = await store.group(ann="o")
        with pytest.raises(Unavailable):
            await reply_of(kept.when_kept, (await store.send(group, "ann", 1)).replid)


async def test_append_of_another_server_is_not_kept(servers: Servers) -> None:
    """A failover between append and WAIT: the replicas are connected, but follow another history."""
    async with replicated(servers) as (store, kept):
        group = await store.group(ann="o")
        before = await store.send(group, "ann", 1)
        with servers.primary.client() as redis:  # demoted and promoted again: another replication id
            redis.replicaof("127.0.0.1", 1)
            redis.replicaof("NO", "ONE")
        await servers.linked()
        with pytest.raises(Unavailable):
            await reply_of(kept.when_kept, before.replid)
        after = await support.eventually(lambda: store.send(group, "ann", 1))
        assert after.duplicate
        assert after.replid != before.replid
        await reply_of(kept.when_kept, after.replid)


async def test_one_wait_decides_on_many_appends(servers: Servers) -> None:
    """All appends of one turn of the loop share a tick; later ones share the next."""
    async with replicated(servers) as (store, kept):
        replid = (await store.send(await store.group(ann="o"), "ann", 1)).replid
        told: list[object] = []
        before = servers.calls("wait")  # connecting has tried the right to WAIT
        for _ in range(500):
            kept.when_kept(replid, told.append)
        await asyncio.sleep(0)  # their tick leaves
        for _ in range(500):
            kept.when_kept(replid, told.append)
        await support.eventually(lambda: len(told) == 1000)
        assert set(told) == {None}
        assert servers.calls("wait") - before == 2


async def test_waiting_appends_are_bounded(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further one is refused soon, after the call has returned."""
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    async with replicated(servers) as (store, kept):
        replid = (await store.send(await store.group(ann="o"), "ann", 1)).replid
        told: list[object] = []
        for _ in range(4):
            kept.when_kept(replid, told.append)
        assert told == []
        await support.eventually(lambda: len(told) == 4)
        assert sorted(value is None for value in told) == [False, True, True, True]


@pytest.mark.usefixtures("short_wait")
async def test_lost_connection_keeps_no_append(servers: Servers) -> None:
    """Waiting appends are answered; a restarted primary is another history; then appends are kept again."""
    async with replicated(servers) as (store, kept):
        group = await store.group(ann="o")
        servers.stall()
        before = await store.send(group, "ann", 1)
        waiting = asyncio.ensure_future(reply_of(kept.when_kept, before.replid))
        servers.primary.kill()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await reply_of(kept.when_kept, before.replid)
        servers.resume()
        servers.primary.start()
        await servers.linked()

        async def kept_again() -> bool:
            try:
                await reply_of(kept.when_kept, (await store.send(group, "ann", 1)).replid)
            except Unavailable:
                return False
            return True

        await support.eventually(kept_again)
        with pytest.raises(Unavailable):
            await reply_of(kept.when_kept, before.replid)


async def test_server_without_the_library_keeps_no_append_until_it_is_loaded(servers: Servers) -> None:
    """The WAIT behind a tick that did not run proves nothing."""
    async with replicated(servers) as (store, kept):
        replid = (await store.send(await store.group(ann="o"), "ann", 1)).replid
        with servers.primary.client() as redis:
            redis.function_flush()
        with pytest.raises(Unavailable):
            await reply_of(kept.when_kept, replid)
        await reply_of(kept.when_kept, replid)


async def test_callback_that_raises_keeps_no_answer_from_others(servers: Servers) -> None:
    async with replicated(servers) as (store, kept):
        replid = (await store.send(await store.group(ann="o"), "ann", 1)).replid
        kept.when_kept(replid, lambda error: 1 / 0)  # type: ignore[arg-type]  # raises on purpose
        await reply_of(kept.when_kept, replid)
        await reply_of(kept.when_kept, replid)


async def test_unfit_server_stops_the_start(servers: Servers, caplog: pytest.LogCaptureFixture) -> None:
    """Without an append-only file the process does not start; with a wrong number of replicas it warns."""
    async with replicated(servers) as (store, _):
        await store.client.check_server("replicated", 1)
        assert caplog.messages == []
        await store.client.check_server("replicated", 2)
        assert "has 1 of 2 replicas" in caplog.messages[-1]
        servers.replica.kill()
        await support.eventually(lambda: servers.calls("psync") and not followers(servers.primary))
        await store.client.check_server("replicated", 1)
        assert "has 0 of 1 replicas" in caplog.messages[-1]
        servers.replica.start()
        await servers.linked()
        await support.eventually(lambda: followers(servers.primary) == 1)
        with servers.primary.client() as redis:
            redis.config_set("appendonly", "no")
        with pytest.raises(StartupError, match="appendonly yes"):
            await store.client.check_server("replicated", 1)


def followers(server: EmbeddedValkey) -> int:
    with server.client() as redis:
        return int(redis.info("replication")["connected_slaves"])
