"""Presence: leases of gateways, the device rows that name them, and the pure rule from both to a user's state.

A user is online if one of their devices names a gateway whose lease has not run out. So if a gateway dies, its sessions
go offline when its lease runs out, and no sweep or repair is needed.

The row of a dead gateway still contains the time at which its users were last online, so such rows are kept for a day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from struct import Struct as Packing
from typing import Any, Final, TypeAlias, cast

import msgspec
from msgspec import Struct

from router.contract import keys
from router.contract.errors import LinnetError
from router.contract.wire import PresenceState
from router.store.redis.client import Client
from router.store.redis.decoding import unreadable

LEASE_S: Final = 10
HIDDEN: Final = PresenceState(False, None)  # what a viewer sees of a user who is hidden from them
SKEW_S: Final = 10  # gateways follow Redis's clock within seconds; a time further ahead was taken from another clock


class Gateway(Struct, frozen=True, array_like=True):
    """A gateway's lease row; times in milliseconds since the epoch. `draining`: it is closing its connections. `rows`:
    the newest format of users' rows that it reads; earlier releases do not say it."""

    url: str
    lease_until: int
    connections: int
    started: int
    draining: bool = False
    rows: int = keys.ROWS_1

    def alive(self, now: int) -> bool:
        """Whether the lease is running. If it ends later than any lease can, another clock wrote it: it is over."""
        return now < self.lease_until <= now + (LEASE_S + SKEW_S) * 1000


class Device(Struct, frozen=True):
    """A device's row; `gateway` is empty after its session has ended, and `seen` is the time of that end.

    `token`: the id of the session's token.
    """

    device: str
    session: str
    gateway: str
    started: int
    seen: int
    token: str = ""


DevicesReply: TypeAlias = Callable[[list[list[Device] | LinnetError] | LinnetError], None]


class _SessionFields(Struct, frozen=True, array_like=True):
    """The session of a device's row, as `sync` packs it behind the row's two times; older nodes name no token."""

    session: str
    gateway: str
    instance: str
    started: int
    token: str = ""


_encode = msgspec.msgpack.Encoder().encode
_gateway = msgspec.msgpack.Decoder(Gateway).decode
_session_fields = msgspec.msgpack.Decoder(_SessionFields).decode
_TIMES: Final = Packing(">QQ")  # min_started, seen


class Presence:
    def __init__(self, client: Client) -> None:
        self._client = client

    def renew(
        self,
        node: str,
        url: str,
        connections: int,
        started: int,
        now: int,
        reply: Callable[[LinnetError | None], None],
        *,
        draining: bool = False,
    ) -> None:
        """Renew this gateway's lease for `LEASE_S` from `now`."""
        row = _encode(Gateway(url, now + LEASE_S * 1000, connections, started, draining, keys.ROWS_2))
        self._client.command(
            "HSET",
            keys.GATEWAYS,
            node,
            row,
            reply=lambda value: reply(value if isinstance(value, LinnetError) else None),
        )

    async def clock_ms(self) -> int:
        """The time of Redis's clock, by which leases and sessions of different gateways are compared."""
        return await self._client.clock_ms()

    async def gateways(self) -> dict[str, Gateway]:
        """The rows of all gateways, also of dead ones, by node; a row that cannot be read is counted and left out."""
        flat: list[bytes] = await self._client.fetch("HGETALL", keys.GATEWAYS)
        found: dict[str, Gateway] = {}
        for node, row in _pairs(flat):
            try:
                found[node.decode()] = _gateway(row)
            except ValueError as error:  # msgspec's errors and UnicodeDecodeError
                unreadable(error)
        return found

    async def remove(self, node: str) -> None:
        await self._client.fetch("HDEL", keys.GATEWAYS, node)

    def devices(self, users: list[str], reply: DevicesReply) -> None:
        """Read the devices of each user, in the order of `users`; reply once, after all reads.

        A user whose server does not answer has the error in their place. If none has an answer, the reply is the error.
        """
        if not users:
            reply([])
            return
        collected = _DeviceReads(len(users), reply)
        for i, user in enumerate(users):
            self._client.command("HGETALL", keys.devices(user), reply=partial(collected.received, i))


class _DeviceReads:
    """Collects the replies of one `devices` call."""

    def __init__(self, size: int, reply: DevicesReply) -> None:
        self._found: list[list[Device] | LinnetError] = [[] for _ in range(size)]
        self._left = size
        self._reply = reply

    def received(self, i: int, value: object) -> None:
        try:
            self._found[i] = value if isinstance(value, LinnetError) else _devices(cast("list[bytes]", value))
        except Exception as error:  # noqa: BLE001 - one damaged row must not cost the other users their answer
            unreadable(error)
        self._left -= 1
        if self._left == 0:
            first = self._found[0]
            failed = isinstance(first, LinnetError) and all(isinstance(one, LinnetError) for one in self._found)
            self._reply(first if failed and isinstance(first, LinnetError) else self._found)


def _devices(flat: list[bytes]) -> list[Device]:
    """The device rows of a user's hash; its field `*` is no device but the kick mark of all devices."""
    return [_device(name.decode(), row) for name, row in _pairs(flat) if name != b"*"]


def _device(name: str, row: bytes) -> Device:
    _, seen = _TIMES.unpack_from(row)
    fields = _session_fields(row[_TIMES.size :])
    return Device(name, fields.session, fields.gateway, fields.started, seen, fields.token)


def _pairs(flat: list[Any]) -> Iterable[tuple[Any, Any]]:
    parts = iter(flat)
    return zip(parts, parts, strict=True)


UNKNOWN: Final = PresenceState(None, None)


def state(devices: list[Device] | LinnetError, gateways: Mapping[str, Gateway], now: int) -> PresenceState:
    """Whether a user with these devices is online, and when they were last seen; null if never.

    `UNKNOWN` if the user's server did not answer.
    """
    if isinstance(devices, LinnetError):
        return UNKNOWN
    online, last = False, 0
    for device in devices:
        gateway = gateways.get(device.gateway)
        last = max(last, device.started, device.seen)
        if gateway is None:
            # The gateway may have just started, with a lease later than `gateways`: its users must not flicker.
            online = online or (device.gateway != "" and abs(now - device.started) < LEASE_S * 1000)
        elif gateway.alive(now):
            online = True
        else:
            last = max(last, gateway.lease_until)
    return PresenceState(online, min(last, now) or None)
