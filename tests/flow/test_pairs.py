"""A change between two users is made whole wherever its router dies: both users agree with the record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final

import httpx

from router.store.answers import reply_of
from router.store.pairs import Pairs
from router.store.redis.client import Client
from router.store.redis.connection import address
from tests import support
from tests.flow.client import token
from tests.flow.conftest import Start, System
from tests.support import Process

WRITES: Final = range(3, 9)  # of a call, to Redis: the first ones read, and the last ones are the copies


class Executioner:
    """Stands between a router and Redis, and kills the router with the write that follows so many about one user."""

    def __init__(self, url: str, user: str, writes: int) -> None:
        self._server = address(url)
        self._user = user.encode()
        self._left = writes
        self._tasks: set[asyncio.Task[None]] = set()
        self.armed = False
        self.url = ""
        self.victim: Process | None = None

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis, to_redis = await asyncio.open_connection(self._server.host, self._server.port)
        try:
            await asyncio.gather(self._pass(reader, to_redis, True), self._pass(redis, writer, False))
        finally:
            to_redis.transport.abort()
            writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counts: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if counts and self.armed and self._user in data:
                    if self._left == 0 and self.victim is not None:
                        self.victim.kill()
                        return
                    self._left -= 1
                writer.write(data)
        writer.close()


@asynccontextmanager
async def executing(system: System, user: str, writes: int) -> AsyncIterator[Executioner]:
    one = Executioner(system.valkey.url, user, writes)
    server = await asyncio.start_server(one.connected, "127.0.0.1", 0)
    one.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    one.victim = system.start("router", LINNET_REDIS_URL=one.url)
    try:
        yield one
    finally:
        server.close()
        await one.close()


async def test_block_agrees_with_the_record_wherever_its_router_is_killed(start: Start) -> None:
    """Ann and Bob are contacts, and Ann blocks Bob; the router dies between two steps. Another one makes the rest."""
    system = await start(gateways=0)
    pairs = {writes: (f"ann-{writes}", f"bob-{writes}") for writes in WRITES}
    async with AsyncExitStack() as stack:
        doomed = {
            writes: await stack.enter_async_context(executing(system, ann, writes))
            for writes, (ann, _) in pairs.items()
        }
        await system.ready()
        for ann, bob in pairs.values():
            for user in (ann, bob):
                await system.api("POST", "/v1/tokens", {"user": user})
            await system.api("PUT", f"/v1/contacts/{bob}", {}, user=ann)
            await system.api("POST", f"/v1/contacts/{ann}/accept", user=bob)
        await asyncio.gather(*(broken_off(doomed[writes], *pair) for writes, pair in pairs.items()))
        killed = {
            writes for writes, one in doomed.items() if one.victim is not None and one.victim.popen.poll() is not None
        }
        client = await Client.connect(system.valkey.url)
        try:
            blocked = {writes: await agreed(system, Pairs(client), *pair) for writes, pair in pairs.items()}
        finally:
            await client.close()
    assert {blocked[writes] for writes in killed} == {False, True}, "some died before the change, some after it"


async def broken_off(one: Executioner, ann: str, bob: str) -> None:
    """Let Ann block Bob at the router that will be killed."""
    assert one.victim is not None
    one.armed = True
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        with suppress(httpx.TransportError):
            headers = {"Authorization": f"Bearer {token(ann)}"}
            await http.put(f"{one.victim.url}/v1/blocks/{bob}", headers=headers)


async def agreed(system: System, pairs: Pairs, ann: str, bob: str) -> bool:
    """Wait until both users' lists and keys say what the record says; return whether Ann blocks Bob."""

    async def agree() -> bool:
        record = await reply_of(pairs.read, ann, bob)
        assert record is not None
        blocked, contact = bool(record.of[ann].blocked), bool(record.contact)
        assert blocked is not contact
        for user, other, blocks in ((ann, bob, blocked), (bob, ann, False)):
            contacts = (await system.api("GET", "/v1/contacts", user=user))["contacts"]
            assert [one["user"] for one in contacts] == ([other] if contact else [])
            listed = (await system.api("GET", "/v1/blocks", user=user))["blocks"]
            assert [one["user"] for one in listed] == ([other] if blocks else [])
            entries = (await system.api("GET", "/v1/state?after=0", user=user))["entries"]
            keys = {entry["key"] for entry in entries if entry["value"] is not None}
            assert keys == ({f"contact/{other}"} if contact else set()) | ({f"block/{other}"} if blocks else set())
        return True

    await support.eventually(agree, every_s=0.2)
    record = await reply_of(pairs.read, ann, bob)
    return record is not None and bool(record.of[ann].blocked)
