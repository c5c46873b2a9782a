"""The life of a process, from its first socket to its exit; gateway and router pass in their work.

The order is: settings and logs; both ports, so that a port in use is reported at once; the admin server, so that the
process can be probed while it waits for Redis; Redis, and whether it can keep what the durability promises; the work,
until a signal stops it. A fault at start ends the process with one line and status 1. If Redis is unreachable, the
process waits for it.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec
import uvicorn
import uvloop

from router import tls
from router.contract import metrics
from router.contract.errors import StartupError, Unavailable
from router.contract.settings import Settings, load
from router.process import descriptors, logs, serving
from router.process.admin import Readiness, create_admin
from router.process.clocks import ClockWatch
from router.process.isolate import attempt
from router.store.deployment import RowFormats, deployment_check
from router.store.redis import choose
from router.store.redis.client import Client

FOREVER_S: Final = 1e9
RETRY_S: Final = 0.5
YOUNG_OBJECTS: Final = 20_000  # new objects before the garbage collector looks for cycles among them

T = TypeVar("T")


class Process:
    """A process as its work receives it; the work sets `readiness` and `observe` for the admin port."""

    def __init__(self, settings: Settings, stop: asyncio.Event, public: socket.socket) -> None:
        self.settings = settings
        self.stop = stop
        self.public = public
        self.readiness: Callable[[], Readiness] = lambda: Readiness(False, "waiting for Redis")
        self.trouble: Callable[[], str] = lambda: ""  # why Redis is not usable now
        self.observe: Callable[[], None] = lambda: None
        self.admin_view: Any = None  # an ASGI application for the other paths of the admin port
        self._was_ready = False
        self._certificate: tls.Certificate | None = None

    def serves(self, config: uvicorn.Config) -> uvicorn.Config:
        """Register the public server's configuration: its certificate is loaded again when it changes."""
        if config.ssl is not None:
            self._certificate = tls.Certificate(config.ssl, self.settings.tls_cert, self.settings.tls_key)
        return config

    def reload_certificate(self) -> None:
        """Load the certificate again if it has changed; SIGHUP calls this at once."""
        if self._certificate is not None:
            self._certificate.reload()

    async def reload_certificates(self) -> None:
        while True:
            await asyncio.sleep(tls.CHECK_S)
            attempt("certificates", self.reload_certificate)

    def ready(self) -> Readiness:
        """The readiness of the work, with Redis's trouble in its text, which alone makes only a new process unready."""
        now, trouble = self.readiness(), self.trouble()
        if self.settings.durability == "provider":
            now = msgspec.structs.replace(now, why=f"{now.why}, durability promised by the provider of Redis")
        if not trouble:
            self._was_ready = self._was_ready or now.ready
            return now
        why = f"{now.why}, but {trouble}" if now.ready else f"{now.why}: {trouble}"
        return msgspec.structs.replace(now, ready=now.ready and self._was_ready, why=why)

    def scraped(self) -> None:
        self.observe()

    async def unless_stopped(self, start: Coroutine[Any, Any, T]) -> T | None:
        """The result of a start that may wait for Redis; None if the process is stopped before."""
        starting, stopping = asyncio.create_task(start), asyncio.create_task(self.stop.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if starting.done():
            return starting.result()
        starting.cancel()
        await asyncio.wait((starting,))
        return None


Work = Callable[[Process, Client], Awaitable[None]]


def main(name: str, work: Work) -> None:
    """Run a process with the settings of the environment; exit with status 1 and one line if it cannot start."""
    try:
        settings = load(os.environ)
        logs.set_up(settings)
        descriptors.raise_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(name, settings, work))
    except StartupError as error:
        sys.exit(f"linnet {name}: {error}")


def checked(name: str, check: Callable[[Settings], int]) -> int:
    """Run a check with the settings of the environment; return its exit status."""
    try:
        settings = load(os.environ)
        logs.set_up(settings)
        return check(settings)
    except StartupError as error:
        sys.exit(f"linnet {name}: {error}")


async def _live(name: str, settings: Settings, work: Work) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    with serving.listening(settings.listen) as public, serving.listening(settings.admin_listen) as private:
        process = Process(settings, stop, public)
        loop.add_signal_handler(signal.SIGHUP, process.reload_certificate)
        admin = serving.Server(
            serving.config(create_admin(process.ready, process.scraped, name, lambda: process.admin_view))
        )
        answering = asyncio.create_task(admin._serve([private]))
        try:
            client = choose.client(
                settings.redis_url,
                settings.redis_mode,
                reachable=settings.redis_map,
                tls_name=settings.redis_tls_name,
            )
            process.trouble = lambda: client.trouble
            try:
                await process.unless_stopped(client.open(FOREVER_S))
                if not stop.is_set():
                    await process.unless_stopped(_check(client, settings))
                if not stop.is_set():
                    _settle_memory()
                    await _work(process, client, work)
            finally:
                await client.close()
        finally:
            admin.should_exit = True
            await answering


async def _work(process: Process, client: Client, work: Work) -> None:
    """Compare the clocks, then run the work, and watch clocks and certificate beside it."""
    watch = ClockWatch(client)
    await process.unless_stopped(patiently(watch.compare))
    beside = [asyncio.create_task(part) for part in (watch.run(), process.reload_certificates())]
    try:
        await work(process, client)
    finally:
        for task in beside:
            task.cancel()


async def patiently(attempt: Callable[[], Awaitable[None]]) -> None:
    """Repeat a step of the start until Redis has answered, because Redis may be lost again meanwhile."""
    while True:
        try:
            await attempt()
            return
        except Unavailable:
            await asyncio.sleep(RETRY_S)


async def _check(client: Client, settings: Settings) -> None:
    await patiently(lambda: client.check_server(settings.durability, settings.replicas))
    client.fitness.watch(settings.durability)
    metrics.REDIS_PROVIDER.set(settings.durability == "provider")
    await patiently(lambda: _join(client, settings))
    await patiently(client.probe)


async def _join(client: Client, settings: Settings) -> None:
    client.channels = await deployment_check(client, settings)
    await RowFormats(client).follow()


def _settle_memory() -> None:
    """Exclude the objects of the start from garbage collections, and make collections rare.

    Objects of messages are freed by reference counts; a collection only frees the cycles of ended connections.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
