"""The steps around every call of the HTTP API.

They are: authentication by a user's token or the server key, reading the body within its bounds of size and time,
decoding into the row's struct, the handler, and the error answer with its status from `contract/errors.py`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from math import ceil
from time import perf_counter
from typing import Any, Final, cast

import msgspec
from msgspec import inspect
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from router.api.call import OPEN, SERVER, Call, Caller, Endpoint, Services, bearer, now_ms
from router.api.types.common import Error, ErrorBody, PathParameters
from router.contract import integers, metrics, packing, wire
from router.contract.errors import (
    BadCommand,
    BadFrame,
    Conflict,
    Forbidden,
    Internal,
    LinnetError,
    MethodNotAllowed,
    TooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from router.store.accounts import SERVER_RANK, rank_of

MAX_BODY_BYTES: Final = wire.MAX_FRAME_BYTES
BODY_S: Final = 10.0

log = logging.getLogger("linnet.api")


class BodyTimeout(BadFrame):
    """The body did not arrive in time."""


class EndpointRoute:
    """One path of the table: an ASGI application that runs the steps around its calls."""

    def __init__(self, services: Services, path: str, methods: Mapping[str, Endpoint], private: bool = False) -> None:
        self._services = services
        self._private = private
        self._path = path
        self._methods = dict(methods)
        if "GET" in methods:
            self._methods["HEAD"] = methods["GET"]
        self._allow = ", ".join(sorted(self._methods))
        self._seconds = metrics.HTTP_SECONDS.labels(path)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        began = perf_counter()
        response = await self._answer(request)
        if (endpoint := self._methods.get(request.method)) is not None and endpoint.always:
            response.headers.update(endpoint.always)
        metrics.HTTP_REQUESTS.labels(self._path, response.status_code).inc()
        self._seconds.observe(perf_counter() - began)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        endpoint = self._methods.get(request.method)
        try:
            if endpoint is None:
                raise MethodNotAllowed(f"this path accepts {self._allow}")
            return await self._call(endpoint, request)
        except BodyTimeout as error:
            return error_response(error, {"Connection": "close"})  # the rest of the body is not read
        except LinnetError as error:
            headers = {"Allow": self._allow} if isinstance(error, MethodNotAllowed) else {}
            if endpoint is not None and endpoint.raw_body:
                headers["Connection"] = "close"
            return error_response(error, headers)
        except ClientDisconnect:
            return error_response(BadFrame("the body is incomplete"))
        except Exception:  # a bug: the client gets `internal`, the log the traceback
            log.exception("%s %s failed", request.method, self._path)
            return error_response(Internal())

    async def _call(self, endpoint: Endpoint, request: Request) -> Response:
        caller = await self._caller(endpoint, request)
        call = Call(self._services, caller, _path(request.path_params), request, self._private)
        given = await _given(endpoint, request)
        answer = await endpoint.handler(call, given)
        if isinstance(answer, Response):
            return answer
        if answer is None:
            return Response(status_code=endpoint.status)
        return json_response(answer, endpoint.status)

    async def _caller(self, endpoint: Endpoint, request: Request) -> Caller:
        """The caller. A user with a valid token is created if they do not exist; a deleted one is `Blocked`."""
        if endpoint.auth == OPEN:
            return Caller(None, server=False)
        token = bearer(request)
        if token is None:
            raise Unauthorized("the token is missing: send Authorization: Bearer <token>")
        key = self._services.settings.server_key
        if key and hmac.compare_digest(token.encode(), key.encode()):
            return await self._backend(request)
        if endpoint.auth == SERVER:
            raise Forbidden("this call needs the server key")
        identity = await self._services.verifier.identity(token, now_ms())
        known = await self._services.accounts.ensure(identity.user, identity.token)
        own = identity.token, identity.expires_at, known.generation
        return Caller(identity.user, False, *own, rank=rank_of(known.roles) if identity.admin else 0)

    async def _backend(self, request: Request) -> Caller:
        user = request.headers.get("linnet-user")
        if user is None:
            return Caller(None, server=True, rank=SERVER_RANK)
        if not wire.is_name(user):
            raise BadCommand("Linnet-User must be the name of a user: 1-64 of A-Z a-z 0-9 . _ -")
        await self._services.accounts.ensure(user)
        return Caller(user, server=True, rank=SERVER_RANK)


def _path(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """The path's parameters, validated by type."""
    try:
        msgspec.convert(parameters, PathParameters)
    except msgspec.ValidationError as error:
        raise BadCommand(str(error)) from None
    return parameters


async def _given(endpoint: Endpoint, request: Request) -> Any:
    """The body or the query as the row's struct; None if the row has neither."""
    if endpoint.query is not None:
        return _query(endpoint, request)
    if endpoint.body is None:
        return None
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType("the body must be application/json")
    body = await _body(request)
    try:
        return _decoder(endpoint.body)(body or b"{}")
    except msgspec.ValidationError as error:
        raise BadCommand(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadFrame("the body must be exactly one JSON value") from None
    except RecursionError:
        raise BadCommand(f"values must be at most {packing.MAX_DEPTH} deep") from None


@cache
def _decoder(kind: Any) -> Callable[[bytes], Any]:
    return integers.tolerant(msgspec.json.Decoder(kind).decode, packing.from_json, kind)


def _query(endpoint: Endpoint, request: Request) -> Any:
    parameters = request.query_params.multi_items()
    given = dict(parameters)
    known = {field.encode_name for field in msgspec.structs.fields(endpoint.query)}
    if sum(name in known for name, _ in parameters) > len(known & given.keys()):
        raise BadCommand("a query parameter is given twice")
    for name in _integer_parameters(endpoint.query) & given.keys():
        with suppress(msgspec.DecodeError):
            given[name] = str(integers.as_integer(packing.from_json(given[name].encode())))
    try:
        return msgspec.convert(given, endpoint.query, strict=False)
    except msgspec.ValidationError as error:
        raise BadCommand(str(error)) from None


@cache
def _integer_parameters(kind: Any) -> frozenset[str]:
    fields = cast("inspect.StructType", inspect.type_info(kind)).fields
    return frozenset(field.encode_name for field in fields if integers.is_integer_field(field.type))


async def _body(request: Request) -> bytes:
    """The whole body; `TooLarge` or `BodyTimeout` beyond its bounds."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise TooLarge(f"a request must have at most {MAX_BODY_BYTES} bytes")
    except TimeoutError:
        raise BodyTimeout(f"the body must arrive within {BODY_S:g} s") from None
    return bytes(body)


def json_response(value: Any, status: int = 200) -> Response:
    return raw_json(msgspec.json.encode(value), status)


def raw_json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, {"Cache-Control": "no-store"}, "application/json")


def error_response(error: LinnetError, headers: Mapping[str, str] | None = None) -> Response:
    body = ErrorBody(error.code, error.message)
    if isinstance(error, Conflict):
        body = ErrorBody(error.code, error.message, error.reason, error.next, error.version)
    response = json_response(Error(body), error.status)
    response.headers.update(headers or {})
    if error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, ceil(error.retry_after or 1)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response
