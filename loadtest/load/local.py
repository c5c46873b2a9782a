"""A deployment that exists for one test: Valkey, gateways, a router and a floor, all on this machine.

It consists of real processes with their documented settings. The kernel kills them if the test process dies.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from deploy.embedded import EmbeddedValkey, tied
from loadtest.load.conductor import Target
from loadtest.load.primaries import form, made, url_of
from loadtest.ports import free_ports

ROOT = Path(__file__).parent.parent.parent
READY_S = 30.0

# A load test sends more than a person does, so limits per person must not be what it measures.
OPEN_LIMITS = {
    "LINNET_SENDS_PER_S": "100000",
    "LINNET_SEND_BURST": "100000",
    "LINNET_MAX_CONNECTIONS": "50000",
    "LINNET_MAX_CONNECTIONS_PER_ADDRESS": "50000",
    "LINNET_DRAIN_ACCEPT_S": "0",
    "LINNET_DRAIN_WINDOW_S": "0",
}


@contextmanager
def deployment(durability: str = "memory", gateways: int = 2, primaries: int = 0, **env: str) -> Iterator[Target]:
    """Start a deployment, wait until it is ready, and remove it afterwards.

    `primaries`: Redis is a cluster of so many; 0: one server.
    """
    with tempfile.TemporaryDirectory(prefix="linnet-load-") as folder:
        always = durability == "fsync"
        cluster = made(Path(folder), primaries)
        servers: Sequence[EmbeddedValkey] = cluster or [
            EmbeddedValkey(Path(folder) / "valkey", appendfsync="always" if always else "everysec")
        ]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for server in servers:
                server.start()
                if durability == "memory":  # promises no disk, so the test must not pay for one
                    with server.client() as client:
                        client.config_set("appendonly", "no")
            if cluster:
                form(cluster)
            jwt_secret, server_key = secrets.token_urlsafe(48), secrets.token_urlsafe(48)
            shared = {
                **{name: value for name, value in os.environ.items() if not name.startswith("LINNET_")},
                **OPEN_LIMITS,
                "LINNET_REDIS_URL": url_of(cluster) if cluster else servers[0].url,
                "LINNET_REDIS_MODE": "cluster" if cluster else "standalone",
                "LINNET_DURABILITY": durability,
                "LINNET_JWT_SECRET": jwt_secret,
                "LINNET_SERVER_KEY": server_key,
                **env,
            }
            floor_port, *ports = free_ports(2 * gateways + 3)
            listen, admin = ports[: gateways + 1], ports[gateways + 1 :]
            for number in range(gateways + 1):
                addresses = {
                    "LINNET_LISTEN": f"127.0.0.1:{listen[number]}",
                    "LINNET_ADMIN_LISTEN": f"127.0.0.1:{admin[number]}",
                }
                processes.append(start(["-m", "gateway" if number else "router"], {**shared, **addresses}, folder))
            processes.append(start(["-m", "loadtest.load.floor", str(floor_port)], dict(os.environ), folder))
            for port, process in zip(admin, processes, strict=False):
                wait_ready(port, process, Path(folder))
            yield Target(
                urls=[f"ws://127.0.0.1:{port}/ws" for port in listen[1:]],
                api=f"http://127.0.0.1:{listen[0]}",
                metrics=[f"http://127.0.0.1:{port}/metrics" for port in admin],
                redis=" ".join(server.url for server in servers),
                jwt_secret=jwt_secret,
                server_key=server_key,
                floor=f"ws://127.0.0.1:{floor_port}/",
                floor_pid=processes[-1].pid,
            )
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
            for server in servers:
                server.kill()


def start(
    arguments: list[str], env: dict[str, str], folder: str, program: str = sys.executable
) -> subprocess.Popen[bytes]:
    with (Path(folder) / "processes.log").open("ab") as log:
        return subprocess.Popen(
            tied(program, *arguments), cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def wait_ready(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    log = (folder / "processes.log").read_text(errors="replace")
    raise RuntimeError(f"{process.args!r} did not come up:\n{log[-3000:]}")
