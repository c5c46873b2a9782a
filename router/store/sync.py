"""The arguments and the answer of `sync`: the registering or the audit of a session. The call is in `users`."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias, cast

import msgpack
from msgspec import Struct

from router.contract.tokens import TokenId
from router.store.redis.connection import RedisArg
from router.store.rows import PAGE, Row, rows_of, state_of

_SERVER: Final = 16  # bytes of `since` that name the server; the rest is the minimum for ZRANGEBYSCORE
pack_for_lua: Final = msgpack.Packer(use_bin_type=False).pack  # Lua's msgpack has no bin type

Status: TypeAlias = Literal["ok", "replaced", "kicked", "evicted", "crowded"]


class Sync(Struct, frozen=True, kw_only=True):
    """The arguments of `sync`. `since` is the opaque position of the last one; `cursors` replace the stored ones, at
    registering only.

    `living` and `devices`: the live gateways and the devices of the answer, for a registering that was answered
    `crowded`.
    """

    user: str
    device: str
    session: str
    node: str
    started: int
    instance: str = ""
    since: bytes = b""
    register: bool = False
    limit: int = PAGE
    cursors: dict[str, int] | None = None
    token: TokenId = TokenId()
    token_expires_s: int = 0
    living: tuple[str, ...] | None = None
    devices: tuple[str, ...] = ()


class Synced(Struct, frozen=True):
    """The reply of `sync`. `rows` have changed since `since`, oldest change first; at registering they are the newest
    rows, newest first, followed by the other groups.

    `state` is the version of the user's state; None if it has not changed since `since`, and at registering if there
    is none. If `more`, further rows are read with `page` below `below` at registering, else with `sync` and the new
    `since`.
    `new_device` stays true until `set_starts` has marked the device as known, so that a connect that dies half way
    begins again.
    """

    status: Status
    rows: list[Row]
    since: bytes
    more: bool
    below: int
    new_device: bool
    state: int | None = None
    devices: tuple[str, ...] = ()  # of a user that is `crowded`


def session_args(s: Sync) -> tuple[RedisArg, ...]:
    """The session as `sync` and `sessions_to_sync` take it: its device's row as it should be, and its `since`."""
    packed = bytes(pack_for_lua((s.session, s.node, s.instance, s.started, s.token.id, s.token_expires_s)))
    return s.device, packed, s.started, s.since[:_SERVER], s.since[_SERVER:] or b"(0"


def synced(s: Sync, value: Any) -> Synced:
    """The answer of `sync`, from its reply."""
    status, *rest = value if value is not None else (b"ok",)
    if not rest or status == b"crowded":
        devices = tuple(name.decode() for name in rest)
        return Synced(cast("Status", status.decode()), [], s.since, False, 0, False, devices=devices)
    since, more, below, new, rows = rest
    return Synced("ok", rows_of(rows), since, bool(more), int(below), bool(new), state_of(rows))
