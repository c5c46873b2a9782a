"""A cluster of some primaries without replicas, for measuring what a message costs on it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from deploy.embedded import EmbeddedValkey
from loadtest.ports import free_ports
from router.store.redis.slots import SLOTS

FORMED_S: Final = 30.0

_CONFIG: Final = """\
cluster-enabled yes
cluster-config-file nodes.conf
cluster-require-full-coverage no
cluster-allow-pubsubshard-when-down no
cluster-allow-replica-migration no
cluster-port {bus}
"""


class Primary(EmbeddedValkey):
    """A server of the cluster."""

    def __init__(self, folder: Path, port: int, bus: int) -> None:
        super().__init__(folder, port)
        self.port = port
        self.bus = bus
        self._config += _CONFIG.format(bus=bus)

    def ask(self, *command: str | int) -> Any:
        with self.client() as client:
            return client.execute_command(*command)


def made(folder: Path, count: int) -> list[Primary]:
    ports = free_ports(2 * count)
    return [
        Primary(folder / f"valkey-{port}", port, bus) for port, bus in zip(ports[:count], ports[count:], strict=True)
    ]


def url_of(primaries: list[Primary]) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{one.port}" for one in primaries)


def form(primaries: list[Primary]) -> None:
    """Divide the slots over servers that run, and wait until all of them know it."""
    count = len(primaries)
    for number, one in enumerate(primaries):
        one.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        one.ask("CLUSTER", "ADDSLOTSRANGE", number * SLOTS // count, (number + 1) * SLOTS // count - 1)
        if number:
            one.ask("CLUSTER", "MEET", "127.0.0.1", primaries[0].port, primaries[0].bus)
    until = time.monotonic() + FORMED_S
    while not all(_formed(one) for one in primaries):
        if time.monotonic() > until:
            raise RuntimeError("the cluster was not formed in time")
        time.sleep(0.05)


def _formed(one: Primary) -> bool:
    info = one.ask("CLUSTER", "INFO").decode()
    return "cluster_state:ok" in info and f"cluster_slots_ok:{SLOTS}" in info
