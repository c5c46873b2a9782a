"""The gateway's ASGI application: it checks upgrade requests, and attaches a session to each connection.

`/ws` checks origin, limits and subprotocol, accepts, attaches a session and returns; from then on the connection has no
task. `/schema.json` serves the JSON Schema of the wire.

Upgrades are answered here and not by Starlette, which serves the rest: its layers cost more than all of the checks.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission import Admission, Refusal
from gateway.delivery.open_sessions import OpenSessions
from gateway.delivery.session import Session, SessionPorts
from router.contract import codecs, metrics
from router.process.forwarded import Proxies

BEARER: Final = "bearer."
PATH: Final = "/ws"


def lines(scope: Scope, header: bytes) -> list[str]:
    """Return the values of all lines of a header, whose name is in lower case."""
    return [value.decode("latin-1") for name, value in scope["headers"] if name == header]


def bearer(scope: Scope) -> str | None:
    """Return the token of the upgrade, from the header or from a subprotocol, because browsers cannot set headers."""
    for authorization in lines(scope, b"authorization")[:1]:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer" and token:
            return token.strip()
    for offered in scope["subprotocols"]:
        if offered.startswith(BEARER):
            return str(offered.removeprefix(BEARER))
    return None


def negotiate(offered: list[str]) -> tuple[codecs.Codec, str | None]:
    """Return the codec and the subprotocol to answer with; JSON without one if the client offers only a token, or
    nothing."""
    for subprotocol in offered:
        if subprotocol in codecs.CODECS:
            return codecs.CODECS[subprotocol], subprotocol
    if any(not subprotocol.startswith(BEARER) for subprotocol in offered):
        raise Refusal(400, f"unknown subprotocol: offer one of {', '.join(codecs.CODECS)}", "subprotocol")
    return codecs.JSON, None


def create_app(admission: Admission, proxies: Proxies, sessions: OpenSessions, ports: SessionPorts) -> ASGIApp:
    """Return the public application of a node."""

    async def connect(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["path"] != PATH:
                raise Refusal(404, "no such path", "path")
            origin, host = lines(scope, b"origin"), lines(scope, b"host")
            if not admission.origin_allowed(origin, host[0] if host else ""):
                raise Refusal(403, "this origin may not connect", "origin")
            codec, subprotocol = negotiate(scope["subprotocols"])
            peer = scope["client"][0] if scope["client"] else ""
            address = proxies.client(peer, lines(scope, b"x-forwarded-for"))
            admission.admit(address, len(sessions))
        except Refusal as refusal:
            metrics.CONNECTS.labels(refusal.result).inc()
            await PlainTextResponse(f"{refusal.why}\n", refusal.status)(scope, receive, send)
            return
        try:
            await send({"type": "websocket.accept", "subprotocol": subprotocol})
            connection = scope["extensions"]["linnet"]["connection"]
            session = Session(ports, connection, codec, bearer(scope), address)
        except BaseException:
            admission.release(address)
            raise
        sessions.opened(session)
        session.connection.attach(session)

    described = msgspec.json.encode(codecs.schema())  # once: it takes milliseconds, and any client may ask for it

    async def schema(_: Request) -> Response:
        return Response(described, media_type="application/json")

    async def plain(_: Request) -> Response:
        return PlainTextResponse("upgrade to WebSocket here\n", 426, {"upgrade": "websocket", "connection": "Upgrade"})

    requests = Starlette(routes=[Route(PATH, plain), Route("/schema.json", schema)])

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await connect(scope, receive, send)
        else:
            await requests(scope, receive, send)

    return app
