"""One WebSocket connection: the upgrade goes through the ASGI application, everything after it through callbacks.

For uvicorn: `Config(ws=WebSocketConnection, ws_max_size=…, ws_per_message_deflate=…)`. While the application answers
the upgrade (handshake.py) it finds this connection in `scope["extensions"]["linnet"]["connection"]`, accepts, calls
`attach(session)` and returns. From then on no task, coroutine, queue or timer exists for the connection: the transport
calls `data_received`, that calls the session, and the session writes. What a session means by it stands elsewhere.

Invariants
- `connection_closed` comes exactly once to every session that was attached, however the connection ended.
- After a close frame in either direction `write` does nothing and the session hears nothing but `connection_closed`.
- No connection outlives its close frame by more than CLOSE_WAIT_S, whether its peer answers, reads or is there at all.
- What a peer that does not read can make us hold is bounded: HIGH_MARK here plus one tick's writes, and the socket's
  buffer in the kernel. A session that hears `writing_paused` must stop writing.
- An idle connection holds no buffer and nothing of its handshake.
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
CONTROL_EVERY_S: Final = 0.05  # pings and pongs of one peer: each costs us more than it costs the peer
CONTROL_BURST_S: Final = 1000 * CONTROL_EVERY_S

_UPGRADING, _OPEN, _CLOSING, _LOST = range(4)  # the states of a connection, in this order; LOST after connection_lost
_NO_CLOSE_FRAME: Final = (frames.ABNORMAL, "")

PING_FRAME: Final = frames.frame(b"", frames.PING)


class Session(Protocol):
    """Who lives at the connection.

    `writing_paused` may come from within a write, so whoever writes to many must not be iterating over what it changes.
    """

    def message_received(self, data: bytes, text: bool) -> None:
        """One whole message; text has been checked to be UTF-8."""

    def writing_paused(self) -> None:
        """The write buffer has passed HIGH_MARK."""

    def writing_resumed(self) -> None:
        """It has drained below LOW_MARK."""

    def connection_closed(self, code: int, reason: str) -> None:
        """It is over: code and reason of the first close frame in either direction, 1006 when there was none."""


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
    write: Callable[[bytes], None]  # prebuilt frames; the transport's own method while open, since fan-out is here

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections: set[Any] = server_state.connections
        self._handshake: Handshake | None = Handshake(self, config, server_state, app_state)
        self._parser: FrameParser | None = None
        self._session: Session | None = None
        self._state = _UPGRADING
        self._ended_with = _NO_CLOSE_FRAME
        self._owed_pong: bytes | None = None
        self._controls_due = 0.0  # when all pings and pongs so far would have been due (GCRA)
        self.deflate = False
        self.last_received = self._loop.time()
        self.write = _discard

    # What the application and the session call

    def attach(self, session: Session) -> None:
        """From here on the session hears what happens. To be called once, after accepting, while the app answers."""
        handshake = self._handshake
        if handshake is None or not handshake.accepted or self._session is not None:
            raise RuntimeError("attach() belongs between websocket.accept and the application's return, once")
        if self._state is not _OPEN:  # it was lost, or closed by a shutdown, since it was accepted
            self._loop.call_soon(session.connection_closed, *self._ended_with)
            return
        self._session = session
        self._parser = FrameParser(handshake.config.ws_max_size, handshake.deflate is not None)
        if handshake.early:
            self._loop.call_soon(self._take_early, handshake.early)

    def ping(self) -> None:
        self.write(PING_FRAME)

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame and wait a while for the peer's; `connection_closed` comes when it is over."""
        if self._state is not _OPEN:
            return
        if self._session is None:
            self._fail(code, reason)  # nobody attached, nothing parsed: no answer would be understood
        else:
            self._send_close(code, reason)

    def pause_reading(self) -> None:
        """Read no more from the socket. What has already been read may still hold messages, and they still come."""
        if self._state is _OPEN and self.transport.is_reading():
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._state is _OPEN and not self.transport.is_reading():
            self.transport.resume_reading()

    # What the transport calls

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
            self._received_outside(data)
            return
        try:
            parser.feed(data, self)
        except FrameError as error:
            self._fail(error.code, error.reason)
        except Exception:  # a mistake in the session must cost this one connection, and say so
            logger.exception("a session failed on a message")
            self._fail(frames.INTERNAL, "")

    def eof_received(self) -> None:
        """The peer says no more; one that could not even say goodbye is not worth keeping half open."""
        if self._state is _OPEN:
            self._start_closing(*_NO_CLOSE_FRAME)
        self._leave()

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
        """The server stops."""
        if self._handshake is not None and not self._handshake.accepted:
            self._handshake.refuse(UpgradeError(503))
        else:
            self.close(frames.RESTART)

    # What the parser calls

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
        """`last_received` has said all that it says."""
        self._charge_control()

    def _charge_control(self) -> None:
        """No command's rate counts control frames, so they have one here."""
        now = self.last_received
        self._controls_due = max(self._controls_due, now) + CONTROL_EVERY_S
        if self._controls_due - now > CONTROL_BURST_S:
            raise FrameError(frames.POLICY, "too many pings")

    def close_received(self, code: int, reason: str) -> None:
        if self._state is _OPEN:
            self._start_closing(code, reason)
            self.transport.write(frames.close_frame(code))
        self._leave()

    # How it ends

    def _send_close(self, code: int, reason: str) -> None:
        self.resume_reading()  # else the peer's answer would never be seen
        self._start_closing(code, reason)  # before the write: that may pause writing, and so lead back here
        self.transport.write(frames.close_frame(code, reason))

    def _start_closing(self, code: int, reason: str) -> None:
        self._state = _CLOSING
        self._ended_with = (code, reason)
        self.write = _discard
        closing_of(self._loop).add(self)

    def _leave(self) -> None:
        """Nothing more is expected from the peer: what is written is flushed, then the connection is dropped."""
        self._parser = None
        self.transport.close()
        self._end_session()

    def _fail(self, code: int, reason: str) -> None:
        """Say why, understand nothing more, but read on to the peer's FIN: a close with unread bytes would reset the
        connection and take our close frame with it."""
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

    # How it begins

    def _received_outside(self, data: bytes) -> None:
        """Bytes while nobody is attached: the upgrade request, what comes before `attach`, what comes after the end."""
        if self._handshake is None or self._state is _CLOSING:
            return
        if not self._handshake.begun:
            self._handshake.begin(data)
        else:
            self._handshake.early += data
            self.transport.pause_reading()

    def accepted(self, response: bytes, deflate: Deflate | None) -> None:
        """The application said yes."""
        self._state = _OPEN
        self.deflate = deflate is not None and deflate.shared_frames
        self.write = self.transport.write
        self.write(response)

    def refused(self, response: bytes) -> None:
        """The application, or the request itself, said no."""
        self.transport.write(response)
        self._start_closing(*_NO_CLOSE_FRAME)
        self.transport.close()

    def handshake_over(self) -> None:
        """The application has returned: let go of everything that the upgrade needed."""
        self._handshake = None
        if self._state is _OPEN and self._session is None:
            logger.error("the application accepted a WebSocket and attached no session")
            self.close(frames.INTERNAL)

    def _take_early(self, data: bytes) -> None:
        self.resume_reading()
        self.data_received(data)


def _discard(frames: bytes) -> None:
    """`write` of a connection that is not open."""


def _bound_kernel_buffer(transport: asyncio.Transport) -> None:
    """Left alone, the kernel takes megabytes for a peer that does not read."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_SEND_BYTES)
