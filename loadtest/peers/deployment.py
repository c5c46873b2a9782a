"""Processes of the peers: two nodes of each and one Valkey for each, as Linnet has it.

They need what `make bench-peers` installs into `.venv/peers`: packages of Python and Node, and Centrifugo if Go is
there. The kernel kills them if this process dies.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from deploy.embedded import EmbeddedValkey
from loadtest.load.local import READY_S, ROOT, start
from loadtest.meters import LocalProcess, Meter
from loadtest.peers.clients import CLIENTS, Centrifugo
from loadtest.ports import free_ports

VENV: Final = ROOT / ".venv/peers"
MODULES: Final = VENV / "node/node_modules"
CENTRIFUGO: Final = VENV / "bin/centrifugo"
REDIS_OF_CENTRIFUGO: Final = "CENTRIFUGO_ENGINE_REDIS_ADDRESS"
NODES: Final = 2


class Peer(msgspec.Struct, frozen=True):
    """A running peer."""

    name: str
    urls: list[str]
    nodes: list[int]  # pids
    redis: int

    def meters(self) -> list[Meter]:
        nodes, redis = parts(self.name)
        return [*(LocalProcess(nodes, pid) for pid in self.nodes), LocalProcess(redis, self.redis)]


def parts(name: str) -> tuple[str, str]:
    return f"{name} nodes", f"{name} redis"


def installed() -> list[str]:
    """Return the names of the peers that are installed, in the order of the table."""
    found = (VENV / "bin/python").exists() and MODULES.exists()
    return [name for name in CLIENTS if found and (not issubclass(CLIENTS[name], Centrifugo) or CENTRIFUGO.exists())]


def command(name: str, port: int, valkey: EmbeddedValkey) -> list[str]:
    """Return the command line of one node."""
    if issubclass(CLIENTS[name], Centrifugo):
        return [str(CENTRIFUGO), "-c", "loadtest/peers/centrifugo.json", f"--http_server.port={port}"]
    if name == "Socket.IO":
        node = shutil.which("node") or "node"
        return [node, "loadtest/peers/socket_io.js", str(port), str(valkey.folder / "valkey.sock")]
    module = {"python-socketio": "python_socketio", "Channels": "django_channels"}[name]
    return [str(VENV / "bin/python"), "-m", f"loadtest.peers.{module}", str(port), valkey.url]


@contextmanager
def deployment(names: Iterable[str]) -> Iterator[list[Peer]]:
    """Start a peer, wait until it is ready, and remove it afterwards."""
    env = {**os.environ, "NODE_PATH": str(MODULES), "NODE_ENV": "production"}
    valkeys: list[EmbeddedValkey] = []
    processes: list[subprocess.Popen[bytes]] = []
    found = []
    with tempfile.TemporaryDirectory(prefix="linnet-peers-") as folder:
        try:
            for number, name in enumerate(names):
                valkey = EmbeddedValkey(Path(folder) / str(number), appendfsync="everysec")
                valkeys.append(valkey)
                valkey.start()
                if CLIENTS[name] is not Centrifugo:  # the others store nothing that must be kept
                    with valkey.client() as client:
                        client.config_set("appendonly", "no")
                ports = free_ports(NODES)
                nodes = []
                for port in ports:
                    program, *arguments = command(name, port, valkey)
                    nodes.append(start(arguments, {**env, REDIS_OF_CENTRIFUGO: valkey.url}, folder, program))
                    processes.append(nodes[-1])
                for port, process in zip(ports, nodes, strict=True):
                    wait_listening(port, process, Path(folder))
                urls = [f"ws://127.0.0.1:{port}" for port in ports]
                found.append(Peer(name, urls, [process.pid for process in nodes], valkey.pid))
            yield found
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
            for valkey in valkeys:
                valkey.kill()


def wait_listening(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    log = (folder / "processes.log").read_text(errors="replace")
    raise RuntimeError(f"{process.args!r} did not come up:\n{log[-3000:]}")
