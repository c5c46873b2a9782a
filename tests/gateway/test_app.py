"""The public application: tokens, codecs, and upgrades that are accepted or refused."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.types import ASGIApp, Scope

from deploy.embedded import EmbeddedValkey
from gateway.admission import Refusal
from gateway.app import bearer, create_app, negotiate
from gateway.delivery.session import Session
from gateway.node import Node
from router.contract import codecs
from router.process.forwarded import Proxies
from tests.gateway.world import Connection, world


def app_of(node: Node) -> ASGIApp:
    return create_app(node.admission, Proxies(node.settings), node.sessions, node.session_ports)


# -- token and codec


def upgrade(headers: dict[str, str], offered: list[str] | None = None, connection: Any = None) -> Scope:
    named = {"host": "chat.example", **headers}
    return {
        "type": "websocket", "path": "/ws", "query_string": b"", "client": ("203.0.113.9", 5),
        "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()],
        "subprotocols": offered or [],
        "extensions": {"websocket.http.response": {}, "linnet": {"connection": connection}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("headers", "offered", "token"),
    [
        ({"Authorization": "Bearer a.b.c"}, [], "a.b.c"),
        ({"Authorization": "bearer  a.b.c "}, [], "a.b.c"),
        ({"Authorization": "Basic a.b.c"}, [], None),
        ({"Authorization": "Bearer"}, [], None),
        ({"Authorization": "Bearer "}, ["bearer.x.y.z"], "x.y.z"),
        ({"Authorization": "Bearer a.b.c"}, ["bearer.x.y.z"], "a.b.c"),
        ({}, ["linnet.v1.json", "bearer.x.y.z"], "x.y.z"),
        ({}, ["linnet.v1.json"], None),
        ({}, [], None),
    ],
)
def test_token_is_read_from_the_header_or_a_subprotocol(
    headers: dict[str, str], offered: list[str], token: str | None
) -> None:
    """The header takes precedence: a browser cannot set it, so the client chose it."""
    assert bearer(upgrade(headers, offered)) == token


@pytest.mark.parametrize(
    ("offered", "codec", "answered"),
    [
        ([], codecs.JSON, None),
        (["linnet.v1.json"], codecs.JSON, "linnet.v1.json"),
        (["linnet.v1.msgpack", "linnet.v1.json"], codecs.MSGPACK, "linnet.v1.msgpack"),
        (["graphql-ws", "linnet.v1.json"], codecs.JSON, "linnet.v1.json"),
        (["bearer.x.y.z"], codecs.JSON, None),  # a token must never be answered: it would stand in logs
        (["bearer.x.y.z", "linnet.v1.msgpack"], codecs.MSGPACK, "linnet.v1.msgpack"),
    ],
)
def test_first_known_subprotocol_is_chosen(offered: list[str], codec: codecs.Codec, answered: str | None) -> None:
    assert negotiate(offered) == (codec, answered)


@pytest.mark.parametrize("offered", [["graphql-ws"], ["linnet.v2.json"], ["bearer.x", "LINNET.V1.JSON"]])
def test_unknown_subprotocols_are_refused_with_the_known_ones(offered: list[str]) -> None:
    with pytest.raises(Refusal) as caught:
        negotiate(offered)
    assert (caught.value.status, "linnet.v1.json" in caught.value.why) == (400, True)


# -- the application


class Wire(Connection):
    """A connection that a session may be attached to."""

    attached: Any = None

    def attach(self, session: Any) -> None:
        self.attached = self.session = session


async def upgraded(
    app: Any, headers: dict[str, str], offered: list[str], connection: Connection, path: str = "/ws"
) -> list[dict[str, Any]]:
    """Return the application's answer to one upgrade request."""
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        said.append(message)

    await app({**upgrade(headers, offered, connection), "path": path}, receive, send)
    return said


async def test_accepted_upgrade_has_a_session_and_its_address_is_counted(valkey: EmbeddedValkey) -> None:
    """The address is counted until the connection ends, however it ends and however often that is reported."""
    async with world(valkey, max_connections_per_address=1) as of:
        app, connection = app_of(of.node), Wire()
        (accepted,) = await upgraded(app, {"authorization": "Bearer t"}, ["linnet.v1.msgpack"], connection)
        assert (accepted["type"], accepted["subprotocol"]) == ("websocket.accept", "linnet.v1.msgpack")
        session = connection.attached
        assert isinstance(session, Session)
        assert (session.codec, session.token, list(of.node.sessions.all)) == (codecs.MSGPACK, "t", [session])
        refused = await upgraded(app, {}, [], Wire())
        assert refused[0]["status"] == 429
        session.close(1000)
        session.connection_closed(1006, "")
        assert of.node.sessions.all == {}
        again = Wire()
        assert (await upgraded(app, {}, [], again))[0]["type"] == "websocket.accept"
        again.attached.connection_closed(1006, "")


@pytest.mark.parametrize(
    ("headers", "offered", "status"),
    [({"origin": "https://evil.example"}, [], 403), ({}, ["graphql-ws"], 400)],
)
async def test_refused_upgrade_gets_an_http_answer_and_leaves_nothing(
    valkey: EmbeddedValkey, headers: dict[str, str], offered: list[str], status: int
) -> None:
    async with world(valkey, max_connections_per_address=1) as of:
        app = app_of(of.node)
        answer = await upgraded(app, headers, offered, Wire())
        assert (answer[0]["type"], answer[0]["status"]) == ("websocket.http.response.start", status)
        connection = Wire()
        await upgraded(app, {}, [], connection)
        assert connection.attached is not None
        connection.attached.connection_closed(1006, "")


@pytest.mark.parametrize("path", ["/", "/other", "/ws/", "/WS", "/schema.json", "/ws/../other"])
async def test_upgrade_on_another_path_is_not_found(valkey: EmbeddedValkey, path: str) -> None:
    """404, because the path does not exist; it is not forbidden."""
    async with world(valkey) as of:
        answer = await upgraded(app_of(of.node), {}, [], Wire(), path)
        assert (answer[0]["type"], answer[0]["status"]) == ("websocket.http.response.start", 404)


async def test_failed_upgrade_releases_its_address(valkey: EmbeddedValkey) -> None:
    async with world(valkey, max_connections_per_address=1) as of:
        app = app_of(of.node)

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def broken(_: Any) -> None:
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await app(upgrade({}, [], Wire()), receive, broken)
        connection = Wire()
        assert (await upgraded(app, {}, [], connection))[0]["type"] == "websocket.accept"
        connection.attached.connection_closed(1006, "")


async def test_plain_request_is_answered_with_upgrade_required(valkey: EmbeddedValkey) -> None:
    """426 names the protocol, for a person with a browser and for a proxy that drops the upgrade headers."""
    async with world(valkey) as of:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": "/ws",
            "headers": [],
            "query_string": b"",
            "app": None,
        }
        await app_of(of.node)(scope, receive, send)
        assert sent[0]["status"] == 426
        assert {(b"upgrade", b"websocket"), (b"connection", b"Upgrade")} <= set(sent[0]["headers"])
