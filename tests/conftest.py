"""Fixtures for every test. Helpers that are no fixtures are in support.py.

`valkey`      a real server shared by the run (appendfsync always), emptied before each test that asks for it
`own_valkey`  a server for one test, to be killed and restarted
`process`     starts real gateways and routers, and kills them after the test

An `async def` test needs no mark: it runs under `support.run`, with its deadline.

Tests run in several workers (pytest-xdist), each with servers of its own. Tests with the mark `alone` come last, and
while one of them runs, every other worker waits.
"""

import fcntl
import gc
import inspect
import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Protocol

import hypothesis
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from tests import support

# No deadline for one example, because a busy machine may be slow.
hypothesis.settings.register_profile("full", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=20)

# httpcore tries to import it at each step of each request, and where it is not installed, each search takes about 1 ms.
sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]  # None: not there, as the language says

LOCK = Path(__file__)  # any file that all workers of a checkout can open


def pytest_configure(config: pytest.Config) -> None:
    """Let properties have fewer examples in the quick check, and wait for less."""
    quick = config.option.markexpr == "not processes"
    hypothesis.settings.load_profile("quick" if quick else "full")
    if quick:
        support.PATIENCE = 1.0


def pytest_collection_finish() -> None:
    """Freeze the objects that exist before the first test, because `run` collects garbage after each test."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)  # before pytest looks at `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start processes, and move those that run alone to the end."""
    for item in items:
        if "starts_processes" in getattr(item, "fixturenames", ()):
            item.add_marker("processes")
    items.sort(key=lambda item: item.get_closest_marker("alone") is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold the lock that workers share, and that a test with the mark `alone` has exclusively.

    A second run in the same checkout takes part. No test's duration contains the wait for it.
    """
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        try:
            return (yield)
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)  # closing does not free it while a child that was forked has it open


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test; pytest runs the others."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    support.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}))
    return True


@pytest.fixture(autouse=True)
def tags() -> None:
    """Use the tags of new test deployments again; the deployment of the test before may have had others."""
    keys.use_tags(support.PARTITIONS)


@pytest.fixture(scope="session")
def starts_processes() -> None:
    """Mark the tests of each fixture that requests this one with `processes`."""


@pytest.fixture(scope="session")
def _shared_valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path_factory.mktemp("valkey"), support.free_ports(1)[0])
    server.start()
    yield server
    server.kill()


@pytest.fixture
def valkey(_shared_valkey: EmbeddedValkey) -> EmbeddedValkey:
    """Return the shared server, empty, without functions, and with the configuration of its start."""
    with _shared_valkey.client() as client:
        client.flushall()
        client.function_flush()
        client.config_set("maxmemory", 0)
        client.config_set("appendfsync", "always")
    support.begin_deployment(_shared_valkey)
    return _shared_valkey


@pytest.fixture
def own_valkey(starts_processes: None, tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """Start a server for this test alone, which may kill, restart and stop it."""
    server = EmbeddedValkey(tmp_path / "valkey", support.free_ports(1)[0])
    server.start()
    support.begin_deployment(server)
    yield server
    server.kill()


class StartProcess(Protocol):
    def __call__(self, module: str, **env: str) -> support.Process: ...


@pytest.fixture
def process(starts_processes: None, tmp_path: Path) -> Iterator[StartProcess]:
    """Return a function that starts a process: `process("gateway", LINNET_REDIS_URL=valkey.url)`, then `ready()`."""
    started: list[support.Process] = []

    def start(module: str, **env: str) -> support.Process:
        started.append(support.Process(module, tmp_path, env))
        return started[-1]

    yield start
    for one in started:
        one.send(signal.SIGCONT)
        one.kill()
