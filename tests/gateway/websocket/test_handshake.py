"""The upgrade: every request gets one answer, whatever the application does."""

import asyncio
import gc
import weakref
from typing import Any

import pytest
from starlette.responses import Response
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from gateway.websocket.connection import WebSocketConnection
from gateway.websocket.frames import CLOSE, TEXT
from gateway.websocket.handshake import UpgradeError, read_upgrade
from tests.gateway.websocket.client import UPGRADE, client_frame
from tests.gateway.websocket.serving import App, serving
from tests.support import eventually


async def test_compression_can_be_switched_off() -> None:
    """ws_per_message_deflate=False: no offer is accepted."""
    async with serving(ws_per_message_deflate=False) as served, connect(served.url) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


async def test_application_chooses_subprotocol_and_headers_and_gets_the_request() -> None:
    """As ASGI specifies for the scope of a WebSocket and for `websocket.accept`."""
    scopes: list[Any] = []

    async def endpoint(websocket: WebSocket) -> None:
        scopes.append(websocket.scope)
        await websocket.accept(subprotocol="two", headers=[(b"x-node", b"7")])
        served.attach(websocket)

    async with serving(endpoint) as served:
        subprotocols = [Subprotocol("one"), Subprotocol("two")]
        async with connect(f"{served.url}?token=%C3%A4&x", subprotocols=subprotocols) as client:
            assert client.subprotocol == "two"
            assert client.response is not None
            assert client.response.headers["x-node"] == "7"
    (scope,) = scopes
    assert scope["subprotocols"] == ["one", "two"]
    assert (scope["path"], scope["query_string"], scope["scheme"]) == ("/", b"token=%C3%A4&x", "ws")
    assert scope["client"][0] == scope["server"][0] == "127.0.0.1"
    assert dict(scope["headers"])[b"sec-websocket-version"] == b"13"


@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"Sec-WebSocket-Version": "8"}, 426, {"sec-websocket-version": "13"}),
        ({"Sec-WebSocket-Version": ""}, 426, {"sec-websocket-version": "13"}),
        ({"Sec-WebSocket-Key": "short"}, 400, {}),
        ({"Sec-WebSocket-Key": "AAAA"}, 400, {}),
        ({"Sec-WebSocket-Key": ""}, 400, {}),
        ({"Content-Length": "5"}, 400, {}),
    ],
)
async def test_invalid_upgrade_is_refused(change: dict[str, str], status: int, says: dict[str, str]) -> None:
    """RFC 6455, 4.2: the application is not called, and the connection ends with the answer."""
    async with serving() as served:
        client = await served.raw()
        got, headers, _ = await client.request({**UPGRADE, **change})
        assert got == status
        assert says.items() <= headers.items()
        assert headers["connection"] == "close"
        assert served.attached.empty()
        await eventually(lambda: not served.server.server_state.connections)


@pytest.mark.parametrize(
    ("request_line", "drop", "status"),
    [
        (b"POST / HTTP/1.1", None, 405),
        (b"GET ftp://elsewhere/ HTTP/1.1", None, 400),
        (b"GET http://user@elsewhere/ HTTP/1.1", None, 400),
        (b"GET elsewhere HTTP/1.1", None, 400),
        (b"GET / HTTP/1.1", "Connection", 400),
        (b"GET / HTTP/1.1", "Upgrade", 426),
        (b"GET / HTTP/1.1", "Sec-WebSocket-Key", 400),
    ],
)
def test_request_that_is_no_upgrade_is_refused(request_line: bytes, drop: str | None, status: int) -> None:
    """The check does not rely on the HTTP protocol before it."""
    lines = [f"{name}: {value}".encode() for name, value in UPGRADE.items() if name != drop]
    with pytest.raises(UpgradeError) as refused:
        read_upgrade(b"\r\n".join((request_line, *lines, b"", b"")))
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        (b"http://chat.example:8000/ws?a=b", b"/ws", b"a=b", b"chat.example:8000"),
        (b"HTTPS://chat.example?a", b"/", b"a", b"chat.example"),
        (b"/ws?x=http://other/", b"/ws", b"x=http://other/", b"127.0.0.1"),
    ],
)
def test_target_in_absolute_form_is_accepted(target: bytes, path: bytes, query: bytes, host: bytes) -> None:
    """Some proxies send it; its authority replaces the Host header (RFC 9112, 3.2.2)."""
    lines = [f"{name}: {value}".encode() for name, value in UPGRADE.items()]
    upgrade = read_upgrade(b"\r\n".join((b"GET " + target + b" HTTP/1.1", *lines, b"", b"")))
    assert (upgrade.path, upgrade.query) == (path, query)
    assert [value for name, value in upgrade.headers if name == b"host"] == [host]


