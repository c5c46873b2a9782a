"""The HTTP API by the standard library, each request in a thread.

A request whose awaitable is cancelled ends at once: its socket is shut down, so the thread ends, too.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Awaitable, Callable
from contextlib import suppress
from email.message import Message
from typing import Any, Final, NamedTuple, Protocol, TypeVar

import linnet_client.values as values
from linnet_client.errors import Refused, Unreachable, retry_at

TIMEOUT_S: Final = 10.0
TRANSFER_S: Final = 60.0  # without a byte, of a file
CODES: Final = {401: "unauthorized", 404: "not_found", 409: "conflict", 423: "locked", 429: "rate_limited"}

TokenSource = Callable[[str], Awaitable[str]]
T = TypeVar("T")


class Readable(Protocol):
    """A source of a file's bytes."""

    def read(self, size: int = -1, /) -> bytes: ...


class Answer(NamedTuple):
    content: bytes
    headers: Message


class _Request(urllib.request.Request):
    """A request that the loop can end while a thread makes it."""

    connection: http.client.HTTPConnection | None = None
    ended = False

    def end(self) -> None:
        self.ended = True
        if self.connection is not None and self.connection.sock is not None:
            with suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_RDWR)


def _endable(kind: type[http.client.HTTPConnection], request: urllib.request.Request) -> Callable[..., Any]:
    """Return what makes a connection that the request knows."""

    class Connection(kind):  # type: ignore[valid-type, misc]  # HTTP or HTTPS
        def connect(self) -> None:
            super().connect()
            if getattr(request, "ended", False):
                raise OSError("the request was cancelled")

    def made(host: str, **options: Any) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection = Connection(host, **options)
        if isinstance(request, _Request):
            request.connection = connection
        return connection

    return made


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_endable(http.client.HTTPConnection, req), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_endable(http.client.HTTPSConnection, req), req, context=self._context)  # type: ignore[attr-defined]


class Api:
    """Calls of one deployment's API, for example `http://127.0.0.1:8000`. `origin` names it."""

    def __init__(self, origin: str) -> None:
        parts = urllib.parse.urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("the API is an http:// or https:// URL")
        self.origin = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._opener = urllib.request.build_opener(_Http, *([_Https] if parts.scheme == "https" else []))

    async def call(self, method: str, path: str, body: Any = None, *, token: str | None = None) -> Any:
        """Make a call; return its answer. `Refused` if the API says no, `Unreachable` if it does not answer."""
        headers, data = {"Accept": "application/json"}, None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = values.encode(values.jsonable(body)).encode()
        return self.json(await self._request(method, path, data, headers, token, TIMEOUT_S))

    async def transfer(
        self, method: str, path: str, body: Readable | None, headers: dict[str, str], token: str, timeout_s: float
    ) -> Answer:
        """Send bytes as they are, if any; return the answer. `headers` has their `Content-Length`."""
        return await self._request(method, path, body, headers, token, timeout_s)

    async def fetch(self, path: str, token: str) -> bytes:
        """Return what is there, as it is."""
        return (await self.transfer("GET", path, None, {}, token, TRANSFER_S)).content

    def url_of(self, path: str) -> str:
        """Return a path of the API as a URL; a URL stays as it is."""
        return self.origin + path if path.startswith("/") else path

    async def _request(
        self, method: str, path: str, data: Any, headers: dict[str, str], token: str | None, timeout_s: float
    ) -> Answer:
        request = _Request(self.origin + path, data, headers, method=method)
        if token is not None:  # a link that the answer may name needs none, and may lead to another origin
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        try:
            return await asyncio.to_thread(self._answer, request, timeout_s)
        finally:
            request.end()

    def _answer(self, request: _Request, timeout_s: float) -> Answer:
        try:
            with self._opener.open(request, timeout=timeout_s) as answer:
                return Answer(answer.read(), answer.headers)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
            raise Unreachable(f"{self.origin}: {error}") from None

    def json(self, answer: Answer) -> Any:
        """Return the value in an answer; None if it is empty."""
        try:
            return values.decode(answer.content) if answer.content else None
        except ValueError as error:
            raise Unreachable(f"{self.origin}: no JSON: {error}") from None

    async def create_account(self, user: str, password: str, name: str = "") -> None:
        await self.call("POST", "/v1/accounts", {"user": user, "password": password, "name": name or user})

    async def login(self, user: str, password: str, device: str, token: str | None = None) -> dict[str, Any]:
        """Return `token`, `expires_at`, `gateways`. With the last token the wrong logins of others do not count."""
        answer: dict[str, Any] = await self.call(
            "POST", "/v1/login", {"user": user, "password": password, "device": device}, token=token
        )
        return answer

    async def renew(self, token: str) -> dict[str, Any]:
        """Return `token`, `expires_at`, `gateways` of the same login."""
        answer: dict[str, Any] = await self.call("POST", "/v1/tokens/renew", token=token)
        return answer

    async def gateways(self, token: str) -> list[str]:
        """Return the URLs of the gateways, the least loaded first."""
        answer = await self.call("GET", "/v1/gateways", token=token)
        return [str(url) for url in answer["gateways"]]


