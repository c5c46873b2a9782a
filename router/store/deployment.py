"""The deployment in a Redis database: whether this process belongs to it, and the names of its channels.

The hash `keys.DEPLOYMENT` has the fields `partitions` (their number, and which set of hash tags the keys
have: `contract/tags.py`), `format` (the layout of channels and rows), `id` (in every channel name) and `fingerprint`
(the same for all processes of a deployment: LINNET_DEPLOYMENT, else a digest of the token secret, else of the address
of the key set). A process with another fingerprint belongs to another deployment and stops. While the field is
`rotating`, every fingerprint is accepted and none is written, so that a secret can be changed by a rolling restart.

Users' rows are written in format 1 or 2. The format of the deployment says in which (`keys.row_format`), and processes
follow it while they run (`RowFormats`). `keys.READING` comes between: processes that read only format 1 do not start
any more, and routers move on to format 2 once every lease, of gateways and routers, says that its process reads it
(jobs/upgrades.py). Routers of earlier releases have no lease, so an operator sets `keys.READING`.

Invariants
- The id is derived from the first fingerprint, so processes that start after the hash was lost agree with those that
  are still running. The channel names also contain the number of the database: a copy of a deployment in another
  database of the same server, with the same id, receives none of its events.
- On a cluster other servers have copies of the hash (`_known`). So processes can start while the server of the hash is
  down, and if that server comes back empty, a process that starts writes the hash again from a copy.
- `partitions` never changes while there is data. If the hash is lost and a process makes it anew before a router has
  restored it, processes with other tags stop (`RowFormats.follow`), because each would not find what the other writes.
- A deployment whose channels have no id (`keys.PLAIN`, `keys.MOVING`) is accepted in database 0 alone: channels are
  shared by all databases of a server.
"""

from __future__ import annotations

import hmac
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from typing import Final, NoReturn

import msgspec
from msgspec import Struct

from router.contract import keys
from router.contract.errors import StartupError, Unavailable
from router.contract.keys import Channels
from router.contract.load import Load
from router.contract.settings import Settings
from router.contract.tags import SPREAD, TAGS
from router.store.redis.client import Client, RedisArg
from router.store.redis.decoding import unreadable

ROTATING: Final = "rotating"
FIELDS: Final = ("partitions", "format", "id", "fingerprint")
FORMATS: Final = (keys.PLAIN, keys.MOVING, keys.OWN, keys.READING, keys.ROWS)
LEASE_MS: Final = 10_000
KEEP_MS: Final = 60_000


def _end(why: str) -> NoReturn:
    """End this process with one line, and without the steps of a stop, in which it would still ack."""
    sys.stderr.write(f"{why}\n")
    sys.stderr.flush()
    os._exit(1)


def fingerprint(settings: Settings) -> str:
    """The fingerprint of this process's deployment; it contains no secret."""
    if settings.deployment:
        return f"name:{settings.deployment}"
    secret = settings.jwt_secret or settings.jwks_url
    return "key:" + hmac.new(secret.encode(), b"linnet deployment", sha256).hexdigest()[:32]


async def deployment_check(client: Client, settings: Settings) -> Channels:
    """The channel names of the deployment, whose tags this process uses from now on; `StartupError` if the database
    contains a deployment of other processes."""
    ours = fingerprint(settings)
    fresh = sha256(ours.encode()).hexdigest()[:12]
    values = await _known(client, (SPREAD, keys.NEWEST, fresh, ours))
    partitions, layout, ident, theirs = ((value or b"?").decode() for value in values)  # `?`: a field is lost
    where = f"database {client.database} of Redis at {client.address}"
    if partitions not in TAGS or layout not in FORMATS:
        raise StartupError(
            f"{where} holds a deployment with partitions {partitions} and format {layout}, this version needs"
            f" {' or '.join(TAGS)} and one of {', '.join(FORMATS)}: use another Redis, or run the version that made it"
        )
    if layout in (keys.PLAIN, keys.MOVING) and client.database != 0:
        raise StartupError(
            f"{where} holds a deployment of an earlier release, which would receive the events of deployments in the"
            f" other databases of this server: stop all its processes, set the field `format` of `{keys.DEPLOYMENT}` to"
            f" {keys.OWN}, and start them (deploy/README.md, Channels with an id)"
        )
    if theirs not in (ours, ROTATING):
        raise StartupError(
            f"{where} holds another deployment (its token secret, key set or LINNET_DEPLOYMENT differs from this"
            " process's): use another database, or, if the secret was changed on purpose, see deploy/README.md,"
            " Changing the token secret"
        )
    keys.use_tags(partitions)
    return keys.channels(layout, f"{ident}.{client.database}:")


async def partitions_of(client: Client) -> str:
    """Return the deployment's field `partitions`; `SPREAD` if there is none, or if this version does not know it."""
    first, *copies = (keys.DEPLOYMENT,) if client.one_server else keys.DEPLOYMENT_COPIES
    found = await client.fetch_each(("HGET", name, "partitions") for name in (first, *copies))
    known = [value.decode() for value in found if isinstance(value, bytes)]
    return known[0] if known and known[0] in TAGS else SPREAD


