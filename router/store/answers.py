"""Await a reply that the store gives by callback.

Hot calls of the store take a callback `reply`, so a gateway needs no future per message. The router is not on the hot
path and uses `await`: `page = await reply_of(conversations.range, conv, None, 0, head, 200)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from router.contract.errors import LinnetError

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def reply_of(call: Callable[[*Args, Callable[[T | LinnetError], None]], None], *args: *Args) -> T:
    """Call `call(*args, reply)` and return the value that `reply` receives; raise it if it is a `LinnetError`."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    call(*args, partial(_settle, future))
    return await future


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if future.done():
        return  # the caller was cancelled
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
