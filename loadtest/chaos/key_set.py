"""An identity provider for the time of a run: it signs tokens with a key that rotates, and serves the public keys.

The document is served over HTTP on loopback (`LINNET_JWKS_URL`). `broken` decides how the endpoint fails: `refuse`
answers 503, `dribble` sends one byte a second. A new key signs from the moment of its rotation; its predecessor stays
published until `withdraw`.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import suppress
from typing import Any, Final, Literal

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

DRIBBLE_S: Final = 1.0


class KeySet:
    """The keys and their endpoint."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/jwks.json"
        self.broken: Literal["", "refuse", "dribble"] = ""
        self._port = port
        self._number = 0
        self._published: dict[str, Ed25519PrivateKey] = {}
        self._server: asyncio.Server | None = None
        self._closing = asyncio.Event()
        self._answers: set[asyncio.Task[None]] = set()
        self.rotate()

    def rotate(self) -> None:
        self._number += 1
        self._published[f"key-{self._number}"] = Ed25519PrivateKey.generate()

    def withdraw(self) -> None:
        """Stop publishing all keys but the newest."""
        for name in list(self._published)[:-1]:
            del self._published[name]

    def token(self, claims: dict[str, Any]) -> str:
        name = f"key-{self._number}"
        return jwt.encode(claims, self._published[name], algorithm="EdDSA", headers={"kid": name})

    def document(self) -> bytes:
        return msgspec.json.encode({"keys": [_public(name, key) for name, key in self._published.items()]})

    # -- the endpoint

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self._closing.set()
        await asyncio.gather(*self._answers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._answers.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                await self._answer(writer)
        finally:
            self._answers.discard(task)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        body = self.document()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        answer = head.encode() + b"Connection: close\r\n\r\n" + body
        match self.broken:
            case "refuse":
                writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            case "dribble":
                for position in range(len(answer)):
                    writer.write(answer[position : position + 1])
                    await writer.drain()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._closing.wait(), DRIBBLE_S)
                        return
            case _:
                writer.write(answer)
        await writer.drain()


def _public(name: str, key: Ed25519PrivateKey) -> dict[str, str]:
    x = base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": name, "alg": "EdDSA", "use": "sig"}
