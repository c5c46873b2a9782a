"""A primary, its replicas and three sentinels, all real, for tests of failovers.

The periods of the sentinels are shortened (SENTINEL DEBUG), so that a failover takes two seconds instead of ten. Their
steps and the order of the steps are unchanged.
"""

from __future__ import annotations

from pathlib import Path

from deploy.embedded import EmbeddedSentinel, EmbeddedValkey
from tests import support

NAME = "main"
SENTINELS = 3
DOWN_AFTER_MS = 1000
# A replica whose INFO is older than five ping periods is not promoted, and while the primary is down, INFO is asked for
# once a second. A promoted replica that the other sentinels do not know within four publish periods is demoted again.
PERIODS = ("info-period", 400, "ping-period", 400, "ask-period", 100, "publish-period", 500, "election-timeout", 1000)

# The commands by which a sentinel demotes a primary. Without them it cannot, as if the network between them were cut.
DEMOTION = ("-multi", "-exec", "-replicaof", "-slaveof", "-client|kill", "-config|rewrite")
REPLICATION = ("-psync", "-sync", "-replconf")


class Replication:
    """The servers and sentinels of one test; `servers[0]` is the first primary."""

    def __init__(self, folder: Path, replicas: int = 2) -> None:
        ports = support.free_ports(1 + replicas + SENTINELS)
        self.servers = [EmbeddedValkey(folder / str(port), port) for port in ports[: 1 + replicas]]
        self.sentinels = [
            EmbeddedSentinel(folder / str(port), port, NAME, ports[0], SENTINELS // 2 + 1, DOWN_AFTER_MS)
            for port in ports[1 + replicas :]
        ]
        self._ports = dict(zip(ports, self.servers, strict=False))
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports[1 + replicas :])
        self.url = f"redis+sentinel://{hosts}/{NAME}"
        for server in self.servers[1:]:
            server.replica_of = ports[0]

    async def start(self) -> Replication:
        for each in (*self.servers, *self.sentinels):
            each.spawn()
        for each in (*self.servers, *self.sentinels):
            each.wait_ready()
        for sentinel in self.sentinels:
            with sentinel.client() as client:
                client.execute_command("SENTINEL", "DEBUG", *PERIODS)
        await self.whole()
        return self

    def close(self) -> None:
        for each in (*self.sentinels, *self.servers):
            each.kill()

    async def whole(self, deadline_s: float = support.DEADLINE_S) -> None:
        """Wait until all running servers follow the primary, and every sentinel knows and would promote them."""
        replicas = sum(server.returncode is None for server in self.servers) - 1

        def settled() -> bool:
            primary = self.primary
            with primary.client() as client:
                info = client.info("replication")
            online = [info[f"slave{i}"]["state"] for i in range(info["connected_slaves"])].count("online")
            return online == replicas and all(self._agrees(sentinel, primary, replicas) for sentinel in self.sentinels)

        await support.eventually(settled, deadline_s, every_s=0.05)

    def _agrees(self, sentinel: EmbeddedSentinel, primary: EmbeddedValkey, replicas: int) -> bool:
        with sentinel.client() as client:
            state, followers = client.sentinel_master(NAME), client.sentinel_slaves(NAME)
        good = [one for one in followers if one["flags"] == "slave" and one["master-link-status"] == "ok"]
        others = state["num-other-sentinels"] == SENTINELS - 1
        return bool(others and state["flags"] == "master" and state["port"] == self.port(primary)
                    and len(good) >= replicas)  # fmt: skip

    @property
    def primary(self) -> EmbeddedValkey:
        """The primary according to the sentinel with the latest configuration."""
        states = [self._state(sentinel) for sentinel in self.sentinels]
        return self._ports[max(states, key=lambda state: state["config-epoch"])["port"]]

    def port(self, server: EmbeddedValkey) -> int:
        return next(port for port, one in self._ports.items() if one is server)

    async def replaced(self, old: EmbeddedValkey, deadline_s: float = support.DEADLINE_S) -> EmbeddedValkey:
        """Wait for the primary that the sentinels have promoted instead of `old`; return it."""

        def promoted() -> bool:
            primary = self.primary  # once: while the sentinels fail over, the next answer may be another
            if primary is old:
                return False
            with primary.client() as client:
                return bool(client.info("replication")["role"] == "master")

        await support.eventually(promoted, deadline_s, every_s=0.05)
        return self.primary

    async def rejoin(self, server: EmbeddedValkey) -> None:
        """Start a killed server as a replica, as an operator's configuration would."""
        server.replica_of = self.port(self.primary)
        server.start()
        await self.whole()

    def forbid(self, server: EmbeddedValkey, *commands: str) -> None:
        """Forbid these commands on the server to all, sentinels and replicas included."""
        with server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", *commands)

    @staticmethod
    def _state(sentinel: EmbeddedSentinel) -> dict[str, int]:
        with sentinel.client() as client:
            state: dict[str, int] = client.sentinel_master(NAME)
            return state
