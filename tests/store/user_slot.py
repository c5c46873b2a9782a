"""Shared by tests of the user slot: a client of a real server, its clock, and the messages of a channel."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from deploy.embedded import EmbeddedValkey
from router.store.redis.client import Client

_FENCE: Final = b"no more"


@asynccontextmanager
async def connected(valkey: EmbeddedValkey) -> AsyncIterator[Client]:
    client = await Client.connect(valkey.url)
    try:
        yield client
    finally:
        await client.close()
    assert client.statistics().hot.callback_errors == 0


async def now(client: Client) -> int:
    """The server's clock in milliseconds."""
    seconds, micros = await client.fetch("TIME")
    return int(seconds) * 1000 + int(micros) // 1000


class Channel:
    """`heard` is what one channel carried while the block ran, complete once the block has ended."""

    def __init__(self, valkey: EmbeddedValkey, name: str) -> None:
        self._redis: Any = valkey.client()
        self._name = name
        self.heard: list[bytes] = []

    def __enter__(self) -> "Channel":
        self._pubsub = self._redis.pubsub()
        self._pubsub.ssubscribe(self._name)
        assert self._next()["type"] == "ssubscribe"
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.execute_command("SPUBLISH", self._name, _FENCE)
        while (payload := self._next()["data"]) != _FENCE:
            self.heard.append(payload)
        self._pubsub.close()
        self._redis.close()

    def _next(self) -> dict[str, Any]:
        message = self._pubsub.get_message(timeout=40)
        assert message is not None, "nothing came"
        return dict(message)