async def _known(client: Client, begins: Sequence[RedisArg]) -> list[bytes | None]:
    """The fields of the deployment, which begins with these if there is none.

    On a cluster the fields are copied to other servers. If the server of the hash does not answer, a copy is read, so
    that processes can start while one server is down. If the hash is lost, it is created anew from a copy.
    """
    if client.one_server:
        return list(await client.fcall("deployment", (keys.DEPLOYMENT,), begins))
    first, *copies = keys.DEPLOYMENT_COPIES
    found = await client.fetch_each(("HMGET", name, *FIELDS) for name in keys.DEPLOYMENT_COPIES)
    whole = [fields for fields in found[1:] if not isinstance(fields, Unavailable) and None not in fields]
    if isinstance(found[0], Unavailable):
        if not whole:
            raise found[0]
        return list(whole[0])
    lost = not any(found[0])
    silent = next((copy for copy in found[1:] if isinstance(copy, Unavailable)), None)
    if lost and not whole and silent is not None:
        raise silent  # it may say what the deployment was, and one made anew would have other tags
    values: list[bytes | None] = await client.fcall("deployment", (first,), whole[0] if lost and whole else begins)
    fields = [part for name, value in zip(FIELDS, values, strict=True) if value is not None for part in (name, value)]
    for copy in copies if None not in values else ():
        with suppress(Unavailable):
            await client.fetch("HSET", copy, *fields)  # also over others: an operator may have changed the fields
    return values


async def restore(client: Client, settings: Settings) -> None:
    """Restore the fields of the deployment that the database has lost (FLUSHALL), as this process knows them.

    Otherwise the next process to start would create a deployment of the newest format, and would not receive events
    that processes of an older format publish.
    """
    bus, also = client.channels.bus, client.channels.also
    own = keys.ROWS if client.row_format == keys.ROWS_2 else keys.OWN
    layout = keys.PLAIN if not bus else keys.MOVING if also == "" else own
    ident, _, _ = (bus or also or "").partition(".")
    if ident:
        await client.fcall("deployment", (keys.DEPLOYMENT,), (keys.used_tags(), layout, ident, fingerprint(settings)))


async def ident(client: Client) -> str:
    """The deployment's id; "" if the database has lost it."""
    return (await client.fetch("HGET", keys.DEPLOYMENT, "id") or b"").decode()


async def media_marked(client: Client) -> bool:
    """Whether this deployment has marked an object store as its own (`router/store/objects.py`)."""
    return bool(await client.fetch("HEXISTS", keys.DEPLOYMENT, "media"))


async def mark_media(client: Client) -> None:
    """Record that this deployment has marked its object store."""
    await client.fetch("HSET", keys.DEPLOYMENT, "media", 1)


class RouterLease(Struct, frozen=True, array_like=True):
    """A router's lease row. `rows`: the newest format of users' rows that it reads. Earlier releases say no load."""

    lease_until: int
    rows: int
    lag_ms: int = 0
    cpu: int = 0


_encode: Final = msgspec.msgpack.Encoder().encode
_router_lease: Final = msgspec.msgpack.Decoder(RouterLease).decode


class RowFormats:
    """The format in which this process writes users' rows, and the leases by which routers know what all can read."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def follow(self) -> str:
        """Write users' rows in the format of the deployment from now on; return the format of the deployment. If the
        database has lost it, or on a cluster its server does not answer, nothing changes.

        If the deployment was made anew with other tags, this process ends at once: it may ack nothing any more, because
        the others would not find it.
        """
        try:
            found = await self._client.fetch("HMGET", keys.DEPLOYMENT, "format", "partitions")
        except Unavailable:
            if self._client.one_server:
                raise
            found = (None, None)
        layout, partitions = ((value or b"").decode() for value in found)
        if partitions and partitions != keys.used_tags():
            _end(
                f"linnet: the deployment has partitions {partitions} now, and had {keys.used_tags()} when this process"
                " started: its data was lost, and it was made anew"
            )
        if layout:
            self._client.row_format = keys.row_format(layout)
        return layout

    async def write_newest(self) -> None:
        """Move a deployment of format `keys.READING` to `keys.ROWS`."""
        await self._client.fcall("move_format", (keys.DEPLOYMENT,), (keys.READING, keys.ROWS))
        await self.follow()

    async def renew_router(self, node: str, now_ms: int, load: Load) -> None:
        """Renew a router's lease for `LEASE_MS`."""
        lease = RouterLease(now_ms + LEASE_MS, keys.ROWS_2, load.lag_ms, load.cpu)
        await self._client.fetch("HSET", keys.ROUTERS, node, _encode(lease))

    async def routers(self, now_ms: int) -> dict[str, RouterLease]:
        """The routers whose lease runs; the rows of those that ended long ago are removed. A row that cannot be read
        counts as the one of a router that reads only format 1."""
        flat: list[bytes] = await self._client.fetch("HGETALL", keys.ROUTERS)
        found: dict[str, RouterLease] = {}
        for node, row in zip(flat[::2], flat[1::2], strict=True):
            try:
                lease = _router_lease(row)
            except ValueError as error:  # msgspec's errors
                unreadable(error)
                lease = RouterLease(now_ms + LEASE_MS, keys.ROWS_1)
            if now_ms < lease.lease_until <= now_ms + 2 * LEASE_MS:
                found[node.decode(errors="replace")] = lease
            elif abs(now_ms - lease.lease_until) > KEEP_MS:
                await self._client.fetch("HDEL", keys.ROUTERS, node)
        return found
