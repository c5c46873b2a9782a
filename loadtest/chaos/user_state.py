"""The user state of one device, kept by the rules for client authors: it applies changes that follow its version, and
asks the HTTP API for the others.

One request at a time is under way. For a reason to ask that comes meanwhile, it asks once more after the answer, from
the version that it has then: if that answer was of a primary that was replaced, its successor resets only a device that
names the lost version. It asks again until there is an answer, because routers may be down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from http.client import HTTPException
from typing import Any, Final

from loadtest.chaos.proof import history
from loadtest.chaos.proof.history import Rows, digest, now_ms
from router.contract.packing import canonical

AGAIN_S: Final = 0.5

Fetch = Callable[[str, int, str], Awaitable[dict[str, Any]]]  # user, after, cursor → a page of `GET /v1/state`


class UserState:
    """`keys`: key → its version and the digest of its value. Without `fetch` nothing is kept."""

    def __init__(self, user: str, add: Callable[[Rows], None], fetch: Fetch | None) -> None:
        self.version = 0
        self.keys: dict[str, tuple[int, str]] = {}
        self._user, self._add, self._fetch = user, add, fetch
        self._wanted: int | None = None  # 0: ask for everything, else for what changed since the version then
        self._asking: asyncio.Task[None] | None = None

    def named(self, version: int) -> None:
        """Take a version without a key, of `welcome` or of an event."""
        if version != self.version:
            self._ask(self.version if version > self.version else 0)

    def changed(self, event: dict[str, Any]) -> None:
        """Take an event with a key."""
        version, prev = event["version"], event["prev"]
        body = "" if event["value"] is None else digest(event["value"])
        self._add(history.Stated(now_ms(), event["key"], version, prev, body))
        if version <= self.version:
            return
        if prev == self.version and self._asking is None:
            self._set(event["key"], version, body)
            self.version = version
        else:
            self._ask(self.version if prev >= self.version else 0)

    def _set(self, key: str, version: int, body: str) -> None:
        if body:
            self.keys[key] = version, body
        else:
            self.keys.pop(key, None)

    def _ask(self, after: int) -> None:
        if self._fetch is None:
            return
        self._wanted = after if self._wanted is None else min(after, self._wanted)
        if self._asking is None:
            self._asking = asyncio.create_task(self._read(self._fetch))

    async def _read(self, fetch: Fetch) -> None:
        try:
            while self._wanted is not None:
                after, self._wanted = self.version if self._wanted else 0, None
                try:
                    await self._pages(fetch, after)
                except (OSError, HTTPException):
                    self._wanted = 0 if self._wanted == 0 else after
                    await asyncio.sleep(AGAIN_S)
        finally:
            self._asking = None

    async def _pages(self, fetch: Fetch, after: int) -> None:
        cursor, first = "", True
        while first or cursor:
            page = await fetch(self._user, after, cursor)
            if page["reset"] or (first and after == 0):
                self.keys.clear()
            for entry in page["entries"]:
                body = "" if entry["value"] is None else digest(canonical(entry["value"]))
                self._set(entry["key"], entry["version"], body)
            cursor, first = page["cursor"], False
            if not cursor:
                self.version = page["version"]

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
