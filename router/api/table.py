"""The table of the HTTP API, and the steps around every call.

The table drives routing, decoding, authentication, metrics and the OpenAPI document, so every call is documented. The
steps around a handler are: authentication by a user's token or the server key, reading the body within its bounds of
size and time, decoding into the row's struct, and the error answer with its status from `contract/errors.py`.

To add a call: structs in `types.py`, a handler whose docstring is its documentation, a row here, a test. Unknown fields
and query parameters are ignored; a parameter that is given twice is refused.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from math import ceil
from time import perf_counter
from typing import Any, Final, cast

import msgspec
from msgspec import inspect
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from router.api import (
    accounts,
    commands,
    contacts,
    conversations,
    messages,
    profiles,
    sessions,
    state,
    tus,
    types,
    uploads,
)
from router.api.call import CALLER, OPEN, SERVER, Call, Caller, Endpoint, Services, bearer, now_ms
from router.api.openapi import document
from router.contract import integers, metrics, origins, packing, wire
from router.contract.errors import (
    BadCommand,
    BadFrame,
    Conflict,
    Forbidden,
    Internal,
    LinnetError,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthorized,
    UnsupportedMediaType,
)
from router.contract.settings import Settings
from router.process.forwarded import Forwarded, Proxies

__all__ = ["Services", "create_app"]

MAX_BODY_BYTES: Final = wire.MAX_FRAME_BYTES
BODY_S: Final = 10.0

# Headers that pages of other origins may send and read, beside those that browsers always allow.
ALLOWED_HEADERS: Final = (
    "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "If-Range",
    "Linnet-Device", "Linnet-Name", "Linnet-Reason", "Linnet-User", "Range",
    "Tus-Resumable", "Upload-Defer-Length", "Upload-Length", "Upload-Metadata", "Upload-Offset",
)  # fmt: skip
EXPOSED_HEADERS: Final = (
    "Accept-Ranges", "Content-Disposition", "Content-Length", "Content-Range", "ETag",
    "Linnet-Upload", "Location", "Retry-After",
    "Tus-Extension", "Tus-Max-Size", "Tus-Resumable", "Tus-Version",
    "Upload-Expires", "Upload-Length", "Upload-Offset",
)  # fmt: skip

log = logging.getLogger("linnet.api")

ACCOUNTS: Final = (
    Endpoint("POST", "/v1/accounts", OPEN, accounts.create_account, status=201,
             body=types.NewAccount, answer=types.AccountMade, refusals=(409, 429)),
    Endpoint("POST", "/v1/login", OPEN, accounts.login,
             body=types.LoginRequest, answer=types.LoginAnswer, refusals=(401, 429)),
    Endpoint("PUT", "/v1/password", CALLER, sessions.change_password, status=204, body=types.PasswordChange,
             refusals=(403, 404, 429)),
    Endpoint("POST", "/v1/password/resets", SERVER, sessions.create_reset, body=types.ResetRequest,
             answer=types.ResetToken, refusals=(404,)),
    Endpoint("POST", "/v1/password/reset", OPEN, sessions.reset_password, status=204, body=types.PasswordReset,
             refusals=(401, 429)),
    Endpoint("POST", "/v1/tokens/renew", CALLER, accounts.renew_token, answer=types.Renewal, refusals=(403,)),
)  # fmt: skip

TOKENS: Final = (
    Endpoint("POST", "/v1/tokens", SERVER, accounts.create_token, body=types.TokenRequest, answer=types.TokenAnswer),
)

ALWAYS: Final = (
    Endpoint("DELETE", "/v1/accounts/{user}", CALLER, accounts.delete_account, status=204, refusals=(403, 404)),
    Endpoint("GET", "/v1/sessions", CALLER, sessions.list_sessions, answer=types.Sessions),
    Endpoint("POST", "/v1/logout", CALLER, sessions.logout, status=204, body=types.Logout, refusals=(404,)),
    Endpoint("DELETE", "/v1/sessions/{user}", CALLER, accounts.delete_sessions, status=204, refusals=(403, 404)),
    Endpoint("DELETE", "/v1/sessions/{user}/{device}", CALLER, accounts.delete_sessions, status=204,
             refusals=(403, 404)),
    Endpoint("GET", "/v1/gateways", CALLER, accounts.get_gateways, answer=types.Gateways),
    Endpoint("GET", "/v1/presence", CALLER, accounts.presence, query=types.PresenceQuery,
             answer=types.PresenceAnswer),
    Endpoint("GET", "/v1/me", CALLER, profiles.get_me, answer=types.Me, refusals=(404,)),
    Endpoint("PATCH", "/v1/me", CALLER, profiles.patch_me, body=types.ProfileChange, answer=types.Me,
             refusals=(404, 413, 429)),
    Endpoint("GET", "/v1/users", CALLER, profiles.list_users, query=types.UsersQuery, answer=types.Users,
             refusals=(429,)),
    Endpoint("GET", "/v1/users/{user}", CALLER, profiles.get_user, answer=types.User, refusals=(404,)),
    Endpoint("GET", "/v1/contacts", CALLER, contacts.list_contacts, query=types.ContactsQuery, answer=types.Contacts),
    Endpoint("GET", "/v1/contacts/{user}", CALLER, contacts.get_contact, answer=types.Contact, refusals=(404,)),
    Endpoint("PUT", "/v1/contacts/{user}", CALLER, contacts.put_contact, body=types.ContactRequest,
             answer=types.ContactAnswer, refusals=(403, 404, 409, 429)),
    Endpoint("POST", "/v1/contacts/{user}/accept", CALLER, contacts.accept_contact, answer=types.ContactAnswer,
             refusals=(403, 404)),
    Endpoint("DELETE", "/v1/contacts/{user}", CALLER, contacts.delete_contact, status=204),
    Endpoint("GET", "/v1/blocks", CALLER, contacts.list_blocks, query=types.PageQuery, answer=types.Blocks),
    Endpoint("PUT", "/v1/blocks/{user}", CALLER, contacts.put_block, status=204, refusals=(403, 404)),
    Endpoint("DELETE", "/v1/blocks/{user}", CALLER, contacts.delete_block, status=204),
    Endpoint("POST", "/v1/conversations", CALLER, conversations.create_conversation, status=201,
             body=types.NewConversation, answer=types.CreatedConversation, refusals=(403, 404)),
    Endpoint("GET", "/v1/conversations", CALLER, conversations.list_conversations, query=types.ListQuery,
             answer=types.ConversationList),
    Endpoint("GET", "/v1/conversations/{conversation}", CALLER, conversations.get_conversation,
             answer=types.Conversation, refusals=(404,)),
    Endpoint("PATCH", "/v1/conversations/{conversation}", CALLER, conversations.patch_conversation,
             body=types.ConversationChange, answer=types.Conversation, refusals=(403, 404)),
    Endpoint("DELETE", "/v1/conversations/{conversation}", CALLER, conversations.delete_conversation, status=204,
             refusals=(403, 404)),
    Endpoint("GET", "/v1/conversations/{conversation}/members", CALLER, conversations.list_members,
             query=types.MemberQuery, answer=types.MemberList, refusals=(404,)),
    Endpoint("PUT", "/v1/conversations/{conversation}/members/{user}", CALLER, conversations.put_member,
             body=types.NewRole, answer=types.Membership, refusals=(403, 404, 409)),
    Endpoint("DELETE", "/v1/conversations/{conversation}/members/{user}", CALLER, conversations.delete_member,
             status=204, refusals=(403, 404, 409)),
    Endpoint("POST", "/v1/conversations/{conversation}/join", CALLER, conversations.join_conversation,
             answer=types.Membership, refusals=(403, 404, 409)),
    Endpoint("GET", "/v1/conversations/{conversation}/reads", CALLER, conversations.get_reads, answer=types.Reads,
             refusals=(403, 404)),
    Endpoint("GET", "/v1/conversations/{conversation}/events", CALLER, messages.get_events,
             query=types.EventsQuery, answer=types.Events, refusals=(404,)),
    Endpoint("GET", "/v1/state", CALLER, state.list_state, query=types.StateQuery, answer=types.StateEntries),
    Endpoint("GET", "/v1/state/{key}", CALLER, state.get_state, answer=types.StateEntry, refusals=(404,)),
    Endpoint("PUT", "/v1/state/{key}", CALLER, state.put_state, body=types.StateChange, answer=types.StateWritten,
             refusals=(403, 409, 429)),
    Endpoint("DELETE", "/v1/state/{key}", CALLER, state.delete_state, query=types.StateExpected, status=204,
             refusals=(403, 409, 429)),
    Endpoint("POST", "/v1/commands", CALLER, commands.run_command, body=wire.Delete, answer=wire.AckEvent,
             refusals=(403, 404, 409, 429), headers=("Linnet-Device",)),
    Endpoint("POST", "/v1/messages", CALLER, messages.send_message, body=types.NewMessage, answer=types.Sent,
             refusals=(403, 404, 409, 429), headers=("Idempotency-Key",)),
)  # fmt: skip


TUS: Final = ("Tus-Resumable", "Upload-Length", "Upload-Metadata")
MEDIA: Final = (
    Endpoint("POST", "/v1/uploads", CALLER, uploads.upload_file, status=201, query=types.UploadQuery,
             answer=types.Uploaded, refusals=(400, 413, 415, 429), headers=("Linnet-Name",), raw_body=True),
    Endpoint("POST", "/v1/uploads/links", CALLER, uploads.make_links, body=types.LinkRequest, answer=types.LinksMade),
    Endpoint("OPTIONS", "/v1/uploads/tus", OPEN, tus.get_tus_options, status=204, always=tus.ALWAYS),
    Endpoint("POST", "/v1/uploads/tus", CALLER, tus.create_tus, status=201, refusals=(400, 413, 429), raw_body=True,
             always=tus.ALWAYS, headers=TUS),
    Endpoint("HEAD", "/v1/uploads/tus/{upload}", CALLER, tus.head_tus, refusals=(404, 423), always=tus.ALWAYS,
             headers=TUS[:1]),
    Endpoint("PATCH", "/v1/uploads/tus/{upload}", CALLER, tus.patch_tus, status=204,
             refusals=(400, 404, 409, 413, 415, 423), raw_body=True, always=tus.ALWAYS, headers=TUS[:1]),
    Endpoint("DELETE", "/v1/uploads/tus/{upload}", CALLER, tus.delete_tus, status=204, refusals=(404,),
             always=tus.ALWAYS, headers=TUS[:1]),
    Endpoint("GET", "/v1/uploads/{sha256}", CALLER, uploads.get_file, query=types.FileQuery, refusals=(404,),
             raw_answer=(206, 304, 307, 416)),
    Endpoint("DELETE", "/v1/uploads/{sha256}", SERVER, uploads.delete_file, status=204),
    Endpoint("GET", "/v1/files/{sha256}", OPEN, uploads.get_linked_file, query=types.LinkQuery, refusals=(404,),
             raw_answer=(206, 304, 416)),
)  # fmt: skip


@cache  # both documents take milliseconds to make and need no authentication
def _document(settings: Settings) -> bytes:
    return msgspec.json.encode(document(endpoints(settings)))


@cache
def _wire() -> bytes:
    return msgspec.json.encode(wire.schema())


async def _get_openapi(call: Call, _: None) -> Response:
    """Get this document."""
    return _raw(_document(call.services.settings))


async def _get_schema(_call: Call, _: None) -> Response:
    """Get the JSON Schema of the WebSocket's commands and events."""
    return _raw(_wire())


