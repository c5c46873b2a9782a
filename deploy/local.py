"""`make up`: an embedded Valkey, one router and two gateways, in the foreground of one terminal.

What lives here: which processes there are and what their environment says, starting them in order, starting one again
that died, and stopping them in the opposite order. What never does: anything a process could do for itself; the
runner speaks to its children through `LINNET_*` variables, signals and `/readyz` alone, as an orchestrator would.

Invariants:
- `LINNET_*` variables given to the runner win. `LINNET_LISTEN` and `LINNET_ADMIN_LISTEN` are the router's, the
  gateways take the next ports; with `LINNET_REDIS_URL` no server of our own is started;
- secrets nobody gave are made once and kept in `.linnet/`, readable by the owner alone, and reach the children as
  `…_FILE`, so that no process list or environment shows them;
- what fails at the start is one line and exit code 1; later a death is reported and the process started again;
- nothing outlives the runner: the first Ctrl-C (or SIGTERM, SIGHUP) drains gateways, then the router, then Valkey, the
  second kills; a runner that is killed takes its children with it (parent-death signal).

Rejected: a Procfile runner (no order, no readiness); threads; one lock on the ports instead of one on the folder.
"""

import asyncio
import fcntl
import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.embedded import EmbeddedValkey, ValkeyError, tied
from router.contract.errors import StartupError
from router.contract.settings import Settings, host_port, load

FOLDER = Path(".linnet")
GATEWAYS = 2
READY_DEADLINE_S = 60.0
STABLE_S = 30.0  # a child that lived this long is started again as if for the first time
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
DRAIN_MARGIN_S = 10.0
MAX_LOG_LINE = 1 << 16

Task = asyncio.Task[None]
Work = Coroutine[Any, Any, None]

# A developer's Ctrl-C: there is no load balancer to wait for, and no other node to spread the reconnects over.
LOCAL_DEFAULTS = {"LINNET_DRAIN_ACCEPT_S": "0", "LINNET_DRAIN_WINDOW_S": "2"}
PER_PROCESS = ("LISTEN", "ADMIN_LISTEN")


class LocalError(Exception):
    """Why it cannot start: one line for the person at the terminal."""


@dataclass(frozen=True)
class Service:
    """One child: what it is called, what it runs and with which environment."""

    name: str
    module: str
    listen: tuple[str, int]
    admin: tuple[str, int]
    environ: Mapping[str, str]


def say(line: str) -> None:
    """A line for the terminal. One that went away (`make up | head`) is as good as a Ctrl-C."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)


# -- what to run: decided before anything is started


def given(environ: Mapping[str, str], name: str) -> bool:
    return f"LINNET_{name}" in environ or f"LINNET_{name}_FILE" in environ


def shared_environ(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """What all children are told: the runner's own environment, completed where it is silent."""
    shared = {"PYTHONUNBUFFERED": "1", **LOCAL_DEFAULTS, **environ}
    # An outside identity provider needs no secret here, and one more key that signs tokens would be one too many.
    for name in ("SERVER_KEY",) if given(environ, "JWKS_URL") else ("SERVER_KEY", "JWT_SECRET"):
        if not given(environ, name):
            shared[f"LINNET_{name}_FILE"] = str(own_secret(folder / name.lower().replace("_", "-")))
    return shared


def services(shared: Mapping[str, str], settings: Settings) -> list[Service]:
    """The router on the given ports, the gateways on the ones that follow."""
    bare = {
        name: value
        for name, value in shared.items()
        if name.removeprefix("LINNET_").removesuffix("_FILE") not in PER_PROCESS
    }
    (host, port), (admin_host, admin_port) = host_port(settings.listen), host_port(settings.admin_listen)
    if max(port, admin_port) + GATEWAYS > 65_535:
        raise LocalError(f"no room for {GATEWAYS} gateways above the ports {port} and {admin_port}")
    found = []
    for number in range(GATEWAYS + 1):
        listen = {
            "LINNET_LISTEN": address(host, port + number),
            "LINNET_ADMIN_LISTEN": address(admin_host, admin_port + number),
        }
        found.append(
            Service(
                name=f"gateway-{number}" if number else "router",
                module="gateway" if number else "router",
                listen=(host, port + number),
                admin=(admin_host, admin_port + number),
                environ={**bare, **listen},
            )
        )
    return found


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_secret(path: Path) -> Path:
    """A secret made once; whole or absent, whenever the machine goes down."""
    if not path.exists():
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    return path.resolve()


