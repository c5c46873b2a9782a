"""One WebSocket connection: the upgrade goes through the ASGI application, everything after it through callbacks.

For uvicorn: `Config(ws=WebSocketConnection, ws_max_size=…, ws_per_message_deflate=…)`. While the application answers
the upgrade (handshake.py) it finds this connection in `scope["extensions"]["linnet"]["connection"]`, accepts, calls
`attach(session)` and returns. From then on no task, coroutine, queue or timer exists for the connection: the transport
calls `data_received`, `data_received` calls the session, and the session writes.

Invariants
- `connection_closed` is called exactly once for every attached session, however the connection ended.
- After a close frame in either direction `write` does nothing, and `connection_closed` is the only call to the session.
- No connection outlives its close frame by more than CLOSE_WAIT_S (closing.py), whether or not its peer answers, reads
  or still exists.
- The memory that a peer can take by not reading is bounded: HIGH_MARK here plus the writes of one turn of the event
  loop, and the socket's buffer in the kernel. After `writing_paused` a session must stop writing.
- An idle connection holds no buffer and nothing of its handshake.

If a peer floods pings and does not read, its pongs are not queued: only the latest ping is answered, once there is room
(RFC 6455, 5.5.3).
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol

from uvicorn import Config
from uvicorn.server import ServerState

from gateway.websocket import frames
from gateway.websocket.closing import closing_of
from gateway.websocket.deflate import Deflate
from gateway.websocket.frames import FrameError, FrameParser
from gateway.websocket.handshake import Handshake, UpgradeError

logger = logging.getLogger(__name__)

HIGH_MARK: Final = 64 * 1024
LOW_MARK: Final = 16 * 1024
KERNEL_SEND_BYTES: Final = 64 * 1024  # the kernel doubles it for its bookkeeping
CONTROL_EVERY_S: Final = 0.05  # pings and pongs of one peer: each costs the gateway more than it costs the peer
CONTROL_BURST_S: Final = 1000 * CONTROL_EVERY_S

_UPGRADING, _OPEN, _CLOSING, _LOST = range(4)  # the states of a connection, in this order; LOST after connection_lost
_NO_CLOSE_FRAME: Final = (frames.ABNORMAL, "")

PING_FRAME: Final = frames.frame(b"", frames.PING)


class Session(Protocol):
    """The receiver of a connection's messages and changes.

    `writing_paused` may be called from within a write, so a loop that writes to many sessions must not iterate over a
    collection that `writing_paused` changes.
    """

    def message_received(self, data: bytes, text: bool) -> None:
        """Handle one whole message; text has been checked to be UTF-8."""

    def writing_paused(self) -> None:
        """Stop writing: the write buffer has passed HIGH_MARK."""

    def writing_resumed(self) -> None:
        """Go on writing: the write buffer has drained below LOW_MARK."""

    def connection_closed(self, code: int, reason: str) -> None:
        """Handle the end: code and reason of the first close frame in either direction, 1006 if there was none."""


class WebSocketConnection(asyncio.Protocol):
    """The protocol object of one connection, made by uvicorn for one upgrade request."""

    __slots__ = (
        "_connections",
        "_controls_due",
        "_ended_with",
        "_handshake",
        "_loop",
        "_owed_pong",
        "_parser",
        "_session",
        "_state",
        "deflate",
        "last_received",
        "transport",
        "write",
    )

    transport: asyncio.Transport
    deflate: bool  # whether frames made by `deflated_frame` may be written
    last_received: float  # loop.time() of the last bytes from the peer
    write: Callable[[bytes], None]  # takes whole frames; while open it is the transport's own method, for fan-out

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections: set[Any] = server_state.connections
        self._handshake: Handshake | None = Handshake(self, config, server_state, app_state)
        self._parser: FrameParser | None = None
        self._session: Session | None = None
        self._state = _UPGRADING
        self._ended_with = _NO_CLOSE_FRAME
        self._owed_pong: bytes | None = None
        self._controls_due = 0.0  # the time at which all pings and pongs so far would have been due (GCRA)
        self.deflate = False
        self.last_received = self._loop.time()
        self.write = _discard

    # -- called by the application and the session

    def attach(self, session: Session) -> None:
        """Deliver messages and changes to this session from here on; once, between accepting and the app's return."""
        handshake = self._handshake
        if handshake is None or not handshake.accepted or self._session is not None:
            raise RuntimeError(
                "attach() came at the wrong time: call it once, after websocket.accept, before returning"
            )
        if self._state is not _OPEN:  # it was lost, or closed by a shutdown, since it was accepted
            self._loop.call_soon(session.connection_closed, *self._ended_with)
            return
        self._session = session
        self._parser = FrameParser(handshake.config.ws_max_size, handshake.deflate is not None)
        if handshake.early:
            self._loop.call_soon(self._receive_early, handshake.early)

    def ping(self) -> None:
        self.write(PING_FRAME)

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and wait up to CLOSE_WAIT_S for the peer's; then call `connection_closed`."""
        if self._state is not _OPEN:
            return
        if self._session is None:
            self._fail(code, reason)  # without a session there is no parser that would read the peer's answer
        else:
            self._send_close(code, reason)

    def pause_reading(self) -> None:
        """Stop reading from the socket. Messages in bytes that were already read are still delivered."""
        if self._state is _OPEN and self.transport.is_reading():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._state is _OPEN and not self.transport.is_reading():
            self.transport.resume_reading()

    # -- called by the transport and the server

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # streams only
        self.transport = transport
        transport.set_write_buffer_limits(HIGH_MARK, LOW_MARK)
        _bound_kernel_buffer(transport)
        self._connections.add(self)
        if self._handshake is not None:
            self._handshake.predecessor = transport.get_protocol()

    def data_received(self, data: bytes) -> None:
        self.last_received = self._loop.time()
        parser = self._parser
        if parser is None:
            self._receive_unattached(data)
            return
        try:
            parser.feed(data, self)
        except FrameError as error:
            self._fail(error.code, error.reason)
        except Exception:  # a bug in the session ends this one connection, and is logged
            logger.exception("a session failed on a message; its connection is closed with 1011")
            self._fail(frames.INTERNAL, "")

    def eof_received(self) -> None:
        """End the connection: the peer sends no more, and a connection is not kept half open without a close frame."""
        if self._state is _OPEN:
            self._start_closing(*_NO_CLOSE_FRAME)
        self._flush_and_drop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state = _LOST
        self.write = _discard
        self._parser = None
        self._connections.discard(self)
        closing_of(self._loop).discard(self)
        if self._handshake is not None:
            self._handshake.gone.set()
        self._end_session()

    def pause_writing(self) -> None:
        if self._state is _OPEN and self._session is not None:
            self._session.writing_paused()

    def resume_writing(self) -> None:
        if self._owed_pong is not None:
            self._pong(self._owed_pong)
        if self._state is _OPEN and self._session is not None:
            self._session.writing_resumed()

    def shutdown(self) -> None:
        """Refuse the upgrade with 503, or close with 1012: the server stops."""
        if self._handshake is not None and not self._handshake.accepted:
            self._handshake.refuse(UpgradeError(503))
        else:
            self.close(frames.RESTART)

    # -- called by the parser

    def message_received(self, data: bytes, text: bool) -> None:
        if self._state is _OPEN and self._session is not None:
            self._session.message_received(data, text)

    def ping_received(self, payload: bytes) -> None:
        self._charge_control()
        self._pong(payload)

    def _pong(self, payload: bytes) -> None:
        if self.transport.get_write_buffer_size() > HIGH_MARK:
            self._owed_pong = payload
        else:
            self._owed_pong = None
            self.write(frames.frame(payload, frames.PONG))

    def pong_received(self, payload: bytes) -> None:
        """Only charge the pong: `data_received` has already noted its time."""
        self._charge_control()

    def _charge_control(self) -> None:
        """Charge a ping or pong to their own rate, because the rates of commands do not count control frames."""
        now = self.last_received
        self._controls_due = max(self._controls_due, now) + CONTROL_EVERY_S
        if self._controls_due - now > CONTROL_BURST_S:
            raise FrameError(frames.POLICY, "too many pings")

    def close_received(self, code: int, reason: str) -> None:
        if self._state is _OPEN:
            self._start_closing(code, reason)
            self.transport.write(frames.close_frame(code))
        self._flush_and_drop()

    # -- the end

    def _send_close(self, code: int, reason: str) -> None:
        self.resume_reading()  # else the peer's close frame would never be read
        self._start_closing(code, reason)  # before the write, which may pause writing and so call `close` again
        self.transport.write(frames.close_frame(code, reason))

    def _start_closing(self, code: int, reason: str) -> None:
        self._state = _CLOSING
        self._ended_with = (code, reason)
        self.write = _discard
        closing_of(self._loop).add(self)

    def _flush_and_drop(self) -> None:
        """Drop the connection once its write buffer is flushed: nothing more is expected from the peer."""
        self._parser = None
        self.transport.close()
        self._end_session()

    def _fail(self, code: int, reason: str) -> None:
        """Send a close frame and parse nothing more, but read on to the peer's FIN: closing a socket with unread bytes
        would reset the connection, and the close frame would be lost."""
        self._parser = None
        if self._state is _OPEN:
            self._send_close(code, reason)
        if self.transport.is_closing() or not self.transport.can_write_eof():  # TLS has no half-close
            self.transport.close()
        else:
            self.transport.write_eof()
        self._end_session()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.connection_closed(*self._ended_with)

    # -- the beginning

    def _receive_unattached(self, data: bytes) -> None:
        """Take bytes without a session: the upgrade request, bytes before `attach`, and bytes after the end."""
        if self._handshake is None or self._state is _CLOSING:
            return
        if not self._handshake.begun:
            self._handshake.begin(data)
        else:
            self._handshake.early += data
            self.transport.pause_reading()

    def accepted(self, response: bytes, deflate: Deflate | None) -> None:
        """Open the connection: the application has accepted."""
        self._state = _OPEN
        self.deflate = deflate is not None and deflate.shared_frames
        self.write = self.transport.write
        self.write(response)

    def refused(self, response: bytes) -> None:
        """Answer and end the connection: the application refused, or the request was invalid."""
        self.transport.write(response)
        self._start_closing(*_NO_CLOSE_FRAME)
        self.transport.close()

    def handshake_over(self) -> None:
        """Release everything that the upgrade needed: the application has returned."""
        self._handshake = None
        if self._state is _OPEN and self._session is None:
            logger.error("the application accepted a WebSocket and attached no session; it is closed with 1011")
            self.close(frames.INTERNAL)

    def _receive_early(self, data: bytes) -> None:
        self.resume_reading()
        self.data_received(data)


def _discard(_: bytes) -> None:
    """Drop frames: the `write` of a connection that is not open."""


def _bound_kernel_buffer(transport: asyncio.Transport) -> None:
    """Bound the kernel's send buffer, which would otherwise grow to megabytes for a peer that does not read."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_SEND_BYTES)
