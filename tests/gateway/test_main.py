"""The process: it serves until it is told to stop, and does not stay when nothing serves any more."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.__main__ import Gateway
from router.process.run import Process
from tests.gateway.world import world


async def test_a_server_that_fails_ends_the_process(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its error: a gateway that takes no connections must not look ready until somebody stops it."""

    async def fails(_: Any) -> None:
        raise OSError("no more files")

    with pytest.raises(OSError, match="no more files"):
        await run(valkey, monkeypatch, fails)


async def test_a_server_that_ends_by_itself_ends_the_process(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is an error as well: nobody told it to."""

    async def ends(_: Any) -> None:
        pass

    with pytest.raises(RuntimeError, match="nobody told it to"):
        await run(valkey, monkeypatch, ends)


async def run(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, serve: Any) -> None:
    """A gateway whose server does just that, and that is never told to stop."""
    async with world(valkey) as of:
        with socket.socket() as public:
            gateway = Gateway(of.node)
            monkeypatch.setattr(gateway._server, "_serve", serve)
            await asyncio.wait_for(gateway.run(Process(of.node.settings, asyncio.Event(), public)), 10)
