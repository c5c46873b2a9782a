"""When an append counts as kept on a cluster: by its own server's replicas, and only if its slot is still there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import redis

from router.contract import keys
from router.contract.errors import Unavailable
from router.contract.files import SharedFile
from router.store import durability as module
from router.store.answers import reply_of
from router.store.attaching import REFUSED
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.durability import ClusterDurability, Durability, durability
from router.store.files import Files
from router.store.redis import choose
from router.store.redis.cluster_client import ClusterClient
from router.store.redis.connection import RedisArg
from router.store.redis.fitness import Level
from router.store.redis.pipeline import HotConnection, Reply
from tests import support
from tests.cluster import Cluster, Node, slot
from tests.store.calling import Store
from tests.store.test_files import attach, uploaded


@pytest.fixture(scope="module")
def cluster(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two primaries, each with a replica."""
    made = Cluster(tmp_path_factory.mktemp("cluster"), (1, 1), timeout_ms=15_000)
    support.run(made.start())
    yield made
    made.close()


@asynccontextmanager
async def store(cluster: Cluster, level: Level) -> AsyncIterator[tuple[Store, Durability]]:
    seeds = ",".join(f"127.0.0.1:{node.port}" for node in cluster.primaries)
    client = await choose.connected(f"redis+cluster://{seeds}", "cluster")
    kept = durability(level, client, 1)
    try:
        await kept.connect(10)
        yield Store(client, Conversations(client, 20_000), Dirty(client)), kept
    finally:
        await kept.close()
        await client.close()


def shard_of(cluster: Cluster, conv: str) -> int:
    ident = cluster.primaries[0].owner(slot(keys.conversation(conv)))
    return next(i for i, node in enumerate(cluster.primaries) if node.id == ident)


async def group_on(store: Store, cluster: Cluster, shard: int) -> str:
    while True:
        conv = keys.new_conversation(keys.GROUP)
        if shard_of(cluster, conv) == shard:
            assert await store.conversations.create(conv, keys.GROUP, "", {"ann": "o"}, 1, 1_000_000)
            return conv


def length_at(node: Node, conv: str) -> int:
    with redis.Redis(port=node.port, single_connection_client=True) as at_node:
        at_node.execute_command("READONLY")
        return int(at_node.execute_command("XLEN", keys.log(conv)))


async def test_kept_append_is_on_the_replica_of_its_own_server(cluster: Cluster) -> None:
    async with store(cluster, "replicated") as (store_, kept):
        for shard in (0, 1):
            conv = await group_on(store_, cluster, shard)
            sent = [await store_.send(conv, "ann", n) for n in range(1, 20)]
            await reply_of(kept.at_conversation(conv).when_kept, sent[-1].replid)
            assert length_at(cluster.replicas[shard][0], conv) == 19


