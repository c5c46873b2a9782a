"""`make stack`: the whole set-up of compose.yaml without containers, on loopback, in the foreground of one terminal.

HAProxy (8000, TLS 8443) before three gateways and two routers, a Valkey that fsyncs, Prometheus with Linnet's rules,
Alertmanager, the Redis exporter, the canary. This module has their addresses and command lines, but no configuration of
its own: HAProxy, Prometheus and Alertmanager run from the files that compose.yaml mounts.

Invariants:
- every part has a loopback address of its own and its usual ports, as containers have; names.py resolves the names. A
  second stack needs another network, but no other ports;
- it installs nothing: if programs are missing, it prints the command that installs them;
- Ctrl-C stops the canary, then gateways, routers and the rest; no process remains (see local.py).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy.alerts import serve_alerts
from deploy.embedded import EmbeddedValkey
from deploy.local import Runner, run, say
from deploy.names import serve_names
from deploy.plan import LocalError, Service, address, check_port, given, shared_environ
from deploy.prepare import own_certificate
from router.contract.settings import Settings, load

FOLDER = ".linnet/stack"
NETWORK = "127.77.0"
DEPLOY = Path(__file__).parent

GATEWAYS = ("11", "12", "13")
ROUTERS = ("21", "22")
HOSTS = {
    "haproxy": ("10",),
    "gateway": GATEWAYS,
    "router": ROUTERS,
    "prometheus": ("40",),
    "alertmanager": ("41",),
    "redis-exporter": ("42",),
    "canary": ("30",),
    "dns": ("53",),
    "alerts": ("54",),
}
DNS_PORT = 5300
ALERTS_PORT = 8080

# Debian's packages, by program.
PROGRAMS = {
    "haproxy": "haproxy",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "prometheus-redis-exporter": "prometheus-redis-exporter",
}

# Two failed health checks of HAProxy and a margin; then a window that is short enough for a terminal.
DEFAULTS = {"LINNET_DRAIN_ACCEPT_S": "3", "LINNET_DRAIN_WINDOW_S": "5", "LINNET_TRUSTED_PROXIES": "127.0.0.1"}


def programs() -> dict[str, str]:
    """Return the paths of the programs; an error names the missing ones. Debian has HAProxy in root's PATH only."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
    found = {program: shutil.which(program, path=path) for program in PROGRAMS}
    if missing := sorted(PROGRAMS[program] for program, where in found.items() if where is None):
        raise LocalError(f"make stack needs more programs; on Debian: apt-get install {' '.join(missing)}")
    return {program: where for program, where in found.items() if where is not None}


class Stack:
    """The plan: addresses, files, services. `run` runs it."""

    def __init__(self, folder: Path, environ: Mapping[str, str], network: str = NETWORK) -> None:
        for name in ("LISTEN", "ADMIN_LISTEN", "REDIS_URL"):
            if given(environ, name):
                raise LocalError(f"the stack brings its own: unset LINNET_{name}")
        self.network = network
        self.table = {name: [f"{network}.{host}" for host in hosts] for name, hosts in HOSTS.items()}
        shared = shared_environ({**DEFAULTS, **environ}, folder)
        self.settings: Settings = load(shared)
        self.valkey = EmbeddedValkey(folder / "valkey")
        shared["LINNET_REDIS_URL"] = self.valkey.url
        self.certificate = own_certificate(folder / "linnet.pem", *self.table["haproxy"])
        self.services = [*_surroundings(self, folder, programs()), *_ours(self, shared)]
        for service in self.services:
            for where in dict.fromkeys((service.listen, service.admin or service.listen)):
                check_port(service.name, where, "is another stack running?")

    def only(self, name: str) -> str:
        """Return the address of a part that exists once."""
        (one,) = self.table[name]
        return one

    async def run(self) -> bool:
        names = await serve_names(self.only("dns"), DNS_PORT, self.table)
        alerts = await serve_alerts(self.only("alerts"), ALERTS_PORT, say)
        window_s = self.settings.drain_accept_s + self.settings.drain_window_s
        try:
            return await Runner(self.valkey, self.services, _greeting(self), window_s).run()
        finally:
            names.close()
            alerts.close()


def _ours(stack: Stack, shared: Mapping[str, str]) -> list[Service]:
    """Routers and gateways, each on its own address and the ports it has in a container.

    Clients, and browsers with the page, reach routers and gateways through the load balancer, with TLS or without.
    """
    front = stack.only("haproxy")
    through = {
        "LINNET_GATEWAY_URL": f"wss://{front}:8443/ws",
        "LINNET_ORIGINS": f"https://{front}:8443,http://{front}:8000",
    }
    shared = {
        **{name: value for name, value in through.items() if not given(shared, name.removeprefix("LINNET_"))},
        **shared,
    }
    found = []
    for module in ("router", "gateway"):
        for number, host in enumerate(stack.table[module], 1):
            own = {"LINNET_LISTEN": f"{host}:8000", "LINNET_ADMIN_LISTEN": f"{host}:9000"}
            found.append(Service(f"{module}-{number}", module, (host, 8000), (host, 9000), {**shared, **own}))
    return [*found, _canary(stack, shared)]


