"""The pre-send hook of a chaos run, asked by the code that gateways and routers use."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadtest.chaos.hook import Hook
from loadtest.chaos.proof.evidence import Judged
from loadtest.chaos.proof.history import digest
from router.contract.errors import Rejected, Unavailable
from router.contract.packing import jsonable, unpack
from router.contract.settings import load
from router.process.send_hook import Question, SendHook
from tests import support


@asynccontextmanager
async def hooked(folder: Path) -> AsyncIterator[tuple[Hook, SendHook]]:
    """A hook, and a process that asks it and rejects what it does not answer."""
    hook = Hook(support.free_ports(1)[0], folder, random.Random(1))
    changed = {"LINNET_JWT_SECRET": support.JWT_SECRET, "LINNET_SEND_HOOK_ON_FAILURE": "reject"}
    asks = SendHook(load(hook.settings | changed))
    await hook.start()
    try:
        yield hook, asks
    finally:
        asks.close()
        hook.kill()


async def asked(asks: SendHook, body: Any) -> Any:
    replaced = await asks.ask(Question(id="1", at=1, action="send", conversation="g1", from_="ann", body=body))
    return body if replaced is None else unpack(replaced)


def recorded(folder: Path) -> list[tuple[str, str]]:
    rows = (folder / "hook.jsonl").read_bytes().splitlines()
    return [(row.body, row.becomes) for row in map(msgspec.json.Decoder(Judged).decode, rows)]


async def test_hook_rejects_replaces_and_accepts_by_the_text_and_records_it(tmp_path: Path) -> None:
    """The digests are those of the log, of bytes and floats, too."""
    odd = {"bytes": b"\0\xff", "float": 5.0, "list": [None, True]}
    async with hooked(tmp_path) as (_, asks):
        assert await asked(asks, "kind") == "kind"
        assert await asked(asks, "bad") == "****ad"
        with pytest.raises(Rejected):
            await asked(asks, "awful")
        await asked(asks, jsonable(dict(odd)))
    assert recorded(tmp_path) == [
        (digest("kind"), digest("kind")),
        (digest("bad"), digest("****ad")),
        (digest("awful"), ""),
        (digest(odd), digest(odd)),
    ]


async def test_hook_that_fails_gives_no_verdict_and_records_none(tmp_path: Path) -> None:
    """Dead, silent, or answering nonsense of each kind; afterwards it gives verdicts again."""
    async with hooked(tmp_path) as (hook, asks):
        hook.mode = "silent"
        with pytest.raises(Unavailable):
            await asked(asks, "kind")
        hook.mode = "nonsense"
        for _ in range(40):
            with pytest.raises(Unavailable):
                await asked(asks, "kind")
        hook.mode = "good"
        hook.kill()
        with pytest.raises(Unavailable):
            await asked(asks, "kind")
        assert not (tmp_path / "hook.jsonl").exists()
        await hook.start()
        assert await asked(asks, "kind") == "kind"
        hook.mode = "harsh"
        with pytest.raises(Rejected):
            await asked(asks, "kind")
    assert recorded(tmp_path) == [(digest("kind"), digest("kind")), (digest("kind"), "")]
