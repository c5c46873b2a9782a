"""The user state of a chaos device: it converges although an answer is of a primary that was replaced."""

from __future__ import annotations

import asyncio
from typing import Any

from loadtest.chaos.user_state import UserState
from tests.support import eventually


def page(version: int, entries: dict[str, int], *, reset: bool = False) -> dict[str, Any]:
    found = [{"key": key, "version": written, "value": key} for key, written in entries.items()]
    return {"entries": found, "version": version, "reset": reset, "cursor": ""}


def change(key: str, version: int, prev: int) -> dict[str, Any]:
    return {"key": key, "value": key, "version": version, "prev": prev}


async def test_device_names_the_version_that_it_has_when_it_asks_again() -> None:
    """The old primary answers with versions 6 and 7, of which its successor knows nothing. Meanwhile the device had a
    reason to ask, when it had version 5."""
    asked: list[int] = []
    old = asyncio.Event()

    async def fetch(_: str, after: int, __: str) -> dict[str, Any]:
        asked.append(after)
        if len(asked) == 1:
            await old.wait()
            return page(7, {"draft/b": 6, "contact/bob": 7})
        return page(5, {"draft/a": 5}, reset=True) if after > 5 or after == 0 else page(5, {})

    state = UserState("ann", lambda _: None, fetch)
    state.version, state.keys = 5, {"draft/a": (5, "x")}
    state.named(6)
    await eventually(lambda: asked == [5])
    state.changed(change("draft/b", 6, 5))
    old.set()
    await eventually(lambda: len(asked) == 2 and state.version == 5)
    assert asked == [5, 7]
    assert state.keys.keys() == {"draft/a"}
    state.stop()
