"""The headers that tell browsers how to treat a router's answers, and the content security policy of the page.

Invariants
- The headers of `ALWAYS` are in every answer, also in refusals of the API. The HTTP server's own refusals (what is no
  request, or one too many) have none.
- Only `/sw.js` can become a service worker. What users upload cannot become a script, a style sheet, a worker or a
  document of this origin: such a request of an upload is refused, unless the answer is an attachment. Behind a link
  (`/v1/files/`) its type and sandbox prevent it: a browser shows it in an origin of its own.
- `connect-src` names hosts, never a bare scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

ALWAYS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"microphone=(self), camera=(self)"),
)
WORKER: Final = "/sw.js"
UPLOADS: Final = "/v1/uploads/"
ACTIVE: Final = frozenset((b"script", b"style", b"worker", b"document", b"iframe", b"object", b"embed"))
MAX_HOSTS: Final = 64

_HOST: Final = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")

Scope = MutableMapping[str, Any]


class SecureHeaders:
    """ASGI: the headers of every answer, and the refusals that depend on what a browser wants the answer for."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, asked = scope["path"], dict(scope["headers"])
        if asked.get(b"service-worker") == b"script" and path != WORKER:
            await _forbidden(send, b"only /sw.js is a service worker here\n")
            return
        guarded = path.startswith(UPLOADS) and asked.get(b"sec-fetch-dest") in ACTIVE
        refused = False

        async def sending(message: Any) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", []))
                if guarded and not _attachment(headers):
                    refused = True
                    await _forbidden(send, b"what users upload is shown by pages, and is no page itself\n")
                    return
                own = {name.lower() for name, _ in headers}
                message = {**message, "headers": [*headers, *(one for one in ALWAYS if one[0] not in own)]}
            if not refused:
                await send(message)

        await self._app(scope, receive, sending)


def _attachment(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name.lower() == b"content-disposition" and value.startswith(b"attachment") for name, value in headers)


async def _forbidden(send: Any, why: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(why)).encode()), *ALWAYS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": why})


def policy(import_map_hash: str, connect: Iterable[str], media: Iterable[str] = ()) -> str:
    """The content security policy of the page."""
    stores = " ".join(media)
    parts = {
        "default-src": "'none'",
        "script-src": f"'self' 'sha256-{import_map_hash}'",
        "style-src": "'self'",
        "img-src": f"'self' blob: {stores}",
        "media-src": f"'self' blob: {stores}",
        "connect-src": " ".join(["'self'", *connect, stores]),
        "worker-src": "'self'",
        "manifest-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "linnet",
    }
    return "; ".join(f"{name} {value}".strip() for name, value in parts.items())


def origins(urls: Iterable[str]) -> list[str]:
    """The sources of these URLs, without their paths; empty ones are left out."""
    return [f"{parts.scheme}://{parts.netloc}" for parts in map(urlsplit, urls) if parts.netloc]


def hosts(urls: Iterable[str]) -> list[str]:
    """The sources for `connect-src`: the hosts of these gateways with any port, as gateways come and go."""
    found = set()
    for url in urls:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme in ("ws", "wss") and _HOST.fullmatch(host):
            found.add(f"{parts.scheme}://[{host}]:*" if ":" in host else f"{parts.scheme}://{host}:*")
    return sorted(found)[:MAX_HOSTS]
