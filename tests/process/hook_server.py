"""A pre-send hook: a real HTTP server that answers each question as a test wants it."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any, Final, TypeAlias

from router.contract.settings import Settings
from tests import support
from tests.process.test_http_client import request, serving

SECRET: Final = "a-secret-for-the-pre-send-hook-of-32-bytes"

Answer: TypeAlias = "dict[str, Any] | bytes | str"  # a verdict, the raw bytes of an answer, or the name of a fault

SLOW: Final = "slow"  # no answer until `go_on`
SLOW_REJECT: Final = "slow reject"
SLOW_HALF: Final = "slow half"
HALF: Final = "half"  # an answer that ends half-way
BIG: Final = "big"  # 10 MB
RAW: Final[dict[str, bytes]] = {
    "garbage": b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n\xff{}[no]",
    "deep": b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"[" * 200_000,
    "no verdict": b'HTTP/1.1 200 OK\r\nContent-Length: 18\r\n\r\n{"verdict":"maybe"',
    "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
    "error": b"HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n",
    "not http": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
}
SLOWLY: Final[dict[str, Answer]] = {SLOW: {"verdict": "accept"}, SLOW_REJECT: {"verdict": "reject"}, SLOW_HALF: HALF}
FAULTS: Final = (*RAW, HALF, BIG)


class Hook:
    """`verdict` gives the answer to a question; `questions` are those that came."""

    def __init__(self) -> None:
        self.url = ""
        self.questions: list[dict[str, Any]] = []
        self.verdict: Callable[[dict[str, Any]], Answer] = lambda _: {"verdict": "accept"}
        self.asked = asyncio.Event()
        self._released = asyncio.Event()

    def go_on(self) -> None:
        """Answer the slow questions."""
        self._released.set()

    @property
    def is_released(self) -> bool:
        return self._released.is_set()

    def bodies(self) -> list[Any]:
        return [question["body"] for question in self.questions]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await request(reader)
            assert is_signed(head, body)
            question = json.loads(body)
            self.questions.append(question)
            self.asked.set()
            answer = self.verdict(question)
            if isinstance(answer, str) and answer in SLOWLY:
                await self._released.wait()
                answer = SLOWLY[answer]
            if answer == HALF:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
                return
            if answer == BIG:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b" " * 10_000_000)
            elif isinstance(answer, dict):
                said = json.dumps(answer).encode()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(said) + said)
            else:
                writer.write(RAW[answer] if isinstance(answer, str) else answer)
            await writer.drain()


def is_signed(head: str, body: bytes) -> bool:
    signed = next(line for line in head.split("\r\n") if line.lower().startswith("linnet-signature:"))
    at, mac = (part.partition("=")[2] for part in signed.partition(":")[2].strip().split(","))
    return mac == hmac.new(SECRET.encode(), f"{at}.".encode() + body, sha256).hexdigest()


@asynccontextmanager
async def hooking() -> AsyncIterator[Hook]:
    hook = Hook()
    async with serving(hook.handle) as hook.url:
        yield hook


def hook_settings(url: str, **changes: Any) -> Settings:
    return Settings(jwt_secret=support.JWT_SECRET, send_hook_url=url, send_hook_secret=SECRET, **changes)
