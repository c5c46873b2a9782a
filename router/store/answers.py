"""Awaiting what the store answers by callback.

The store's hot calls take `reply`, so that a gateway pays no future per message. The router is not on that path and
reads better with `await`: `page = await ask(conversations.range, conv, None, 0, head, 200)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, TypeVarTuple

from router.contract.errors import LinnetError

T = TypeVar("T")
Args = TypeVarTuple("Args")


async def ask(call: Callable[[*Args, Callable[[T | LinnetError], None]], None], *args: *Args) -> T:
    """Call `call(*args, reply)` and wait for what `reply` gets; a `LinnetError` is raised."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    call(*args, partial(_settle, future))
    return await future


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if future.done():
        return  # whoever asked was cancelled
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
