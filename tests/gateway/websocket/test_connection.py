"""gateway/websocket/connection.py and handshake.py: a real uvicorn on loopback, clients with manners and without."""

import asyncio
import contextlib
import gc
import resource
import socket
import ssl
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from deploy.embedded import tied
from gateway.websocket import connection as connection_module
from gateway.websocket.connection import HIGH_MARK, KERNEL_SEND_BYTES, WebSocketConnection
from gateway.websocket.frames import BINARY, CLOSE, PING, PONG, TEXT, frame
from gateway.websocket.handshake import UpgradeError, read_upgrade
from tests.gateway.websocket.client import UPGRADE, RawClient, client_frame
from tests.gateway.websocket.echo import say
from tests.support import ROOT, eventually, free_ports, http_get, run

LIMIT = 1 << 20
Endpoint = Callable[[WebSocket], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]


class Recorder:
    """A session that writes down what it hears."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self.connection = connection
        self.heard: asyncio.Queue[tuple[object, ...]] = asyncio.Queue()

    def message_received(self, data: bytes, text: bool) -> None:
        self.heard.put_nowait(("text" if text else "binary", data))

    def writing_paused(self) -> None:
        self.heard.put_nowait(("paused",))

    def writing_resumed(self) -> None:
        self.heard.put_nowait(("resumed",))

    def connection_closed(self, code: int, reason: str) -> None:
        self.heard.put_nowait(("closed", code, reason))


class Served:
    """A running server; its endpoint attaches a Recorder, unless the test brought its own application."""

    def __init__(self) -> None:
        self.attached: asyncio.Queue[Recorder] = asyncio.Queue()
        self.make: Callable[[WebSocketConnection], Recorder] = Recorder
        self.server: uvicorn.Server
        self.port = 0
        self._clients: list[RawClient] = []

    async def endpoint(self, websocket: WebSocket) -> None:
        await websocket.accept()
        self.attach(websocket)

    def attach(self, websocket: WebSocket) -> Recorder:
        connection: WebSocketConnection = websocket.scope["extensions"]["linnet"]["connection"]
        session = self.make(connection)
        connection.attach(session)
        self.attached.put_nowait(session)
        return session

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/"

    async def raw(self, receive_bytes: int | None = None) -> RawClient:
        self._clients.append(await RawClient.connect(self.port, receive_bytes))
        return self._clients[-1]

    async def client(
        self, receive_bytes: int | None = None, headers: dict[str, str] = UPGRADE
    ) -> tuple[RawClient, Recorder]:
        client = await self.raw(receive_bytes)
        assert (await client.request(UPGRADE | headers))[0] == 101
        return client, await self.attached.get()

    def abandon_clients(self) -> None:
        for client in self._clients:
            client.writer.transport.abort()


@asynccontextmanager
async def serving(endpoint: Endpoint | None = None, app: App | None = None, **options: Any) -> AsyncIterator[Served]:
    served = Served()
    app = app or Starlette(routes=[WebSocketRoute("/", endpoint or served.endpoint)])
    options = {"ws_max_size": LIMIT, "lifespan": "off", "log_level": "critical", "loop": "none", **options}
    server = served.server = uvicorn.Server(uvicorn.Config(app, port=0, ws=WebSocketConnection, **options))
    running = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    served.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.should_exit = True
        server.force_exit = True
        served.abandon_clients()
        await running


# The upgrade


async def test_messages_go_both_ways_through_a_well_behaved_client() -> None:
    """Text and binary, small and large, with compression agreed on without context on either side."""
    async with serving() as served, connect(served.url) as client:
        session = await served.attached.get()
        assert client.response is not None
        extensions = client.response.headers["Sec-WebSocket-Extensions"]
        assert extensions == "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
        assert session.connection.deflate
        for text in ("", "größe", "x" * 5000, "long " * 50_000):
            await client.send(text)
            await client.send(text.encode())
            assert await session.heard.get() == ("text", text.encode())
            assert await session.heard.get() == ("binary", text.encode())
            say(session.connection, text.encode(), text=True)
            say(session.connection, text.encode(), text=False)
            assert [await client.recv(), await client.recv()] == [text, text.encode()]
        session.connection.write(frame(b"prebuilt", TEXT))
        assert await client.recv() == "prebuilt"


async def test_compression_can_be_switched_off() -> None:
    """ws_per_message_deflate=False: no offer is accepted."""
    async with serving(ws_per_message_deflate=False) as served, connect(served.url) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


async def test_a_client_with_a_small_window_is_sent_plain_frames() -> None:
    """It is agreed with, and may compress itself; the frames compressed for all are not for it."""
    async with serving() as served:
        offer = "permessage-deflate; server_max_window_bits=9"
        client, session = await served.client(headers={"Sec-WebSocket-Extensions": offer})
        say(session.connection, b"x" * 1000, text=True)
        assert await client.frame() == (0x81, b"x" * 1000)
        client.send(client_frame(b"\xf2\x48\xcd\xc9\xc9\x07\x00", TEXT, reserved=0x40))  # RFC 7692, 7.2.3.1
        assert await session.heard.get() == ("text", b"Hello")


async def test_the_application_chooses_subprotocol_and_headers_and_sees_the_request() -> None:
    """What an ASGI application may expect of a WebSocket scope, and what its accept may say."""
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
async def test_an_invalid_upgrade_is_refused(change: dict[str, str], status: int, says: dict[str, str]) -> None:
    """RFC 6455, 4.2: the application is not even asked, and the connection ends with the answer."""
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
def test_a_request_that_is_no_upgrade_is_refused(request_line: bytes, drop: str | None, status: int) -> None:
    """Checked here too, whatever the HTTP protocol before it lets through."""
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
def test_a_target_in_absolute_form_is_accepted(target: bytes, path: bytes, query: bytes, host: bytes) -> None:
    """As some proxies send it; its authority counts instead of the Host header (RFC 9112, 3.2.2)."""
    lines = [f"{name}: {value}".encode() for name, value in UPGRADE.items()]
    upgrade = read_upgrade(b"\r\n".join((b"GET " + target + b" HTTP/1.1", *lines, b"", b"")))
    assert (upgrade.path, upgrade.query) == (path, query)
    assert [value for name, value in upgrade.headers if name == b"host"] == [host]


async def test_the_application_can_refuse() -> None:
    """websocket.close before accept is 403; a denial response is passed on as it is."""

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
async def test_an_application_that_fails_is_a_500(app: App) -> None:
    """Every upgrade gets an answer, and only a well-formed one."""
    async with serving(app=app) as served:
        with pytest.raises(InvalidStatus) as refused:
            await connect(served.url)
        assert refused.value.response.status_code == 500
        assert "set-cookie" not in refused.value.response.headers


async def test_a_connection_without_a_session_is_closed() -> None:
    """Accepted and then forgotten is 1011; accepted and closed by the application is its own code."""

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        if websocket.query_params:
            await websocket.close(4001, "slow")

    async with serving(endpoint) as served:
        async with connect(served.url) as client:
            await client.wait_closed()
            assert client.close_code == 1011
        async with connect(f"{served.url}?x=1") as client:
            await client.wait_closed()
            assert (client.close_code, client.close_reason) == (4001, "slow")


async def test_a_session_is_attached_once_and_in_time() -> None:
    """Before accept, twice, or after the application returned: its mistake."""
    held: list[WebSocketConnection] = []

    async def endpoint(websocket: WebSocket) -> None:
        connection: WebSocketConnection = websocket.scope["extensions"]["linnet"]["connection"]
        with pytest.raises(RuntimeError):
            connection.attach(Recorder(connection))
        await websocket.accept()
        session = served.attach(websocket)
        with pytest.raises(RuntimeError):
            connection.attach(session)
        held.append(connection)

    async with serving(endpoint) as served, connect(served.url) as client:
        await client.send("hello")
        assert await (await served.attached.get()).heard.get() == ("text", b"hello")
        with pytest.raises(RuntimeError):
            held[0].attach(Recorder(held[0]))


async def test_what_comes_before_the_session_is_kept_and_bounded() -> None:
    """A client need not wait for us; one that floods meanwhile is read no further."""
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


async def test_a_client_that_leaves_during_the_upgrade_is_noticed() -> None:
    """The application's receive says disconnect, its accept fails, and nothing is left."""
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


