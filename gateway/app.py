"""The gateway's ASGI application: who may upgrade, and whose connection it is.

`/ws` checks origin, limits and subprotocol, accepts, attaches a session and returns: from then on no task belongs to
the connection. `/schema.json` serves the JSON Schema of the wire.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from gateway.delivery.session import Session
from gateway.node import Node
from router.contract import metrics, origins, wire
from router.contract.settings import Settings
from router.process.forwarded import Proxies

BEARER: Final = "bearer."


class Refusal(Exception):
    """An upgrade that is answered with an HTTP status instead."""

    def __init__(self, status: int, why: str, result: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why
        self.result = result


class Doorkeeper:
    """Who may upgrade: pure but for the count of connections by address.

    Bound: an address is held while it has a connection here.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._origins = origins.parse(settings.origins)
        self._by_address: Counter[str] = Counter()

    def origin_allowed(self, sent: list[str], host: str) -> bool:
        """Browsers always send an origin; whoever sends none is no browser and has no ambient rights to abuse.

        Compared whole, never taken apart: what a parser may be led to believe of a host is no question then.
        """
        if not sent or origins.ANY in self._origins:
            return True
        allowed = self._origins or origins.own(host)
        return all(origin.lower().rstrip("/") in allowed for origin in sent)

    def admit(self, address: str, connections: int) -> None:
        if connections >= self._settings.max_connections:
            raise Refusal(503, "this gateway is full", "full")
        if self._by_address[address] >= self._settings.max_connections_per_address:
            raise Refusal(429, "too many connections from your address", "address_limit")
        self._by_address[address] += 1

    def left(self, address: str) -> None:
        self._by_address[address] -= 1
        if self._by_address[address] <= 0:
            del self._by_address[address]


class Attached(Session):
    """A session that tells the doorkeeper when its connection is gone."""

    __slots__ = ("_address", "_doorkeeper")

    def __init__(
        self, node: Node, websocket: WebSocket, codec: wire.Codec, token: str | None, door: Doorkeeper, address: str
    ) -> None:
        super().__init__(node, websocket.scope["extensions"]["linnet"]["connection"], codec, token)
        self._doorkeeper: Doorkeeper | None = door
        self._address = address

    def connection_closed(self, code: int, reason: str) -> None:
        door, self._doorkeeper = self._doorkeeper, None
        if door is not None:
            door.left(self._address)
        super().connection_closed(code, reason)


def bearer(websocket: WebSocket) -> str | None:
    """The token that came with the upgrade, from the header or as a subprotocol (browsers cannot set headers)."""
    scheme, _, token = websocket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    for offered in websocket.scope["subprotocols"]:
        if offered.startswith(BEARER):
            return str(offered.removeprefix(BEARER))
    return None


def negotiate(offered: list[str]) -> tuple[wire.Codec, str | None]:
    """The codec and what the answer names; JSON for a client that offers none of ours but a token, or nothing."""
    for subprotocol in offered:
        if subprotocol in wire.CODECS:
            return wire.CODECS[subprotocol], subprotocol
    if any(not subprotocol.startswith(BEARER) for subprotocol in offered):
        raise Refusal(400, f"offer one of {', '.join(wire.CODECS)}", "subprotocol")
    return wire.JSON, None


def create_app(node: Node) -> Starlette:
    """The public application of a node."""
    door, proxies = Doorkeeper(node.settings), Proxies(node.settings)

    async def connect(websocket: WebSocket) -> None:
        headers = websocket.headers
        try:
            if not door.origin_allowed(headers.getlist("origin"), headers.get("host", "")):
                raise Refusal(403, "this origin may not connect", "origin")
            codec, subprotocol = negotiate(websocket.scope["subprotocols"])
            peer = websocket.client.host if websocket.client else ""
            address = proxies.client(peer, headers.getlist("x-forwarded-for"))
            door.admit(address, len(node.sessions))
        except Refusal as refusal:
            metrics.CONNECTS.labels(refusal.result).inc()
            await websocket.send_denial_response(PlainTextResponse(f"{refusal.why}\n", refusal.status))
            return
        try:
            await websocket.accept(subprotocol)
            session = Attached(node, websocket, codec, bearer(websocket), door, address)
            node.opened(session)
        except BaseException:
            door.left(address)
            raise
        session.connection.attach(session)

    described = msgspec.json.encode(wire.schema())  # once: it takes milliseconds, and anybody may ask for it

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
