"""Calls of functions that use the cursors of all devices of a user.

A function declares every key that it uses, so the caller names the devices. If the user has a device that is not named,
it registered between the two steps. Then the function answers nil and does nothing, and the caller asks again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from router.contract import keys
from router.contract.errors import Unavailable
from router.store.redis.client import Client

TRIES: Final = 5


async def naming_devices(client: Client, user: str, call: Callable[[list[str], list[str]], Awaitable[Any]]) -> Any:
    """Call a function with the names of the user's devices and the keys of their cursors, until it answers."""
    for _ in range(TRIES):
        found: list[bytes] = await client.fetch("HKEYS", keys.devices(user))
        devices = [name.decode() for name in found if name != b"*"]
        value = await call(devices, [keys.cursor(user, device) for device in devices])
        if value is not None:
            return value
    raise Unavailable("the user's devices change too often")