async def test_a_session_attached_too_late_still_hears_the_end() -> None:
    """The peer was lost between accept and attach: connection_closed comes all the same."""
    accepted, go_on = asyncio.Event(), asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        await websocket.accept()
        accepted.set()
        await go_on.wait()
        served.attach(websocket)

    async with serving(endpoint) as served:
        client = await served.raw()
        await client.request(UPGRADE)
        await accepted.wait()
        client.abort()
        await eventually(lambda: not served.server.server_state.connections)
        go_on.set()
        session = await served.attached.get()
        assert await session.heard.get() == ("closed", 1006, "")


# What a connection holds


async def test_nothing_of_the_upgrade_outlives_it() -> None:
    """No task, no scope, no HTTP protocol: gone by reference counting, without a collection."""
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


def test_an_idle_connection_costs_two_kilobytes() -> None:
    """Resident memory of a server process, HTTP and transport and all, over some thousand connections."""
    port, before, count = free_ports(1)[0], 200, 2000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        server = subprocess.Popen(tied(sys.executable, "-m", "tests.gateway.websocket.echo", str(port)), cwd=ROOT)
        stack.callback(server.wait)
        stack.callback(server.kill)

        async def answers() -> bool:
            return (await http_get(port, "/"))[0] == 404

        def resident() -> int:
            return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * resource.getpagesize()

        def upgrade() -> None:
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            lines = "".join(f"{name}: {value}\r\n" for name, value in UPGRADE.items())
            sock.sendall(f"GET / HTTP/1.1\r\n{lines}\r\n".encode())
            assert sock.recv(1000).startswith(b"HTTP/1.1 101")

        run(eventually(answers))
        for _ in range(before):
            upgrade()
        at_first = resident()
        for _ in range(count):
            upgrade()
        assert (resident() - at_first) / count < 2300


