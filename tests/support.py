"""Helpers of the tests that are no fixtures: running coroutines, waiting for events, ports, processes.

`eventually` is the only place in the tests that waits by checking again; everything else waits for the event itself,
with a deadline. Nothing here depends on the product, except its environment variables and three admin paths.
"""

import asyncio
import gc
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, overload

import uvloop

from deploy.embedded import EmbeddedValkey, tied
from loadtest import ports
from router.contract import keys
from router.contract.tags import SPREAD

T = TypeVar("T")

DEADLINE_S = 60.0
READY_S = 120.0  # of a process that starts, which takes most CPU of all; one that ends instead fails at once
TEST_S = 300.0  # of a whole test: longer than its waits together, so that a wait fails first and names its event
PATIENCE = 3.0  # times the deadlines of the product that tests shorten; 1 in the quick check (conftest.py)
JWT_SECRET = "a-secret-for-tests-of-32-bytes-or-more"
PARTITIONS = os.environ.get("TEST_PARTITIONS", SPREAD)  # of the deployments that tests make: NUMBERED or SPREAD
SERVER_KEY = "a-server-key-for-tests-of-32-bytes-or-more"

ROOT = Path(__file__).parent.parent


def begin_deployment(valkey: EmbeddedValkey, partitions: str = PARTITIONS) -> None:
    """Let the next deployment on an empty server have these partitions; processes by themselves make `SPREAD`."""
    if partitions != SPREAD:
        with valkey.client() as client:
            client.hset(keys.DEPLOYMENT, mapping={"partitions": partitions, "format": keys.NEWEST})


def loop() -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop, debug=False)


def run(main: Coroutine[Any, Any, T], deadline_s: float = TEST_S, own: asyncio.Runner | None = None) -> T:
    """Run on a fresh uvloop under a deadline; fail if the loop reports an exception that was not awaited.

    `own`: a runner to run on instead, which stays open.
    """
    reports: list[dict[str, Any]] = []

    async def bounded() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reports.append(context))
        async with asyncio.timeout(deadline_s):
            return await main

    try:
        with nullcontext(own) if own else loop() as runner:
            result = runner.run(bounded())
    except BaseException as error:
        for report in reports:
            error.add_note(f"the loop also reported: {report!r}")
        raise
    gc.collect()  # finalizers report "never retrieved" and "was destroyed"
    assert not reports, f"the event loop reported: {reports!r}"
    return result


@overload
async def eventually(
    predicate: Callable[[], Coroutine[Any, Any, T]], deadline_s: float = ..., *, every_s: float = ...
) -> T: ...
@overload
async def eventually(predicate: Callable[[], T], deadline_s: float = ..., *, every_s: float = ...) -> T: ...
async def eventually(predicate: Callable[[], Any], deadline_s: float = DEADLINE_S, *, every_s: float = 0.01) -> Any:
    """Return the first true value of `predicate` (plain or async); an AssertionError in it counts as "not yet"."""
    until = time.monotonic() + deadline_s
    while True:
        why: object
        try:
            value = predicate()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            why = value
        except AssertionError as error:
            why = error
        if time.monotonic() > until:
            source = inspect.getsource(getattr(predicate, "func", predicate)).strip()  # of a partial, too
            raise AssertionError(f"not within {deadline_s:g} s: {source} → {why!r}")
        await asyncio.sleep(every_s)


free_ports = ports.free_ports


async def http_get(port: int, path: str) -> tuple[int, str]:
    """Return status and body of one plain GET on loopback; status 0 if there is no answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return 0, ""
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
    except OSError:
        return 0, ""
    finally:
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return (int(head.split(" ", 2)[1]) if head.startswith("HTTP/") else 0), body


class Process:
    """A real `python -m gateway` or `python -m router`, with a port for clients, one for the admin, and a log."""

    def __init__(self, module: str, folder: Path, env: Mapping[str, str], *, apart: bool = False) -> None:
        """`apart`: it takes each partition of Redis for a server of its own (tests/apart.py)."""
        self.module = module
        self.port, self.admin_port = free_ports(2)
        self.url = f"ws://127.0.0.1:{self.port}/ws" if module == "gateway" else f"http://127.0.0.1:{self.port}"
        self._log_path = folder / f"{module}-{self.port}.log"
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("LINNET_")}
        own = {
            "LINNET_LISTEN": f"127.0.0.1:{self.port}",
            "LINNET_ADMIN_LISTEN": f"127.0.0.1:{self.admin_port}",
            "LINNET_JWT_SECRET": JWT_SECRET,
            "LINNET_SERVER_KEY": SERVER_KEY,
        }
        if module == "gateway":
            own["LINNET_GATEWAY_URL"] = self.url
        with self._log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                tied(sys.executable, "-m", *(("tests.apart", module) if apart else (module,))),
                cwd=ROOT,
                env={**inherited, **own, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def log(self) -> str:
        return self._log_path.read_text(errors="replace")

    @property
    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    async def ready(self, deadline_s: float = READY_S) -> "Process":
        """Wait until /readyz returns 200; raise at once if the process ends instead."""

        async def answered() -> bool:
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.module} ended with {self.popen.returncode}:\n{self.log[-4000:]}")
            return (await http_get(self.admin_port, "/readyz"))[0] == 200

        try:
            await eventually(answered, deadline_s, every_s=0.05)
        except AssertionError as error:
            error.add_note(self.log[-4000:])
            raise
        return self

    async def metrics(self) -> str:
        return (await http_get(self.admin_port, "/metrics"))[1]

    def send(self, signum: signal.Signals) -> None:
        """Send a signal: SIGTERM to drain, SIGSTOP and SIGCONT to stall."""
        self.popen.send_signal(signum)

    async def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end; return the exit code."""
        await eventually(lambda: self.popen.poll() is not None, deadline_s)
        return self.popen.returncode

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()
