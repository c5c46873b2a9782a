"""One connection on a real uvicorn: messages, pings, flow control and closes, with clients that break the rules."""

import asyncio
import contextlib
import resource
import socket
import ssl
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from deploy.embedded import tied
from gateway.websocket import closing
from gateway.websocket.connection import HIGH_MARK, KERNEL_SEND_BYTES, WebSocketConnection
from gateway.websocket.frames import BINARY, CLOSE, PING, PONG, TEXT, frame
from tests.gateway.websocket.client import UPGRADE, client_frame
from tests.gateway.websocket.echo import say
from tests.gateway.websocket.serving import LIMIT, Recorder, serving
from tests.support import ROOT, eventually, free_ports, http_get, run


async def test_messages_pass_both_ways_with_a_standard_client() -> None:
    """Text and binary, small and large, with compression without context on either side."""
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


async def test_client_with_a_small_window_is_sent_plain_frames() -> None:
    """Its offer is accepted, and it may compress; it cannot inflate the shared frames."""
    async with serving() as served:
        offer = "permessage-deflate; server_max_window_bits=9"
        client, session = await served.client(headers={"Sec-WebSocket-Extensions": offer})
        say(session.connection, b"x" * 1000, text=True)
        assert await client.frame() == (0x81, b"x" * 1000)
        client.send(client_frame(b"\xf2\x48\xcd\xc9\xc9\x07\x00", TEXT, reserved=0x40))  # RFC 7692, 7.2.3.1
        assert await session.heard.get() == ("text", b"Hello")


async def test_connection_without_a_session_is_closed() -> None:
    """With 1011 if the application attached none, with the application's code if it closed the connection."""

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


async def test_session_can_only_be_attached_once_and_in_time() -> None:
    """Before accept, twice, or after the application has returned: the call raises."""
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


async def test_session_attached_to_a_lost_connection_gets_its_end() -> None:
    """The peer was lost between accept and attach: `connection_closed` is called all the same."""
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


@pytest.mark.processes
def test_idle_connection_costs_two_kilobytes() -> None:
    """Resident memory of a server process, including HTTP and transport, over some thousand connections."""
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


async def test_kernel_sends_at_once_and_buffers_little() -> None:
    """TCP_NODELAY is on, and the send buffer is bounded (the kernel doubles the value)."""
    async with serving() as served:
        _, session = await served.client()
        sock = session.connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 2 * KERNEL_SEND_BYTES


async def test_frame_may_arrive_byte_by_byte() -> None:
    """However the network cuts it."""
    async with serving() as served:
        client, session = await served.client()
        for byte in client_frame(b"slowly", TEXT):
            client.send(bytes((byte,)))
            await client.writer.drain()
        assert await session.heard.get() == ("text", b"slowly")


async def test_pings_are_answered_both_ways() -> None:
    """The client answers the server's, which shows in `last_received`; the server answers the client's."""
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
async def test_violation_is_reported_to_both_sides_although_more_bytes_follow(stream: bytes, code: int) -> None:
    """The close frame arrives, not a reset, although the client goes on sending."""
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


async def test_session_that_raises_costs_its_own_connection() -> None:
    """1011 for this client, no effect on others, and a log line."""

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


async def test_close_of_the_client_is_answered_and_reported_once() -> None:
    """Its code is returned, the session gets code and reason, and the connection is removed."""
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


async def test_close_of_the_server_waits_for_the_clients() -> None:
    """Later messages are dropped, writes do nothing, and the session gets the server's code at the end."""
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


async def test_close_while_reading_is_paused_completes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading is resumed, because the client's answer must be read."""
    monkeypatch.setattr(closing, "CLOSE_WAIT_S", 1000.0)
    async with serving() as served, connect(served.url) as client:
        session = await served.attached.get()
        session.connection.pause_reading()
        session.connection.close(1008)
        await client.wait_closed()
        assert client.close_code == 1008
        assert await session.heard.get() == ("closed", 1008, "")


@pytest.mark.parametrize("how", ["reset", "fin", "reset with data on the way"])
async def test_client_that_vanishes_is_reported_as_1006(how: str) -> None:
    """There was no close frame: one call, and nothing of the connection is kept."""
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


async def test_server_that_stops_closes_with_1012() -> None:
    """503 for clients whose upgrade is under way, and the server ends."""
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


async def test_slow_reader_pauses_and_resumes_writing() -> None:
    """The session is called when the buffer passes the high mark, and again when it has drained."""
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


async def test_session_may_close_within_writing_paused() -> None:
    """That is within a write: one close frame is sent, and the session gets only `connection_closed` after it."""

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


async def test_flood_of_pings_and_pongs_ends_its_connection() -> None:
    """A thousand at once are allowed; a client that continues is closed with 1008, with pings and with pongs."""
    async with serving() as served:
        for opcode in (PING, PONG):
            client, session = await served.client()
            client.send(*(client_frame(b"", opcode) for _ in range(900)), client_frame(b"fine", TEXT))
            assert await session.heard.get() == ("text", b"fine")
            client.send(*(client_frame(b"", opcode) for _ in range(300)))
            assert await session.heard.get() == ("closed", 1008, "too many pings")


async def test_flood_of_pings_is_answered_within_bounds() -> None:
    """While the client does not read, pongs stop at the high mark; the latest ping is answered once there is room."""
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


async def test_session_can_pause_reading() -> None:
    """Unread bytes stay in the client's kernel, and arrive once reading is resumed."""
    async with serving() as served:
        client, session = await served.client()
        session.connection.pause_reading()
        session.connection.pause_reading()
        client.send(client_frame(b"wait", TEXT))
        assert not session.connection.transport.is_reading()
        session.connection.resume_reading()
        session.connection.resume_reading()
        assert await session.heard.get() == ("text", b"wait")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Make a certificate for localhost that only this test trusts."""
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


async def test_connection_works_over_tls(certificate: Path) -> None:
    """Messages, the server's close, and a violation, although TLS has no half-close."""
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
