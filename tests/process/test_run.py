"""The start of a process while Redis is lost and found."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import suppress
from itertools import product

import pytest

from deploy.embedded import EmbeddedValkey
from router import tls
from router.contract.settings import Settings
from router.process.run import Process
from router.store.redis import functions, rights
from router.store.redis.connection import address
from tests import support
from tests.conftest import StartProcess
from tests.store.conftest import Proxy


class Cutting(Proxy):
    """A Redis that disappears, once, when it gets a certain command, and is back when the test says so."""

    def __init__(self, valkey: EmbeddedValkey, at: bytes) -> None:
        super().__init__(address(valkey.url))
        self._at = at
        self.cut = asyncio.Event()
        self.back = asyncio.Event()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut.is_set() and not self.back.is_set():
            writer.close()
        else:
            await super()._serve(reader, writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reply: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not reply and self._at in data and not self.cut.is_set():
                    self.cut.set()
                    for each in self.writers:
                        each.close()
                writer.write(data)
        writer.close()


ASKED = product(("gateway", "router"), (b"persistence", b"appendfsync", b"HSTRLEN", b"HMGET"))


@pytest.mark.parametrize(("module", "at"), [*ASKED, ("gateway", b"TIME")])  # a router does not ask for the time
@pytest.mark.parametrize("stays_away", [False, True])
async def test_starting_process_waits_for_a_redis_that_disappears(
    valkey: EmbeddedValkey, process: StartProcess, module: str, at: bytes, stays_away: bool
) -> None:
    """For each command that may fail first: no exit, no traceback, ready once Redis is back; a stop ends it."""
    proxy = Cutting(valkey, at)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    started = process(module, LINNET_REDIS_URL=url, LINNET_DRAIN_ACCEPT_S="0")
    try:
        async with asyncio.timeout(support.READY_S):
            await proxy.cut.wait()
        if stays_away:
            started.send(signal.SIGTERM)
            assert await started.ended() == 0
        else:
            proxy.back.set()
            await started.ready()
            started.send(signal.SIGTERM)
            assert await started.ended() == 0
        assert "Traceback" not in started.log
    finally:
        server.close()
        for writer in proxy.writers:
            writer.close()


@pytest.mark.parametrize("module", ["gateway", "router"])
async def test_starting_process_gives_the_reason_why_redis_is_unusable(
    own_valkey: EmbeddedValkey, process: StartProcess, module: str
) -> None:
    """It is not ready, and /readyz has the server's own words; with the right password the start goes on by itself."""
    with own_valkey.client() as redis:
        redis.config_set("requirepass", "another")
        started = process(module, LINNET_REDIS_URL=own_valkey.url.replace("://", "://:given@"))

        async def says() -> bool:
            status, text = await support.http_get(started.admin_port, "/readyz")
            return status == 503 and "WRONGPASS" in text and "given" not in text

        await support.eventually(says)
        redis.config_set("requirepass", "given")
    await started.ready()


@pytest.mark.parametrize("module", ["gateway", "router"])
async def test_server_that_becomes_unfit_is_named_and_leaves_processes_ready(
    valkey: EmbeddedValkey, process: StartProcess, module: str
) -> None:
    started = await process(module, LINNET_REDIS_URL=valkey.url).ready()

    async def answer() -> tuple[int, str]:
        return await support.http_get(started.admin_port, "/readyz")

    async def unfit() -> bool:
        status, text = await answer()
        return status == 200 and "is unfit" in text and "appendfsync always" in text

    async def fit() -> bool:
        return await answer() == (200, "ok\n")

    await support.eventually(fit)
    with valkey.client() as redis:
        redis.config_set("appendfsync", "everysec")
        await support.eventually(unfit)
        assert "linnet_redis_unfit 1.0" in await started.metrics()
        redis.config_set("appendfsync", "always")
    await support.eventually(fit)
    assert "linnet_redis_unfit 0.0" in await started.metrics()


@pytest.mark.parametrize("module", ["gateway", "router"])
async def test_process_starts_with_the_rights_of_the_operating_page_and_no_less(
    own_valkey: EmbeddedValkey, process: StartProcess, module: str
) -> None:
    """A bare `ACL SETUSER` user has too few: the start ends with one line that names the missing rights."""
    line = rights.acl_line(functions.build().source.decode()).replace("PASSWORD", "pw").split()
    url = own_valkey.url.replace("://", f"://{rights.USER}:pw@")
    with own_valkey.client() as redis:
        redis.execute_command(*line, "-xadd")
        refused = process(module, LINNET_REDIS_URL=url)
        assert await refused.ended() == 1
        assert "'xadd'" in refused.log
        assert "Traceback" not in refused.log
        redis.execute_command(*line)
    await process(module, LINNET_REDIS_URL=url).ready()


async def test_certificate_check_that_raises_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "CHECK_S", 0.0)
    faults, checked = [ValueError("a bug")], asyncio.Event()

    def check() -> None:
        if faults:
            raise faults.pop()
        checked.set()

    with socket.socket() as public:
        process = Process(Settings(), asyncio.Event(), public)
        monkeypatch.setattr(process, "reload_certificate", check)
        checking = asyncio.create_task(process.reload_certificates())
        try:
            async with asyncio.timeout(support.DEADLINE_S):
                await checked.wait()
            assert not checking.done()
        finally:
            checking.cancel()