class UserApi:
    """Calls as one user. A token that is refused is tried once with another one."""

    def __init__(self, api: Api, source: TokenSource) -> None:
        self.api = api
        self._source = source

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make a call; return its answer."""
        return await self._tried(lambda token: self.api.call(method, path, body, token=token))

    async def transfer(
        self,
        method: str,
        path: str,
        body: Callable[[], Readable | None],
        headers: dict[str, str],
        timeout_s: float,
    ) -> Answer:
        """Send bytes as they are, which `body` begins anew; return the answer."""
        return await self._tried(lambda token: self.api.transfer(method, path, body(), headers, token, timeout_s))

    async def fetch(self, path: str) -> bytes:
        """Return what is there, as it is."""
        return await self._tried(lambda token: self.api.fetch(path, token))

    async def _tried(self, ask: Callable[[str], Awaitable[T]]) -> T:
        token = await self._source("connect")
        try:
            return await ask(token)
        except Refused as error:
            if error.status != 401:
                raise
            other = await self._source("token_expired" if error.code == "token_expired" else "unauthorized")
            if other == token:
                raise
        return await ask(other)


def _refusal(error: urllib.error.HTTPError) -> Refused:
    retry = error.headers.get("Retry-After")
    try:
        found = json.loads(error.read())["error"]
        code, message = str(found["code"]), str(found["message"])
    except (OSError, ValueError, KeyError, TypeError):
        code = CODES.get(error.code, "unavailable" if error.code >= 500 else "refused")
        message = f"HTTP {error.code}"
    wait_s = float(retry) if retry and retry.replace(".", "", 1).isdigit() else None
    return Refused(code, message, retry_at(wait_s), error.code)


class Login:
    """A token source from a login: keeps the token, renews it before it expires, logs in again if it has a password.

    Call `save` is given each new token, so that the application can keep it.
    """

    def __init__(
        self,
        api: str,
        user: str,
        password: str | None = None,
        *,
        token: str | None = None,
        device: str = "default",
        save: Callable[[str], None] | None = None,
    ) -> None:
        self._api = Api(api)
        self._user = user
        self._password = password
        self._device = device
        self._save = save
        self.token = token

    async def __call__(self, reason: str) -> str:
        """Return a token. `reason`: `connect`, `expiring`, `token_expired` or `unauthorized`."""
        if self.token is not None and reason == "connect":
            return self.token
        if self.token is not None and reason == "expiring":
            try:
                return self._keep(await self._api.renew(self.token))
            except Refused as error:
                if error.retry_at is not None or self._password is None:
                    raise
        if self._password is None:
            raise Refused("unauthorized", "log in again")
        return self._keep(await self._api.login(self._user, self._password, self._device, self.token))

    def _keep(self, answer: dict[str, Any]) -> str:
        self.token = str(answer["token"])
        if self._save is not None:
            self._save(self.token)
        return self.token