async def test_the_kernel_sends_at_once_and_buffers_little() -> None:
    """TCP_NODELAY is on, and the send buffer is bounded (the kernel doubles what it is told)."""
    async with serving() as served:
        _, session = await served.client()
        sock = session.connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * KERNEL_SEND_BYTES


# Frames


async def test_a_frame_may_come_a_byte_at_a_time() -> None:
    """However the network cuts it."""
    async with serving() as served:
        client, session = await served.client()
        for byte in client_frame(b"slowly", TEXT):
            client.send(bytes((byte,)))
            await client.writer.drain()
        assert await session.heard.get() == ("text", b"slowly")


async def test_pings_go_both_ways() -> None:
    """Ours is answered by the client and shows in last_received; the client's is answered by us."""
    async with serving() as served, connect(served.url) as client:
        session = await served.attached.get()
        await (await client.ping(b"are you there"))
        session.connection.last_received = 0.0
        session.connection.ping()
        await eventually(lambda: session.connection.last_received)
        assert session.heard.empty()


@pytest.mark.parametrize(
    ("stream", "code"),
    [
        (client_frame(b"x", TEXT, mask=None), 1002),
        (client_frame(b"\xff", TEXT), 1007),
        (client_frame(b"x" * (LIMIT + 1), BINARY), 1009),
    ],
)
async def test_a_violation_is_told_to_both_sides_even_when_much_more_follows(stream: bytes, code: int) -> None:
    """The close frame arrives, not a reset, although the client goes on sending what is not read any more."""
    async with serving() as served:
        client, session = await served.client()
        client.send(stream, b"\xff" * (1 << 20))
        assert (await client.close_frame())[0] == code
        assert await client.eof() == b""
        closed = await session.heard.get()
        assert closed[:2] == ("closed", code)
        client.writer.close()
        await eventually(lambda: not served.server.server_state.connections)
        assert session.heard.empty()


async def test_a_session_that_fails_costs_its_own_connection() -> None:
    """1011 for this client, nothing for the others, and a log line for us."""

    class Clumsy(Recorder):
        def message_received(self, data: bytes, text: bool) -> None:
            raise KeyError(data)

    async with serving() as served:
        other, other_session = await served.client()
        served.make = Clumsy
        client, session = await served.client()
        client.send(client_frame(b"trip", TEXT))
        assert await client.close_frame() == (1011, b"")
        assert await session.heard.get() == ("closed", 1011, "")
        other.send(client_frame(b"fine", TEXT))
        assert await other_session.heard.get() == ("text", b"fine")


# The end


async def test_the_clients_close_is_answered_and_told_once() -> None:
    """Its code comes back, the session hears code and reason, and the connection is gone."""
    async with serving() as served:
        client, session = await served.client()
        client.send(client_frame((4123).to_bytes(2, "big") + b"enough", CLOSE), client_frame(b"more", TEXT))
        assert await client.close_frame() == (4123, b"")
        assert await client.eof() == b""
        assert await session.heard.get() == ("closed", 4123, "enough")
        await eventually(lambda: not served.server.server_state.connections)
        assert session.heard.empty()
        session.connection.write(frame(b"too late", TEXT))
        say(session.connection, b"too late", text=True)
        session.connection.ping()
        session.connection.close(1000)
        session.connection.pause_reading()
        session.connection.resume_reading()


