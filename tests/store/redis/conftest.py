"""A cluster for each module that asks for one; the tests of a module leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import support
from tests.cluster import Cluster


@pytest.fixture(scope="module")
def cluster(starts_processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three primaries, and a replica of the first."""
    made = Cluster(tmp_path_factory.mktemp("cluster"), (1, 0, 0))
    support.run(made.start())
    yield made
    made.close()
