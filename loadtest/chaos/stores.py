"""The Redis of a chaos run: one Valkey, or a primary with two replicas behind three sentinels (a cluster: `shards.py`).

All kinds give a client of the current primary, can be healed, and keep the logs of their servers. The faults
themselves are decided by `nemesis.py`.

Invariant: a server that was killed restarts on its own files; behind sentinels it restarts as a replica of the current
primary, as an operator's configuration would start it.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import redis

from deploy.embedded import EmbeddedSentinel, EmbeddedValkey
from loadtest.chaos.clocks import Clock, forget
from loadtest.ports import free_ports

NAME: Final = "main"
SENTINELS: Final = 3
REPLICAS: Final = 2
DOWN_AFTER_MS: Final = 1000
DROP_CACHES: Final = Path("/proc/sys/vm/drop_caches")
START_S: Final = 60.0
# Shorter periods of the sentinels, so that a failover takes two seconds instead of ten.
PERIODS: Final = (
    "info-period", 400, "ping-period", 400, "ask-period", 100, "publish-period", 500, "election-timeout", 1000,
)  # fmt: skip


class Store:
    """The servers, and the `settings` with which processes find them."""

    def __init__(self, folder: Path, servers: list[EmbeddedValkey], settings: dict[str, str]) -> None:
        self.folder = folder
        self.servers = servers
        self.settings = settings

    async def start(self) -> None:
        """Start all servers, on the main thread, to which they are tied."""
        for server in self.servers:
            server.spawn()
        for server in self.servers:
            await asyncio.to_thread(server.wait_ready, START_S)

    def primary(self) -> EmbeddedValkey:
        return self.servers[0]

    def client(self) -> redis.Redis:
        """Return a blocking client of the primary; the caller closes it."""
        return self.primary().client()

    def signal(self, server: EmbeddedValkey, signum: signal.Signals) -> None:
        if server.returncode is None:
            os.kill(server.pid, signum)

    async def restart(self, server: EmbeddedValkey) -> None:
        self.keep_log(server)
        server.spawn()
        await asyncio.to_thread(server.wait_ready, START_S)

    def drop_page_cache(self, server: EmbeddedValkey) -> None:
        """Drop the cached pages of a killed server's files, so that it reads them from the disk again.

        This is less than a power cut: the kernel drops only pages that are already on the disk, and keeps those that
        were written and never synced. So it shows that synced data can be read; it cannot show that acked data was
        never synced. (The gateway checks at its start that the server syncs before it answers.)
        """
        for path in (server.folder / "appendonlydir").iterdir():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with suppress(OSError):  # needs root, and is not allowed in every container
            DROP_CACHES.write_text("1")

    def fill_disk(self, server: EmbeddedValkey) -> None:
        """Let the next writes to the append-only file fail half way, as on a full disk."""
        newest = max((server.folder / "appendonlydir").glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
        room = newest.stat().st_size + 777
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (room, room))

    def kill_subscribers(self) -> None:
        """End every pub/sub connection of every server."""
        for server in self.servers:
            with suppress(redis.RedisError), server.client() as client:  # a stopped server has no subscribers
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

    async def heal(self) -> None:
        for server in self.servers:
            self.signal(server, signal.SIGCONT)

    def keep_log(self, server: EmbeddedValkey) -> None:
        """Copy a server's log, which holds all of its starts, to a file of the run."""
        if server.log_path.exists():
            (self.folder / f"{server.folder.name}.log").write_bytes(server.log_path.read_bytes())

    def close(self) -> None:
        for server in self.servers:
            server.kill()
            self.keep_log(server)


