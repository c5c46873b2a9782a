"""router/process/descriptors.py: a process without free descriptors still answers its operators."""

from __future__ import annotations

import asyncio
import os
import re
import resource
from contextlib import suppress
from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.process import descriptors
from tests.conftest import StartProcess
from tests.support import eventually, http_get


@pytest.mark.parametrize("module", ["gateway", "router"])
async def test_public_connections_leave_a_reserve(valkey: EmbeddedValkey, process: StartProcess, module: str) -> None:
    """With only the reserve left, the admin port answers and counts refused connections; freed ones are used again."""
    started = await process(module, LINNET_REDIS_URL=valkey.url).ready()
    in_use = len(os.listdir(f"/proc/{started.pid}/fd"))
    limit = in_use + descriptors.RESERVE + 10
    resource.prlimit(started.pid, resource.RLIMIT_NOFILE, (limit, limit))
    writers = []
    for _ in range(descriptors.RESERVE + 50):  # more than there are descriptors
        with suppress(OSError):
            writers.append((await asyncio.open_connection("127.0.0.1", started.port))[1])

    async def refused() -> int:
        status, metrics = await http_get(started.admin_port, "/metrics")
        assert status == 200
        found = re.search(r'^linnet_http_refused_total{why="descriptors"} (\d+)', metrics, re.MULTILINE)
        return int(found[1]) if found else 0

    await eventually(refused, every_s=0.1)
    assert (await http_get(started.admin_port, "/livez"))[0] == 200
    for writer in writers:
        writer.transport.abort()
    path = "/schema.json" if module == "gateway" else "/v1/openapi.json"

    async def served() -> bool:
        return (await http_get(started.port, path))[0] == 200

    await eventually(served)
    assert "Traceback" not in Path(started._log_path).read_text()


def test_limit_below_the_connections_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    descriptors.check(1024 - descriptors.RESERVE)
    assert caplog.messages == []
    descriptors.check(20_000)
    (message,) = caplog.messages
    assert "limit (1024) is below LINNET_MAX_CONNECTIONS (20000)" in message


def test_soft_limit_is_raised_to_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    assert descriptors.raise_limit() == 4096
    assert given == [(4096, 4096)]
