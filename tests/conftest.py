"""Fixtures every test may use. Helpers that are no fixtures stand in support.py.

`valkey`      a real server shared by the run (appendfsync always), emptied before each test that asks for it
`own_valkey`  a server for one test, to be killed and restarted
`process`     starts real gateways and routers, and leaves none behind

An `async def` test needs no mark: it runs under `support.run`, with its deadline.
"""

import gc
import inspect
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest

from deploy.embedded import EmbeddedValkey
from tests import support

# An example may take as long as a busy machine needs for it.
hypothesis.settings.register_profile("linnet", deadline=None)
hypothesis.settings.load_profile("linnet")


def pytest_collection_finish() -> None:
    """`run` collects garbage after each test: spare it what was there before the first."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test; every other is pytest's own business."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    support.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture(scope="session")
def _shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), support.free_ports(1)[0])
    server.start()
    yield server
    server.kill()


@pytest.fixture
def valkey(_shared_valkey: EmbeddedValkey) -> EmbeddedValkey:
    """The shared server, empty, without functions, and as configured at its start."""
    with _shared_valkey.client() as client:
        client.flushall()
        client.function_flush()
        client.config_set("maxmemory", 0)
        client.config_set("appendfsync", "always")
    return _shared_valkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server of the test's own: kill it, restart it, stop it."""
    server = EmbeddedValkey(tmp_path / "valkey", support.free_ports(1)[0])
    server.start()
    yield server
    server.kill()


class StartProcess(Protocol):
    def __call__(self, module: str, **env: str) -> support.Process: ...


@pytest.fixture
def process(tmp_path: Path) -> Iterator[StartProcess]:
    """`process("gateway", LINNET_REDIS_URL=valkey.url)` starts one; then `await it.ready()`."""
    started: list[support.Process] = []

    def start(module: str, **env: str) -> support.Process:
        started.append(support.Process(module, tmp_path, env))
        return started[-1]

    yield start
    for one in started:
        one.send(signal.SIGCONT)
        one.kill()
