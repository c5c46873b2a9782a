"""One system for the page's tests: two gateways, a router, and a browser's people in front of it.

The tests of a worker run on one event loop, because their browser belongs to it.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator

import pytest

from tests import support
from tests.flow.conftest import System
from tests.router.web.people import CHROMIUM

_runner: asyncio.Runner = support.loop()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test on the loop of this worker."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted = pyfuncitem._fixtureinfo.argnames
    support.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in wanted}), own=_runner)
    return True


def pytest_sessionfinish() -> None:
    """End the browser, if a test has started it."""
    with _runner:
        _runner.run(CHROMIUM.close())


@pytest.fixture(scope="session")
def system(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    stores = {name: tmp_path_factory.mktemp(name).as_uri() for name in ("media", "search")}
    made = System(
        tmp_path_factory.mktemp("web"), 2, LINNET_ORIGINS="*",
        LINNET_MEDIA_URL=stores["media"], LINNET_SEARCH_URL=stores["search"],
    )  # fmt: skip
    support.run(made.ready())
    yield made
    made.close()


@pytest.fixture
def address(system: System) -> Iterator[str]:
    """Where the page is."""
    assert system.router is not None
    yield system.router.url
    assert not system.tracebacks(), system.tracebacks()
