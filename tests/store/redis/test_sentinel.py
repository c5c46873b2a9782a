"""Sentinels: finding the primary, and leaving a server that is no longer the primary."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract.errors import StartupError, Unavailable
from router.store.redis.client import Client
from router.store.redis.connection import Link, address
from router.store.redis.pubsub import Bus
from router.store.redis.sentinel import Sentinels
from tests import support
from tests.replication import DEMOTION, Replication
from tests.store.conftest import LIBRARY


@pytest.fixture
def replication(starts_processes: None, tmp_path: Path) -> Iterator[Replication]:
    made = Replication(tmp_path, replicas=1)
    yield made
    made.close()


class Pair:
    """A client and a bus, as a gateway has them, and the callbacks of the bus."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.heard: list[bytes] = []
        self.restored = 0
        self.bus = Bus(client, "echo", self._take, lambda: None, self._restored, lambda channel: None)

    def _take(self, messages: list[tuple[bytes, bytes]]) -> None:
        self.heard += [payload for _, payload in messages]

    def _restored(self) -> None:
        self.restored += 1

    async def subscribed(self, channel: str) -> None:
        ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.bus.subscribe([channel], ready.set_result)
        assert await ready

    async def hears(self, payload: bytes, server: EmbeddedValkey) -> None:
        """Wait until messages published on this server arrive and writes go to it."""
        await support.eventually(lambda: self.bus.restored and self.client.available)
        with server.client() as redis:
            redis.execute_command("SPUBLISH", "channel", payload)
            await support.eventually(lambda: payload in self.heard)
            await self.client.fcall("push", ("list",), (payload,))
            assert redis.lrange("list", 0, -1)[-1] == payload


@asynccontextmanager
async def pair(url: str) -> AsyncIterator[Pair]:
    client = await Client.connect(url, "sentinel", library=LIBRARY)
    made = Pair(client)
    try:
        await made.bus.connect(10)
        await made.subscribed("channel")
        yield made
    finally:
        await made.bus.close()
        await client.close()


async def test_all_connections_follow_a_failover(replication: Replication, caplog: pytest.LogCaptureFixture) -> None:
    """After a kill of the primary all calls and subscriptions are on the promoted replica, later on the other one.
    The log names each failover by its epoch and the server that was left."""
    caplog.set_level(logging.INFO, "linnet.redis")
    await replication.start()
    first = replication.primary
    async with pair(replication.url) as linnet:
        await linnet.hears(b"one", first)
        first.kill()
        second = await replication.replaced(first)
        await support.eventually(lambda: linnet.restored == 1)
        await linnet.hears(b"two", second)
        await replication.rejoin(first)
        second.kill()
        assert await replication.replaced(second) is first
        await support.eventually(lambda: linnet.restored == 2)
        await linnet.hears(b"three", first)
        found = [vars(record).get("fields", {}) for record in caplog.records]
        found = [fields for fields in found if fields.get("event") == "redis_found" and "failover_from" in fields]
        assert {fields["connection"] for fields in found} == {"commands", "bus"}
        epochs = [fields["epoch"] for fields in found if fields["connection"] == "bus"]
        assert 0 < epochs[0] < epochs[-1]


async def test_cut_off_primary_that_answers_is_left(replication: Replication) -> None:
    """It was replaced without noticing, and still serves its connections: both leave it by themselves."""
    await replication.start()
    first = replication.primary
    async with pair(replication.url) as linnet:
        await linnet.hears(b"one", first)
        replication.forbid(first, *DEMOTION)
        with replication.sentinels[0].client() as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", "main")
        second = await replication.replaced(first)
        await support.eventually(lambda: linnet.restored == 1)
        await linnet.hears(b"two", second)
        with first.client() as redis:
            assert redis.info("replication")["role"] == "master"
            assert not [other for other in redis.client_list("pubsub") if other["ssub"] != "0"]


async def test_server_that_refuses_writes_is_left(own_valkey: EmbeddedValkey) -> None:
    """A primary becomes a replica under an open connection: the call is `Unavailable` and the connection is dropped."""
    client = await Client.connect(own_valkey.url, library=LIBRARY)
    try:
        with own_valkey.client() as redis:
            redis.replicaof("127.0.0.1", 1)
            with pytest.raises(Unavailable):
                await client.fcall("push", ("list",), ("x",))
            await support.eventually(lambda: client.statistics().hot.reconnects == 1)
            redis.replicaof("NO", "ONE")
        await support.eventually(lambda: client.available)
        assert await client.fcall("push", ("list",), ("x",)) == 1
    finally:
        await client.close()


async def test_replica_is_not_accepted_as_the_primary(
    replication: Replication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sentinels answer, the server itself must answer that it is a primary."""
    await replication.start()
    port = replication.port(replication.servers[1])

    async def wrong(*_: object) -> tuple[int, str, int]:
        return 1, "127.0.0.1", port

    monkeypatch.setattr(Sentinels, "_query", wrong)
    with pytest.raises(StartupError, match=f"127.0.0.1:{port} cannot be reached: it is a replica"):
        await Client.connect(replication.url, "sentinel", within_s=3, library=LIBRARY)


async def test_answer_with_the_highest_epoch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead sentinels do not count; if none answers, the query fails."""
    answers: list[tuple[int, str, int] | None] = [(4, "old", 1), None, (5, "new", 2), (4, "old", 1)]

    async def ask(*_: object) -> tuple[int, str, int] | None:
        return answers.pop(0)

    monkeypatch.setattr(Sentinels, "_query", ask)
    sentinels = Sentinels("redis+sentinel://a,b,c,d/main/3")
    assert str(sentinels.address) == "main"
    where = await sentinels.primary()
    assert str(where) == str(sentinels.address) == "new:2"
    assert where.greeting == (("SELECT", "3"), ("PING",), ("ROLE",))
    answers += [None] * 4
    with pytest.raises(ConnectionError, match="none of the sentinels a, b, c, d knows the address of main"):
        await sentinels.primary()
    await sentinels.close()


async def test_query_without_any_answer_stops_the_start() -> None:
    (port,) = support.free_ports(1)
    with pytest.raises(StartupError, match=f"main cannot be reached: none of the sentinels 127.0.0.1:{port}"):
        await Client.connect(f"redis+sentinel://:secret@127.0.0.1:{port}/main", "sentinel", within_s=2)


async def test_unknown_name_and_wrong_password_count_as_no_answer(own_valkey: EmbeddedValkey) -> None:
    """So does a server that is no sentinel."""
    host = own_valkey.url.removeprefix("redis://").removesuffix("/0")
    for options in ("", "?sentinel_password=x"):
        sentinels = Sentinels(f"redis+sentinel://{host}/main{options}")
        with pytest.raises(ConnectionError):
            await sentinels.primary()
        await sentinels.close()


@pytest.mark.parametrize(
    "url",
    ["redis://h:1/0", "redis+sentinel://h", "redis+sentinel:///m", "redis+sentinel://:sec@h:1,/m",
     "redis+sentinel://:sec@[::1:3/m", "redis+sentinel://h/m/x", "rediss+sentinel://h/m?ssl_ca_certs=/no"],
)  # fmt: skip
async def test_url_without_sentinels_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(StartupError, match="LINNET_REDIS_URL") as error:
        await Client.connect(url, "sentinel")
    assert "sec@" not in str(error.value)
    assert "\n" not in str(error.value)


def test_address_is_the_topology_of_one_server() -> None:
    async def main() -> None:
        where = address("redis://h:1")
        assert Link(where).address is await where.primary() is where

    support.run(main())