class Single(Store):
    """One Valkey; each process reaches it through a proxy of its own."""

    def __init__(self, folder: Path, level: str, *, clocks: bool = False) -> None:
        """`clocks`: whether `set_clock` works."""
        (self.port,) = free_ports(1)
        self._pid = 0
        server = EmbeddedValkey(folder / "valkey", self.port, appendfsync="always" if level == "fsync" else "everysec")
        super().__init__(folder, [server], {})
        self._clock = Clock(folder / "valkey.clock") if clocks else None
        if self._clock is not None:
            server.env = self._clock.env

    def set_clock(self, offset_s: float) -> None:
        """Make the server's wall clock wrong by so much, if clocks can step."""
        if self._clock is not None:
            self._clock.set(offset_s)

    async def heal(self) -> None:
        await super().heal()
        self.set_clock(0)

    async def restart(self, server: EmbeddedValkey) -> None:
        forget(self._pid)
        await super().restart(server)
        self._pid = server.pid

    async def start(self) -> None:
        await super().start()
        self._pid = self.servers[0].pid

    def close(self) -> None:
        super().close()
        forget(self._pid)


class Replicated(Store):
    """A primary, its replicas, and the sentinels that decide which server is the primary."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(1 + REPLICAS + SENTINELS)
        self._ports = ports[: 1 + REPLICAS]
        servers = [EmbeddedValkey(folder / f"valkey-{number}", port) for number, port in enumerate(self._ports)]
        self.sentinels = [
            EmbeddedSentinel(folder / f"sentinel-{number}", port, NAME, ports[0], SENTINELS // 2 + 1, DOWN_AFTER_MS)
            for number, port in enumerate(ports[1 + REPLICAS :])
        ]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[1 + REPLICAS :])
        super().__init__(
            folder,
            servers,
            {
                "LINNET_REDIS_URL": f"redis+sentinel://{hosts}/{NAME}",
                "LINNET_REDIS_MODE": "sentinel",
                "LINNET_REPLICAS": str(REPLICAS),
            },
        )
        for server in servers[1:]:
            server.replica_of = ports[0]

    async def start(self) -> None:
        await super().start()
        for sentinel in self.sentinels:
            await self.restart_sentinel(sentinel)

    def _shorten_periods(self, sentinel: EmbeddedSentinel) -> None:
        with sentinel.client() as client:
            client.execute_command("SENTINEL", "DEBUG", *PERIODS)

    def primary(self) -> EmbeddedValkey:
        """Return the primary, as the sentinel with the newest configuration names it."""
        best, port = -1, self._ports[0]
        for sentinel in self.sentinels:
            with suppress(redis.RedisError), sentinel.client() as client:  # a killed sentinel does not answer
                state = client.sentinel_master(NAME)
                if state["config-epoch"] > best:
                    best, port = state["config-epoch"], state["port"]
        return self.servers[self._ports.index(port)]

    async def restart(self, server: EmbeddedValkey) -> None:
        primary = await asyncio.to_thread(self.primary)
        server.replica_of = None if primary is server else self._ports[self.servers.index(primary)]
        await super().restart(server)

    async def restart_sentinel(self, sentinel: EmbeddedSentinel) -> None:
        sentinel.spawn()
        await asyncio.to_thread(sentinel.wait_ready, START_S)
        await asyncio.to_thread(self._shorten_periods, sentinel)

    def fail_over(self) -> None:
        """Ask for a failover as an operator does; the sentinels refuse it during another one."""
        with suppress(redis.RedisError), self.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", NAME)

    async def heal(self) -> None:
        """Wait until all replicas follow the primary."""
        await super().heal()
        for sentinel in self.sentinels:
            self.signal(sentinel, signal.SIGCONT)
        until = asyncio.get_running_loop().time() + START_S
        while not await asyncio.to_thread(self._all_replicas_follow):
            if asyncio.get_running_loop().time() > until:
                raise RuntimeError(f"the replicas do not follow their primary, see the logs in {self.folder}")
            await asyncio.sleep(0.2)

    def _all_replicas_follow(self) -> bool:
        try:
            with self.client() as client:
                info = client.info("replication")
        except redis.RedisError:
            return False
        states = [info[f"slave{number}"]["state"] for number in range(info.get("connected_slaves", 0))]
        return info["role"] == "master" and states.count("online") == REPLICAS

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
            self.keep_log(sentinel)
        super().close()
