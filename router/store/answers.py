"""Await a reply that the store gives by callback.

Hot calls of the store take a callback `reply`, so a gateway needs no future per message. The router is not on the hot
path and uses `await`: `page = await reply_of(conversations.range, conv, None, 0, head, 200)`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeAlias, TypeVar, TypeVarTuple, cast

from router.contract.errors import LinnetError

T = TypeVar("T")
Args = TypeVarTuple("Args")
Reply: TypeAlias = Callable[[T | LinnetError], None]


async def reply_of(call: Callable[[*Args, Callable[[T | LinnetError], None]], None], *args: *Args) -> T:
    """Call `call(*args, reply)` and return the value that `reply` receives; raise it if it is a `LinnetError`."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    call(*args, partial(_settle, future))
    return await future


async def each_answer(calls: Iterable[Awaitable[T]]) -> list[T | LinnetError]:
    """The value or the `LinnetError` of each call, once all have ended.

    So a server that does not answer costs only its own calls. Raise the error if every call failed, and any other
    exception.
    """
    found = await asyncio.gather(*calls, return_exceptions=True)
    answers: list[T | LinnetError] = []
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, LinnetError):
            raise one
        answers.append(one)
    if answers and all(isinstance(one, LinnetError) for one in answers):
        raise cast("LinnetError", answers[0])
    return answers


def _settle(future: asyncio.Future[Any], value: object) -> None:
    if future.done():
        return  # the caller was cancelled
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)