async def test_missing_replica_stops_the_acks_of_its_own_server_only(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAIT_MS", 1000)
    async with store(cluster, "replicated") as (store_, kept):
        convs = [await group_on(store_, cluster, shard) for shard in (0, 1)]
        cluster.replicas[0][0].pause()
        try:
            sent = [await store_.send(conv, "ann", 1) for conv in convs]
            with pytest.raises(Unavailable):
                await reply_of(kept.at_conversation(convs[0]).when_kept, sent[0].replid)
            await reply_of(kept.at_conversation(convs[1]).when_kept, sent[1].replid)
        finally:
            cluster.replicas[0][0].resume()
        await cluster.caught_up(cluster.replicas[0][0], cluster.primaries[0])
        again = await store_.send(convs[0], "ann", 1)
        assert again.duplicate
        await reply_of(kept.at_conversation(convs[0]).when_kept, again.replid)


async def test_files_are_pinned_where_a_failover_keeps_them(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message whose pin may be lost is not to be appended, although its conversation is on another server."""
    monkeypatch.setattr(module, "WAIT_MS", 1000)
    async with store(cluster, "replicated") as (store_, kept):
        files = Files(store_.client, kept=kept.when_file_kept)
        conv, shas = await group_on(store_, cluster, 1), [await uploaded(files, "ann", str(i)) for i in range(12)]
        shards = {sha: cluster.primaries[0].owner(slot(keys.file(sha))) for sha in shas}
        here, there = (next(sha for sha in shas if shards[sha] == node.id) for node in cluster.primaries)
        cluster.replicas[0][0].pause()
        try:
            with pytest.raises(Unavailable):
                await attach(files, "ann", conv, SharedFile(there), SharedFile(here))
            assert await attach(files, "ann", conv, SharedFile(there)) != REFUSED
        finally:
            cluster.replicas[0][0].resume()
        await cluster.caught_up(cluster.replicas[0][0], cluster.primaries[0])
        assert await attach(files, "ann", conv, SharedFile(here)) != REFUSED


class _Between:
    """Lets something happen after the answer to WAIT, and before the questions behind it reach the server."""

    def __init__(self, connection: HotConnection, happen: Callable[[], None]) -> None:
        self._call = connection.call
        self._happen = happen
        self._behind: list[tuple[Sequence[RedisArg], Reply]] = []

    def call(self, command: Sequence[RedisArg], reply: Reply) -> None:
        if command[0] == "WAIT":
            self._call(command, partial(self._waited, reply))
        elif command[0] == "EXISTS":
            self._behind.append((command, reply))
        else:
            self._call(command, reply)

    def _waited(self, reply: Reply, count: object) -> None:
        self._happen()
        reply(count)
        for behind in self._behind:
            self._call(*behind)


async def test_append_whose_slot_leaves_during_the_wait_is_not_kept(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replicas that have answered are not those of the slot any more; a resend is kept where the slot is now."""
    async with store(cluster, "replicated") as (store_, kept):
        conv, stays = await group_on(store_, cluster, 0), await group_on(store_, cluster, 0)
        number = slot(keys.conversation(conv))
        while slot(keys.conversation(stays)) == number:
            stays = await group_on(store_, cluster, 0)
        source, target = cluster.primaries

        def leave() -> None:
            target.call("CLUSTER", "SETSLOT", number, "IMPORTING", source.id)
            source.call("CLUSTER", "SETSLOT", number, "MIGRATING", target.id)
            for key in source.call("CLUSTER", "GETKEYSINSLOT", number, 1000):
                source.call("MIGRATE", "127.0.0.1", target.port, "", 0, 10_000, "KEYS", key)
            for node in (target, source):
                node.call("CLUSTER", "SETSLOT", number, "NODE", target.id)

        sent, also = await store_.send(conv, "ann", 1), await store_.send(stays, "ann", 1)
        assert isinstance(kept, ClusterDurability)
        assert isinstance(store_.client, ClusterClient)
        line = store_.client.routing.owner(number)
        assert line is not None
        connection = kept.connection_at(line)
        with monkeypatch.context() as patched:
            patched.setattr(connection, "call", _Between(connection, leave).call)
            waiting = [
                asyncio.ensure_future(reply_of(kept.at_conversation(at).when_kept, append.replid))
                for at, append in ((conv, sent), (stays, also))
            ]
            await asyncio.wait(waiting)
        assert isinstance(waiting[0].exception(), Unavailable)
        assert waiting[1].exception() is None
        await cluster.agree(number, target)
        again = await store_.send(conv, "ann", 1)
        assert again.duplicate
        await reply_of(kept.at_conversation(conv).when_kept, again.replid)
        assert length_at(cluster.replicas[1][0], conv) == 1


async def test_unfit_server_refuses_only_its_own_sends(cluster: Cluster) -> None:
    async with store(cluster, "memory") as (store_, kept):
        store_.client.fitness.watch("memory")
        convs = [await group_on(store_, cluster, shard) for shard in (0, 1)]
        cluster.primaries[0].call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            await support.eventually(lambda: "would evict" in store_.client.trouble)
            for conv, fine in zip(convs, (False, True), strict=True):
                at = kept.at_conversation(conv)
                replid = (await store_.send(conv, "ann", 1)).replid
                if fine:
                    at.require_fit()
                    await reply_of(at.when_kept, replid)
                else:
                    with pytest.raises(Unavailable):
                        at.require_fit()
                    with pytest.raises(Unavailable):
                        await reply_of(at.when_kept, replid)
        finally:
            cluster.primaries[0].call("CONFIG", "SET", "maxmemory-policy", "noeviction")
