"""The upgrade: who is let in, by number, path and origin, with which codec and token."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.websockets import WebSocket

from deploy.embedded import EmbeddedValkey
from gateway.admission import Admission, Refusal
from gateway.app import bearer, create_app, negotiate
from gateway.delivery.session import Session
from gateway.node import Node
from router.contract import wire
from router.process.forwarded import Proxies
from tests.gateway.world import Connection, settings, world

# -- numbers and paths


def app_of(node: Node) -> Starlette:
    return create_app(node.admission, Proxies(node.settings), node.sessions, node.session_ports)


def test_connections_are_limited_by_address_and_in_all() -> None:
    """What has gone makes room, and an address without connections is forgotten."""
    door = Admission(settings(max_connections=5, max_connections_per_address=2))
    door.admit("a", 0)
    door.admit("a", 1)
    with pytest.raises(Refusal) as by_address:
        door.admit("a", 2)
    door.admit("b", 2)
    with pytest.raises(Refusal) as full:
        door.admit("c", 5)
    assert [(caught.value.status, caught.value.result) for caught in (by_address, full)] == [
        (429, "address_limit"), (503, "full"),
    ]  # fmt: skip
    door.release("a")
    door.admit("a", 2)
    for address in ("a", "a", "b"):
        door.release(address)
    assert not door._by_address


# -- origins


NAMED = "https://chat.example, https://Other.Example:8443/"


@pytest.mark.parametrize(
    ("origins", "origin", "allowed"),
    [
        ("", None, True),  # no browser
        ("", "https://chat.example", True),
        ("", "http://CHAT.example", True),
        ("", "https://evil.example", False),
        ("", "https://chat.example/chat.example", False),
        ("", "ftp://chat.example", False),
        ("", "chat.example", False),
        ("", "//chat.example", False),
        ("", "https://chat.example:443", False),  # no browser names a port that the scheme implies
        ("*", "https://evil.example", True),
        (NAMED, "https://chat.example", True),
        (NAMED, "HTTPS://Chat.Example/", True),
        (NAMED, "https://other.example:8443", True),
        (NAMED, "https://other.example", False),
        (NAMED, "http://chat.example", False),
        (NAMED, "https://chat.example:8443", False),
        (NAMED, None, True),
        ("HTTPS://Chat.Example:443", "https://chat.example", True),
        ("https://app.example", "https://chat.example", False),  # the same host, but it was not named
    ],
)
def test_browsers_connect_from_origins_that_may(origins: str, origin: str | None, allowed: bool) -> None:
    door = Admission(settings(origins=origins))
    assert door.origin_allowed([] if origin is None else [origin], "chat.example") == allowed


def test_a_host_with_the_port_that_https_implies_is_the_same_host() -> None:
    door = Admission(settings())
    assert door.origin_allowed(["https://chat.example"], "chat.example:443")
    assert not door.origin_allowed(["https://chat.example"], "chat.example:8443")


# What checks for cross-site WebSocket hijacking try against a service on https://chat.example: each is an origin that
# somebody else can have, or that a browser sends for pages without one, and a careless comparison lets in.
FOREIGN = (
    "https://evil.example", "null", "", "file://", "about:blank", "data:", "*",
    "https://chat.example.evil.example", "https://chat.exampleevil.example", "https://evilchat.example",
    "https://evil.chat.example", "https://chat-example", "https://chatxexample", "https://chat.example.",
    "https://.chat.example", "https://chat.example_.evil.example", "https://_chat.example",
    "https://chat.example@evil.example", "https://evil.example@chat.example", "https://chat.example:443@evil.example",
    "https://evil.example/https://chat.example", "https://evil.example?https://chat.example",
    "https://evil.example#https://chat.example", "https://evil.example\\.chat.example",
    *(f"https://chat.example{sign}.evil.example" for sign in "!\"#$%&'()*+,-/:;<=>?@[\\]^_`{|}~"),
    "https://chat.example, https://evil.example", "https://evil.example https://chat.example",
    "https://[chat.example", "https://[::1", "https://chat.example]", "https://chat.example%00.evil.example",
    "https://chat.example:", "https://chat.example:1", "https://chat.example:0443", "javascript://chat.example",
    "https:chat.example", "https:/chat.example", "https:///chat.example", "wss://chat.example",
    "https://xn--cht-5na.example", "https://ch\xe1t.example",
)  # fmt: skip


@pytest.mark.parametrize("origins", ["", NAMED])
def test_no_foreign_origin_looks_like_ours(origins: str) -> None:
    """By default and with a list; beside a good one, too, and whatever the Host header says."""
    door = Admission(settings(origins=origins))
    for origin in FOREIGN:
        for sent in ([origin], ["https://chat.example", origin], [origin, "https://chat.example"]):
            assert not door.origin_allowed(sent, "chat.example"), sent
    for host in ("", "/", "null"):
        for origin in ("null", "http://", "https://", "http:", "https:///", ""):
            assert not door.origin_allowed([origin], host), (host, origin)


@given(st.text(), st.text())
def test_no_origin_breaks_the_door(origin: str, host: str) -> None:
    """Whatever a client sends there."""
    assert Admission(settings()).origin_allowed([origin], host) in (True, False)


# -- token and codec


def upgrade(headers: dict[str, str], offered: list[str] | None = None, connection: Any = None) -> WebSocket:
    named = {"host": "chat.example", **headers}
    scope: dict[str, Any] = {
        "type": "websocket", "path": "/ws", "query_string": b"", "client": ("203.0.113.9", 5),
        "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()],
        "subprotocols": offered or [],
        "extensions": {"websocket.http.response": {}, "linnet": {"connection": connection}},
    }  # fmt: skip

    async def nothing(*_: Any) -> Any: ...

    return WebSocket(scope, nothing, nothing)


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
def test_a_token_comes_in_the_header_or_as_a_subprotocol(
    headers: dict[str, str], offered: list[str], token: str | None
) -> None:
    """The header wins: a browser cannot set it, so whoever does means it."""
    assert bearer(upgrade(headers, offered)) == token


@pytest.mark.parametrize(
    ("offered", "codec", "answered"),
    [
        ([], wire.JSON, None),
        (["linnet.v1.json"], wire.JSON, "linnet.v1.json"),
        (["linnet.v1.msgpack", "linnet.v1.json"], wire.MSGPACK, "linnet.v1.msgpack"),
        (["graphql-ws", "linnet.v1.json"], wire.JSON, "linnet.v1.json"),
        (["bearer.x.y.z"], wire.JSON, None),  # a token must never be answered: it would stand in logs
        (["bearer.x.y.z", "linnet.v1.msgpack"], wire.MSGPACK, "linnet.v1.msgpack"),
    ],
)
def test_the_first_codec_we_know_is_taken(offered: list[str], codec: wire.Codec, answered: str | None) -> None:
    assert negotiate(offered) == (codec, answered)


@pytest.mark.parametrize("offered", [["graphql-ws"], ["linnet.v2.json"], ["bearer.x", "LINNET.V1.JSON"]])
def test_a_client_that_speaks_nothing_of_ours_is_told_what_we_do(offered: list[str]) -> None:
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
    """What the application answers to one upgrade request."""
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        said.append(message)

    await app({**upgrade(headers, offered, connection).scope, "path": path}, receive, send)
    return said


async def test_an_accepted_upgrade_has_a_session_and_its_address_is_counted(valkey: EmbeddedValkey) -> None:
    """Until the connection is gone, whoever says so and how often."""
    async with world(valkey, max_connections_per_address=1) as of:
        app, connection = app_of(of.node), Wire()
        (accepted,) = await upgraded(app, {"authorization": "Bearer t"}, ["linnet.v1.msgpack"], connection)
        assert (accepted["type"], accepted["subprotocol"]) == ("websocket.accept", "linnet.v1.msgpack")
        session = connection.attached
        assert isinstance(session, Session)
        assert (session.codec, session.token, list(of.node.sessions.all)) == (wire.MSGPACK, "t", [session])
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
async def test_a_refused_upgrade_is_an_http_answer_and_leaves_nothing(
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
async def test_there_is_one_path_to_upgrade_on(valkey: EmbeddedValkey, path: str) -> None:
    """Any other is 404: what is not there is not forbidden."""
    async with world(valkey) as of:
        answer = await upgraded(app_of(of.node), {}, [], Wire(), path)
        assert (answer[0]["type"], answer[0]["status"]) == ("websocket.http.response.start", 404)


async def test_an_upgrade_that_fails_half_way_gives_its_place_back(valkey: EmbeddedValkey) -> None:
    async with world(valkey, max_connections_per_address=1) as of:
        app = app_of(of.node)

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def broken(_: Any) -> None:
            raise ConnectionResetError

        with pytest.raises(ConnectionResetError):
            await app(cast(Any, upgrade({}, [], Wire()).scope), receive, broken)
        connection = Wire()
        assert (await upgraded(app, {}, [], connection))[0]["type"] == "websocket.accept"
        connection.attached.connection_closed(1006, "")


async def test_a_plain_request_is_told_to_upgrade(valkey: EmbeddedValkey) -> None:
    """426 names the protocol, for a person with a browser and for a proxy that drops the upgrade's headers."""
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
