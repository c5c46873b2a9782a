"""The ASGI application: a route for each path of the table, CORS, and the callers' addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.api.call import Endpoint, Services
from router.api.steps import EndpointRoute, error_response
from router.api.table import admin_endpoints, endpoints
from router.contract import metrics, origins
from router.contract.errors import NotFound
from router.contract.settings import Settings
from router.process.forwarded import Forwarded, Proxies

# Headers that pages of other origins may send and read, beside those that browsers always allow.
ALLOWED_HEADERS: Final = (
    "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "If-Range",
    "Linnet-Device", "Linnet-Name", "Linnet-Reason", "Linnet-User", "Range",
    "Tus-Resumable", "Upload-Defer-Length", "Upload-Length", "Upload-Metadata", "Upload-Offset",
)  # fmt: skip
EXPOSED_HEADERS: Final = (
    "Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Range", "ETag",
    "Linnet-Upload", "Location", "Retry-After",
    "Tus-Extension", "Tus-Max-Size", "Tus-Resumable", "Tus-Version",
    "Upload-Expires", "Upload-Length", "Upload-Offset",
)  # fmt: skip


def create_app(services: Services) -> Starlette:
    """The API as an ASGI application. It reads X-Forwarded-For itself: serve it with uvicorn's `proxy_headers` off."""
    settings = services.settings

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        services.passwords.close()

    app = Starlette(
        routes=_routes(services, endpoints(settings)),
        middleware=_middleware(settings),
        exception_handlers={HTTPException: _unrouted},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def create_admin_api(services: Services) -> Starlette:
    """The calls of the admin view, for its own listener. Pages of other origins cannot call them."""
    settings = services.settings
    app = Starlette(
        routes=_routes(services, admin_endpoints(settings), private=True),
        middleware=[Middleware(Forwarded, proxies=Proxies(settings))],
        exception_handlers={HTTPException: _unrouted},
    )
    app.router.redirect_slashes = False
    return app


def _routes(services: Services, rows: Iterable[Endpoint], private: bool = False) -> list[Route]:
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in rows:
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    return [Route(_route(path), EndpointRoute(services, path, methods, private)) for path, methods in by_path.items()]


def _route(path: str) -> str:
    """The path as Starlette matches it: a key of the state may contain slashes."""
    return path.replace("{key}", "{key:path}")


def _middleware(settings: Settings) -> list[Middleware]:
    found = [Middleware(Forwarded, proxies=Proxies(settings))]
    if allowed := origins.parse(settings.origins):
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(allowed),
                allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=ALLOWED_HEADERS,
                expose_headers=EXPOSED_HEADERS,
                max_age=3600,
            )
        )
    return found


async def _unrouted(_request: Request, _error: Exception) -> Response:
    """Answer for an unknown path, the only error that Starlette itself raises here."""
    metrics.HTTP_REQUESTS.labels("unknown", 404).inc()
    return error_response(NotFound("no such path"))
