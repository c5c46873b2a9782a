"""The schedule of faults that a seed decides."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtest.chaos.clocks import FAKETIME
from loadtest.chaos.cluster import ManagedProcess
from loadtest.chaos.nemesis import FAULTS, FIRST_S, LEVELS, possible, schedule
from loadtest.chaos.proxy import Proxy
from tests.support import eventually, free_ports

PROCESSES = ["gateway-0", "gateway-1", "gateway-2", "router-0", "router-1"]


def test_seed_decides_the_schedule() -> None:
    """The same seed plans the same faults at the same times; another seed plans others."""
    assert schedule(7, 600, PROCESSES) == schedule(7, 600, PROCESSES[::-1])
    assert schedule(7, 600, PROCESSES) != schedule(8, 600, PROCESSES)


def test_schedule_ends_in_time() -> None:
    """No fault begins before people are active or lasts beyond the end."""
    for seed in range(50):
        for fault in schedule(seed, 60, PROCESSES):
            assert fault.at_s >= FIRST_S
            assert fault.at_s + fault.for_s < 60


@pytest.mark.parametrize("level", LEVELS)
def test_schedule_uses_every_fault_on_every_process(level: str) -> None:
    """In a few hours every fault of the level happens to every process it can happen to, for as long as it may last."""
    kinds = possible(list(FAULTS), level, clocks=True)
    faults = schedule(1, 3600 * 4, PROCESSES, kinds)
    assert {fault.kind for fault in faults} == set(kinds)
    for kind in kinds:
        on, (least, most) = FAULTS[kind].on, FAULTS[kind].lasts
        planned = [fault for fault in faults if fault.kind == kind]
        wanted = {name for name in PROCESSES if name.startswith(on)} if on else {""}
        assert {fault.target for fault in planned} == wanted
        assert all(least <= fault.for_s <= most + 0.001 for fault in planned)


def test_faults_of_one_resource_do_not_overlap() -> None:
    """What one fault occupies, no other fault uses before it is over."""
    for seed in range(20):
        until = Counter[tuple[str, str]]()
        for fault in schedule(seed, 600, PROCESSES, every_s=0.5):
            place = (fault.target, FAULTS[fault.kind].occupies)
            assert fault.at_s >= until[place] / 1000
            until[place] = int((fault.at_s + fault.for_s) * 1000) - 2


def test_faults_that_prove_nothing_are_left_out() -> None:
    """Left out are a store that may lose what it never promised, servers that do not exist, clocks that cannot step."""
    assert "valkey-kill" not in possible([], "memory", clocks=True)
    assert "valkey-stall" in possible([], "memory", clocks=True)
    assert not {"failover", "primary-kill"}.intersection(possible([], "fsync", clocks=True))
    assert not {"valkey-kill", "store-cut"}.intersection(possible([], "replicated", clocks=True))
    assert {kind for kind in FAULTS if FAULTS[kind].occupies == "clock"} == {
        "gateway-clock",
        "router-clock",
        "valkey-clock",
    }
    assert possible(["gateway-clock", "gateway-kill", "failover"], "fsync", clocks=False) == ["gateway-kill"]


def test_schedule_contains_only_the_requested_kinds() -> None:
    """With `--faults`, no other kind is planned."""
    assert {fault.kind for fault in schedule(1, 600, PROCESSES, ["store-cut", "gateway-kill"])} == {
        "store-cut",
        "gateway-kill",
    }


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
async def test_clock_steps_for_one_process_only(tmp_path: Path) -> None:
    """The wall clock is wrong as told, at once in a new process; the monotonic clock is not."""
    part = ManagedProcess("gateway-0", tmp_path, None, {}, clocks=True)
    for by_s in (0.0, 37.5, -20.0):
        part.set_clock(by_s)
        told = subprocess.check_output(
            [sys.executable, "-c", "import time; print(time.time(), time.monotonic())"], env=part.env
        )
        wall, monotonic = map(float, told.split())
        assert abs(wall - time.time() - by_s) < 5
        assert abs(monotonic - time.monotonic()) < 5


class Link:
    """A connection through a proxy to an echo server."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy, self.reader, self.writer = proxy, reader, writer

    async def echo(self, data: bytes = b"hello") -> bool:
        self.writer.write(data)
        return await self.reader.readexactly(len(data)) == data

    async def stays_silent(self, turns: int = 50) -> bool:
        """Whether nothing arrives in some turns of the loop."""
        waiting = asyncio.ensure_future(self.reader.read(1))
        for _ in range(turns):
            await asyncio.sleep(0)
        came = waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        return not came