def claim_folder(folder: Path) -> int:
    """The folder is ours until the returned descriptor is closed; a second runner in it would share its data."""
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode().strip()
        os.close(lock)
        raise LocalError(f"Linnet already runs from {folder.resolve()} (pid {pid})") from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def check_port(service: Service, which: str, variable: str) -> None:
    """A taken port is found before anything is started."""
    host, port = getattr(service, which)
    try:
        (family, kind, _, _, where), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LocalError(
            f"{service.name} cannot listen on {address(host, port)}: {reason}"
            f" ({variable}=host:port moves the router, and the gateways with it)"
        ) from None


# -- running it


def how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class Child:
    """A service's process: its output with its name before it, and a new one when it ends unasked."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.ready = False
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=1)

    async def run(self) -> None:
        """Until `stop`. One that ends before it was ever ready would end again: that is the runner's failure."""
        pause = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._once()
            if self._stopping.is_set():
                return
            how = how_it_ended(code)
            if not self.ready:
                raise LocalError(f"{self.service.name} {how}: {''.join(self._last_lines) or 'it said nothing'}")
            stable = time.monotonic() - began > STABLE_S
            pause = FIRST_PAUSE_S if stable else min(max(pause * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            say(f"linnet: {self.service.name} {how}; starting it again in {pause:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _once(self) -> int:
        self._process = await asyncio.create_subprocess_exec(
            *tied(sys.executable, "-m", self.service.module),
            env=self.service.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LOG_LINE,
            start_new_session=True,  # a Ctrl-C at the terminal is the runner's to hand on
        )
        if self._stopping.is_set():  # asked while it was being started
            self._signal(signal.SIGTERM)
        copying = asyncio.create_task(self._copy_output(self._process))
        code = await self._process.wait()
        with suppress(TimeoutError):  # something it started may still hold its output open
            await asyncio.wait_for(copying, 1.0)
        return code

    async def _copy_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101  # it is a pipe, see above
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than MAX_LOG_LINE; the reader dropped what it had of it
                line = b"(a line too long to show)\n"
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            say(f"{self.service.name:9} | {text}")

    def stop(self) -> None:
        self._stopping.set()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._stopping.set()
        self._signal(signal.SIGKILL)

    def _signal(self, signum: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signum)


async def answers_ready(where: tuple[str, int]) -> bool:
    try:
        async with asyncio.timeout(5.0):
            reader, writer = await asyncio.open_connection(*where)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def until_ready(children: list[Child]) -> None:
    until = time.monotonic() + READY_DEADLINE_S
    for child in children:
        while not await answers_ready(child.service.admin):
            if time.monotonic() > until:
                where = address(*child.service.admin)
                raise LocalError(f"{child.service.name} is not ready after {READY_DEADLINE_S:g} s, see {where}/readyz")
            await asyncio.sleep(0.05)
        child.ready = True


async def keep_valkey(valkey: EmbeddedValkey) -> None:
    """Start it again whenever it ends unasked. A start that fails (a full disk) is tried again: the cause may go."""
    pause = FIRST_PAUSE_S
    while True:
        code = await asyncio.to_thread(valkey.wait)
        say(f"linnet: valkey {how_it_ended(code)}; starting it again in {pause:g} s")
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)
        valkey.spawn()
        try:
            await asyncio.to_thread(valkey.wait_ready)
            pause = FIRST_PAUSE_S
        except ValkeyError as error:
            say(f"linnet: {error}")


async def watch(own: Iterable[Work], others: Iterable[Task], stopping: asyncio.Event) -> None:
    """Until all of it is done or stop is asked; the first failure ends it. What was not done of `own` is cancelled."""
    stop = asyncio.create_task(stopping.wait())
    mine: set[asyncio.Task[Any]] = {stop, *map(asyncio.create_task, own)}
    pending = mine | set(others)
    try:
        while not stop.done() and pending != {stop}:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        for task in mine:
            task.cancel()


async def drain(running: Mapping[Child, Task], hurry: asyncio.Event, deadline_s: float) -> bool:
    """Stop these together; True if all went by themselves, before the deadline and a second Ctrl-C."""
    for child in running:
        child.stop()
    with suppress(TimeoutError, LocalError):
        async with asyncio.timeout(deadline_s):
            await watch([], running.values(), hurry)
    in_time = all(task.done() for task in running.values())
    for child in running:
        child.kill()
    await asyncio.gather(*running.values(), return_exceptions=True)
    return in_time


class Local:
    """The whole of it: decided at construction, run once."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        shared = shared_environ(environ, folder)
        self.settings = load(shared)
        self.valkey: EmbeddedValkey | None = None
        if not given(environ, "REDIS_URL"):
            in_memory = self.settings.durability == "memory"
            self.valkey = EmbeddedValkey(folder / "valkey", appendfsync="everysec" if in_memory else "always")
            shared["LINNET_REDIS_URL"] = self.valkey.url
        self.children = [Child(service) for service in services(shared, self.settings)]
        for child in self.children:
            check_port(child.service, "listen", "LINNET_LISTEN")
            check_port(child.service, "admin", "LINNET_ADMIN_LISTEN")
        self.stopping, self.hurry = asyncio.Event(), asyncio.Event()

    async def run(self) -> bool:
        """Until it is asked to stop; True if everything then ended by itself."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signum, self._ask_to_stop)
        running: dict[Child, Task] = {}
        try:
            if self.valkey is not None:
                self.valkey.spawn()
                await watch([asyncio.to_thread(self.valkey.wait_ready)], [], self.stopping)
            if not self.stopping.is_set():
                running = {child: asyncio.create_task(child.run()) for child in self.children}
                keeping = [keep_valkey(self.valkey)] if self.valkey else []
                await watch([self._announce(), *keeping], running.values(), self.stopping)
        finally:
            in_time = await self._stop(running)
        return in_time

    def _ask_to_stop(self) -> None:
        if self.stopping.is_set():
            self.hurry.set()
        else:
            say("linnet: draining; once more to hurry")
            self.stopping.set()

    async def _announce(self) -> None:
        await until_ready(self.children)
        say(welcome([child.service for child in self.children], self.settings, self.folder))

    async def _stop(self, running: Mapping[Child, Task]) -> bool:
        window_s = self.settings.drain_accept_s + self.settings.drain_window_s
        in_time = True
        for module in ("gateway", "router"):
            these = {child: task for child, task in running.items() if child.service.module == module}
            in_time &= await drain(these, self.hurry, window_s + DRAIN_MARGIN_S)
        if self.valkey is not None:
            await asyncio.to_thread(self.valkey.stop)
        if running:
            say("linnet: stopped" if in_time else "linnet: stopped, not everything by itself")
        return in_time


def welcome(plan: list[Service], settings: Settings, folder: Path) -> str:
    """Where everything is, and three lines that can be pasted into another terminal."""
    router, *gateways = plan
    api = f"http{'s' * bool(settings.tls_cert)}://{reachable(router.listen)}"
    sockets = [f"ws{'s' * bool(settings.tls_cert)}://{reachable(one.listen)}/ws" for one in gateways]
    admins = "  ".join(f"{one.name} http://{reachable(one.admin)}" for one in plan)
    post = f"curl -sS -H 'Content-Type: application/json' {api}/v1"
    return f"""linnet: ready

  HTTP API   {api}/v1  (OpenAPI: {api}/v1/openapi.json)
  gateways   {"  ".join(sockets)}
  admin      {admins}  (/livez /readyz /metrics)
  kept in    {folder.resolve()}  (messages, secrets, the server's log)

Try it: two accounts; bob, who listens; ann, who writes to him (one more terminal each, Ctrl-D leaves):

  for u in ann bob; do {post}/accounts -d '{{"user":"'$u'","password":"correct-horse","name":"'$u'"}}'; echo; done
  {chat(post, sockets[0], "bob", "")}
  {chat(post, sockets[-1], "ann", HELLO_BOB)}
"""


# `n` as the protocol wants it from a fresh client: the Unix time in µs.
HELLO_BOB = r"""printf '{"type":"send","to":"@bob","n":%s,"body":"hello bob"}\n' $(date +%s%6N); """


def chat(post: str, url: str, user: str, first: str) -> str:
    """A shell line that logs in, says hello with the answer (unknown fields are ignored), then sends what is typed."""
    login = f"""{post}/login -d '{{"user":"{user}","password":"correct-horse","device":"terminal"}}'"""
    hello = f"""echo "$({login} | sed 's/^{{/{{"type":"hello","device":"terminal",/')"; """
    return f"({hello}{first}cat) | {os.path.relpath(sys.executable)} -m websockets {url}"


def reachable(where: tuple[str, int]) -> str:
    """An address to connect to, for one to listen on."""
    host, port = where
    return address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104  # replaced, not bound


def main() -> int:
    try:
        lock = claim_folder(FOLDER)
        try:
            return 0 if asyncio.run(Local(FOLDER, os.environ).run()) else 1
        finally:
            os.close(lock)
    except (LocalError, ValkeyError, StartupError) as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"linnet: {reason}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
