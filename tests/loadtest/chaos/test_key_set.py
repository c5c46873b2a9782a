"""The identity provider of a chaos run, asked by the verifier that the processes use."""

from __future__ import annotations

import asyncio
import time

import pytest

from loadtest.chaos.key_set import KeySet
from router.contract.errors import Unauthorized, Unavailable
from router.contract.settings import load
from router.contract.verifier import Verifier
from router.process.jwks import fetcher
from tests.support import free_ports


def claims() -> dict[str, object]:
    return {"sub": "ann", "exp": int(time.time()) + 60}


async def test_rotated_key_is_published_and_its_predecessor_until_it_is_withdrawn() -> None:
    (port,) = free_ports(1)
    keys = KeySet(port)
    await keys.start()
    settings = load({"LINNET_JWKS_URL": keys.url, "LINNET_ACCOUNTS": "false"})
    now_ms = time.time_ns() // 1_000_000
    try:
        old = keys.token(claims())
        keys.rotate()
        new = keys.token(claims())
        verifier = Verifier(settings, fetcher(keys.url))
        assert [(await verifier.identity(token, now_ms)).user for token in (old, new)] == ["ann", "ann"]
        keys.withdraw()
        later = Verifier(settings, fetcher(keys.url))
        assert (await later.identity(new, now_ms)).user == "ann"
        with pytest.raises((Unauthorized, Unavailable)):
            await later.identity(old, now_ms)
    finally:
        await keys.close()


@pytest.mark.parametrize(
    ("broken", "first_line"), [("refuse", b"HTTP/1.1 503 Service Unavailable\r\n"), ("dribble", b"H")]
)
async def test_broken_endpoint_refuses_or_dribbles(broken: str, first_line: bytes) -> None:
    (port,) = free_ports(1)
    keys = KeySet(port)
    await keys.start()
    try:
        keys.broken = broken  # type: ignore[assignment]  # one of its literals
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read(len(first_line)) == first_line
        writer.close()
    finally:
        await keys.close()
