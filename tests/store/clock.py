"""A clock that a test can step: the library's functions read it in place of the server's clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from deploy.embedded import EmbeddedValkey
from router.store.redis.client import Client
from router.store.redis.functions import FOLDER, Library, build

STEPS: Final = (-3600, -90, 90, 3600)

_KEY: Final = "stepped-clock"
_TIME: Final = "t[1] * 1000000 + t[2]"


def library(folder: Path, more: str = "") -> Library:
    """The library, whose clock is the server's and what `SteppedClock` adds; with `more` it is of another version."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prelude_version.lua").write_text(more)
    for file in FOLDER.glob("*.lua"):
        source = file.read_text()
        if file.name == "prelude.lua":
            assert source.count(_TIME) == 1
            source = source.replace(_TIME, f"{_TIME} + tonumber(redis.call('GET', '{_KEY}') or 0)")
        known = ("prelude.lua", "probe.lua")  # one clock for all functions; the probe asks only whether it may ask
        assert "'TIME'" not in source or file.name in known, file
        (folder / file.name).write_text(source)
    return build(folder)


class SteppedClock:
    def __init__(self, client: Client) -> None:
        self.client = client
        self._ahead_s = 0

    async def step(self, seconds: int) -> None:
        self._ahead_s += seconds
        await self.client.fetch("SET", _KEY, self._ahead_s * 1_000_000)

    async def now_ms(self) -> int:
        return await self.client.clock_ms() + self._ahead_s * 1000


@asynccontextmanager
async def stepped(valkey: EmbeddedValkey, folder: Path, more: str = "") -> AsyncIterator[SteppedClock]:
    client = await Client.connect(valkey.url, library=library(folder / "functions", more))
    try:
        yield SteppedClock(client)
    finally:
        await client.close()
    assert client.statistics().hot.callback_errors == 0