class Echo(asyncio.Protocol):
    """The echo server; `open` holds its connections."""

    open: set[Echo]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.open.add(self)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # type: ignore[attr-defined]  # it is a stream's

    def connection_lost(self, exc: Exception | None) -> None:
        self.open.discard(self)


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, set[Echo], Callable[[], Awaitable[Link]]]]:
    """Yield a link, the connections of the server behind it, and a function that opens another link."""
    opened: set[Echo] = set()
    server = type("Server", (Echo,), {"open": opened})
    port, proxied = free_ports(2)
    listening = await asyncio.get_running_loop().create_server(server, "127.0.0.1", port)
    proxy = Proxy(proxied, port)
    await proxy.start()
    writers: list[asyncio.StreamWriter] = []

    async def another() -> Link:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxied)
        writers.append(writer)
        return Link(proxy, reader, writer)

    try:
        yield await another(), opened, another
    finally:
        for writer in writers:
            writer.transport.abort()
        await proxy.close()
        listening.close()


async def test_link_passes_everything_on() -> None:
    """Without a fault, bytes and the end of a connection pass in order."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        assert await link.echo(random.Random(1).randbytes(3_000_000))
        link.writer.close()
        await eventually(lambda: not opened)


async def test_cut_link_refuses_until_it_is_healed() -> None:
    """Connections end, new ones end at once; after the heal everything works again."""
    async with linked() as (link, opened, another):
        assert await link.echo()
        link.proxy.cut()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await link.reader.readexactly(1)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await (await another()).echo()
        await eventually(lambda: not opened)
        link.proxy.heal()
        assert await (await another()).echo()


async def test_held_link_loses_nothing() -> None:
    """While it is held nothing passes and no end notices; then everything passes."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        link.proxy.hold()
        link.writer.write(b"later")
        assert await link.stays_silent()
        assert len(opened) == 1
        link.proxy.heal()
        assert await link.reader.readexactly(5) == b"later"


async def test_held_link_hides_a_closed_client() -> None:
    """The server notices when the link is healed."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        link.proxy.hold()
        link.writer.transport.abort()
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(opened) == 1
        link.proxy.heal()
        await eventually(lambda: not opened)


async def test_delayed_link_keeps_the_order() -> None:
    """Everything arrives later and in order."""
    async with linked() as (link, _, _another):
        link.proxy.delay(0.02)
        began = asyncio.get_running_loop().time()
        data = bytes(range(256)) * 200
        for start in range(0, len(data), 1000):
            link.writer.write(data[start : start + 1000])
        assert await link.reader.readexactly(len(data)) == data
        assert asyncio.get_running_loop().time() - began >= 0.039  # the loop knows milliseconds only


async def test_vanished_client_stays_open_for_the_server() -> None:
    """The client's end is closed, the server's is not."""
    async with linked() as (link, opened, _):
        assert await link.echo()
        assert link.proxy.vanish() == 1
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await link.reader.readexactly(1)
        assert len(opened) == 1


async def test_client_is_closed_if_no_server_listens() -> None:
    """The proxy closes a client if no server listens behind it."""
    proxied, nobody = free_ports(2)
    proxy = Proxy(proxied, nobody)
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxied)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await reader.readexactly(1)
    writer.transport.abort()
    await proxy.close()
