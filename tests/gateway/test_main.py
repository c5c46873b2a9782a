"""The process: it serves until it is told to stop, and does not stay when nothing serves any more."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.__main__ import Gateway
from router.process.run import Process
from tests.conftest import StartProcess
from tests.gateway.world import world
from tests.support import eventually


async def test_server_that_fails_ends_the_process(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its error: a gateway that accepts no connections must not look ready."""

    async def fails(_: Any) -> None:
        raise OSError("no more files")

    with pytest.raises(OSError, match="no more files"):
        await run(valkey, monkeypatch, fails)


async def test_server_that_ends_by_itself_ends_the_process(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error, because no signal to stop came."""

    async def ends(_: Any) -> None:
        pass

    with pytest.raises(RuntimeError, match="without a signal to stop"):
        await run(valkey, monkeypatch, ends)


async def run(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, serve: Any) -> None:
    """A gateway whose server does just that, and that is never told to stop."""
    async with world(valkey) as of:
        with socket.socket() as public:
            gateway = Gateway(of.node)
            monkeypatch.setattr(gateway._server, "_serve", serve)
            await asyncio.wait_for(gateway.run(Process(of.node.settings, asyncio.Event(), public)), 60)


@pytest.mark.parametrize("module", ["gateway", "router"])
async def test_process_logs_its_life(own_valkey: EmbeddedValkey, process: StartProcess, module: str) -> None:
    """One entry for each step, with its figures as fields: ready, Redis lost and found, draining, the end."""
    started = process(
        module, LINNET_REDIS_URL=own_valkey.url, LINNET_LOG_FORMAT="json",
        LINNET_DRAIN_ACCEPT_S="0", LINNET_DRAIN_WINDOW_S="0",
    )  # fmt: skip

    def steps() -> list[dict[str, Any]]:
        entries = [json.loads(line) for line in started.log.splitlines() if line.startswith("{")]
        return [entry for entry in entries if "event" in entry]

    def of(event: str) -> list[dict[str, Any]]:
        return [entry for entry in steps() if entry["event"] == event]

    await started.ready()
    await eventually(lambda: of("ready"))
    own_valkey.kill()
    await eventually(lambda: of("redis_lost"))
    own_valkey.start()
    await eventually(lambda: len(of("redis_found")) == len({entry["connection"] for entry in of("redis_lost")}))
    started.send(signal.SIGTERM)
    assert await started.ended() == 0
    (ready,) = of("ready")
    assert ready["listen"] == f"127.0.0.1:{started.port}"
    assert ready["admin_listen"] == f"127.0.0.1:{started.admin_port}"
    assert all(entry["down_s"] > 0 and "failover_from" not in entry for entry in of("redis_found"))
    ends = ["draining", "drained"] if module == "gateway" else ["draining", "stopped"]
    assert [entry["event"] for entry in steps()][-2:] == ends
    assert of("draining")[0]["sessions" if module == "gateway" else "requests"] == 0
