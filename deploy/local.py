"""`make up`: an embedded Valkey (or a cluster), one router and two gateways, in the foreground of one terminal.

It starts the services of plan.py in order, restarts a service that ends by itself, and stops all in the opposite order.
The runner uses only `LINNET_*` variables, signals and `/readyz` with its children, as an orchestrator would.

Invariants:
- if `LINNET_REDIS_URL` is given, no embedded server is started;
- a failure at the start is one line and exit code 1; later, the end of a process is reported and it is restarted;
- no child outlives the runner: the first Ctrl-C (or SIGTERM, SIGHUP) drains gateways, then the router, then Valkey; the
  second kills them; if the runner is killed, its children end too (parent-death signal).
"""

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.embedded import PORTS, EmbeddedCluster, EmbeddedValkey, ValkeyError, tied
from deploy.plan import (
    LocalError,
    Service,
    address,
    bot,
    check_port,
    claim_folder,
    demo,
    given,
    own_secret,
    services,
    shared_environ,
    welcome,
)
from router.contract.errors import StartupError
from router.contract.settings import Settings, load

FOLDER = Path(".linnet")
CLUSTER_PORT = 7001
READY_DEADLINE_S = 60.0
LOOK_S = 0.2  # between two looks whether a server has ended
STABLE_S = 30.0  # a child that ran this long is restarted without a longer pause
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
DRAIN_MARGIN_S = 10.0
MAX_LOG_LINE = 1 << 16

Task = asyncio.Task[None]
Work = Coroutine[Any, Any, None]


