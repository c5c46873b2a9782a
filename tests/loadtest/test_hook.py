"""The pre-send hook that fails, asked by the code that gateways and routers use."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from loadtest.hook import Hook
from router.contract.errors import Rejected, Unavailable
from router.contract.packing import jsonable, unpack
from router.contract.settings import load
from router.process.send_hook import Question, SendHook
from tests import support


class Asking:
    """A hook, a process that asks it and rejects what it does not answer, and the verdicts that it recorded."""

    def __init__(self) -> None:
        self.recorded: list[tuple[Any, Any]] = []
        record = lambda body, becomes: self.recorded.append((body, becomes))  # noqa: E731
        self.hook = Hook(support.free_ports(1)[0], "reject", random.Random(1), record)
        self.asks = SendHook(load(self.hook.settings | {"LINNET_JWT_SECRET": support.JWT_SECRET}))

    async def ask(self, body: Any, user: str = "ann") -> Any:
        question = Question(id="1", at=1, action="send", conversation="g1", from_=user, body=body)
        replaced = await self.asks.ask(question)
        return body if replaced is None else unpack(replaced)


@asynccontextmanager
async def asking() -> AsyncIterator[Asking]:
    one = Asking()
    await one.hook.start()
    try:
        yield one
    finally:
        one.asks.close()
        one.hook.kill()


async def test_hook_rejects_replaces_and_accepts_by_the_text_and_records_it() -> None:
    """As it is in a log: bytes and floats, too."""
    odd = {"bytes": b"\0\xff", "float": 5.0, "list": [None, True]}
    async with asking() as one:
        assert await one.ask("kind") == "kind"
        assert await one.ask("bad") == "****ad"
        with pytest.raises(Rejected):
            await one.ask("awful")
        await one.ask(jsonable(dict(odd)))
        assert one.recorded == [("kind", "kind"), ("bad", "****ad"), ("awful", None), (odd, odd)]


async def test_hook_that_fails_gives_no_verdict_and_records_none() -> None:
    """Dead, silent, or answering nonsense of each kind; afterwards it gives verdicts again."""
    async with asking() as one:
        one.hook.mode = "silent"
        with pytest.raises(Unavailable):
            await one.ask("kind")
        one.hook.mode = "nonsense"
        for _ in range(40):
            with pytest.raises(Unavailable):
                await one.ask("kind")
        one.hook.mode = "good"
        one.hook.kill()
        with pytest.raises(Unavailable):
            await one.ask("kind")
        assert one.recorded == []
        await one.hook.start()
        one.hook.unanswered = "bob"
        with pytest.raises(Unavailable):
            await one.ask("kind", "bob")
        assert await one.ask("kind") == "kind"
        one.hook.mode = "harsh"
        with pytest.raises(Rejected):
            await one.ask("kind")
        assert one.recorded == [("kind", "kind"), ("kind", None)]
