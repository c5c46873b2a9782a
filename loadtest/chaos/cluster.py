"""A deployment whose processes can be killed one by one: Valkey, gateways, routers, and a proxy on every link.

    clients -> proxy -> gateway -> proxy -> Valkey <- proxy <- router

(With sentinels there is no proxy in front of Valkey: the sentinels name the address of the server itself. On a cluster
each process has a proxy for each server, by LINNET_REDIS_MAP.)

If libfaketime is installed, the wall clock of each process can step (`clocks.py`).

A process keeps its ports and its log over all its restarts. Each end of a process is recorded with the signal that it
was sent. If a process ends without a signal, it is restarted like any other, and the checker reports it. `close`
removes everything, and the kernel kills all processes if this one dies first.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from deploy.embedded import tied
from loadtest.chaos.clocks import FAKETIME, Clock, forget
from loadtest.chaos.key_set import KeySet
from loadtest.chaos.objects import BUCKET, SeaweedFS
from loadtest.chaos.proof.evidence import Ending, Judged, Sample, append
from loadtest.chaos.proof.history import digest, now_ms
from loadtest.chaos.proxy import Proxy
from loadtest.chaos.shards import Sharded
from loadtest.chaos.stores import Replicated, Single
from loadtest.hook import Hook
from loadtest.ports import free_ports

ROOT: Final = Path(__file__).parent.parent.parent
READY_S: Final = 60.0
DRAINED_S: Final = 40.0
WATCH_S: Final = 0.25
SAMPLE_S: Final = 2.0

# Short enough that a fault of some seconds meets audits, leases and drains; long enough for a busy machine.
SETTINGS: Final = {
    "LINNET_HEARTBEAT_S": "5",
    "LINNET_DRAIN_ACCEPT_S": "0.5",
    "LINNET_DRAIN_WINDOW_S": "5",
    "LINNET_RETENTION_EVENTS": "150",  # lively groups are trimmed while some of their devices are away
    "LINNET_MAX_CONNECTIONS_PER_ADDRESS": "20000",
}


class ManagedProcess:
    """A gateway or a router: one name, one set of ports and one log for all its restarts."""

    def __init__(
        self, name: str, folder: Path, redis_ports: Sequence[int], env: Mapping[str, str], *, clocks: bool = False
    ) -> None:
        """It reaches `redis_ports` through proxies, other servers as `env` says; `clocks`: `set_clock` works."""
        self.name = name
        self.module = name.partition("-")[0]
        self.folder = folder
        self.port, self.admin_port, client_port, *store_ports = free_ports(3 + len(redis_ports))
        self.clients = Proxy(client_port, self.port)
        self.stores = [Proxy(port, to_port) for port, to_port in zip(store_ports, redis_ports, strict=True)]
        self.url = f"ws://127.0.0.1:{client_port}/ws" if self.module == "gateway" else f"http://127.0.0.1:{client_port}"
        self._clock = Clock(folder / f"{name}.clock") if clocks and FAKETIME is not None else None
        self.busy = asyncio.Lock()  # held by the fault of the process
        self.asked = ""
        self.popen: subprocess.Popen[bytes] | None = None
        self.env = {
            **env,
            **_reached(self.stores),
            "LINNET_LISTEN": f"127.0.0.1:{self.port}",
            "LINNET_ADMIN_LISTEN": f"127.0.0.1:{self.admin_port}",
        }
        if self.module == "gateway":
            self.env["LINNET_GATEWAY_URL"] = self.url
        if self._clock is not None:
            self.env |= self._clock.env

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def set_clock(self, by_s: float) -> None:
        """Make the wall clock of the process wrong by so much, if clocks can step."""
        if self._clock is not None:
            self._clock.set(by_s)

    def start(self) -> None:
        self.asked = ""
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.popen = subprocess.Popen(
                tied(sys.executable, "-m", self.module),
                cwd=ROOT,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def send(self, signum: signal.Signals) -> None:
        if signum in (signal.SIGKILL, signal.SIGTERM):
            self.asked = signum.name
        if self.alive and self.popen is not None:
            self.popen.send_signal(signum)

    async def ended(self, deadline_s: float) -> bool:
        until = asyncio.get_running_loop().time() + deadline_s
        while self.alive:
            if asyncio.get_running_loop().time() > until:
                return False
            await asyncio.sleep(0.02)
        self.note_end()
        return True

    def note_end(self) -> None:
        """Record how the process ended, once."""
        if self.popen is not None and self.popen.returncode is not None:
            append(self.folder / "processes.jsonl", Ending(now_ms(), self.name, self.popen.returncode, self.asked))
            forget(self.popen.pid)
            self.popen = None

    def kill(self) -> None:
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()
            forget(self.popen.pid)

    async def ready(self, deadline_s: float = READY_S) -> bool:
        until = asyncio.get_running_loop().time() + deadline_s
        while asyncio.get_running_loop().time() < until and self.alive:
            if await self._answers():
                return True
            await asyncio.sleep(0.05)
        return False

    async def _answers(self) -> bool:
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port)
                try:
                    writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    return (await reader.readline()).split()[1:2] == [b"200"]
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    @property
    def rss_bytes(self) -> int:
        try:
            pages = Path(f"/proc/{self.popen.pid if self.popen else 0}/statm").read_text().split()[1]
        except (OSError, IndexError):
            return 0
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _reached(proxies: Sequence[Proxy]) -> dict[str, str]:
    """The settings by which a process goes through these proxies."""
    if len(proxies) == 1:
        return {"LINNET_REDIS_URL": f"redis://127.0.0.1:{proxies[0].port}/0"}
    return {"LINNET_REDIS_MAP": ",".join(f"127.0.0.1:{one.to_port}=127.0.0.1:{one.port}" for one in proxies)}


class Cluster:
    """A store, and the gateways and routers that use it."""

    def __init__(
        self,
        folder: Path,
        gateways: int = 3,
        routers: int = 2,
        level: str = "fsync",
        *,
        clocks: bool = False,
        shards: random.Random | None = None,
    ) -> None:
        """`shards`: Redis is a cluster, and this decides which of its servers a fault meets."""
        self.folder = folder
        self.level = level
        self.jwt_secret, self.server_key = secrets.token_urlsafe(48), secrets.token_urlsafe(48)
        self.store: Single | Replicated | Sharded
        redis_ports: Sequence[int] = ()
        if shards is not None:
            self.store = Sharded(folder, level, shards)
            redis_ports = self.store.ports
        elif level == "replicated":
            self.store = Replicated(folder)
        else:
            self.store = Single(folder, level, clocks=clocks)
            redis_ports = (self.store.port,)
        self.store_busy = asyncio.Lock()
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LINNET_")}
        self.key_set = KeySet(free_ports(1)[0])
        self.env = {
            **inherited,
            **SETTINGS,
            **self.store.settings,
            "LINNET_DURABILITY": level,
            "LINNET_JWT_SECRET": self.jwt_secret,
            "LINNET_JWKS_URL": self.key_set.url,
            "LINNET_SERVER_KEY": self.server_key,
        }
        names = [f"gateway-{number}" for number in range(gateways)], [f"router-{number}" for number in range(routers)]
        self.gateways, self.routers = (
            [ManagedProcess(name, folder, redis_ports, self.env, clocks=clocks) for name in some] for some in names
        )
        self.processes = {process.name: process for process in (*self.gateways, *self.routers)}
        self.objects: SeaweedFS | None = None  # the store of files, if there is one
        self.objects_busy = asyncio.Lock()
        self.hook: Hook | None = None  # the pre-send hook, if there is one
        self._watching: asyncio.Task[None] | None = None

    def ask_hook(self, rng: random.Random) -> None:
        """Let gateways and routers ask a pre-send hook; before `start`."""
        policy = rng.choice(("accept", "reject"))
        self.hook = Hook(free_ports(1)[0], policy, random.Random(rng.random()), self._record)
        for process in self.processes.values():
            process.env |= self.hook.settings

    def _record(self, body: Any, becomes: Any) -> None:
        append(self.folder / "hook.jsonl", Judged(now_ms(), digest(body), "" if becomes is None else digest(becomes)))

    def store_files(self) -> None:
        """Let routers store files in an object store; before `start`."""
        self.objects = SeaweedFS(self.folder / "objects")
        for router in self.routers:
            router.env |= {**self.objects.environ(), "LINNET_MEDIA_URL": f"s3://{BUCKET}/files"}

    def allow_pages(self) -> None:
        """Let pages of all origins connect; before `start`."""
        for process in self.processes.values():
            process.env["LINNET_ORIGINS"] = "*"

    def serve_pages(self) -> None:
        """Let people use the page of each router, with accounts, files, and all that they wrote; before `start`."""
        self.allow_pages()
        files = (self.folder / "files").absolute().as_uri()
        for process in self.processes.values():
            process.env |= {"LINNET_ACCOUNTS": "true", "LINNET_MEDIA_URL": files, "LINNET_RETENTION_EVENTS": "10000"}

    @property
    def urls(self) -> list[str]:
        return [gateway.url for gateway in self.gateways]

    async def start(self) -> None:
        await self.store.start()
        await self.store.heal()
        if self.objects is not None:
            await asyncio.to_thread(self.objects.start)
        await self.key_set.start()
        if self.hook is not None:
            await self.hook.start()
        for process in self.processes.values():
            for proxy in (process.clients, *process.stores):
                await proxy.start()
            process.start()
        for process in self.processes.values():
            if not await process.ready():
                raise RuntimeError(f"{process.name} did not become ready, see {self.folder / process.name}.log")
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Sample memory, and restart a process that ended without a signal."""
        loop, sampled = asyncio.get_running_loop(), 0.0
        while True:
            await asyncio.sleep(WATCH_S)
            for process in self.processes.values():
                if process.popen is not None and not process.asked and not process.alive:
                    process.note_end()
                    process.start()
            if loop.time() > sampled + SAMPLE_S:
                sampled = loop.time()
                samples = [Sample(now_ms(), process.name, process.rss_bytes) for process in self.processes.values()]
                append(self.folder / "processes.jsonl", *samples)

    async def restart(self, process: ManagedProcess) -> None:
        """Start a new process and wait until it is ready.

        One that ends by itself, because Redis refuses something, is started again by `_watch`. It must be ready, too:
        the SIGTERM of the next fault would kill a process that has no handlers yet.
        """
        process.start()
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_S):
                while True:
                    if await process.ready():
                        return
                    await asyncio.sleep(WATCH_S)

    # -- the end

    async def heal(self) -> None:
        """Undo all faults, and wait until every process is ready."""
        await self.store.heal()
        self.key_set.broken = ""
        if self.hook is not None:
            self.hook.mode = "good"
            await self.hook.start()
        for process in self.processes.values():
            for proxy in (process.clients, *process.stores):
                proxy.heal()
            process.set_clock(0)
            process.send(signal.SIGCONT)
        for process in self.processes.values():
            if not await process.ready():
                raise RuntimeError(f"{process.name} is not ready, see {self.folder / process.name}.log")

    async def stop(self) -> None:
        """Stop gateways and routers as an operator does. The store keeps running, so that its logs can be read."""
        if self._watching is not None:
            self._watching.cancel()
        for processes in (self.gateways, self.routers):
            for process in processes:
                process.send(signal.SIGTERM)
            for process in processes:
                await process.ended(DRAINED_S)

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        for process in self.processes.values():
            process.kill()
            for proxy in (process.clients, *process.stores):
                await proxy.close()
        await self.key_set.close()
        if self.hook is not None:
            self.hook.kill()
        if self.objects is not None:
            self.objects.kill()
        self.store.close()