def _canary(stack: Stack, shared: Mapping[str, str]) -> Service:
    """Return the canary, which connects through the load balancer, as users do."""
    admin, front = (stack.only("canary"), 9000), f"{stack.only('haproxy')}:8000"
    where = ("--target", f"ws://{front}/ws", "--api", f"http://{front}", "--listen", address(*admin))
    return Service("canary", "canary", admin, admin, shared, (sys.executable, "-m", "loadtest", "canary", *where))


def _surroundings(stack: Stack, folder: Path, programs: Mapping[str, str]) -> list[Service]:
    """Return the programs of other projects, with the command lines of their packages and images."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LINNET_")}
    proxy, prometheus, alertmanager, exporter = map(
        stack.only, ("haproxy", "prometheus", "alertmanager", "redis-exporter")
    )
    proxy_environ = {
        "LINNET_ADDRESS": proxy,
        "LINNET_DNS": address(stack.only("dns"), DNS_PORT),
        "LINNET_TLS": str(stack.certificate),
    }
    configs = folder.resolve() / "prometheus.yml", folder.resolve() / "alertmanager.yml"
    made = prometheus_config(stack.table), alertmanager_config(address(stack.only("alerts"), ALERTS_PORT))
    for path, config in zip(configs, made, strict=True):
        path.write_text(yaml.safe_dump(config, sort_keys=False))
    return [
        _program(
            "alertmanager",
            (alertmanager, 9093),
            "/-/ready",
            environ,
            programs["prometheus-alertmanager"],
            f"--config.file={configs[1]}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={alertmanager}:9093",
            "--cluster.listen-address=",
            "--log.level=warn",
        ),
        _program(
            "prometheus",
            (prometheus, 9090),
            "/-/ready",
            environ,
            programs["prometheus"],
            f"--config.file={configs[0]}",
            f"--storage.tsdb.path={folder / 'prometheus'}",
            f"--web.listen-address={prometheus}:9090",
            "--storage.tsdb.retention.time=2d",
            "--log.level=warn",
        ),
        _program(
            "exporter",
            (exporter, 9121),
            "/health",
            environ,
            programs["prometheus-redis-exporter"],
            f"-redis.addr={stack.valkey.url}",
            f"-web.listen-address={exporter}:9121",
        ),
        _program(
            "haproxy",
            (proxy, 8404),
            "/metrics",  # /healthz needs a gateway, and none is up yet
            {**environ, **proxy_environ},
            programs["haproxy"],
            "-db",
            "-f",
            str(DEPLOY / "haproxy" / "haproxy.cfg"),
            listen=(proxy, 8000),
        ),
    ]


def _program(
    name: str,
    admin: tuple[str, int],
    ready_path: str,
    environ: Mapping[str, str],
    *command: str,
    listen: tuple[str, int] | None = None,
) -> Service:
    return Service(name, "surroundings", listen or admin, admin, environ, command, ready_path)


def prometheus_config(table: Mapping[str, list[str]]) -> dict[str, Any]:
    """Return deploy/prometheus/prometheus.yml with addresses in place of names and a short scrape interval."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "2s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / pattern) for pattern in config["rule_files"]]
    for job in [*config["scrape_configs"], *config["alerting"]["alertmanagers"]]:
        found = [
            f"{host}:{asked['port']}"
            for asked in job.pop("dns_sd_configs", [])
            for name in asked["names"]
            for host in table[name]
        ]
        for target in [target for group in job.pop("static_configs", []) for target in group["targets"]]:
            name, _, port = target.partition(":")
            found += [f"{host}:{port}" for host in table[name]]
        job["static_configs"] = [{"targets": found}]
    return config


def alertmanager_config(pager: str) -> dict[str, Any]:
    """Return deploy/alertmanager/alertmanager.yml, with receivers that also print at the terminal."""
    config: dict[str, Any] = yaml.safe_load((DEPLOY / "alertmanager" / "alertmanager.yml").read_text())
    for receiver in config["receivers"]:
        receiver.setdefault("webhook_configs", []).append({"url": f"http://{pager}/"})
    return config


def _greeting(stack: Stack) -> str:
    proxy = stack.only("haproxy")
    return f"""linnet: the stack is ready

  page         https://{proxy}:8443/  (the browser warns of the certificate)
  clients      ws://{proxy}:8000/ws  wss://{proxy}:8443/ws  (certificate: {stack.certificate})
  HTTP API     http://{proxy}:8000/v1
  HAProxy      http://{proxy}:8404/stats
  Prometheus   http://{stack.only("prometheus")}:9090  (/alerts /targets)
  Alertmanager http://{stack.only("alertmanager")}:9093
  gateways     {"  ".join(f"http://{host}:9000/metrics" for host in stack.table["gateway"])}
  routers      {"  ".join(f"http://{host}:9000/metrics" for host in stack.table["router"])}
  kept in      {stack.certificate.parent}
"""


def main(network: str = NETWORK, folder: str = FOLDER) -> int:
    async def stack(where: Path, environ: Mapping[str, str]) -> bool:
        return await Stack(where, environ, network).run()

    return run(Path(folder), stack)


if __name__ == "__main__":
    if len(sys.argv) not in (1, 3):
        sys.exit("usage: python -m deploy.stack [NETWORK FOLDER], e.g. 127.77.1 .linnet/second")
    sys.exit(main(*sys.argv[1:]))
