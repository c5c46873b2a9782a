"""The endpoints for the orchestrator and Prometheus: /livez, /readyz, /joinz, /metrics, on a port of their own.

/livez    200 as long as the event loop responds. It checks nothing else, because a restart repairs nothing else.
/readyz   200 if this process accepts requests, else 503 and the reason. A process that was ready stays ready until it
          is stopped: if an outage of Redis made all routers unready, the load balancer would have no router left that
          could answer 503.
/joinz    200 if this process is ready and, if it is a gateway, need not wait for another one that drains. An
          orchestrator whose startup probe uses it drains one gateway at a time, because it waits for each successor.
/metrics  the exposition of this process's own metrics, in the format that the scraper requests.

A router's port also has the admin view (`router/api`, `router/web`), an origin of its own.

The port stays inside the cluster; clients never reach it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from router.contract import metrics


class Readiness(msgspec.Struct, frozen=True):
    ready: bool
    why: str
    joins: bool = True


def create_admin(
    readiness: Callable[[], Readiness],
    observe: Callable[[], None],
    name: str = "",
    more: Callable[[], Any] = lambda: None,
) -> Starlette:
    """The admin app of the process with this name; `observe` updates its gauges at each scrape.

    `more` returns the application of all other paths: the admin view of a router that is ready, else None.
    """
    own = metrics.Own(name)

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        now = readiness()
        return PlainTextResponse(f"{now.why}\n", 200 if now.ready else 503)

    async def joinz(_: Request) -> Response:
        now = readiness()
        return PlainTextResponse(f"{now.why}\n", 200 if now.ready and now.joins else 503)

    async def exposition(request: Request) -> Response:
        observe()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(own), headers={"content-type": content_type})

    paths = {"/livez": livez, "/readyz": readyz, "/joinz": joinz, "/metrics": exposition}
    app = Starlette(routes=[Route(path, answer) for path, answer in paths.items()])
    unknown = app.router.default

    async def others(scope: Any, receive: Any, send: Any) -> None:
        await (more() or unknown)(scope, receive, send)

    app.router.default = others
    app.router.redirect_slashes = False
    return app
