"""What the orchestrator and Prometheus ask of either process: /livez, /readyz, /joinz, /metrics, on a port of its own.

/livez    200 as long as the event loop answers; it asks nothing else, for a restart heals nothing else
/readyz   200 when this process takes requests, else 503 and why. Once ready it stays so until it is told to stop: were
          an outage of Redis to unready every router at once, the load balancer would have nobody left who could say 503
/joinz    200 when this process is ready and, if it is a gateway, it need not wait for the one that drains while others
          serve. An orchestrator whose startup probe asks this drains one gateway at a time, for it waits for successors
/metrics  the exposition of this process's own metrics, in the form the scraper asks for

What never lives here: anything a client may see; the port stays inside the cluster.
"""

from __future__ import annotations

from collections.abc import Callable

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


def create_admin(readiness: Callable[[], Readiness], observe: Callable[[], None], name: str = "") -> Starlette:
    """The admin app of the process of this name; `observe` sets the gauges that are read at scrape time."""
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
    return Starlette(routes=[Route(path, answer) for path, answer in paths.items()])
