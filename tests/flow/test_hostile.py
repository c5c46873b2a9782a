"""Clients that mean harm, against running processes: what each may hold, take and learn, with the figure it holds to.

What is malformed stands in `test_bad_input.py`, who may do what in `test_authorization.py`. Here: slowness, numbers,
size, tokens, origins, names, and what logs and metrics tell. As there, nobody else may notice (`witness`), and no
process may log a traceback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Final

from router.api import BODY_S
from router.process.bounded import HEAD_S
from tests.flow.conftest import Names, System
from tests.flow.test_bad_input import witness

GRACE_S: Final = 6.0  # of a busy machine, on top of a deadline


async def held_s(port: int, parts: Iterator[bytes], every_s: float = 0.5) -> float:
    """How long the server keeps a connection that sends one part after the other, and would go on for ever."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    with suppress(ConnectionError):
        ended = asyncio.ensure_future(_to_the_end(reader))
        while not ended.done():
            writer.write(next(parts, b""))
            await asyncio.wait([ended], timeout=every_s)
    writer.close()
    return time.monotonic() - began


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionError):
        return await reader.read()
    return b""


SLOW: Final[dict[str, Callable[[str], Iterator[bytes]]]] = {
    "silence": lambda path: iter(()),
    "a request line that never ends": lambda path: chain([b"GET /"], repeat(b"x")),
    "a header that never ends": lambda path: chain([f"GET {path} HTTP/1.1\r\nHost: x\r\nX-A: ".encode()], repeat(b"b")),
    "headers without end": lambda path: chain([f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode()], repeat(b"X-A: b\r\n")),
    "an upgrade that never ends": lambda path: chain(
        [f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".encode()],
        repeat(b"X-A: b\r\n"),
    ),
    "empty lines": lambda path: repeat(b"\r\n"),
    "empty lines behind an answer": lambda path: chain([b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"], repeat(b"\r\n")),
    "a body that nobody asked for": lambda path: chain(
        [b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"], repeat(b"x")
    ),
    "trailers without end": lambda path: chain(
        [b"POST /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"], repeat(b"X-A: b\r\n")
    ),
}


async def test_who_trickles_a_request_is_dropped_after_ten_seconds(chat: System, names: Names) -> None:
    """Slowloris in all its forms, on every port: HEAD_S, and the socket is free. A call that waits for its body has
    ten seconds for that first."""
    assert chat.router is not None
    gateway = chat.gateways[0]
    login = b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    async with witness(chat, names):
        ports = ((gateway.port, "/ws"), (chat.router.port, "/v1/login"), (gateway.admin_port, "/metrics"))
        slow = {(port, why): parts(path) for port, path in ports for why, parts in SLOW.items()}
        *held, body = await asyncio.gather(
            *(held_s(port, parts) for (port, _), parts in slow.items()),
            held_s(chat.router.port, chain([login], repeat(b" "))),
        )
    for what, seconds in zip(slow, held, strict=True):
        assert seconds < HEAD_S + GRACE_S, (what, seconds)
    assert body < BODY_S + HEAD_S + GRACE_S, body
