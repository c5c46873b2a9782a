"""The upgrade of one connection: from the HTTP request to the answer of the ASGI application.

`read_upgrade` checks the request (RFC 6455, 4.2.1) and does no I/O. `Handshake` is the application's side of the
upgrade; the connection drops it when the application's one short task ends. The application decides about origins,
routes, limits and identity. No message is ever delivered through ASGI's `receive` and `send`.

Invariant: every request gets exactly one answer (101, or an HTTP response and the end), also if the application fails,
returns without an answer, is cancelled or sends a message that is not allowed.
"""

import asyncio
import base64
import binascii
import hashlib
import http
import logging
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

from uvicorn import Config
from uvicorn.protocols.utils import ClientDisconnected, get_local_addr, get_remote_addr, is_ssl
from uvicorn.server import ServerState

from gateway.websocket import frames
from gateway.websocket.deflate import Deflate, negotiate_deflate

logger = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: "
_ABSOLUTE = re.compile(rb"(?:https?|wss?)://([A-Za-z0-9._:\[\]-]+)(?=[/?]|$)", re.IGNORECASE)
_NOT_A_NAME = re.compile(rb'[\x00-\x20\x7f()<>@,;:\\"/\[\]?={}]')
_NOT_A_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class UpgradeError(Exception):
    """The upgrade is refused with this HTTP status."""

    def __init__(self, status: int, headers: Headers | None = None) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers or []


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A valid upgrade request."""

    path: bytes
    query: bytes
    headers: Headers
    key: bytes
    subprotocols: list[str]
    extensions: str


def read_upgrade(request: bytes) -> Upgrade:
    """Check an upgrade request by RFC 6455, 4.2.1. It must be whole and well-formed HTTP."""
    request_line, *lines = request.partition(b"\r\n\r\n")[0].split(b"\r\n")
    method, target, _ = request_line.split(b" ", 2)
    target, authority = _origin_form(target)
    headers: Headers = []
    fields: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip()
        if authority and name == b"host":
            continue  # RFC 9112, 3.2.2: the target's authority replaces it
        headers.append((name, value))
        fields.setdefault(name, []).append(value)

    if authority:
        headers.append((b"host", authority))

    def joined(name: bytes) -> bytes:
        return b",".join(fields.get(name, []))

    if method != b"GET":
        raise UpgradeError(405, [(b"allow", b"GET")])
    if b"upgrade" not in _tokens(joined(b"connection").lower()):
        raise UpgradeError(400)
    if b"websocket" not in _tokens(joined(b"upgrade").lower()):
        raise UpgradeError(426, [(b"upgrade", b"websocket")])
    if joined(b"sec-websocket-version") != b"13":
        raise UpgradeError(426, [(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")])
    if b"transfer-encoding" in fields or joined(b"content-length") not in (b"", b"0"):
        raise UpgradeError(400)  # a body would be mistaken for frames
    key = joined(b"sec-websocket-key")
    path, _, query = target.partition(b"?")
    if not _is_key(key) or not path.startswith(b"/") or not target.isascii():
        raise UpgradeError(400)
    subprotocols = [token.decode("latin-1") for token in _tokens(joined(b"sec-websocket-protocol"))]
    return Upgrade(path, query, headers, key, subprotocols, joined(b"sec-websocket-extensions").decode("latin-1"))


def _origin_form(target: bytes) -> tuple[bytes, bytes]:
    """Return the target without scheme and authority, and the authority: some proxies send the absolute form."""
    found = _ABSOLUTE.match(target)
    if found is None:
        return target, b""
    rest = target[found.end() :]
    return rest if rest.startswith(b"/") else b"/" + rest, found[1]


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip() for token in value.split(b",") if token.strip()]


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def _lines(headers: Headers) -> bytes:
    """The lines of headers that the application has sent."""
    for name, value in headers:
        if not name or _NOT_A_NAME.search(name) or _NOT_A_VALUE.search(value):
            raise RuntimeError(f"the application sent an invalid HTTP header {name!r}")
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def http_response(status: int, headers: Headers, body: bytes = b"") -> bytes:
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (status, phrase.encode(), _lines(headers), body)


class Upgrading(Protocol):
    """A connection as its upgrade needs it."""

    transport: asyncio.Transport

    def accepted(self, response: bytes, deflate: Deflate | None) -> None: ...
    def refused(self, response: bytes) -> None: ...
    def handshake_over(self) -> None: ...
    def close(self, code: int, reason: str = "") -> None: ...


class Handshake:
    """The upgrade of one connection as the ASGI application sees it, for as long as the task that runs it."""

    def __init__(
        self, connection: Upgrading, config: Config, server_state: ServerState, app_state: dict[str, Any]
    ) -> None:
        self.config = config
        self.predecessor: asyncio.BaseProtocol | None = None
        self.deflate: Deflate | None = None
        self.early = b""  # bytes that came before a session was attached: at most one read, then reading is paused
        self.begun = False
        self.gone = asyncio.Event()
        self._connection = connection
        self._server_state = server_state
        self._app_state = app_state
        self._upgrade: Upgrade
        self._step = "asked"
        self._asked = False
        self._denial: tuple[int, Headers, list[bytes]] = (0, [], [])

    @property
    def accepted(self) -> bool:
        return self._step == "accepted"

    def begin(self, request: bytes) -> None:
        self.begun = True
        try:
            self._upgrade = read_upgrade(request)
        except UpgradeError as refusal:
            self.refuse(refusal)
            self._connection.handshake_over()
            return
        if self.config.ws_per_message_deflate:
            self.deflate = negotiate_deflate(self._upgrade.extensions)
        tasks = self._server_state.tasks
        task = asyncio.get_running_loop().create_task(self._run())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def refuse(self, refusal: UpgradeError, body: bytes = b"") -> None:
        self._step = "refused"
        headers = [*self._server_state.default_headers, *refusal.headers]
        if not any(name.lower() == b"content-length" for name, _ in headers):
            headers.append((b"content-length", b"%d" % len(body)))
        self._connection.refused(http_response(refusal.status, [*headers, (b"connection", b"close")], body))
        self.gone.set()

    async def _run(self) -> None:
        if self.predecessor is not None:
            # uvicorn's HTTP protocol and its parser refer to each other: without this, 5 KB per connection would wait
            # for a full garbage collection.
            vars(self.predecessor).clear()
        try:
            await self.config.loaded_app(self._scope(), self._receive, self._send)
        except Exception:  # the peer gets an answer, whatever the application raised
            level = logging.DEBUG if self.gone.is_set() else logging.ERROR
            logger.log(level, "the application failed on an upgrade", exc_info=True)
        finally:
            if not self.gone.is_set() and not self.accepted:
                self.refuse(UpgradeError(500))
            self._connection.handshake_over()

    def _scope(self) -> dict[str, Any]:
        upgrade, transport, root_path = self._upgrade, self._connection.transport, self.config.root_path
        return {
            "type": "websocket",
            "asgi": {"version": self.config.asgi_version, "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(transport) else "ws",
            "server": get_local_addr(transport),
            "client": get_remote_addr(transport),
            "root_path": root_path,
            "path": root_path + urllib.parse.unquote(upgrade.path.decode()),
            "raw_path": root_path.encode() + upgrade.path,
            "query_string": upgrade.query,
            "headers": upgrade.headers,
            "subprotocols": upgrade.subprotocols,
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, "linnet": {"connection": self._connection}},
        }

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "websocket.connect"}
        await self.gone.wait()
        return {"type": "websocket.disconnect", "code": frames.ABNORMAL}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.gone.is_set():
            raise ClientDisconnected
        answer = _ANSWERS.get((self._step, message["type"]))
        if answer is None:
            raise RuntimeError(f"the application sent {message['type']!r}, which is not allowed: upgrade {self._step}")
        answer(self, message)

    def _accept(self, message: dict[str, Any]) -> None:
        accept = base64.b64encode(hashlib.sha1(self._upgrade.key + _GUID, usedforsecurity=False).digest())
        headers: Headers = []
        if self.deflate is not None:
            headers.append((b"sec-websocket-extensions", self.deflate.answer.encode()))
        if message.get("subprotocol"):
            headers.append((b"sec-websocket-protocol", message["subprotocol"].encode("latin-1")))
        headers += self._server_state.default_headers
        headers += message.get("headers") or ()
        response = b"%b%b\r\n%b\r\n" % (_SWITCHING, accept, _lines(headers))
        self._step = "accepted"
        self._connection.accepted(response, self.deflate)

    def _forbid(self, message: dict[str, Any]) -> None:
        self.refuse(UpgradeError(403))

    def _start_denial(self, message: dict[str, Any]) -> None:
        self._step = "denied"
        self._denial = (message["status"], list(message.get("headers") or []), [])

    def _continue_denial(self, message: dict[str, Any]) -> None:
        status, headers, body = self._denial
        body.append(message.get("body", b""))
        if not message.get("more_body", False):
            self.refuse(UpgradeError(status, headers), b"".join(body))

    def _close(self, message: dict[str, Any]) -> None:
        self._connection.close(message.get("code", frames.NORMAL), message.get("reason") or "")


# The messages that the application may send, by the step of its answer. A pair that is absent raises.
_ANSWERS: Final[dict[tuple[str, str], Callable[[Handshake, dict[str, Any]], None]]] = {
    ("asked", "websocket.accept"): Handshake._accept,
    ("asked", "websocket.close"): Handshake._forbid,
    ("asked", "websocket.http.response.start"): Handshake._start_denial,
    ("denied", "websocket.http.response.body"): Handshake._continue_denial,
    ("accepted", "websocket.close"): Handshake._close,
}
