"""The table of scenarios: the options, the preparation and the load of each, by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from loadtest.api import Api
from loadtest.load.scenarios import deflate, direct, drain, fanout, growth, idle, latency, mixed, presence, slow, storm
from loadtest.load.worker import Worker

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