async def test_application_can_refuse() -> None:
    """`websocket.close` before accept is 403; a denial response is passed on unchanged."""

    async def endpoint(websocket: WebSocket) -> None:
        if websocket.query_params:
            await websocket.send_denial_response(Response(b"too many", 429, {"retry-after": "7"}))
        else:
            await websocket.close()

    async with serving(endpoint) as served:
        with pytest.raises(InvalidStatus) as refused:
            await connect(served.url)
        assert refused.value.response.status_code == 403
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{served.url}?busy=1")
        response = refused.value.response
        assert (response.status_code, response.body, response.headers["retry-after"]) == (429, b"too many", "7")


async def _raises(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("on purpose")


async def _returns(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"


async def _sends_out_of_turn(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.send", "text": "too early"})


async def _splits_the_response(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept", "headers": [(b"x", b"y\r\nset-cookie: evil")]})


@pytest.mark.parametrize("app", [_raises, _returns, _sends_out_of_turn, _splits_the_response])
async def test_application_that_fails_is_answered_with_500(app: App) -> None:
    """Every upgrade gets an answer, and only a well-formed one."""
    async with serving(app=app) as served:
        with pytest.raises(InvalidStatus) as refused:
            await connect(served.url)
        assert refused.value.response.status_code == 500
        assert "set-cookie" not in refused.value.response.headers


async def test_bytes_before_the_session_are_kept_and_bounded() -> None:
    """A client need not wait for the answer; from a client that floods meanwhile no more is read."""
    go_on = asyncio.Event()
    connections: list[WebSocketConnection] = []

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        connections.append(websocket.scope["extensions"]["linnet"]["connection"])
        await go_on.wait()
        served.attach(websocket)

    async with serving(endpoint) as served:
        client = await served.raw()
        await client.request(UPGRADE)
        client.send(*(client_frame(b"%d" % at + b"x" * 1000, TEXT) for at in range(3000)))
        await eventually(lambda: connections and not connections[0].transport.is_reading())
        go_on.set()
        session = await served.attached.get()
        for at in range(3000):
            assert await session.heard.get() == ("text", b"%d" % at + b"x" * 1000)


async def test_client_that_leaves_during_the_upgrade_is_noticed() -> None:
    """The application's receive returns a disconnect, its accept raises, and nothing is kept."""
    outcome: asyncio.Queue[object] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        outcome.put_nowait("asked")
        outcome.put_nowait((await receive())["type"])
        try:
            await send({"type": "websocket.accept"})
        except OSError:
            outcome.put_nowait("refused")

    async with serving(app=app) as served:
        client = await served.raw()
        lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
        client.writer.write(f"GET / HTTP/1.1\r\n{lines}\r\n".encode())
        assert await outcome.get() == "asked"
        client.abort()
        assert [await outcome.get(), await outcome.get()] == ["websocket.disconnect", "refused"]
        assert not served.server.server_state.connections


async def test_nothing_of_the_upgrade_outlives_it() -> None:
    """No task, scope or HTTP protocol: they are freed by reference counting, without a collection."""
    kept: list[weakref.ref[Any]] = []

    async def endpoint(websocket: WebSocket) -> None:
        kept.append(weakref.ref(websocket))
        await websocket.accept()
        served.attach(websocket)

    gc.collect()
    gc.disable()
    try:
        async with serving(endpoint) as served:
            client, session = await served.client()
            await eventually(lambda: not served.server.server_state.tasks)
            await eventually(lambda: kept[0]() is None)
            names = [type(thing).__name__ for thing in gc.get_objects()]
            assert "HttpRequestParser" not in names
            assert "Handshake" not in names
            client.send(client_frame(b"", CLOSE))
            assert await session.heard.get() == ("closed", 1005, "")
            del session
            await eventually(lambda: not any(type(thing) is WebSocketConnection for thing in gc.get_objects()))
    finally:
        gc.enable()


async def test_upgrade_refused_by_a_shutdown_stays_refused() -> None:
    """If the application accepts in the same turn, its accept raises, and only one answer is sent."""
    go_on = asyncio.Event()
    connections: list[WebSocketConnection] = []
    outcome: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        connections.append(scope["extensions"]["linnet"]["connection"])
        await go_on.wait()
        try:
            await send({"type": "websocket.accept"})
        except OSError:
            outcome.put_nowait("gone")

    async with serving(app=app) as served:
        client = await served.raw()
        request = asyncio.create_task(client.request(UPGRADE))
        await eventually(lambda: connections)
        connections[0].shutdown()
        go_on.set()
        assert await outcome.get() == "gone"
        assert (await request)[0::2] == (503, b"")