async def test_our_close_waits_for_the_clients() -> None:
    """Messages after it are discarded, writes do nothing, and the session hears our code when it is over."""
    async with serving() as served:
        client, session = await served.client()
        session.connection.close(4002, "heartbeat lost")
        say(session.connection, b"after the end", text=True)
        assert await client.close_frame() == (4002, b"heartbeat lost")
        client.send(client_frame(b"late", TEXT), client_frame(b"late", PING))
        assert session.heard.empty()
        client.send(client_frame((4002).to_bytes(2, "big"), CLOSE))
        assert await client.eof() == b""
        assert await session.heard.get() == ("closed", 4002, "heartbeat lost")


async def test_a_close_while_reading_is_paused_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is resumed, or the client's answer would never be seen."""
    monkeypatch.setattr(connection_module, "CLOSE_WAIT_S", 1000.0)
    async with serving() as served, connect(served.url) as client:
        session = await served.attached.get()
        session.connection.pause_reading()
        session.connection.close(1008)
        await client.wait_closed()
        assert client.close_code == 1008
        assert await session.heard.get() == ("closed", 1008, "")


@pytest.mark.parametrize("reads", [True, False])
async def test_a_client_that_does_not_answer_a_close_is_dropped(reads: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one whose buffers are full, so that it will never see the close frame."""
    monkeypatch.setattr(connection_module, "CLOSE_WAIT_S", 0.05)
    async with serving() as served:
        clients = [await served.client(receive_bytes=4096) for _ in range(3)]
        for _, session in clients:
            if not reads:
                session.connection.write(frame(bytes(4 << 20), BINARY))
                assert await session.heard.get() == ("paused",)
            session.connection.close(1001, "bye")
        for _, session in clients:
            assert await session.heard.get() == ("closed", 1001, "bye")
        await eventually(lambda: not served.server.server_state.connections)


async def test_a_client_that_closes_and_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its close frame has come; what we still had for it is not kept for ever."""
    monkeypatch.setattr(connection_module, "CLOSE_WAIT_S", 0.05)
    async with serving() as served:
        client, session = await served.client(receive_bytes=4096)
        session.connection.write(frame(bytes(4 << 20), BINARY))
        assert await session.heard.get() == ("paused",)
        client.send(client_frame((1000).to_bytes(2, "big"), CLOSE))
        assert await session.heard.get() == ("closed", 1000, "")
        await eventually(lambda: not served.server.server_state.connections)


@pytest.mark.parametrize("how", ["reset", "fin", "reset with data on the way"])
async def test_a_client_that_vanishes_is_1006(how: str) -> None:
    """No close frame came: told once, and nothing of the connection stays."""
    async with serving() as served:
        client, session = await served.client()
        if how == "fin":
            client.writer.close()
        else:
            if how != "reset":
                session.connection.write(frame(bytes(1 << 20), BINARY))
                assert await session.heard.get() == ("paused",)
            client.abort()
        assert await session.heard.get() == ("closed", 1006, "")
        await eventually(lambda: not served.server.server_state.connections)
        assert session.heard.empty()


async def test_a_client_that_says_no_more_and_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A half-closed connection is over, even while there are bytes that it does not take."""
    monkeypatch.setattr(connection_module, "CLOSE_WAIT_S", 0.05)
    async with serving() as served:
        client, session = await served.client(receive_bytes=4096)
        session.connection.write(frame(bytes(4 << 20), BINARY))
        assert await session.heard.get() == ("paused",)
        client.writer.write_eof()
        assert await session.heard.get() == ("closed", 1006, "")
        await eventually(lambda: not served.server.server_state.connections)


async def test_an_upgrade_refused_by_a_shutdown_stays_refused() -> None:
    """An application that accepts in the same tick is told that the client is gone, and one answer is sent."""
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


async def test_a_server_that_stops_says_so() -> None:
    """1012 for whoever is connected, 503 for whoever is about to be, and the server ends."""
    asked = asyncio.Event()

    async def endpoint(websocket: WebSocket) -> None:
        if websocket.query_params:
            asked.set()
            await websocket.receive()
            await websocket.receive()
        await websocket.accept()
        served.attach(websocket)

    async with serving(endpoint) as served, connect(served.url) as client:
        session = await served.attached.get()
        late = asyncio.create_task(connect(f"{served.url}?late=1").__aenter__())
        await asked.wait()
        served.server.should_exit = True
        with pytest.raises(InvalidStatus) as refused:
            await late
        assert refused.value.response.status_code == 503
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1012
        assert await session.heard.get() == ("closed", 1012, "")


# Bounds


async def test_a_slow_reader_is_told_about_and_comes_back() -> None:
    """The session hears when the buffer passes the high mark, and again when it has drained."""
    async with serving() as served:
        client, session = await served.client(receive_bytes=4096)
        written = 0
        while session.heard.empty():
            session.connection.write(frame(bytes(10_000), BINARY))
            written += 1
        assert await session.heard.get() == ("paused",)
        assert HIGH_MARK < session.connection.transport.get_write_buffer_size() <= HIGH_MARK + 20_000
        for _ in range(written):
            assert await client.frame() == (0x82, bytes(10_000))
        assert await session.heard.get() == ("resumed",)


async def test_a_session_may_close_where_it_hears_that_writing_is_paused() -> None:
    """That is within a write: one close frame is sent, and the session hears nothing more but the end."""

    class Impatient(Recorder):
        def writing_paused(self) -> None:
            self.connection.close(1013)
            self.connection.close(1013)

    async with serving() as served:
        served.make = Impatient
        client, session = await served.client(receive_bytes=4096)
        session.connection.write(frame(bytes(1 << 20), BINARY))
        assert await client.frame() == (0x82, bytes(1 << 20))
        assert (await client.close_frame())[0] == 1013
        client.send(client_frame((1013).to_bytes(2, "big"), CLOSE))
        assert await client.eof() == b""
        assert await session.heard.get() == ("closed", 1013, "")
        assert session.heard.empty()


async def test_a_flood_of_pings_and_pongs_ends_its_connection() -> None:
    """A thousand at once are borne; who goes on is cut off with 1008, whichever of the two it sends."""
    async with serving() as served:
        for opcode in (PING, PONG):
            client, session = await served.client()
            client.send(*(client_frame(b"", opcode) for _ in range(900)), client_frame(b"fine", TEXT))
            assert await session.heard.get() == ("text", b"fine")
            client.send(*(client_frame(b"", opcode) for _ in range(300)))
            assert await session.heard.get() == ("closed", 1008, "too many pings")


async def test_a_flood_of_pings_is_answered_within_bounds() -> None:
    """While nobody reads, pongs stop at the high mark; the latest ping is answered once there is room."""
    async with serving() as served:
        client, session = await served.client(receive_bytes=4096)
        session.connection.write(frame(bytes(4 << 20), BINARY))
        assert await session.heard.get() == ("paused",)
        held = session.connection.transport.get_write_buffer_size()
        client.send(*(client_frame(b"%d" % at, PING) for at in range(900)), client_frame(b"done", TEXT))
        assert await session.heard.get() == ("text", b"done")
        assert session.connection.transport.get_write_buffer_size() <= held
        assert await client.frame() == (0x82, bytes(4 << 20))
        assert await client.frame() == (0x80 | PONG, b"899")
        assert await session.heard.get() == ("resumed",)


async def test_a_session_can_stop_reading_for_a_while() -> None:
    """What has not been read stays with the client's kernel, and comes once reading is resumed."""
    async with serving() as served:
        client, session = await served.client()
        session.connection.pause_reading()
        session.connection.pause_reading()
        client.send(client_frame(b"wait", TEXT))
        assert not session.connection.transport.is_reading()
        session.connection.resume_reading()
        session.connection.resume_reading()
        assert await session.heard.get() == ("text", b"wait")


# TLS


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody but this test trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "linnet")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "linnet.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + signed.public_bytes(Encoding.PEM))
    return path


