"""A process from its first socket to its last; what it works at in between is its own.

The order: settings and logs, both ports (a taken one is said at once), the admin port first, so that the process can be
asked how it is while it waits for Redis; then Redis, whether that can keep what is promised; then the work, until told
to stop. What can be wrong at the start stops it with one line and 1. Redis away is not wrong: it is waited for.
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
from router.contract.errors import StartupError, Unavailable
from router.contract.settings import Settings, load
from router.process import descriptors, logs, serving
from router.process.admin import Readiness, create_admin
from router.process.clocks import ClockWatch
from router.store.deployment import deployment_check
from router.store.redis.client import Client

FOREVER_S: Final = 1e9
RETRY_S: Final = 0.5
YOUNG_OBJECTS: Final = 20_000  # before they are looked through for cycles

T = TypeVar("T")


class Process:
    """What the work is given. It says what the admin port tells by setting `readiness` and `observe`."""

    def __init__(self, settings: Settings, stop: asyncio.Event, public: socket.socket) -> None:
        self.settings = settings
        self.stop = stop
        self.public = public
        self.readiness: Callable[[], Readiness] = lambda: Readiness(False, "waiting for Redis")
        self.trouble: Callable[[], str] = lambda: ""  # with Redis, now
        self.observe: Callable[[], None] = lambda: None
        self._was_ready = False
        self._certificate: tls.Certificate | None = None

    def serves(self, config: uvicorn.Config) -> uvicorn.Config:
        """The public server's; its certificate is read anew when it changes."""
        if config.ssl is not None:
            self._certificate = tls.Certificate(config.ssl, self.settings.tls_cert, self.settings.tls_key)
        return config

    def look_at_certificate(self) -> None:
        """Also what SIGHUP asks for; it ends no process."""
        if self._certificate is not None:
            self._certificate.look()

    async def look_at_certificates(self) -> None:
        while True:
            await asyncio.sleep(tls.LOOK_S)
            self.look_at_certificate()

    def ready(self) -> Readiness:
        """What the work says, and beside it what is wrong with Redis; that alone keeps only a starting one unready."""
        now, trouble = self.readiness(), self.trouble()
        if not trouble:
            self._was_ready = self._was_ready or now.ready
            return now
        why = f"{now.why}, but {trouble}" if now.ready else f"{now.why}: {trouble}"
        return msgspec.structs.replace(now, ready=now.ready and self._was_ready, why=why)

    def scraped(self) -> None:
        self.observe()

    async def unless_stopped(self, start: Coroutine[Any, Any, T]) -> T | None:
        """What a start that waits for Redis comes to; None if told to stop before."""
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
    """Runs the process that the environment's settings describe; exits 1 with one line if it cannot begin."""
    try:
        settings = load(os.environ)
        logs.set_up(settings)
        descriptors.raise_limit()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_live(name, settings, work))
    except StartupError as error:
        sys.exit(f"linnet {name}: {error}")


async def _live(name: str, settings: Settings, work: Work) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    with serving.listening(settings.listen) as public, serving.listening(settings.admin_listen) as private:
        process = Process(settings, stop, public)
        loop.add_signal_handler(signal.SIGHUP, process.look_at_certificate)
        admin = uvicorn.Server(serving.config(create_admin(process.ready, process.scraped, name)))
        answering = asyncio.create_task(admin._serve([private]))
        try:
            client = Client.make(settings.redis_url, settings.redis_mode)
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
    """The work, a look at the clocks before it, and at clocks and certificate beside it."""
    watch = ClockWatch(client)
    await process.unless_stopped(patiently(watch.look))
    beside = [asyncio.create_task(part) for part in (watch.run(), process.look_at_certificates())]
    try:
        await work(process, client)
    finally:
        for task in beside:
            task.cancel()


async def patiently(ask: Callable[[], Awaitable[None]]) -> None:
    """Until Redis has answered: that it went away again while we start is no reason to give up."""
    while True:
        try:
            await ask()
            return
        except Unavailable:
            await asyncio.sleep(RETRY_S)


async def _check(client: Client, settings: Settings) -> None:
    await patiently(lambda: client.check_server(settings.durability, settings.replicas))
    client.fitness.watch(settings.durability)
    await patiently(lambda: _join(client, settings))
    await patiently(client.probe)


async def _join(client: Client, settings: Settings) -> None:
    client.channels = await deployment_check(client, settings)


def _settle_memory() -> None:
    """What stands after the start stays, and is never looked through again. What comes and goes with messages is freed
    by counting references; a collection is for the cycles of ended connections, and those can wait for each other."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
