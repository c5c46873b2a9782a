"""What pairs do about each other in a chaos run: every call that may take effect is recorded."""

from __future__ import annotations

import asyncio
import random
import threading
from pathlib import Path
from typing import Any

import msgspec

from loadtest.api import Api
from loadtest.chaos.proof.evidence import Related
from loadtest.chaos.relations import Relations
from tests.support import eventually


class SlowApi(Api):
    """The first call is answered only when `answers` is set."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1", "key", "")
        self.answers = threading.Event()
        self.made: list[str] = []

    def call(self, method: str, path: str, body: Any = None, user: str = "") -> Any:
        self.made.append(f"{method} {path}")
        if len(self.made) == 1:
            self.answers.wait(30)


async def test_call_under_way_at_the_end_is_recorded_before_blocks_are_lifted(tmp_path: Path) -> None:
    api = SlowApi()
    relations = Relations(lambda: api, random.Random(1), [("ann", "bob")], tmp_path)
    run = asyncio.create_task(relations.run())
    await eventually(lambda: bool(api.made))
    run.cancel()
    await asyncio.wait([run])
    asyncio.get_running_loop().call_soon(api.answers.set)
    await relations.end()
    calls = [
        msgspec.json.decode(line, type=Related) for line in (tmp_path / "relations.jsonl").read_bytes().splitlines()
    ]
    assert len(calls) == len(api.made)
    assert {call.answer for call in calls} == {200}
    assert [call.action for call in calls[-2:]] == ["unblock", "unblock"]
    assert max(call.ended for call in calls[:-2]) <= calls[-2].began