DOCUMENTS: Final = (
    Endpoint("GET", "/v1/openapi.json", OPEN, _get_openapi, answer=dict[str, Any]),
    Endpoint("GET", "/v1/schema.json", OPEN, _get_schema, answer=dict[str, Any]),
)


class BodyTimeout(BadFrame):
    """The body did not arrive in time."""


def endpoints(settings: Settings) -> tuple[Endpoint, ...]:
    """The rows that this deployment serves; without accounts and without its own tokens there are fewer."""
    own = (ACCOUNTS if settings.accounts else ()) + (TOKENS if settings.jwt_secret else ())
    return own + ALWAYS + (MEDIA if settings.media_url else ()) + DOCUMENTS


def create_app(services: Services) -> Starlette:
    """The API as an ASGI application. It reads X-Forwarded-For itself: serve it with uvicorn's `proxy_headers` off."""
    settings = services.settings
    by_path: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints(settings):
        by_path.setdefault(endpoint.path, {})[endpoint.method] = endpoint

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        services.passwords.close()

    app = Starlette(
        routes=[Route(_route(path), EndpointRoute(services, path, methods)) for path, methods in by_path.items()],
        middleware=_middleware(settings),
        exception_handlers={HTTPException: _unrouted},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


def _route(path: str) -> str:
    """The path as Starlette matches it: a key of the state may contain slashes."""
    return path.replace("{key}", "{key:path}")


def _middleware(settings: Settings) -> list[Middleware]:
    found = [Middleware(Forwarded, proxies=Proxies(settings))]
    if allowed := origins.parse(settings.origins):
        found.append(
            Middleware(
                CORSMiddleware,
                allow_origins=sorted(allowed),
                allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
                allow_headers=ALLOWED_HEADERS,
                expose_headers=EXPOSED_HEADERS,
                max_age=3600,
            )
        )
    return found


class EndpointRoute:
    """One path of the table: an ASGI application that runs the steps around its calls."""

    def __init__(self, services: Services, path: str, methods: Mapping[str, Endpoint]) -> None:
        self._services = services
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
            return _refusal(error, {"Connection": "close"})  # the rest of the body is not read
        except LinnetError as error:
            headers = {"Allow": self._allow} if isinstance(error, MethodNotAllowed) else {}
            if endpoint is not None and endpoint.raw_body:
                headers["Connection"] = "close"
            return _refusal(error, headers)
        except ClientDisconnect:
            return _refusal(BadFrame("the body is incomplete"))
        except Exception:  # a bug: the client gets `internal`, the log the traceback
            log.exception("%s %s failed", request.method, self._path)
            return _refusal(Internal())

    async def _call(self, endpoint: Endpoint, request: Request) -> Response:
        caller = await self._caller(endpoint, request)
        call = Call(self._services, caller, _path(request.path_params), request)
        given = await _given(endpoint, request)
        answer = await endpoint.handler(call, given)
        if isinstance(answer, Response):
            return answer
        if answer is None:
            return Response(status_code=endpoint.status)
        return _json(answer, endpoint.status)

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
        generation = await self._services.accounts.ensure(identity.user, identity.token)
        return Caller(identity.user, False, identity.token, identity.expires_at, generation)

    async def _backend(self, request: Request) -> Caller:
        user = request.headers.get("linnet-user")
        if user is None:
            return Caller(None, server=True)
        if not wire.is_name(user):
            raise BadCommand("Linnet-User must be the name of a user: 1-64 of A-Z a-z 0-9 . _ -")
        await self._services.accounts.ensure(user)
        return Caller(user, server=True)


def _path(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """The path's parameters, validated by type."""
    try:
        msgspec.convert(parameters, types.PathParameters)
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


def _json(value: Any, status: int = 200) -> Response:
    return _raw(msgspec.json.encode(value), status)


def _raw(body: bytes, status: int = 200) -> Response:
    return Response(body, status, {"Cache-Control": "no-store"}, "application/json")


def _refusal(error: LinnetError, headers: Mapping[str, str] | None = None) -> Response:
    body = types.ErrorBody(error.code, error.message)
    if isinstance(error, Conflict):
        body = types.ErrorBody(error.code, error.message, error.reason, error.next, error.version)
    response = _json(types.Error(body), error.status)
    response.headers.update(headers or {})
    if error.status in (429, 503):
        response.headers["Retry-After"] = str(max(1, ceil(error.retry_after or 1)))
    if error.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


async def _unrouted(_request: Request, _error: Exception) -> Response:
    """Answer for an unknown path, the only error that Starlette itself raises here."""
    metrics.HTTP_REQUESTS.labels("unknown", 404).inc()
    return _refusal(NotFound("no such path"))
