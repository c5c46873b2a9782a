"""One system for the page's tests: two gateways, a router, and a browser's people in front of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import support
from tests.flow.conftest import System


@pytest.fixture(scope="session")
def system(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    media = tmp_path_factory.mktemp("media").as_uri()
    made = System(tmp_path_factory.mktemp("web"), 2, LINNET_ORIGINS="*", LINNET_MEDIA_URL=media)
    support.run(made.ready())
    yield made
    made.close()


@pytest.fixture
def address(system: System) -> Iterator[str]:
    """Where the page is."""
    assert system.router is not None
    yield system.router.url
    assert not system.tracebacks(), system.tracebacks()
