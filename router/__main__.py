"""`python -m router`: one router process, configured by LINNET_* variables. `python -m router check-store` only checks
whether its Redis is fit (`process/check_store.py`).

This file composes the parts of a router; `process/run.py` starts the process. After SIGTERM or Ctrl-C the router
accepts no more requests, finishes its claims, and exits with 0 within STOP_S; other routers take over unfinished work
when its leases run out. If a part ends by itself, that is a bug and ends the process, because a router that looks
healthy must not do only half of its work.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import sys
from collections.abc import Coroutine
from functools import partial
from secrets import token_hex
from typing import Any, Final

import uvicorn

from router.api.addresses import dialable
from router.api.app import create_admin_api, create_app
from router.api.call import Services
from router.contract import metrics
from router.contract.settings import VERSION
from router.jobs.finisher import Finisher
from router.jobs.janitor import Janitor
from router.jobs.pair_checks import PairChecks
from router.jobs.row_audit import RowAudit
from router.jobs.sweeper import Sweeper
from router.jobs.upgrades import Upgrades
from router.jobs.webhooks import Webhooks
from router.media.parts import Media
from router.media.prepare import Preparer
from router.process import check_store, logs, loop, serving
from router.process.admin import Readiness
from router.process.jwks import fetcher
from router.process.run import FOREVER_S, Process, checked, main
from router.search.parts import Search
from router.store.deployment import ident, mark_media, media_marked, restore
from router.store.files import Files
from router.store.objects import Objects
from router.store.observe import RedisObserver
from router.store.redis.client import Client
from router.store.resumable import Resumables
from router.web.serve import with_admin_page, with_web

CONNECTIONS: Final = 2048
REQUESTS_S: Final = 5
KEEP_ALIVE_S: Final = 90  # longer than in balancers (60 or 75 s), so that they never reuse a connection being closed
STOP_S: Final = 8.0

log = logging.getLogger("linnet.router")


async def work(process: Process, client: Client) -> None:
    """Run all parts of a router until the process is stopped."""
    settings, stop, node = process.settings, process.stop, token_hex(8)
    fetch = fetcher(settings.jwks_url) if settings.jwks_url else None
    deployment = await ident(client) if settings.media_url else ""
    preparer, media = Preparer.make(settings), None
    meter = loop.Meter()
    if settings.media_url:
        objects = Objects(settings.media_url, deployment, settings.media_public_url)
        media = Media.make(settings, Files(client), Resumables(client), objects, preparer)
    search = Search(settings, client) if settings.search_url else None
    services = Services.make(settings, client, node, fetch, media, search)

    async def gateways(host: str) -> list[str]:
        return [dialable(gateway.url, host) for gateway in (await services.presence.gateways()).values()]

    api = serving.Server(
        process.serves(
            serving.public_config(
                with_web(create_app(services), settings, gateways),
                settings,
                lifespan="on",
                timeout_graceful_shutdown=REQUESTS_S,
                timeout_keep_alive=KEEP_ALIVE_S,
                limit_concurrency=CONNECTIONS,
            )
        )
    )
    stores = services.conversations, services.users, services.pushes
    workers: list[Finisher | Janitor | PairChecks | RowAudit | Search | Sweeper | Upgrades | Webhooks] = [
        Finisher(
            settings,
            *stores,
            services.dirty,
            services.contacts,
            services.files,
            services.audit,
        ),
        Janitor(services.presence, partial(restore, client, settings), services.reports.erase),
        PairChecks(services.people, services.contacts),
        RowAudit(services.conversations, services.users, services.audit),
        Upgrades(services.row_formats, services.presence, node, meter.load),
        *([Webhooks(settings, *stores, services.state)] if settings.webhook_url else []),
    ]
    if media:
        sweeper = Sweeper(
            media.files, media.resumables, media.objects, media.spool, partial(ident, client),
            partial(media_marked, client), partial(mark_media, client), deployment,
        )  # fmt: skip
        await sweeper.start()
        workers.append(sweeper)
    if search:
        await process.unless_stopped(search.start())
        workers.append(search)
    metrics.BUILD_INFO.labels("router", VERSION, platform.python_version(), node).set(1)

    def readiness() -> Readiness:
        if stop.is_set():
            return Readiness(False, "stopping")
        return Readiness(True, "ok")

    try:
        await process.unless_stopped(services.durability.connect(FOREVER_S))
        if not stop.is_set():
            process.readiness, process.observe = readiness, RedisObserver(client).observe
            private = with_admin_page(create_admin_api(services), settings)
            process.admin_view = search.serves(private) if search else private
            logs.life(
                log, "ready", "ready: HTTP API on %s, admin on %s, node %s",
                settings.listen, settings.admin_listen, node,
                listen=settings.listen, admin_listen=settings.admin_listen, node=node,
            )  # fmt: skip
            await together(meter, [api._serve([process.public]), *(worker.run(stop) for worker in workers)], stop, api)
    finally:
        await services.close()
        if search:
            await search.close()
        await preparer.close()
        await services.durability.close()
    logs.life(log, "stopped", "stopped")


async def together(
    meter: loop.Meter, parts: list[Coroutine[Any, Any, None]], stop: asyncio.Event, api: uvicorn.Server
) -> None:
    """Run the parts until the process is stopped or one of them ends; then end all of them within STOP_S."""
    tasks = [asyncio.create_task(part) for part in parts]
    probing, stopping = asyncio.create_task(loop.probe(meter)), asyncio.create_task(stop.wait())
    await asyncio.wait((*tasks, probing, stopping), return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        open_ones = len(api.server_state.tasks)
        logs.life(log, "draining", "draining: %d requests, within %g s", open_ones, STOP_S, requests=open_ones)
    stop.set()
    api.should_exit = True
    await asyncio.wait(tasks, timeout=STOP_S)
    for task in (*tasks, probing):
        task.cancel()
    for outcome in await asyncio.gather(*tasks, probing, stopping, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


if __name__ == "__main__":
    if sys.argv[1:] == ["check-store"]:
        sys.exit(checked("router", check_store.report))
    main("router", work)