def say(line: str) -> None:
    """Print a line. If the terminal is gone (`make up | head`), treat it as a Ctrl-C."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        signal.raise_signal(signal.SIGTERM)


def how_it_ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


class Child:
    """The process of a service: its output gets its name as prefix, and it is restarted if it ends by itself."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.ready = service.admin is None
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._last_lines: deque[str] = deque(maxlen=1)

    async def run(self) -> None:
        """Run until `stop`. If it ends before it was ever ready, a restart would not help, and the runner fails."""
        pause = 0.0
        while not self._stopping.is_set():
            began = time.monotonic()
            code = await self._once()
            if self._stopping.is_set():
                return
            how = how_it_ended(code)
            if not self.ready:
                raise LocalError(f"{self.service.name} {how}: {''.join(self._last_lines) or 'it wrote no output'}")
            stable = time.monotonic() - began > STABLE_S
            pause = FIRST_PAUSE_S if stable else min(max(pause * 2, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            say(f"linnet: {self.service.name} {how}; starting it again in {pause:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)

    async def _once(self) -> int:
        self._process = await asyncio.create_subprocess_exec(
            *tied(*self.service.command),
            env=self.service.environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=MAX_LOG_LINE,
            start_new_session=True,  # the runner handles a Ctrl-C at the terminal
        )
        if self._stopping.is_set():  # a stop was requested during the start
            self._signal(signal.SIGTERM)
        copying = asyncio.create_task(self._copy_output(self._process))
        code = await self._process.wait()
        with suppress(TimeoutError):  # a process that it started may still hold its output open
            await asyncio.wait_for(copying, 1.0)
        return code

    async def _copy_output(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101  # it is a pipe, see above
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than MAX_LOG_LINE; the reader dropped its first part
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


async def answers_ready(where: tuple[str, int], path: str = "/readyz") -> bool:
    try:
        async with asyncio.timeout(5.0):
            reader, writer = await asyncio.open_connection(*where)
            try:
                writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


async def until_ready(children: list[Child]) -> None:
    until = time.monotonic() + READY_DEADLINE_S
    for child in children:
        service = child.service
        if service.admin is None:
            continue
        while not await answers_ready(service.admin, service.ready_path):
            if time.monotonic() > until:
                where = address(*service.admin) + service.ready_path
                raise LocalError(f"{service.name} is not ready after {READY_DEADLINE_S:g} s, see {where}")
            await asyncio.sleep(0.05)
        child.ready = True


async def keep_valkey(valkey: EmbeddedValkey) -> None:
    """Restart it whenever it ends by itself. A failed start (a full disk) is tried again, as its cause may end."""
    pause = FIRST_PAUSE_S
    while True:
        # A thread that waits for each server would leave the pool none to stop them.
        while (code := valkey.returncode) is None:  # noqa: ASYNC110 - the end of a process sets no event
            await asyncio.sleep(LOOK_S)
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
    """Wait until all are done or a stop is requested; the first failure ends it. The rest of `own` is cancelled."""
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
    """Stop these together; return whether all ended by themselves, before the deadline and a second Ctrl-C."""
    if not running:
        return True
    for child in running:
        child.stop()
    waiting = {asyncio.create_task(asyncio.wait(running.values())), asyncio.ensure_future(hurry.wait())}
    await asyncio.wait(waiting, timeout=deadline_s, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()
    in_time = all(task.done() for task in running.values())
    for child in running:
        child.kill()
    await asyncio.gather(*running.values(), return_exceptions=True)
    return in_time


class Runner:
    """One run of the plan: the embedded Valkey, if any, then all services; they are stopped in the opposite order."""

    def __init__(
        self, valkey: EmbeddedValkey | EmbeddedCluster | None, plan: list[Service], greeting: str, window_s: float
    ) -> None:
        self.valkey = valkey
        self.children = [Child(service) for service in plan]
        self.stopping, self.hurry = asyncio.Event(), asyncio.Event()
        self._greeting = greeting
        self._deadline_s = window_s + DRAIN_MARGIN_S

    async def run(self, *beside: Work) -> bool:
        """Run until a stop is requested; return whether all then ended by themselves. `beside`: work of the caller."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signum, self._ask_to_stop)
        running: dict[Child, Task] = {}
        try:
            if self.valkey is not None:
                self.valkey.spawn()
                await watch([asyncio.to_thread(self.valkey.wait_ready)], [], self.stopping)
            if not self.stopping.is_set():
                running = {child: asyncio.create_task(child.run()) for child in self.children}
                keeping = [keep_valkey(node) for node in self.valkey.nodes] if self.valkey else []
                await watch([self._announce(), *keeping, *beside], running.values(), self.stopping)
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
        say(self._greeting)

    async def _stop(self, running: Mapping[Child, Task]) -> bool:
        in_time = True
        for module in reversed(dict.fromkeys(child.service.module for child in self.children)):
            these = {child: task for child, task in running.items() if child.service.module == module}
            in_time &= await drain(these, self.hurry, self._deadline_s)
        if self.valkey is not None:
            await asyncio.to_thread(self.valkey.stop)
        if running:
            say("linnet: stopped" if in_time else "linnet: stopped, not everything by itself")
        return in_time


MOVES = "LINNET_{}=host:port moves the router, and the gateways with it"


def own_valkey(
    folder: Path, environ: Mapping[str, str], shared: dict[str, str], settings: Settings
) -> EmbeddedValkey | EmbeddedCluster | None:
    """Return the embedded server or cluster; None if another one is given. The children receive its URL."""
    if given(environ, "REDIS_URL"):
        return None
    if environ.get("CLUSTER"):
        return own_cluster(folder, environ, shared, settings)
    if settings.durability == "replicated":
        raise LocalError("LINNET_DURABILITY=replicated needs replicas: name your own Redis with LINNET_REDIS_URL")
    in_memory = settings.durability == "memory"
    valkey = EmbeddedValkey(folder / "valkey", appendfsync="everysec" if in_memory else "always")
    shared["LINNET_REDIS_URL"] = valkey.url
    return valkey


def own_cluster(
    folder: Path, environ: Mapping[str, str], shared: dict[str, str], settings: Settings
) -> EmbeddedCluster:
    """Return the embedded cluster. Its URL has the password, so the children receive it in a file.

    Its messages are not those of the embedded server, so its files and the stores of its clients are apart.
    """
    given_port = environ.get("CLUSTER_PORT") or str(CLUSTER_PORT)
    if not given_port.isdecimal() or not 0 < int(given_port) <= 65_536 - PORTS:
        raise LocalError(f"CLUSTER_PORT={given_port}: expected a port that has {PORTS - 1} more above it")
    home = folder / "cluster"
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    cluster = EmbeddedCluster(
        home,
        int(given_port),
        own_secret(home / "password").read_text().strip(),
        appendfsync="everysec" if settings.durability == "memory" else "always",
    )
    for port in range(int(given_port), int(given_port) + PORTS):
        check_port("valkey", ("127.0.0.1", port), "CLUSTER_PORT=port moves all servers of the cluster")
    url = home / "url"
    url.touch(mode=0o600)
    url.write_text(cluster.url)
    shared["LINNET_REDIS_URL_FILE"] = str(url.resolve())
    shared["LINNET_REDIS_MODE"] = "cluster"
    if not given(environ, "MEDIA_URL"):
        shared["LINNET_MEDIA_URL"] = (home / "media").resolve().as_uri()
    if not given(environ, "SEARCH_URL"):
        shared["LINNET_SEARCH_URL"] = (home / "search").resolve().as_uri()
    return cluster


def local(folder: Path, environ: Mapping[str, str]) -> Runner:
    """Return the whole plan of `make up`."""
    shared = shared_environ(environ, folder)
    settings = load(shared)
    valkey = own_valkey(folder, environ, shared, settings)
    plan = services(shared, settings)
    for service in plan:
        check_port(service.name, service.listen, MOVES.format("LISTEN"))
        if service.admin is not None:
            check_port(service.name, service.admin, MOVES.format("ADMIN_LISTEN"))
    clients = folder / "cluster" if isinstance(valkey, EmbeddedCluster) else folder
    people = demo(shared, settings, plan[0], clients)
    beside = [*bot(shared, settings, plan[0], clients), *people]
    return Runner(
        valkey,
        [*plan, *beside],
        welcome(
            plan,
            settings,
            folder,
            with_demo=bool(people),
            cluster=list(valkey.ports) if isinstance(valkey, EmbeddedCluster) else [],
        ),
        settings.drain_accept_s + settings.drain_window_s,
    )


def run(folder: Path, make: Callable[[Path, Mapping[str, str]], Coroutine[Any, Any, bool]]) -> int:
    """Lock the folder and run the result of `make` in it; return the exit code. An error is one line."""
    try:
        lock = claim_folder(folder)
        try:
            return 0 if asyncio.run(make(folder, os.environ)) else 1
        finally:
            os.close(lock)
    except (LocalError, ValkeyError, StartupError) as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"linnet: {reason}", file=sys.stderr)
    return 1


async def main(folder: Path, environ: Mapping[str, str]) -> bool:
    return await local(folder, environ).run()


if __name__ == "__main__":
    sys.exit(run(FOLDER, main))
