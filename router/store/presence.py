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
from router.contract.load import Load
from router.contract.wire import PresenceState
from router.store.answers import each_answer
from router.store.redis.client import Client
from router.store.redis.decoding import unreadable

LEASE_S: Final = 10
HIDDEN: Final = PresenceState(False, None)  # what a viewer sees of a user who is hidden from them
IDLE: Final = Load()
SKEW_S: Final = 10  # gateways follow Redis's clock within seconds; a time further ahead was taken from another clock


class Gateway(Struct, frozen=True, array_like=True):
    """A gateway's lease row; times in milliseconds since the epoch. `draining`: it is closing its connections. `rows`:
    the newest format of users' rows that it reads. Earlier releases do not say it, nor the load (`contract/load.py`).
    """

    url: str
    lease_until: int
    connections: int
    started: int
    draining: bool = False
    rows: int = keys.ROWS_1
    lag_ms: int = 0
    cpu: int = 0

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
        self._leases = (keys.GATEWAYS,) if client.one_server else keys.GATEWAYS_COPIES

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
        load: Load = IDLE,
    ) -> None:
        """Renew this gateway's lease for `LEASE_S` from `now`, in at least one of its copies."""
        row = _encode(
            Gateway(url, now + LEASE_S * 1000, connections, started, draining, keys.ROWS_2, load.lag_ms, load.cpu)
        )
        written = _Written(len(self._leases), reply)
        for leases in self._leases:
            self._client.command("HSET", leases, node, row, reply=written.received)

    async def clock_ms(self) -> int:
        """The time of Redis's clock, by which leases and sessions of different gateways are compared."""
        return await self._client.clock_ms()

    async def gateways(self) -> dict[str, Gateway]:
        """The rows of all gateways, also of dead ones, by node; a row that cannot be read is counted and left out.

        Of the copies that answer, the row with the latest lease counts.
        """
        copies = await each_answer(self._client.fetch("HGETALL", leases) for leases in self._leases)
        found: dict[str, Gateway] = {}
        for copy in copies:
            for name, row in [] if isinstance(copy, LinnetError) else _pairs(copy):
                try:
                    node, gateway = name.decode(), _gateway(row)
                except ValueError as error:  # msgspec's errors and UnicodeDecodeError
                    unreadable(error)
                    continue
                if node not in found or gateway.lease_until > found[node].lease_until:
                    found[node] = gateway
        return found

    async def remove(self, node: str) -> None:
        await each_answer(self._client.fetch("HDEL", leases, node) for leases in self._leases)

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


class _Written:
    """Answers once: when one copy is written, or when none could be."""

    def __init__(self, copies: int, reply: Callable[[LinnetError | None], None]) -> None:
        self._left = copies
        self._reply: Callable[[LinnetError | None], None] | None = reply

    def received(self, value: object) -> None:
        self._left -= 1
        error = value if isinstance(value, LinnetError) else None
        if self._reply is not None and (error is None or self._left == 0):
            reply, self._reply = self._reply, None
            reply(error)


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
