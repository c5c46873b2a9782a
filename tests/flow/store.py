"""The store as a gateway calls it, for histories too long to send and for gateways that die at a given line."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from router.contract import keys, stamp
from router.contract.packing import pack
from router.contract.settings import Settings
from router.store.accounts import Accounts
from router.store.answers import reply_of
from router.store.appends import Append, Appended
from router.store.conversations import Conversations
from router.store.deployment import deployment_check
from router.store.redis.client import Client
from router.store.users import Users
from tests.support import JWT_SECRET

COST_US, BURST_US = 5_000, 5_000_000


class Store:
    """Writes events like other devices; `device` is never that of a client in the test."""

    def __init__(self, client: Client) -> None:
        self.conversations = Conversations(client, 20_000)
        self.users = Users(client)
        self.accounts = Accounts(client)
        self._n = itertools.count(1)

    async def direct(self, user: str, other: str) -> str:
        for name in (user, other):
            await self.accounts.ensure(name)
        await reply_of(self.conversations.create_direct, user, other, COST_US, BURST_US)
        return keys.direct(user, other)

    async def append(self, conversation: str, user: str, body: Any) -> tuple[Appended, bytes]:
        """Append a message without delivering it, like a gateway that died; return the answer and the event's bytes."""
        n = next(self._n)
        fields = {"media": pack("text"), "body": pack(body)}
        tail = stamp.tail("message", conversation, user, "elsewhere", n, fields)
        append = Append(conversation, user, "elsewhere", n, 0, stamp.fingerprint(*fields.values()), tail, server=True)
        done: Appended = await reply_of(self.conversations.append, append)
        return done, stamp.fill(tail, stamp.Slots(done.seq, done.prev, done.count, done.at))

    async def say(self, conversation: str, user: str, body: Any) -> int:
        """Append and deliver a message like a gateway; return its seq."""
        done, event = await self.append(conversation, user, body)
        if conversation[0] == keys.DIRECT:
            other = keys.other_party(conversation, user)
            for to, of, author in ((other, user, False), (user, other, True)):
                deliver = self.users.deliver
                await reply_of(deliver, to, conversation, of, done.seq, done.count, event, author, 0)
        return done.seq

    async def say_all(self, conversation: str, user: str, bodies: Iterable[Any]) -> list[int]:
        """Append and deliver many messages at once, in order; return their seqs."""
        return list(await asyncio.gather(*(self.say(conversation, user, body) for body in bodies)))


@asynccontextmanager
async def store(url: str) -> AsyncIterator[Store]:
    client = await Client.connect(url)
    try:
        client.channels = await deployment_check(client, Settings(jwt_secret=JWT_SECRET))
        yield Store(client)
    finally:
        await client.close()