async def test_all_of_it_works_over_tls(certificate: Path) -> None:
    """Messages, our close, and a violation, where there is no half-close."""
    trusted = ssl.create_default_context(cafile=certificate)
    async with serving(ssl_certfile=str(certificate)) as served:
        url = f"wss://localhost:{served.port}/"
        async with connect(url, ssl=trusted) as client:
            session = await served.attached.get()
            await client.send("hello")
            assert await session.heard.get() == ("text", b"hello")
            session.connection.close(4003, "max age")
            await client.wait_closed()
            assert client.close_code == 4003
            assert await session.heard.get() == ("closed", 4003, "max age")
        async with connect(url, ssl=trusted) as client:
            session = await served.attached.get()
            client.transport.write(client_frame(b"\xff", TEXT))
            await client.wait_closed()
            assert client.close_code == 1007
            assert (await session.heard.get())[:2] == ("closed", 1007)


async def test_a_connection_that_raises_as_it_is_dropped_keeps_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those behind it in the same sweep are dropped, and so are those that close later."""
    monkeypatch.setattr(connection_module, "CLOSE_WAIT_S", 0.05)

    class Broken:
        def abort(self) -> None:
            raise RuntimeError("broken")

    async with serving() as served:
        lingering = connection_module._lingering(asyncio.get_running_loop())
        for _ in range(2):
            broken: Any = type("Connection", (), {"transport": Broken()})()
            lingering.add(broken)
            _, session = await served.client()
            session.connection.close(1001, "bye")
            await eventually(lambda: not served.server.server_state.connections)
