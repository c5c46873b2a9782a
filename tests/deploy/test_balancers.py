"""Chat through HAProxy, nginx and Envoy as configured in deploy/: even, over TLS, undisturbed by drains
and kills of gateways.

The tests take a minute and need programs that a checkout does not have, so they run only in `make deploy-check`."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests import support
from tests.deploy.balancing import COMMANDS, Site, program
from tests.flow.client import ChatClient, token
from tests.flow.resilient import ResilientClient

pytestmark = [
    pytest.mark.processes,
    pytest.mark.alone,
    pytest.mark.skipif("DEPLOY_CHECK" not in os.environ, reason="part of make deploy-check"),
]


@pytest.fixture(params=list(COMMANDS))
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    if program(request.param) is None:
        pytest.skip(f"no {request.param} here")
    limits = {"LINNET_MAX_CONNECTIONS_PER_ADDRESS": "2"} if "address" in request.node.name else {}
    media = {"LINNET_MEDIA_URL": (tmp_path / "media").as_uri()} if "upload" in request.node.name else {}
    made = Site(tmp_path, request.param, **limits, **media)
    yield made
    made.close()


async def test_connections_are_spread_evenly(site: Site) -> None:
    """Least connections: of thirty clients each gateway gets ten, except for simultaneous connects."""
    async with site.serving():
        for number in range(30):
            await ChatClient(f"user-{number}").connect(site.url)
        counts = await site.counts()
        assert sum(counts) == 30
        assert max(counts) - min(counts) <= 6, counts


async def test_tls_ends_at_the_balancer(site: Site) -> None:
    """Two users chat over wss://, and the client checks the certificate."""
    trust = ssl.create_default_context(cafile=str(site.certificate))
    async with site.serving():
        alice, bob = ChatClient("alice"), ChatClient("bob", codec="msgpack")
        for client in (alice, bob):
            await client.open(site.secure_url, ssl=trust)
            await client.hello()
        ack = await alice.sent("@bob", "over TLS")
        event = await bob.event("message", conversation=ack["conversation"])
        assert event["body"] == "over TLS"


async def test_upload_passes_as_it_comes(site: Site) -> None:
    """It is larger than nginx takes by default, and its first bytes are at the router before the last ones are sent."""
    headers = {"Authorization": f"Bearer {token('alice')}", "Tus-Resumable": "1.0.0"}
    size, hold = 3_000_000, asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(size // 2)
        await hold.wait()
        yield bytes(size // 2)

    async with (
        site.serving(),
        httpx.AsyncClient(base_url=f"http://{site.front}:8000", headers=headers, timeout=30, trust_env=False) as http,
    ):
        where = (await http.post("/v1/uploads/tus", headers={"Upload-Length": str(size)})).headers["location"]
        more = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream", "Content-Length": str(size)}
        sending = asyncio.create_task(http.patch(where, headers=more, content=slow()))

        async def writes() -> bool:
            """Whether the router has begun to write: another request is refused then."""
            return (await http.patch(where, headers={**more, "Content-Length": "0"})).status_code == 423

        await support.eventually(writes)
        hold.set()
        assert (await sending).status_code == 204


async def test_clients_address_is_known_behind_it(site: Site) -> None:
    """Limits by address count clients, not the balancer; an address that a client claims has no effect."""
    claim = {"X-Forwarded-For": "203.0.113.7"}
    async with site.serving():
        statuses = []
        for number in range(9):  # three gateways, two each
            client = ChatClient("alice", device=f"device-{number}")
            try:
                await client.open(site.url, local_addr=(f"{site.network}.200", 0), additional_headers=claim)
            except InvalidStatus as answer:
                statuses.append(answer.response.status_code)
        assert len(statuses) >= 3
        assert set(statuses) == {429}
        other = ChatClient("bob")
        await other.open(site.url, local_addr=(f"{site.network}.201", 0), additional_headers=claim)
        assert (await other.hello())["type"] == "welcome"


class Pair:
    """Two users who send until told to stop, and then compare what they received."""

    def __init__(self, url: str, number: int) -> None:
        self.clients = [ResilientClient(f"{name}-{number}", [url]) for name in ("ann", "ben")]
        self.said: list[str] = []
        self.conversation = ""

    async def talk(self, stop: asyncio.Event) -> None:
        for client in self.clients:
            await client.stay()
        ann, ben = self.clients
        count = 0
        while not stop.is_set() or count < 50:
            ack = await ann.deliver(f"@{ben.user}", f"message {count}")
            self.conversation = ack["conversation"]
            self.said.append(f"message {count}")
            count += 1

    async def check(self) -> None:
        last = await self.clients[0].deliver(f"@{self.clients[1].user}", "end")
        for client in self.clients:
            await client.event("message", conversation=self.conversation, seq=last["seq"])
            assert client.whole(self.conversation)
            assert not client.gaps()
        assert sorted(self.clients[1].bodies(self.conversation)) == sorted([*self.said, "end"])


async def talk_while(site: Site, happens: asyncio.Task[None]) -> None:
    stop = asyncio.Event()
    pairs = [Pair(site.url, number) for number in range(6)]
    talking = [asyncio.create_task(pair.talk(stop)) for pair in pairs]
    await happens
    stop.set()
    await asyncio.gather(*talking)
    for pair in pairs:
        await pair.check()


async def test_gateway_drains_under_traffic(site: Site) -> None:
    """SIGTERM: the gateway gets no new clients, its clients move, no message is lost, and another gateway replaces
    it."""

    async def drain() -> None:
        await support.eventually(site.gateways[0].connections)
        site.gateways[0].send(signal.SIGTERM)
        assert await site.gateways[0].ended() == 0
        site.table["gateway"].remove(site.gateways[0].host)
        if site.balancer != "nginx":  # it looks names up once
            site.gateways.append(await site.place("gateway").ready())

    async with site.serving():
        await talk_while(site, asyncio.create_task(drain()))
        counts = await site.counts()
        assert sum(counts) >= 12
        if site.balancer != "nginx":
            newest = site.gateways[-1]

            async def found() -> bool:
                await ChatClient("late").connect(site.url)
                return await newest.connections() > 0

            await support.eventually(found, every_s=0.1)


async def test_gateway_is_killed_under_traffic(site: Site) -> None:
    """SIGKILL: its clients reconnect through the same address and reach the other gateways."""

    async def kill() -> None:
        await support.eventually(site.gateways[0].connections)
        site.gateways[0].kill()

    async with site.serving():
        await talk_while(site, asyncio.create_task(kill()))
        assert sum(await site.counts()) >= 12
