"""The costs of the SDKs: every row is measured, on real clients of a real deployment."""

from __future__ import annotations

import pytest

from loadtest.bench import sdk_cost
from loadtest.bench.sdk_cost import Cost
from loadtest.load import local


@pytest.mark.processes
def test_every_row_is_measured() -> None:
    with local.deployment(gateways=1) as target:
        costs = sdk_cost.measure(target, members=2, messages=5)
    assert [cost.name for cost in costs] == list(sdk_cost.ROWS)
    assert all(cost.cpu_us > 0 for cost in costs)


def test_table_has_a_line_for_each_client() -> None:
    table = sdk_cost.table([Cost("bare protocol", 12.3, 45.6), Cost("js", 100.0, 200.0)])
    assert [line.split() for line in table.splitlines()[1:]] == [["bare", "protocol", "12", "46"], ["js", "100", "200"]]
