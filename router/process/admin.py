"""What the orchestrator and Prometheus ask of either process: /livez, /readyz, /metrics, on a port of its own.

/livez    200 as long as the event loop answers; it asks nothing else, for a restart heals nothing else
/readyz   200 when this process takes requests, else 503 and why. Once ready it stays so until it is told to stop: were
          an outage of Redis to unready every router at once, the load balancer would have nobody left who could say 503
/metrics  the exposition, in the form the scraper asks for

What never lives here: anything a client may see; the port stays inside the cluster. Rejected: the same paths on the
public port (one wrong route and the metrics are public).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route


class Readiness(msgspec.Struct, frozen=True):
    ready: bool
    why: str


def create_admin(readiness: Callable[[], Readiness], observe: Callable[[], None]) -> Starlette:
    """The admin app; `observe` sets the gauges that are read at scrape time."""

    async def livez(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        now = readiness()
        return PlainTextResponse(f"{now.why}\n", 200 if now.ready else 503)

    async def metrics(request: Request) -> Response:
        observe()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(REGISTRY), headers={"content-type": content_type})

    return Starlette(routes=[Route("/livez", livez), Route("/readyz", readyz), Route("/metrics", metrics)])
