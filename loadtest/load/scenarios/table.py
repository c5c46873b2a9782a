"""The table of scenarios. Each is a module of this package, whose summary line describes it on the command line.

Adding a scenario: a module here, a row in the table, a small size in `tests/loadtest/load/test_scenarios.py`.
"""

from __future__ import annotations

from typing import Any, Final

from loadtest.load.process import Scenario
from loadtest.load.scenarios import deflate, direct, drain, fanout, growth, idle, latency, mixed, presence, slow, storm


def _of(module: Any, gateways: int = 2) -> Scenario:
    name, about = module.__name__.rpartition(".")[2], str(module.__doc__).partition("\n")[0]
    return Scenario(name, module.Options, module.prepare, module.run, about, gateways)


_ALL: Final = (
    _of(fanout), _of(direct), _of(mixed),
    _of(idle, gateways=1),  # a gateway without sessions uses CPU, too
    _of(storm), _of(drain), _of(presence), _of(slow), _of(deflate),
    _of(growth, gateways=4),
    _of(latency),
)  # fmt: skip

SCENARIOS: Final[dict[str, Scenario]] = {scenario.name: scenario for scenario in _ALL}
