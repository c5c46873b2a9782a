"""Real load balancers before real gateways, each gateway on an address of its own, found by name.

HAProxy, nginx and Envoy run from the files in deploy/. The tests change only the addresses on which they listen and the
paths of a container. Each network is a third of a loopback address that no other test has."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from deploy.embedded import EmbeddedValkey, tied
from deploy.local import answers_ready
from deploy.names import serve_names
from deploy.prepare import own_certificate
from tests import support
from tests.flow.client import OPEN
from tests.support import ROOT, Process

DEPLOY = ROOT / "deploy"
DNS_PORT = 5300
SETTINGS = {
    "LINNET_DRAIN_ACCEPT_S": "3",
    "LINNET_DRAIN_WINDOW_S": "2",
    "LINNET_HEARTBEAT_S": "3",
    "LINNET_TRUSTED_PROXIES": "127.0.0.1",
}


@asynccontextmanager
async def closing_clients() -> AsyncIterator[None]:
    """Close every client at the end."""
    try:
        yield
    finally:
        clients = list(OPEN)
        OPEN.clear()
        await asyncio.gather(*(client.end() for client in clients))


def program(name: str) -> str | None:
    """Return the path of a balancer: the checks' environment, or the system, whose daemons are in root's PATH."""
    own = ROOT / ".venv/check/bin" / name
    return str(own) if own.exists() else shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin")


class Placed(Process):
    """A gateway or router on the ports that it has in a container, at an address of its own."""

    def __init__(self, module: str, folder: Path, host: str, **env: str) -> None:
        self.host = host
        where = {"LINNET_LISTEN": f"{host}:8000", "LINNET_ADMIN_LISTEN": f"{host}:9000"}
        super().__init__(module, folder, {**SETTINGS, **where, **env})

    async def ready(self, deadline_s: float = support.DEADLINE_S) -> Placed:
        async def answered() -> bool:
            assert self.popen.poll() is None, self.log[-4000:]
            return await answers_ready((self.host, 9000))

        await support.eventually(answered, deadline_s, every_s=0.05)
        return self

    async def connections(self) -> int:
        """Return the number of connections of this gateway, from its metrics."""
        reader, writer = await asyncio.open_connection(self.host, 9000)
        try:
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
            text = (await reader.read()).decode()
        finally:
            writer.close()
        (line,) = [line for line in text.splitlines() if line.startswith("linnet_gateway_connections ")]
        return int(float(line.split()[1]))


class Site:
    """A Valkey, gateways, a router, a name server, and one balancer in front."""

    def __init__(self, folder: Path, balancer: str, **env: str) -> None:
        self.folder = folder
        self.balancer = balancer
        self.network = f"127.{random.randrange(80, 250)}.{random.randrange(1, 250)}"
        self.front = f"{self.network}.10"
        self.valkey = EmbeddedValkey(folder / "valkey")
        self.valkey.start()
        self._env = {"LINNET_REDIS_URL": self.valkey.url, **env}
        self.processes: list[Placed] = []
        self.table: dict[str, list[str]] = {"gateway": [], "router": []}
        self.gateways = [self.place("gateway") for _ in range(3)]
        self.router = self.place("router")
        self.certificate = own_certificate(folder / "linnet.pem", self.front)
        self._proxy: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"ws://{self.front}:8000/ws"

    @property
    def secure_url(self) -> str:
        return f"wss://{self.front}:8443/ws"

    def place(self, module: str) -> Placed:
        """Start one more; the name server knows it at once."""
        first = {"gateway": 11, "router": 61}[module]
        host = f"{self.network}.{first + sum(one.module == module for one in self.processes)}"
        self.processes.append(Placed(module, self.folder, host, **self._env))
        self.table[module].append(host)
        return self.processes[-1]

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Start all parts, wait until the balancer knows them, and close every client at the end."""
        names = await serve_names(f"{self.network}.53", DNS_PORT, self.table)
        try:
            await self._start()
            async with closing_clients():
                yield
        finally:
            names.close()
            await asyncio.sleep(0)  # uvloop closes a datagram endpoint in its next turn, and not at all after its last

    async def _start(self) -> None:
        await asyncio.gather(*(process.ready() for process in self.processes))
        command, env = COMMANDS[self.balancer](self)
        with (self.folder / "balancer.log").open("wb") as log:
            self._proxy = subprocess.Popen(tied(*command), env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        await support.eventually(self._serves)

    async def _serves(self) -> bool:
        """Return whether the balancer reaches a gateway (its schema) and the router."""
        assert self._proxy is not None
        assert self._proxy.poll() is None, self.log
        paths = ("/schema.json", "/v1/openapi.json")
        return all([await answers_ready((self.front, 8000), path) for path in paths])

    @property
    def log(self) -> str:
        return (self.folder / "balancer.log").read_text()[-4000:]

    async def counts(self) -> list[int]:
        return [await one.connections() for one in self.gateways if one.popen.poll() is None]

    def close(self) -> None:
        if self._proxy is not None:
            self._proxy.kill()
            self._proxy.wait()
        for process in self.processes:
            process.kill()
        self.valkey.kill()


def haproxy(site: Site) -> tuple[list[str], dict[str, str]]:
    env = {
        "LINNET_ADDRESS": site.front,
        "LINNET_DNS": f"{site.network}.53:{DNS_PORT}",
        "LINNET_TLS": str(site.certificate),
    }
    return [str(program("haproxy")), "-db", "-f", str(DEPLOY / "haproxy/haproxy.cfg")], env


def nginx(site: Site) -> tuple[list[str], dict[str, str]]:
    """nginx resolves names only at its start, so its file gets the addresses."""
    text = (DEPLOY / "nginx/nginx.conf").read_text()
    for module, hosts in site.table.items():
        named = f"\n        server {module}:8000 max_fails=2 fail_timeout=5s;"
        assert named in text
        text = text.replace(named, "".join(named.replace(module, host) for host in hosts))
    text = text.replace("listen 8", f"listen {site.front}:8").replace(
        "/etc/nginx/tls/linnet.pem", str(site.certificate)
    )
    text = text.replace("/tmp/nginx", str(site.folder / "nginx")).replace("worker_rlimit_nofile 200000;", "")
    text = text.replace("worker_connections 65536", "worker_connections 4096")
    config = site.folder / "nginx.conf"
    config.write_text(text)
    return [str(program("nginx")), "-e", "stderr", "-g", "daemon off;", "-c", str(config)], {}


def envoy(site: Site) -> tuple[list[str], dict[str, str]]:
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    config["admin"]["address"]["socket_address"] |= {"address": site.front}
    for listener in config["static_resources"]["listeners"]:
        listener["address"]["socket_address"]["address"] = site.front
    for cluster in config["static_resources"]["clusters"]:
        (resolver,) = cluster["typed_dns_resolver_config"]["typed_config"]["resolvers"]
        resolver["socket_address"] = {"address": f"{site.network}.53", "port_value": DNS_PORT}
    path = site.folder / "envoy.yaml"
    path.write_text(yaml.safe_dump(config).replace("/etc/envoy/tls/linnet.pem", str(site.certificate)))
    options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warning"]
    return [str(program("envoy")), "-c", str(path), *options], {}


COMMANDS: dict[str, Callable[[Site], tuple[list[str], dict[str, str]]]] = {
    "haproxy": haproxy,
    "nginx": nginx,
    "envoy": envoy,
}
