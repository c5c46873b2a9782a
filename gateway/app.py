"""The gateway's ASGI application: it checks upgrade requests, and attaches a session to each connection.

`/ws` checks origin, limits and subprotocol, accepts, attaches a session and returns; from then on the connection has no
task. `/schema.json` serves the JSON Schema of the wire.
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from gateway.admission import Admission, Refusal
from gateway.delivery.open_sessions import OpenSessions
from gateway.delivery.session import Session, SessionPorts
from router.contract import codecs, metrics
from router.process.forwarded import Proxies

BEARER: Final = "bearer."


def bearer(websocket: WebSocket) -> str | None:
    """Return the token of the upgrade, from the header or from a subprotocol, because browsers cannot set headers."""
    scheme, _, token = websocket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    for offered in websocket.scope["subprotocols"]:
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


def create_app(admission: Admission, proxies: Proxies, sessions: OpenSessions, ports: SessionPorts) -> Starlette:
    """Return the public application of a node."""

    async def connect(websocket: WebSocket) -> None:
        headers = websocket.headers
        try:
            if not admission.origin_allowed(headers.getlist("origin"), headers.get("host", "")):
                raise Refusal(403, "this origin may not connect", "origin")
            codec, subprotocol = negotiate(websocket.scope["subprotocols"])
            peer = websocket.client.host if websocket.client else ""
            address = proxies.client(peer, headers.getlist("x-forwarded-for"))
            admission.admit(address, len(sessions))
        except Refusal as refusal:
            metrics.CONNECTS.labels(refusal.result).inc()
            await websocket.send_denial_response(PlainTextResponse(f"{refusal.why}\n", refusal.status))
            return
        try:
            await websocket.accept(subprotocol)
            connection = websocket.scope["extensions"]["linnet"]["connection"]
            session = Session(ports, connection, codec, bearer(websocket), address)
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

    async def nowhere(websocket: WebSocket) -> None:
        metrics.CONNECTS.labels("path").inc()
        await websocket.send_denial_response(PlainTextResponse("no such path\n", 404))

    return Starlette(
        routes=[
            WebSocketRoute("/ws", connect),
            Route("/ws", plain),
            WebSocketRoute("/{path:path}", nowhere),  # Starlette itself would say 403
            Route("/schema.json", schema),
        ]
    )
