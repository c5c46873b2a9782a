"""A gateway of another deployment on the same Redis server: other secret, users of the same names.

On another database it must either refuse to start or work without the two deployments noticing each other: its users
write to each other, and the checker finds every foreign event that a device of the tested deployment received. On the
database of the tested deployment it must refuse to start.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import jwt

from loadtest.chaos.cluster import DRAINED_S, ManagedProcess
from loadtest.chaos.device import Device
from loadtest.chaos.proof.history import Rows

USERS: Final = ("u000", "u001", "u002", "u003")
TOKEN_S: Final = 600
EVERY_S: Final = 0.2
READY: Final = "ready"


class NoRecorder:
    """A book that keeps no rows: the neighbour's users are not judged."""

    def add(self, row: Rows) -> None:
        pass


class Neighbour:
    def __init__(
        self, folder: Path, redis_port: int, database: int, env: Mapping[str, str], rng: random.Random
    ) -> None:
        folder.mkdir(exist_ok=True)
        self._secret = secrets.token_urlsafe(48)
        own = {
            **{name: value for name, value in env.items() if name != "LINNET_JWKS_URL"},
            "LINNET_REDIS_URL": f"redis://127.0.0.1:{redis_port}/{database}",
            "LINNET_JWT_SECRET": self._secret,
        }
        self._process = ManagedProcess("gateway-n", folder, (), own)
        self._rng = rng

    async def run(self, for_s: float, *, writes: bool) -> str:
        """Start it, let its users write for a while, stop it; return `READY`, or the line with which it refused."""
        await self._process.clients.start()
        self._process.start()
        try:
            if not await self._process.ready():
                return self._last_line()
            if writes:
                await self._write(for_s)
            return READY
        finally:
            self._process.send(signal.SIGTERM)
            await self._process.ended(DRAINED_S)
            self._process.kill()
            await self._process.clients.close()

    def _last_line(self) -> str:
        lines = (self._process.folder / f"{self._process.name}.log").read_text(errors="replace").splitlines()
        return lines[-1] if lines else "no output"

    def _token(self, user: str) -> str:
        return jwt.encode({"sub": user, "exp": int(time.time()) + TOKEN_S}, self._secret, algorithm="HS256")

    async def _write(self, for_s: float) -> None:
        devices = [
            Device(user, "phone", "json", [self._process.url], self._token, NoRecorder(), self._rng) for user in USERS
        ]
        lives = [asyncio.create_task(device.run()) for device in devices]
        for device in devices:
            device.go_online()
        until = asyncio.get_running_loop().time() + for_s
        while asyncio.get_running_loop().time() < until:
            await asyncio.sleep(EVERY_S)
            for device in devices:
                device.tick()
                other = self._rng.choice([user for user in USERS if user != device.user])
                device.message(f"@{other}", "from another deployment")
        for device in devices:
            device.stop()
        await asyncio.wait(lives, timeout=10)
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)
