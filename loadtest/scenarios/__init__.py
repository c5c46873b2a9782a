"""What users do, one file each, and the table of them.

A scenario is its options, `prepare` (in the conductor, blocking, through the HTTP API: users and conversations) and
`run` (in every load process, with its share of the users). What is measured happens within `worker.measured`.

Adding one: a file here, a row in the table, a test in tests/loadtest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from loadtest.api import Api
from loadtest.scenarios import deflate, direct, drain, fanout, growth, idle, latency, mixed, presence, slow, storm
from loadtest.worker import Worker

Prepared = tuple[list[str], dict[str, Any]]


class Scenario(NamedTuple):
    """`Options` is a struct whose fields are the command line."""

    Options: type[Any]
    prepare: Callable[[Any, Api], Prepared]
    run: Callable[[Worker, Any, dict[str, Any]], Awaitable[None]]
    about: str


def _of(module: Any) -> Scenario:
    return Scenario(module.Options, module.prepare, module.run, str(module.__doc__).partition("\n")[0])


SCENARIOS: Final[dict[str, Scenario]] = {
    module.__name__.rpartition(".")[2]: _of(module)
    for module in (fanout, direct, mixed, idle, storm, drain, presence, slow, deflate, growth, latency)
}

# Gateways that are started where no target is given, if not 2: one that does nothing costs something, too.
GATEWAYS: Final = {"idle": 1, "growth": 4}
