"""The user's state: keys with values that follow the user to every device. A copy is kept here, in memory.

1. Nothing is asked before the first use. From then on the copy follows the events `state`.
2. An event whose `prev` is the copy's version is applied. Any other version that is not the copy's starts `_follow`,
   which asks for what changed; a lower one means that a failover took changes back, so everything is asked for.
3. `set` and `remove` return when the copy has the change.
Watchers are called by the loop, after what is under way; what they raise is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol
from urllib.parse import quote

from linnet_client.errors import ClientError

LIMIT: Final = 1000
AGAIN_S: Final = 2.0

log = logging.getLogger("linnet_client")

Watcher = Callable[[str, Any], None]


class Caller(Protocol):
    """The client, as its state needs it."""

    async def call(self, method: str, path: str, body: Any = None) -> Any: ...


class State:
    """The state of one user."""

    def __init__(self, caller: Caller) -> None:
        self.version = 0
        self._caller = caller
        self._values: dict[str, Any] = {}
        self._versions: dict[str, int] = {}
        self._watchers: dict[Watcher, str] = {}
        self._used = self._read = False
        self._whole = True  # what is asked for next is everything
        self._wanted = 0  # a version that exists
        self._syncing: asyncio.Task[None] | None = None

    # -- the application's side

    async def get(self, key: str) -> Any:
        """Return the value of a key; None if there is none."""
        await self._begin()
        return self._values.get(key)

    async def entries(self, prefix: str = "") -> dict[str, Any]:
        """Return all keys that begin with this, and their values."""
        await self._begin()
        return {key: value for key, value in sorted(self._values.items()) if key.startswith(prefix)}

    async def version_of(self, key: str) -> int:
        """Return the version that a key has; 0 if it is absent."""
        await self._begin()
        return self._versions.get(key, 0)

    async def set(self, key: str, value: Any, *, expect: int | None = None) -> int:
        """Write a key, and return its new version; None removes it.

        `expect`: only if it has this version, else `Refused` with `conflict`.
        """
        body = {"value": value} if expect is None else {"value": value, "expect": expect}
        written = await self._caller.call("PUT", f"/v1/state/{quote(key)}", body)
        await self._begin()
        if self.version < written["version"]:
            await self._sync()
        return int(written["version"])

    async def remove(self, key: str, *, expect: int | None = None) -> int:
        """Remove a key, and return the version of that."""
        return await self.set(key, None, expect=expect)

    def watch(self, prefix: str, watcher: Watcher) -> Callable[[], None]:
        """Call a function with key and value (None: removed) for each change below a prefix; the answer ends that."""
        self._watchers[watcher] = prefix
        self._used = True
        if not self._read:
            self._later(0)

        def end() -> None:
            self._watchers.pop(watcher, None)

        return end

    # -- the client's side; nothing here waits

    def told(self, event: dict[str, Any]) -> None:
        """An event `state`, or the version of a `welcome` (without `key`)."""
        version, change = event["version"], "key" in event
        if not self._used or version == self.version or (change and version < self.version):
            return
        before = event["prev"] if change else version
        if change and before == self.version and self._read and self._syncing is None:
            self._apply([event], version)
            return
        self._whole = self._whole or before < self.version
        self._wanted = max(self._wanted, version)
        self._later(0)

    def close(self) -> None:
        if self._syncing is not None:
            self._syncing.cancel()

    async def refresh(self) -> None:
        """A call has changed the state: read it, if there is a copy."""
        if self._read:
            await self._sync()

    # -- the copy

    async def _begin(self) -> None:
        self._used = True
        if not self._read:
            await self._sync()

    def _later(self, wait_s: float) -> None:
        if self._syncing is None:
            self._syncing = asyncio.get_running_loop().create_task(self._follow(wait_s))

    async def _follow(self, wait_s: float) -> None:
        """Read until the copy has what is known to exist, or the API does not answer; then again after a while."""
        await asyncio.sleep(wait_s)
        failed = False
        try:
            while self._whole or self.version < self._wanted:
                before = self.version
                await self._sync()
                if self.version == before and not self._whole:
                    break  # a failover has taken back what was to come
        except ClientError as error:
            log.info("the user's state was not read: %s", error)
            failed = True
        self._wanted = 0 if not failed else self._wanted
        self._syncing = None
        if failed:
            self._later(AGAIN_S)

    async def _sync(self) -> None:
        """Read what changed after the copy's version, or everything."""
        reset, self._whole = self._whole, False
        after, cursor, found = 0 if reset else self.version, "", list[dict[str, Any]]()
        try:
            while True:
                page = await self._caller.call("GET", f"/v1/state?after={after}&limit={LIMIT}&cursor={quote(cursor)}")
                if page["reset"]:
                    reset, found = True, []
                found += page["entries"]
                if not page["more"]:
                    break
                cursor = page["cursor"]
        except BaseException:
            self._whole = self._whole or reset
            raise
        self._read = True
        if not reset and page["version"] < self.version:
            return  # events were faster
        if reset:
            kept = {entry["key"] for entry in found}
            found += [{"key": key, "value": None, "version": 0} for key in self._values if key not in kept]
        self._apply(found, page["version"])

    def _apply(self, entries: list[dict[str, Any]], version: int) -> None:
        self.version = version
        for entry in entries:
            key, value = entry["key"], entry["value"]
            changed = self._versions.get(key, 0) != entry["version"]
            if value is None:
                changed = self._values.pop(key, None) is not None
                self._versions.pop(key, None)
            else:
                self._values[key], self._versions[key] = value, entry["version"]
            if changed:
                for watcher, prefix in self._watchers.items():
                    if key.startswith(prefix):
                        asyncio.get_running_loop().call_soon(_call, watcher, key, value)


def _call(watcher: Watcher, key: str, value: Any) -> None:
    try:
        watcher(key, value)
    except Exception:  # the application's, and not this package's to handle
        log.exception("a watcher of the state failed")
