"""The gateway's ASGI application: who may upgrade, and the one place where a node's parts are put together.

`/ws` checks origin, limits and subprotocol, accepts, attaches a session and returns: from then on no task belongs to
the connection. `/schema.json` serves the JSON Schema of the wire.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Final
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from gateway.node import Node
from gateway.session import Session
from router.contract import metrics, wire
from router.contract.settings import Settings, proxies

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
        self._origins = frozenset(part.strip().rstrip("/") for part in settings.origins.split(",") if part.strip())
        self._proxies = proxies(settings)
        self._by_address: Counter[str] = Counter()

    def address(self, peer: str, forwarded: str) -> str:
        """The client's address: the last one in X-Forwarded-For that no trusted proxy of ours bears."""
        hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
        while hops and self._is_proxy(peer):
            peer = hops.pop()
        return peer

    def _is_proxy(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._proxies)

    def origin_allowed(self, origin: str | None, host: str) -> bool:
        """Browsers always send an origin; whoever sends none is no browser and has no ambient rights to abuse."""
        if origin is None or "*" in self._origins:
            return True
        if self._origins:
            return origin.rstrip("/") in self._origins
        return urlsplit(origin).netloc.lower() == host.lower()

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
    door = Doorkeeper(node.settings)

    async def connect(websocket: WebSocket) -> None:
        headers = websocket.headers
        try:
            if not door.origin_allowed(headers.get("origin"), headers.get("host", "")):
                raise Refusal(403, "this origin may not connect", "origin")
            codec, subprotocol = negotiate(websocket.scope["subprotocols"])
            peer = websocket.client.host if websocket.client else ""
            address = door.address(peer, ",".join(headers.getlist("x-forwarded-for")))
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

    async def schema(_: Request) -> Response:
        return JSONResponse(wire.schema())

    return Starlette(routes=[WebSocketRoute("/ws", connect), Route("/schema.json", schema)])
