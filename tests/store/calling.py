"""Shared by tests of the conversation slot: a store on a real server, awaited callbacks, events to append."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

from router.contract import keys, stamp
from router.contract.errors import LinnetError
from router.contract.packing import pack
from router.store.appends import Action, Append, Appended
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.redis.client import Client

T = TypeVar("T")

COST_US, BURST_US = 1, 1_000_000  # a rate that no test meets by accident


class Store(NamedTuple):
    client: Client
    conversations: Conversations
    dirty: Dirty

    async def group(self, kind: str = keys.GROUP, **members: str) -> str:
        """A new group or channel with these founders (user=role char)."""
        conv = keys.new_conversation(kind)
        assert await self.conversations.create(conv, kind, "a title", members, COST_US, BURST_US)
        return conv

    async def send(self, conv: str, user: str, n: int = 0, **more: Any) -> Appended:
        appended: Appended = await called(self.conversations.append, event(conv, user, n, **more))
        return appended

    async def log(self, conv: str) -> list[dict[str, Any]]:
        """All that stands in the log, read past every function."""
        return [stamp.decode(fields[1]) for _, fields in await self.client.fetch("XRANGE", keys.log(conv), "-", "+")]


@asynccontextmanager
async def store(url: str, cap: int = 20_000, channels: keys.Channels | None = None) -> AsyncIterator[Store]:
    client = await Client.connect(url)
    client.channels = channels or client.channels
    try:
        yield Store(client, Conversations(client, cap), Dirty(client))
    finally:
        await client.close()
    assert client.statistics().hot.callback_errors == 0


async def called(method: Callable[..., None], *args: Any) -> Any:
    """Call a method that answers by callback; raise the error it answers, if any."""
    future = asyncio.get_running_loop().create_future()
    method(*args, future.set_result)
    value = await future
    if isinstance(value, LinnetError):
        raise value
    return value


def event(
    conv: str,
    user: str,
    n: int = 0,
    *,
    action: Action = "message",
    body: str = "hello",
    device: str = "phone",
    target: int = 0,
    emoji: str = "",
    remove: bool = False,
    done: int = 0,
    seen: int = 0,
    server: bool = False,
) -> Append:
    """An event as a gateway would build it."""
    fields = {"target": pack(target)} if target else {"media": pack("text")}
    if action == "message":
        fields = {"media": pack("text")}
    said = {"emoji": pack(emoji), "remove": pack(remove)} if action == "react" else {"body": pack(body)}
    tail = stamp.tail(action, conv, user, device, n, fields | said)
    fingerprint = stamp.fingerprint(pack(action), pack(target), *said.values())
    return Append(conv, user, device, n, done, fingerprint, tail, action, target, seen, server)
