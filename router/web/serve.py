"""The paths of the web client, in front of the HTTP API.

`/`                        the page, with its policy; never cached by a browser without asking
`/sw.js`                   the service worker; if the page is switched off, one that removes itself
`/manifest.webmanifest`    what an installed page is called and looks like
`/web/boot.js`             reloads the page once if one of its files is gone
`/web/<digest>/<name>`     all other files, for ever: another version has another digest

Everything else is the API's. The page is served without Redis: if the gateways cannot be asked for, the policy names
those that were found last for the same `Host`, and neither a browser nor the worker keeps the page.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from router.contract import metrics
from router.contract.errors import LinnetError
from router.contract.settings import Settings
from router.web import headers
from router.web.site import GONE_WORKER, AdminSite, File, Site

FOR_EVER: Final = "public, max-age=31536000, immutable"
ASK_FIRST: Final = "no-cache"
NEVER: Final = "no-store"
NOT_KEPT: Final = {"Cache-Control": NEVER}
WORKER_POLICY: Final = "default-src 'none'; connect-src 'self'; script-src 'self'"

Gateways = Callable[[str], Awaitable[list[str]]]

log = logging.getLogger("linnet.web")


def with_web(api: Any, settings: Settings, gateways: Gateways) -> Any:
    """The API with the page in front of it; `gateways` returns the gateways' URLs for a `Host`."""
    return headers.SecureHeaders(Web(api, settings, gateways))


def with_admin_page(api: Any, settings: Settings) -> Any:
    """The calls of the admin view with its page in front of them, for a listener of its own."""
    return headers.SecureHeaders(AdminPage(api, settings))


class AdminPage:
    """ASGI: `/admin` and its files. The page is as the chat's, of another folder, and connects to its own origin alone.

    It keeps its token in memory: it has no worker, and nothing is stored.
    """

    def __init__(self, api: Any, settings: Settings) -> None:
        self._api = api
        self._site = AdminSite.load(settings.accounts) if settings.web else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, site = scope.get("path", ""), self._site
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or site is None or path.startswith("/v1/"):
            await self._api(scope, receive, send)
            return
        request = Request(scope, receive)
        if path == "/admin":
            response = _sent(site.index, request, ASK_FIRST, headers.policy(site.import_map_hash, ()))
        elif (found := site.files.get(path)) is not None:
            response = _sent(found, request, FOR_EVER)
        else:
            response = Response("no such page: the admin view is at /admin\n", 404, NOT_KEPT, "text/plain")
        metrics.HTTP_REQUESTS.labels("admin", response.status_code).inc()
        await response(scope, receive, send)


class Web:
    """ASGI: the page's paths."""

    def __init__(self, api: Any, settings: Settings, gateways: Gateways) -> None:
        self._api = api
        self._gateways = gateways
        self._connect = settings.web_connect.replace(",", " ").split()
        self._known: tuple[str, list[str]] = "", []  # a host, and where its pages could connect to last
        self._media = headers.origins((settings.media_public_url, settings.media_origin))
        options = {
            "accounts": "yes" if settings.accounts else "",
            "bot": settings.web_bot,
            "password": str(settings.password_min),
            "media": _megabytes(settings) if settings.media_url else "",
            "search": "yes" if settings.search_url else "",
        }
        self._site = Site.load(options) if settings.web else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._api(scope, receive, send)
            return
        request = Request(scope, receive)
        response = await self._answer(request)
        if response is None:
            await self._api(scope, receive, send)
            return
        metrics.HTTP_REQUESTS.labels("web", response.status_code).inc()
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response | None:
        path, site = request.url.path, self._site
        if site is None:
            return _sent(GONE_WORKER, request, ASK_FIRST) if path == headers.WORKER else None
        match path:
            case "/":
                sources, fresh = await self._sources(request.headers.get("host", ""))
                policy = headers.policy(site.import_map_hash, sources, self._media)
                return _sent(site.index, request, ASK_FIRST if fresh else NEVER, policy)
            case headers.WORKER:
                return _sent(site.worker, request, ASK_FIRST, WORKER_POLICY)
            case "/manifest.webmanifest":
                return _sent(site.manifest, request, ASK_FIRST)
            case "/web/boot.js":
                return _sent(site.boot, request, ASK_FIRST)
        base = f"/web/{site.digest}/"
        found = site.files.get(path.removeprefix(base)) if path.startswith(base) else None
        if found is not None:
            return _sent(found, request, FOR_EVER)
        if path.startswith("/web/"):
            return Response("no such file in this version\n", 404, NOT_KEPT, "text/plain")
        return None

    async def _sources(self, host: str) -> tuple[list[str], bool]:
        """Return the addresses that the page may connect to, and whether they were looked up now."""
        if self._connect:
            return self._connect, True
        found: list[str] = []
        try:
            found = headers.hosts(await self._gateways(host))
        except LinnetError as error:
            log.info("the page is served with the gateways found last: %s", error)
        if found:
            self._known = host, found
        return self._known[1] if self._known[0] == host else [], bool(found)


def _megabytes(settings: Settings) -> str:
    """What a picture, a voice message, a video and another file may have, as the page reads it."""
    limits = settings.media_image_mb, settings.media_voice_mb, settings.media_video_mb, settings.media_file_mb
    return " ".join(f"{limit:g}" for limit in limits)


def _sent(file: File, request: Request, caching: str, policy: str = "") -> Response:
    sent = {"Cache-Control": caching, "Vary": "Accept-Encoding"}
    if policy:
        sent["Content-Security-Policy"] = policy
    body = file.body
    if file.compressed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        body, sent["Content-Encoding"] = file.compressed, "gzip"
    return Response(body, 200, sent, file.kind)
