"""Who is online: leases of gateways, and the device rows that name them.

What lives here: the lease rows and the pure rule from devices and leases to a state. What never does: a sweep. A user
is online if one of her devices names a gateway whose lease has not run out, so a gateway that dies takes its sessions
offline by saying nothing, and nothing has to be healed afterwards.

The row of a dead gateway still says when its users were last here: whoever removes rows leaves them for some days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from struct import Struct as Packing
from typing import Any, Final, cast

import msgspec
from msgspec import Struct

from router.contract import keys
from router.contract.errors import LinnetError
from router.contract.wire import PresenceState
from router.store.redis.client import Client
from router.store.redis.decoding import unreadable

LEASE_S: Final = 10
SKEW_S: Final = 10  # gateways follow Redis's clock within seconds: a time further ahead is of another clock


class Gateway(Struct, frozen=True, array_like=True):
    """A gateway's lease row; times in milliseconds since the epoch. `draining`: it is sending its clients away."""

    url: str
    lease_until: int
    connections: int
    started: int
    draining: bool = False

    def alive(self, now: int) -> bool:
        """Whether the lease runs. One that ends later than any lease can was written by another clock: it has ended."""
        return now < self.lease_until <= now + (LEASE_S + SKEW_S) * 1000


class Device(Struct, frozen=True):
    """A device's row: `gateway` is empty once its session has ended, and `seen` says when that was."""

    device: str
    session: str
    gateway: str
    started: int
    seen: int


class _Who(Struct, frozen=True, array_like=True):
    """Who holds a device's row, as `sync` packs it behind the row's two times."""

    session: str
    gateway: str
    instance: str
    started: int


_encode = msgspec.msgpack.Encoder().encode
_gateway = msgspec.msgpack.Decoder(Gateway).decode
_who = msgspec.msgpack.Decoder(_Who).decode
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
        """This gateway lives, for another `LEASE_S` from `now`."""
        row = _encode(Gateway(url, now + LEASE_S * 1000, connections, started, draining))
        self._client.command(
            "HSET",
            keys.GATEWAYS,
            node,
            row,
            reply=lambda value: reply(value if isinstance(value, LinnetError) else None),
        )

    async def clock_ms(self) -> int:
        """Redis's clock: the one that leases and sessions of different gateways are compared by."""
        return await self._client.clock_ms()

    async def gateways(self) -> dict[str, Gateway]:
        """Every gateway that has a row, by node, dead ones too."""
        flat: list[bytes] = await self._client.fetch("HGETALL", keys.GATEWAYS)
        return {node.decode(): _gateway(row) for node, row in _pairs(flat)}

    async def remove(self, node: str) -> None:
        await self._client.fetch("HDEL", keys.GATEWAYS, node)

    def devices(self, users: list[str], reply: Callable[[list[list[Device]] | LinnetError], None]) -> None:
        """The devices of each user, in the order of `users`; answers once, when all are read or one is not."""
        if not users:
            reply([])
            return
        read = _Read(len(users), reply)
        for i, user in enumerate(users):
            self._client.command("HGETALL", keys.devices(user), reply=partial(read.have, i))


class _Read:
    """Collects the answers of one `devices`."""

    def __init__(self, size: int, reply: Callable[[list[list[Device]] | LinnetError], None]) -> None:
        self._found: list[list[Device]] = [[] for _ in range(size)]
        self._left = size
        self._reply = reply

    def have(self, i: int, value: object) -> None:
        if self._left == 0:
            return  # an error was the answer
        if isinstance(value, LinnetError):
            self._left = 0
            self._reply(value)
            return
        try:
            self._found[i] = _devices(cast("list[bytes]", value))
        except Exception as error:  # noqa: BLE001 - one damaged row must not cost the other users their answer
            unreadable(error)
        self._left -= 1
        if self._left == 0:
            self._reply(self._found)


def _devices(flat: list[bytes]) -> list[Device]:
    """Device rows; the field `*` is the mark of a kick of all."""
    return [_device(name.decode(), row) for name, row in _pairs(flat) if name != b"*"]


def _device(name: str, row: bytes) -> Device:
    _, seen = _TIMES.unpack_from(row)
    who = _who(row[_TIMES.size :])
    return Device(name, who.session, who.gateway, who.started, seen)


def _pairs(flat: list[Any]) -> Iterable[tuple[Any, Any]]:
    parts = iter(flat)
    return zip(parts, parts, strict=True)


def state(devices: list[Device], gateways: Mapping[str, Gateway], now: int) -> PresenceState:
    """Whether somebody with these devices is online, and when she was last seen: null if never."""
    online, last = False, 0
    for device in devices:
        gateway = gateways.get(device.gateway)
        last = max(last, device.started, device.seen)
        if gateway is None:
            # One that has just begun, and whose lease is not read yet: its users must not flicker until it is.
            online = online or (device.gateway != "" and abs(now - device.started) < LEASE_S * 1000)
        elif gateway.alive(now):
            online = True
        else:
            last = max(last, gateway.lease_until)
    return PresenceState(online, min(last, now) or None)
