"""`python -m router`: one router process, configured by LINNET_* variables.

The one place where a router's parts are put together, and their order: the admin port first, so that the process can
be asked how it is while it waits for Redis; then Redis, what it must be able to keep, the parts, the API's port.

What can be wrong at the start stops it with one line and 1. SIGTERM or Ctrl-C: no more requests, claims in hand are
ended, exit 0 within STOP_S; whatever is left undone then is found again by the next router. A part that ends by
itself is a bug and ends the process, rather than leave a router that looks well and does half its work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Coroutine
from secrets import token_hex
from typing import Any, Final

import uvicorn
import uvloop

from router.api import create_app
from router.api_call import Services
from router.contract import metrics
from router.contract.errors import StartupError
from router.contract.settings import VERSION, Settings, load
from router.finisher import Finisher
from router.janitor import Janitor
from router.process import logs, loop, serving
from router.process.admin import Readiness, create_admin
from router.process.jwks import fetcher
from router.store.accounts import Accounts
from router.store.client import CONNECT_S, Client
from router.store.dirty import Dirty
from router.store.observe import RedisObserver
from router.webhooks import Webhooks

CONNECTIONS: Final = 2048
REQUESTS_S: Final = 5
STOP_S: Final = 8.0
FOREVER_S: Final = 1e9

log = logging.getLogger("linnet.router")


class Status:
    """What the admin port tells of this process; parts are set as they come up."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._client: Client | None = None
        self._redis: RedisObserver | None = None

    def up(self, client: Client) -> None:
        self._client, self._redis = client, RedisObserver(client)

    def readiness(self) -> Readiness:
        if self._stop.is_set():
            return Readiness(False, "stopping")
        if self._client is None:
            return Readiness(False, "waiting for Redis")
        return Readiness(True, "ok" if self._client.available else "ok, but Redis cannot be reached now")

    def observe(self) -> None:
        if self._redis is not None:
            self._redis.observe()


def main() -> None:
    try:
        settings = load(os.environ)
        logs.set_up(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings))
    except StartupError as error:
        sys.exit(f"linnet router: {error}")


async def serve(settings: Settings) -> None:
    """From the first socket to the last."""
    stop = stop_on_signals()
    with serving.listening(settings.listen) as public, serving.listening(settings.admin_listen) as private:
        status = Status(stop)
        admin = uvicorn.Server(serving.config(create_admin(status.readiness, status.observe)))
        answering = asyncio.create_task(admin._serve([private]))
        try:
            if client := await connected(settings, stop):
                try:
                    await work(settings, client, status, stop, public)
                finally:
                    await client.close()
        finally:
            admin.should_exit = True
            await answering


async def connected(settings: Settings, stop: asyncio.Event) -> Client | None:
    """The client, as soon as Redis can be reached; None if told to stop before. The link says once why it waits."""
    connecting = asyncio.create_task(Client.connect(settings.redis_url, settings.redis_mode, within_s=FOREVER_S))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((connecting, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if connecting.done():
        return connecting.result()
    connecting.cancel()
    await asyncio.wait((connecting,))
    return None


async def work(settings: Settings, client: Client, status: Status, stop: asyncio.Event, public: socket.socket) -> None:
    """All that a router does, until told to stop."""
    await client.check_server(settings.durability, settings.replicas)
    await Accounts(client).deployment_check()
    node = token_hex(8)
    fetch = fetcher(settings.jwks_url) if settings.jwks_url else None
    services = Services.make(settings, client, node, fetch)
    api = uvicorn.Server(
        serving.public_config(
            create_app(services),
            settings,
            lifespan="on",
            timeout_graceful_shutdown=REQUESTS_S,
            limit_concurrency=CONNECTIONS,
        )
    )
    stores = services.conversations, services.users, services.pushes
    workers: list[Finisher | Janitor | Webhooks] = [
        Finisher(settings, *stores, Dirty(client)),
        Janitor(services.presence),
        *([Webhooks(settings, *stores)] if settings.webhook_url else []),
    ]
    metrics.BUILD_INFO.labels("router", VERSION, platform.python_version(), node).set(1)
    status.up(client)
    await services.durability.connect(CONNECT_S)
    try:
        log.info("ready: HTTP API on %s, admin on %s", settings.listen, settings.admin_listen)
        await together([api._serve([public]), *(worker.run(stop) for worker in workers)], stop, api)
    finally:
        await services.durability.close()
    log.info("stopped")


async def together(parts: list[Coroutine[Any, Any, None]], stop: asyncio.Event, api: uvicorn.Server) -> None:
    """Run the parts until told to stop, or until one of them ends; then end them all within STOP_S."""
    tasks = [asyncio.create_task(part) for part in parts]
    probing, stopping = asyncio.create_task(loop.probe()), asyncio.create_task(stop.wait())
    await asyncio.wait((*tasks, probing, stopping), return_when=asyncio.FIRST_COMPLETED)
    stop.set()
    api.should_exit = True
    await asyncio.wait(tasks, timeout=STOP_S)
    for task in (*tasks, probing):
        task.cancel()
    for outcome in await asyncio.gather(*tasks, probing, stopping, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


def stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    return stop


if __name__ == "__main__":
    main()
