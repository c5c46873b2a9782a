"""A store on a real server, with users, conversations and messages as gateways would have left them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from router.contract.packing import pack
from router.contract.settings import Settings, load
from router.store.accounts import Accounts
from router.store.answers import reply_of
from router.store.appends import Append, Appended
from router.store.audit import Audit
from router.store.contacts import Contacts
from router.store.conversations import Conversations
from router.store.dirty import Dirty
from router.store.files import Files
from router.store.moderation import Moderation
from router.store.pairs import Pairs
from router.store.people import People
from router.store.presence import Presence
from router.store.profiles import Profiles
from router.store.pushes import Pushes
from router.store.redis.client import Client
from router.store.reports import Reports
from router.store.rows import Row
from router.store.state import State
from router.store.sync import Sync, Synced
from router.store.users import Users
from tests import support

COST_US, BURST_US = 20_000, 4_000_000
SECRET = "a-secret-for-webhooks-of-32-bytes-or-more"


def settings(**changes: object) -> Settings:
    """Settings of a router that pushes; no server listens at its webhook URL unless one is given."""
    env = {"jwt_secret": support.JWT_SECRET, "webhook_secret": SECRET, "webhook_url": "http://127.0.0.1:9/"}
    env.update({name: str(value) for name, value in changes.items()})
    return load({f"LINNET_{name.upper()}": value for name, value in env.items()})


class World:
    def __init__(self, client: Client, valkey: EmbeddedValkey) -> None:
        self.client = client
        self.valkey = valkey
        self.accounts = Accounts(client)
        self.conversations = Conversations(client, 20_000)
        self.dirty = Dirty(client)
        self.files = Files(client)
        self.audit = Audit(client)
        self.reports = Reports(client)
        self.moderation = Moderation(client, 20_000)
        self.presence = Presence(client)
        self.pushes = Pushes(client)
        self.users = Users(client)
        self.state = State(client, (1, 1_000_000))
        self.pairs = Pairs(client)
        self.people_of = People(client)
        self.profiles = Profiles(client)
        self.contacts = Contacts(self.pairs, self.people_of, self.profiles, self.users, self.state)
        self._n = count(1)

    async def direct(self, user: str, other: str) -> str:
        """The direct conversation of two users, who are created."""
        await self.people(user, other)
        await reply_of(self.conversations.create_direct, user, other, COST_US, BURST_US)
        return keys.direct(user, other)

    async def group(self, *names: str, kind: str = keys.GROUP) -> str:
        """A group whose API process died before it wrote the members' rows; the first member is its owner."""
        await self.people(*names)
        conv = keys.new_conversation(kind)
        roles = dict.fromkeys(names, "m") | {names[0]: "o"}
        assert await self.conversations.create(conv, kind, "a title", roles, COST_US, BURST_US)
        return conv

    async def people(self, *names: str) -> None:
        for name in names:
            await self.accounts.ensure(name)

    async def say(self, user: str, conv: str, body: Any = "hello") -> Appended:
        """A message, appended by a gateway that died before it delivered it."""
        n = next(self._n)
        tail = stamp.tail("message", conv, user, "phone", n, {"media": pack("text"), "body": pack(body)})
        return await reply_of(self.conversations.append, Append(conv, user, "phone", n, 0, pack(n).ljust(8), tail))

    async def device(self, user: str, device: str = "phone") -> Synced:
        """A device with a session of the same name."""
        return await reply_of(
            self.users.sync,
            Sync(user=user, device=device, session=device, node="node", started=next(self._n), register=True),
        )

    async def row(self, user: str, conv: str) -> Row:
        row = await self.users.row(user, conv)
        assert row is not None
        return row

    def due_now(self, conv: str) -> None:
        """Make the conversation due, as after its claim or delay."""
        with self.valkey.client() as redis:
            redis.zadd(keys.dirty(keys.partition(conv)), {conv: 1})

    def is_dirty(self, conv: str) -> bool:
        with self.valkey.client() as redis:
            return redis.zscore(keys.dirty(keys.partition(conv)), conv) is not None


@asynccontextmanager
async def world(valkey: EmbeddedValkey) -> AsyncIterator[World]:
    client = await Client.connect(valkey.url)
    try:
        yield World(client, valkey)
    finally:
        await client.close()
