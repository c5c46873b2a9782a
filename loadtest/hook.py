"""A pre-send hook for the time of a run: an HTTP server on loopback that fails as a fault wants it.

Texts that begin with `a` are rejected, and those that begin with `b` are replaced. `mode` is how it answers now:

    good      at once, by that rule
    harsh     at once, and everything is rejected, also what was accepted before
    slow      by that rule, at any time up to SLOW_S, so that some answers come after the timeout
    silent    never
    nonsense  with something that is no verdict, each time another; then it closes the connection

`kill` closes its port and all its connections, `start` opens the port again. Questions about texts of the user
`unanswered` get no answer in any mode. `record` is called with each verdict before it is sent: the text, and what it
becomes, None if it is rejected. So a verdict that was not recorded cannot have been received.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec

from router.contract.packing import canonical

Mode = Literal["good", "harsh", "slow", "silent", "nonsense"]

TIMEOUT_MS: Final = 1000
SLOW_S: Final = 2 * TIMEOUT_MS / 1000
JSON: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
LARGE_BYTES: Final = 10_000_000
LARGE: Final = 0.05  # of nonsense
NONSENSE: Final = (
    JSON % (7, b"\xff{}[no]"),
    JSON % (20_000, b"[" * 20_000),
    JSON % (19, b'{"verdict":"maybe"}'),
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
)


def judged(body: Any) -> dict[str, Any]:
    """The verdict on a text while the hook is good."""
    if isinstance(body, str) and body.startswith("a"):
        return {"verdict": "reject", "reason": "no text begins with a"}
    if isinstance(body, str) and body.startswith("b"):
        return {"verdict": "replace", "body": f"****{body[1:]}"}
    return {"verdict": "accept"}


class Hook:
    """The hook; `policy` is what happens to what it does not answer."""

    def __init__(
        self, port: int, policy: str, rng: random.Random, record: Callable[[Any, Any], None] | None = None
    ) -> None:
        self.mode: Mode = "good"
        self.unanswered = ""
        self.policy = policy
        self.settings = {
            "LINNET_SEND_HOOK_URL": f"http://127.0.0.1:{port}/ask",
            "LINNET_SEND_HOOK_SECRET": secrets.token_urlsafe(48),
            "LINNET_SEND_HOOK_TIMEOUT_MS": str(TIMEOUT_MS),
            "LINNET_SEND_HOOK_ON_FAILURE": self.policy,
        }
        self._port = port
        self._record = record
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    def kill(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._connections:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                while await self._answered(reader, writer):
                    pass
        finally:
            self._connections.discard(writer)
            writer.transport.abort()

    async def _answered(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a question; return whether the connection stays open."""
        head = await reader.readuntil(b"\r\n\r\n")
        asked, mode = await reader.readexactly(_length(head)), self.mode
        question = msgspec.json.decode(asked)
        if mode == "silent" or question["from"] == self.unanswered:
            await reader.read()  # until the process that asked gives up
            return False
        if mode == "slow":
            await asyncio.sleep(self._rng.uniform(0, SLOW_S))
        writer.write(self._nonsense() if mode == "nonsense" else self._verdict(question["body"], harsh=mode == "harsh"))
        await writer.drain()
        return mode != "nonsense"

    def _nonsense(self) -> bytes:
        large = self._rng.random() < LARGE
        return JSON % (LARGE_BYTES, b" " * LARGE_BYTES) if large else self._rng.choice(NONSENSE)

    def _verdict(self, body: Any, *, harsh: bool) -> bytes:
        said = {"verdict": "reject", "reason": "harsh"} if harsh else judged(body)
        if self._record is not None:
            becomes = None if said["verdict"] == "reject" else said.get("body", body)
            self._record(canonical(body), canonical(becomes))
        answer = msgspec.json.encode(said)
        return JSON % (len(answer), answer)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0
