"""Whole systems for the flow tests: two gateways and a router over a Valkey, as an operator would start them.

`chat`    one system shared by the run, for tests that do not damage it; each test has users of its own (`names`)
`start`   starts a system for one test, with the settings that it needs, to be killed, drained and starved

After each test all its clients are ended, and no process may have logged a traceback, because a bug that no client
notices is still a bug.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from tests import support
from tests.cluster import FORM
from tests.flow.client import OPEN, token
from tests.support import SERVER_KEY, Process

# Short enough for tests, long enough for a busy machine.
SETTINGS = {"LINNET_HEARTBEAT_S": "3", "LINNET_DRAIN_ACCEPT_S": "0", "LINNET_DRAIN_WINDOW_S": "1"}

FULL_S = 1800.0  # of a test of make cluster-check

Names = Callable[..., list[str]]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test, then end the clients that it left."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted})
    support.run(_and_close(test), FULL_S if FORM == "full" else support.TEST_S)
    return True


async def _and_close(test: Any) -> None:
    try:
        await test
    finally:
        clients = list(OPEN)
        OPEN.clear()
        await asyncio.gather(*(client.end() for client in clients))


class System:
    """A Valkey, gateways and a router; more of each may be started.

    Every other gateway takes each partition of Redis for a server of its own, so all tests run with both ways to send
    and audit, and with the two beside each other.
    """

    def __init__(
        self, folder: Path, gateways: int = 2, router: bool = True, partitions: str = support.PARTITIONS, **env: str
    ) -> None:
        self.folder = folder
        self.env = env
        self.valkey = EmbeddedValkey(folder / "valkey", support.free_ports(1)[0])
        self.valkey.start()
        support.begin_deployment(self.valkey, partitions)
        self.processes: list[Process] = []
        self.gateways = [self.start("gateway", number % 2 == 1) for number in range(gateways)]
        self.router: Process | None = self.start("router") if router else None

    def start(self, module: str, apart: bool = False, /, **env: str) -> Process:
        settings = {"LINNET_REDIS_URL": self.valkey.url, **SETTINGS, **self.env, **env}
        process = Process(module, self.folder, settings, apart=apart)
        self.processes.append(process)
        return process

    def gateway(self, **env: str) -> Process:
        return self.start("gateway", **env)

    async def ready(self) -> System:
        await asyncio.gather(*(process.ready() for process in self.processes if process.popen.poll() is None))
        return self

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(gateway.url for gateway in self.gateways)

    async def api(self, method: str, path: str, body: Any = None, *, user: str = "", admin: str = "") -> Any:
        """Call the HTTP API as `user`, as `admin` with a token of the admin view, or as a backend."""
        assert self.router is not None
        key = token(user) if user else token(admin, scope="admin") if admin else SERVER_KEY
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=self.router.url, headers=headers, trust_env=False, timeout=60) as http:
            answer = await http.request(method, path, json=body)
        assert answer.is_success, (answer.status_code, answer.text)
        return answer.json() if answer.content else None

    async def group(self, *members: str, kind: str = "group", title: str = "a title") -> str:
        """Create a group or channel whose owner is the first member; return its id."""
        roles = dict.fromkeys(members, "member") | {members[0]: "owner"}
        made = await self.api("POST", "/v1/conversations", {"kind": kind, "title": title, "members": roles})
        return str(made["conversation"])

    async def metric(self, name: str, process: Process | None = None) -> float:
        """Return the sum of all series of a metric, on one process or on all gateways."""
        total = 0.0
        for gateway in [process] if process else self.gateways:
            for line in (await gateway.metrics()).splitlines():
                if line.startswith(name) and line[len(name)] in " {":
                    total += float(line.rsplit(" ", 1)[1])
        return total

    def unfinished(self) -> set[bytes]:
        """Return the conversations that routers still have to finish, except those that are due another day."""
        with self.valkey.client() as redis:
            dirty = [redis.zrange(key, 0, -1) for key in redis.scan_iter(match="*:dirty")]
        return {name for name in itertools.chain(*dirty) if name[:1] not in (b"!", b"~")}

    def tracebacks(self) -> str:
        return "\n".join(process.log[-6000:] for process in self.processes if "Traceback" in process.log)

    def close(self) -> None:
        for process in self.processes:
            process.send(signal.SIGCONT)
            process.kill()
        self.valkey.kill()


class Start(Protocol):
    async def __call__(self, gateways: int = 2, router: bool = True, partitions: str = ..., **env: str) -> System: ...


@pytest.fixture(scope="session")
def _chat(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    media = tmp_path_factory.mktemp("media").as_uri()
    search = tmp_path_factory.mktemp("search").as_uri()
    system = System(tmp_path_factory.mktemp("chat"), LINNET_MEDIA_URL=media, LINNET_SEARCH_URL=search)
    support.run(system.ready())
    yield system
    system.close()


@pytest.fixture
def chat(_chat: System) -> Iterator[System]:
    """Return the shared system."""
    yield _chat
    assert not _chat.tracebacks(), _chat.tracebacks()


@pytest.fixture
def start(starts_processes: None, tmp_path: Path) -> Iterator[Start]:
    """Return a function that starts a system for this test: `system = await start(LINNET_HEARTBEAT_S="1")`."""
    systems: list[System] = []

    async def make(gateways: int = 2, router: bool = True, partitions: str = support.PARTITIONS, **env: str) -> System:
        keys.use_tags(partitions)
        systems.append(System(tmp_path / str(len(systems)), gateways, router, partitions, **env))
        return await systems[-1].ready()

    yield make
    for system in systems:
        system.close()
    for system in systems:
        assert not system.tracebacks(), system.tracebacks()


_serial = itertools.count(1)


@pytest.fixture
def names() -> Names:
    """Return a function that makes names of users for this test: `alice, bob = names("alice", "bob")`."""

    def make(*given: str) -> list[str]:
        number = next(_serial)
        return [f"{name}-{number}" for name in given]

    return make
