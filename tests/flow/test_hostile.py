"""Hostile clients against running processes: the resources that each can hold, use and learn, with figures.

`test_bad_input.py` has malformed input, `test_authorization.py` the roles. Here are slowness, numbers, size, tokens,
origins, names, and the contents of logs and metrics. No other client may be affected (`witness`), and no process may
log a traceback.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import os
import re
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import chain, repeat
from typing import Any, Final
from urllib.parse import quote

import httpx
import jwt
import pytest
import redis.asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm
from websockets.exceptions import InvalidStatus

from router.api.steps import BODY_S
from router.process.bounded import HEAD_S
from tests.flow.client import ChatClient, token
from tests.flow.conftest import Names, Start, System
from tests.flow.test_bad_input import BINARY, TEXT, closing, hello, upgraded, witness
from tests.gateway.websocket.client import UPGRADE, RawClient, client_frame
from tests.support import JWT_SECRET, SERVER_KEY, eventually

SILENT_S: Final = 10.0  # that a connection has for its hello
GRACE_S: Final = 20.0  # of a busy machine, on top of a deadline


async def held_s(port: int, parts: Iterator[bytes], every_s: float = 0.5) -> float:
    """Return how long the server keeps a connection that sends one part after the other without end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    with suppress(ConnectionError):
        ended = asyncio.ensure_future(_to_the_end(reader))
        while not ended.done():
            writer.write(next(parts, b""))
            await asyncio.wait([ended], timeout=every_s)
    writer.close()
    return time.monotonic() - began


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    with suppress(ConnectionError):
        return await reader.read()
    return b""


SLOW: Final[dict[str, Callable[[str], Iterator[bytes]]]] = {
    "silence": lambda path: iter(()),
    "a request line that never ends": lambda path: chain([b"GET /"], repeat(b"x")),
    "a header that never ends": lambda path: chain([f"GET {path} HTTP/1.1\r\nHost: x\r\nX-A: ".encode()], repeat(b"b")),
    "headers without end": lambda path: chain([f"GET {path} HTTP/1.1\r\nHost: x\r\n".encode()], repeat(b"X-A: b\r\n")),
    "an upgrade that never ends": lambda path: chain(
        [f"GET {path} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n".encode()],
        repeat(b"X-A: b\r\n"),
    ),
    "empty lines": lambda path: repeat(b"\r\n"),
    "empty lines behind an answer": lambda path: chain([b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n"], repeat(b"\r\n")),
    "a body that nobody asked for": lambda path: chain(
        [b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"], repeat(b"x")
    ),
    "trailers without end": lambda path: chain(
        [b"POST /none HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"], repeat(b"X-A: b\r\n")
    ),
}


async def test_trickled_request_is_dropped_after_ten_seconds(chat: System, names: Names) -> None:
    """Slowloris in all its forms, on every port: the socket is closed HEAD_S after its start. A call that waits for its
    body waits ten seconds for that first."""
    assert chat.router is not None
    gateway = chat.gateways[0]
    login = b"POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    async with witness(chat, names):
        ports = ((gateway.port, "/ws"), (chat.router.port, "/v1/login"), (gateway.admin_port, "/metrics"))
        slow = {(port, why): parts(path) for port, path in ports for why, parts in SLOW.items()}
        *held, body = await asyncio.gather(
            *(held_s(port, parts) for (port, _), parts in slow.items()),
            held_s(chat.router.port, chain([login], repeat(b" "))),
        )
    for what, seconds in zip(slow, held, strict=True):
        assert seconds < HEAD_S + GRACE_S, (what, seconds)
    assert body < BODY_S + HEAD_S + GRACE_S, body


# -- size and numbers


HEADERS: Final = b"GET /ws HTTP/1.1\r\nHost: x\r\n"
ENDLESS: Final[dict[str, tuple[bytes, bytes]]] = {
    "one header": (HEADERS + b"X-A: ", b"b" * 65_536),
    "many headers": (HEADERS, b"X-A: b\r\n" * 8192),
    "a target": (b"GET /", b"x" * 65_536),
    "trailers": (b"POST /ws HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n" * 8192),
    "a chunk's extension": (b"POST /ws HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;a=", b"b" * 65_536),
}


@pytest.mark.parametrize("what", ENDLESS)
async def test_headers_trailers_and_framing_are_bounded(chat: System, names: Names, what: str) -> None:
    """256 MiB of them are cut off after 64 KiB and one read, and take no memory."""
    assert chat.router is not None
    begin, more = ENDLESS[what]
    async with witness(chat, names):
        for process in (chat.gateways[0], chat.router):
            before = process.rss_bytes
            _, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.write(begin)
            sent = 0
            with suppress(ConnectionError):
                while sent < 256 << 20:
                    writer.write(more)
                    await writer.drain()
                    sent += len(more)
            writer.close()
            assert sent < 64 << 20, (process.module, sent)  # most of it lies in the sockets' buffers
            assert process.rss_bytes - before < 16 << 20, process.module


async def test_pipelined_requests_are_bounded(chat: System) -> None:
    """Of 5000 requests at once at most twenty are answered, then the connection ends; the others are not buffered."""
    assert chat.router is not None
    for port in (chat.gateways[0].port, chat.router.port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" * 5000)
        answered = (await _to_the_end(reader)).count(b"HTTP/1.1 ")
        writer.close()
        assert answered <= 20  # or none: a reset may overtake them


SIXTEEN_MIB: Final = 16 << 20
PART: Final = 1 << 16


def bomb(inflated: int) -> bytes:
    """A message of zeros, deflated to a thousandth."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (deflate.compress(bytes(inflated)) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def large_messages() -> dict[str, Callable[[], Iterator[bytes]]]:
    """16 MiB, sent to the last byte: in one frame, in fragments, deflated to what fits into a frame."""
    whole = client_frame(b"x" * SIXTEEN_MIB, TEXT)
    first, more, last = (
        client_frame(b"x" * PART, code, fin=fin) for code, fin in ((BINARY, False), (0, False), (0, True))
    )
    packed = bomb(SIXTEEN_MIB)
    halves = client_frame(packed[:99], BINARY, fin=False, reserved=0x40), client_frame(packed[99:], 0)
    return {
        "one frame": lambda: (whole[i : i + PART] for i in range(0, len(whole), PART)),
        "fragments": lambda: chain([first], repeat(more, SIXTEEN_MIB // PART - 2), [last]),
        "a bomb": lambda: iter([client_frame(packed, BINARY, reserved=0x40)]),
        "a bomb in fragments": lambda: iter(halves),
        "a bomb of 128 MiB": lambda: iter([client_frame(bomb(1 << 27), BINARY, reserved=0x40)]),
        "bombs without end": lambda: chain(
            [client_frame(packed, BINARY, fin=False, reserved=0x40)], repeat(client_frame(packed, 0, fin=False), 1000)
        ),
    }


@pytest.mark.alone
async def test_messages_of_sixteen_megabytes_end_their_connections(start: Start, names: Names) -> None:
    """Three times each and all at once, compressed or not: 1009, without memory for any of them, and another client of
    the same gateway gets its pongs within a second, GRACE_S aside."""
    # A busy machine may be longer than two short heartbeats over making and sending all of it in one loop.
    chat = await start(gateways=1, LINNET_HEARTBEAT_S="30")
    (eve,), gateway, large = names("eve"), chat.gateways[0], large_messages()

    async def send(frames: Iterator[bytes], device: str) -> tuple[int, int]:
        raw = await upgraded(chat, {"Sec-WebSocket-Extensions": "permessage-deflate"})
        raw.send(hello(f"{eve}.{device[0]}", device))
        await raw.frame()
        ending, sent = asyncio.ensure_future(closing(raw, answered=False)), 0
        with suppress(ConnectionError):
            for frame in frames:
                raw.send(frame)
                await raw.writer.drain()
                sent += len(frame)
        code, _ = await ending
        raw.abort()
        return code, sent

    async with witness(chat, names) as (walter, _):
        before = peak = gateway.rss_bytes
        ended = asyncio.gather(
            *(send(frames(), f"{i}{j}") for i, frames in enumerate(large.values()) for j in range(3))
        )
        waited: list[float] = []
        while not ended.done():
            began = time.monotonic()
            await walter.ask("ping")
            waited.append(time.monotonic() - began)
            peak = max(peak, gateway.rss_bytes)
        codes = [code for code, _ in await ended]
        assert codes == [1009] * len(codes)
        assert peak - before < 16 << 20
        assert max(waited) < 1 + GRACE_S


async def test_endless_fragments_and_pings_are_closed(chat: System, names: Names) -> None:
    """1008 after some thousands, while the sends of other clients are acked."""
    (eve,) = names("eve")
    empty = client_frame(b"x", TEXT, fin=False) + client_frame(b"", 0, fin=False) * 5000
    for flood in (empty, client_frame(b"", 9) * 5000, client_frame(b"", 10) * 5000):
        async with witness(chat, names):
            raw = await upgraded(chat)
            raw.send(hello(eve))
            await raw.frame()
            raw.send(flood)
            assert (await closing(raw))[0] == 1008


async def test_connections_of_one_address_are_bounded_whatever_it_claims(start: Start) -> None:
    """Of 300 connections from one address 200 are accepted, the others get 429. Forwarded headers count only from named
    proxies, and there the last hop that the proxy itself has seen."""
    system = await start(
        gateways=1, router=False, LINNET_MAX_CONNECTIONS_PER_ADDRESS="200", LINNET_TRUSTED_PROXIES="127.0.0.2"
    )
    held: list[RawClient] = []

    async def upgrades(peer: str, forwarded: Callable[[int], str], count: int = 300) -> tuple[int, int]:
        codes = []
        for i in range(count):
            port = system.gateways[0].port
            raw = RawClient(*await asyncio.open_connection("127.0.0.1", port, local_addr=(peer, 0)))
            held.append(raw)
            codes.append((await raw.request({**UPGRADE, "X-Forwarded-For": forwarded(i)}, target="/ws"))[0])
        return codes.count(101), codes.count(429)

    assert await upgrades("127.0.0.1", lambda i: f"10.0.0.{i}") == (200, 100)
    assert await upgrades("127.0.0.2", lambda i: f"10.0.{i}.1, 10.9.9.9") == (200, 100)
    assert await upgrades("127.0.0.2", lambda i: f"10.9.9.9, 10.8.{i}.8") == (300, 0)
    twice = await upgrades("127.0.0.2", lambda i: f"10.7.{i}.7\r\nX-Forwarded-For: 10.6.6.6")  # as HAProxy adds its own
    assert twice == (200, 100)
    assert await upgrades("127.0.0.3", lambda i: "10.9.9.9", 1) == (1, 0)
    for raw in held[:200]:
        raw.abort()
    gateway = system.gateways[0]

    async def left() -> bool:
        return await system.metric("linnet_gateway_connections", gateway) <= 701

    await eventually(left)
    assert await upgrades("127.0.0.1", lambda i: "", 100) == (100, 0)
    for raw in held[200:]:
        raw.abort()


FLOOD: Final = int(os.environ.get("HOSTILE_CONNECTIONS", "2000"))


@pytest.mark.alone
async def test_flood_of_one_address_is_bounded_and_others_connect(start: Start) -> None:
    """2000 connections (or HOSTILE_CONNECTIONS) of one address, directly and through two proxies: half of them may
    stay, the others get 429 by every way; never is one more open, an idle one costs less than 8 KiB, and other users
    connect and chat as before."""
    share = FLOOD // 2
    proxies = ("127.0.0.8", "127.0.0.9")
    system = await start(
        gateways=1, LINNET_MAX_CONNECTIONS_PER_ADDRESS=str(share), LINNET_TRUSTED_PROXIES="127.0.0.8/31"
    )
    (gateway,) = system.gateways
    held: list[RawClient] = []
    codes: list[int] = []
    turns = iter(range(FLOOD))

    async def attack() -> None:
        for i in turns:
            peer = ("127.0.0.2", *proxies)[i % 3]
            forwarded = {"X-Forwarded-For": ("10.0.0.1", "127.0.0.2", "10.0.0.1, ::ffff:127.0.0.2")[i % 3]}
            raw = RawClient(*await asyncio.open_connection("127.0.0.1", gateway.port, local_addr=(peer, 0)))
            codes.append((await raw.request({**UPGRADE, **forwarded}, target="/ws"))[0])
            if codes[-1] == 101:
                held.append(raw)
            else:
                raw.abort()

    async with witness(system, lambda *given: list(given)) as (walter, _):
        waited: list[float] = []
        before, began, peak = gateway.rss_bytes, time.monotonic(), 0.0
        attacks = asyncio.gather(*(attack() for _ in range(50)))
        while not attacks.done():
            asked = time.monotonic()
            other = ChatClient(f"olga-{len(waited)}")
            await other.connect(system.urls[0])
            await other.sent(f"@{walter.user}", "meanwhile")
            await walter.ask("ping")
            await other.end()
            waited.append(time.monotonic() - asked)
            peak = max(peak, await system.metric("linnet_gateway_connections", gateway))
            await asyncio.wait([attacks], timeout=0.2)
        await attacks
        seconds = time.monotonic() - began
        assert len(codes) == FLOOD
        assert codes.count(101) + codes.count(429) == FLOOD
        assert codes.count(101) == share or seconds > SILENT_S  # connections without a hello are closed, and make room
        assert peak <= share + 3
        assert gateway.rss_bytes - before < share * 8192 + (8 << 20)
        assert max(waited) < 2 + GRACE_S
    for raw in held:
        raw.abort()


# -- tokens

AUDIENCE, ISSUER = "linnet-under-test", "https://id.example"
RSA, OTHER_RSA = (rsa.generate_private_key(65537, 2048) for _ in range(2))
PUBLIC_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    """A good token's claims but for the changes; None takes one away."""
    good = {"sub": "eve", "exp": time.time() + 600, "aud": AUDIENCE, "iss": ISSUER}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def own(key: str = JWT_SECRET, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm="HS256")


def provided(key: rsa.RSAPrivateKey = RSA, algorithm: str = "RS256", kid: str = "one", **headers: Any) -> str:
    return jwt.encode(claims(), key, algorithm=algorithm, headers={"kid": kid, **headers})


def raw_token(
    header: dict[str, Any], key: bytes | None = None, payload: bytes | None = None, digest: str = "sha256"
) -> str:
    """A token that no library would make: any header, any payload, signed by HMAC or not at all."""
    text = f"{b64(json.dumps(header).encode())}.{b64(payload or json.dumps(claims()).encode())}"
    return f"{text}.{b64(hmac.digest(key, text.encode(), digest)) if key else ''}"


def public_jwk(key: rsa.RSAPrivateKey) -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)


HS: Final = {"alg": "HS256", "typ": "JWT"}

WRONG: Final[dict[str, Callable[[], str]]] = {
    "nothing": lambda: "",
    "no JWT": lambda: "eve",
    "dots": lambda: "..",
    "the server key": lambda: SERVER_KEY,
    "the secret itself": lambda: JWT_SECRET,
    "8 KiB and more": lambda: own(pad="x" * 8192),
    "not ASCII": lambda: own() + "\u00e9",
    "alg none": lambda: raw_token({"alg": "none"}),
    "alg None, signed": lambda: raw_token({"alg": "None"}, JWT_SECRET.encode()),
    "no alg": lambda: raw_token({}, JWT_SECRET.encode()),
    "alg of another hash": lambda: raw_token({"alg": "HS512"}, JWT_SECRET.encode(), digest="sha512"),
    "another secret": lambda: own(JWT_SECRET[::-1]),
    "an empty secret": lambda: raw_token(HS, b"\0"),
    "a cut signature": lambda: own()[:-4],
    "a changed payload": lambda: ".".join([own().split(".")[0], b64(json.dumps(claims(sub="ann")).encode()), "AAAA"]),
    "the public key as a secret": lambda: raw_token(HS, PUBLIC_PEM),
    "the public key as a secret, with its kid": lambda: raw_token({**HS, "kid": "one"}, PUBLIC_PEM),
    "RS256, signed with the secret": lambda: raw_token({"alg": "RS256", "kid": "one"}, JWT_SECRET.encode()),
    "another RSA key under a known kid": lambda: provided(OTHER_RSA),
    "PS256 with an RS256 key": lambda: provided(algorithm="PS256"),
    "an unknown kid": lambda: provided(OTHER_RSA, kid="two"),
    "a kid that is a path": lambda: provided(OTHER_RSA, kid="../../etc/passwd"),
    "a kid that is a key of Redis": lambda: provided(OTHER_RSA, kid="linnet:gateways"),
    "a key of its own in the header": lambda: provided(
        OTHER_RSA, jwk=RSAAlgorithm.to_jwk(OTHER_RSA.public_key(), True)
    ),
    "a key set of its own": lambda: provided(OTHER_RSA, jku="http://127.0.0.1:9/keys"),
    "a critical extension": lambda: raw_token({**HS, "crit": ["exp"]}, JWT_SECRET.encode()),
    "another audience": lambda: own(aud="another"),
    "no audience": lambda: own(aud=None),
    "another issuer": lambda: own(iss="https://evil.example"),
    "no issuer": lambda: own(iss=None),
    "not valid yet": lambda: own(nbf=time.time() + 600),
    "expired": lambda: own(exp=time.time() - 1),
    "no expiry": lambda: own(exp=None),
    "an expiry that is text": lambda: raw_token(HS, JWT_SECRET.encode(), json.dumps(claims(exp="never")).encode()),
    "an endless expiry": lambda: raw_token(HS, JWT_SECRET.encode(), json.dumps(claims(exp=float("inf"))).encode()),
    "nobody": lambda: own(sub=None),
    "a number for a user": lambda: raw_token(HS, JWT_SECRET.encode(), json.dumps(claims(sub=7)).encode()),
    "claims that are no object": lambda: raw_token(HS, JWT_SECRET.encode(), b"[]"),
    **{
        f"a user named {name!r}": partial(own, sub=name)
        for name in ("", "a b", "eve}", "{eve}", "a:b", "eve\n", "eve\0", "../eve", "*", "x" * 65, "é")
    },
}


OF_UNKNOWN_KEYS: Final = ("an unknown kid", "a kid that is a path", "a kid that is a key of Redis")
BY_ANOTHER_NAME: Final = {"expired": ("token_expired", 4501), "8 KiB and more": ("bad_command", 4503)}


@asynccontextmanager
async def provider() -> AsyncIterator[tuple[str, list[float]]]:
    """An identity provider with one key, and when it was asked for it."""
    key = {**public_jwk(RSA), "kid": "one"}
    body = json.dumps({"keys": [key]}).encode()
    asked: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.append(time.monotonic())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys", asked


async def test_malformed_token_is_refused(start: Start) -> None:
    """On the socket `unauthorized` and 4500, or `token_expired` and 4501; over HTTP 401. A token of an unknown key may
    be `unavailable` first, because its key may be new; it is refused when it is shown again after the time in the
    answer. The provider is asked at most once in five seconds."""
    async with provider() as (url, asked):
        system = await start(gateways=1, LINNET_JWKS_URL=url, LINNET_JWT_AUDIENCE=AUDIENCE, LINNET_JWT_ISSUER=ISSUER)
        assert system.router is not None
        began = time.monotonic()
        async with httpx.AsyncClient(base_url=system.router.url, trust_env=False, timeout=60) as http:

            async def refused_on_the_socket(why: str, given: str) -> None:
                while True:
                    client = ChatClient("eve")
                    await client.open(system.urls[0])
                    answer = await client.hello(token=given)
                    close = (await client.gone())[0]
                    if why not in OF_UNKNOWN_KEYS or answer.get("code") != "unavailable":
                        break
                    assert close == 4000
                    await asyncio.sleep(answer["retry_after"])
                assert (answer.get("code"), close) == BY_ANOTHER_NAME.get(why, ("unauthorized", 4500)), (why, answer)

            async def refused_over_http(why: str, given: str) -> None:
                header = {b"Authorization": (f"Bearer {given}" if given else "Bearer").encode()}
                while (answered := await http.get("/v1/conversations", headers=header)).status_code == 503:
                    assert why in OF_UNKNOWN_KEYS, (why, answered.text)
                    await asyncio.sleep(int(answered.headers["Retry-After"]))
                allowed = 422 if given == SERVER_KEY else 401  # the key is for backends, who name a user
                assert answered.status_code == allowed, (why, answered.text)

            async def refused(why: str) -> None:
                given = WRONG[why]()
                await asyncio.gather(refused_on_the_socket(why, given), refused_over_http(why, given))

            for why in WRONG:
                if why not in OF_UNKNOWN_KEYS:
                    await refused(why)
            await asyncio.gather(*map(refused, OF_UNKNOWN_KEYS))
            for good in (own(), provided(), provided(kid="one"), own(aud=["x", AUDIENCE])):
                client = ChatClient("eve")
                assert (await client.connect(system.urls[0], token=good))["type"] == "welcome"
                answered = await http.get("/v1/conversations", headers={"Authorization": f"Bearer {good}"})
                assert answered.status_code == 200
        assert len(asked) <= 2 * (2 + (time.monotonic() - began) / 5)


async def test_upgrade_has_no_ambient_rights(chat: System, names: Names) -> None:
    """Cross-site hijacking gains nothing: a cookie or a query is no token, and a foreign origin in any disguise gets
    403, even with a valid token."""
    (eve,) = names("eve")
    gateway = chat.gateways[0]
    here = f"http://127.0.0.1:{gateway.port}"
    for origin in (
        "https://evil.example", "null", "file://", "", f"{here}.evil.example", f"http://evil.example/?{here}",
        f"http://127.0.0.1:{gateway.port}@evil.example", "http://127.0.0.1", "http://127.0.0.1:1", "*",
        f"{here}, {here}", "http://[", f"http://[{here}", f"{here}_.evil.example", f"{here}`.evil.example",
        f"http://evil127.0.0.1:{gateway.port}", f"http://127.0.0.1.:{gateway.port}", f"ftp://127.0.0.1:{gateway.port}",
    ):  # fmt: skip
        with pytest.raises(InvalidStatus) as refused:
            await ChatClient(eve).open(
                chat.urls[0], additional_headers={"Origin": origin, "Authorization": f"Bearer {token(eve)}"}
            )
        assert refused.value.response.status_code == 403, origin
    raw = await RawClient.connect(gateway.port)
    twice = await raw.request(
        {**UPGRADE, "Host": here[7:], "Origin": f"{here}\r\nOrigin: http://evil.example"}, target="/ws"
    )
    raw.writer.close()
    assert twice[0] == 403
    client = ChatClient(eve)
    cookies = {"Cookie": f"token={token(eve)}; session={token(eve)}", "Origin": here}
    await client.open(f"{chat.urls[0]}?token={token(eve)}", additional_headers=cookies)
    await client.say("hello", device="phone")
    assert (await client.event("error"))["code"] == "unauthorized"
    assert (await client.gone())[0] == 4500


async def test_only_listed_origins_upgrade(start: Start) -> None:
    """LINNET_ORIGINS in any case: exactly those origins; not the host's own, not similar ones, not `null`. A client
    without an origin is no browser, and is accepted."""
    system = await start(gateways=1, router=False, LINNET_ORIGINS="https://chat.example, https://App.Example:8443/")
    host = f"127.0.0.1:{system.gateways[0].port}"

    async def status(origin: str | None) -> int:
        raw = await RawClient.connect(system.gateways[0].port)
        asked = {**UPGRADE, "Host": host} | ({} if origin is None else {"Origin": origin})
        answered = await raw.request(asked, target="/ws")
        raw.writer.close()
        return answered[0]

    for origin in (
        "https://chat.example.evil.example", "https://evilchat.example", "https://evil.chat.example",
        "https://chat.example_.evil.example", "https://chat.example`.evil.example", "https://chat.example@evil.example",
        "https://chatxexample", "https://chat.example:8443", "https://app.example", "http://chat.example", "null", "",
        "file://", f"http://{host}", "https://[chat.example", "https://chat.example\tx", "https://chat.example, x",
        "https://chat.example\r\nOrigin: https://evil.example", "https://evil.example\r\nOrigin: https://chat.example",
    ):  # fmt: skip
        assert await status(origin) == 403, origin
    for good in ("https://chat.example", "https://app.example:8443", "HTTPS://CHAT.EXAMPLE", None):
        assert await status(good) == 101, good


ABUSED: Final[list[tuple[int, dict[str, str]]]] = [
    *(
        (426, {"Sec-WebSocket-Version": text})
        for text in ("12", "14", "0", "-13", "1e1", "13.0", "13, 8", "ab", "9" * 9000)
    ),
    (426, {"Sec-WebSocket-Version": "13\r\nSec-WebSocket-Version: 8"}),
    *((400, {"Sec-WebSocket-Key": text}) for text in ("", "x", "AAAA", "A" * 24, "!" * 24, "A" * 9000)),
    (
        400,
        {"Sec-WebSocket-Key": f"{UPGRADE['Sec-WebSocket-Key']}\r\nSec-WebSocket-Key: {UPGRADE['Sec-WebSocket-Key']}"},
    ),
    (400, {"Content-Length": "10"}),
    (400, {"Transfer-Encoding": "chunked"}),
    (400, {"Sec-WebSocket-Protocol": "linnet.v1.json" + " " * 50_000 + "x"}),
    (400, {"Sec-WebSocket-Protocol": "," * 50_000 + "x"}),
    (101, {"Sec-WebSocket-Protocol": "linnet.v1.json" + "," * 50_000}),
    (101, {"Sec-WebSocket-Extensions": 'a; b="' + "\\c" * 25_000}),
    (101, {"Sec-WebSocket-Extensions": "permessage-deflate" + "; x" * 16_000}),
    (101, {"Sec-WebSocket-Extensions": ", permessage-deflate; server_max_window_bits=99" * 1200}),
    (101, {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits=" + "9" * 50_000}),
]


@pytest.mark.alone
async def test_hostile_upgrade_headers_cost_no_time(chat: System, names: Names) -> None:
    """Invalid versions and keys, and lists that are slow for regular expressions of other servers: each is refused or
    ignored within a second, while other users chat."""
    async with witness(chat, names):
        for status, change in ABUSED:
            took = []
            for _ in range(3):  # the fastest is what it costs; the others waited for the machine
                raw = await RawClient.connect(chat.gateways[0].port)
                began = time.monotonic()
                assert (await raw.request({**UPGRADE, **change}, target="/ws"))[0] == status, str(change)[:100]
                took.append(time.monotonic() - began)
                raw.abort()
            assert min(took) < 1, str(change)[:100]


# -- names

NAMES: Final = (
    "{c}", "a}b", "}{", "u:{x}", "linnet:gateways", "{u1}:convs:ann", "*", "?", "[a-z]", "a\r\nSET x 1", "a\0b", "a b",
    "../ann", "%00", "d:ann:bob", "\u202eann", "a" * 65, "a" * 100_000, "ａnn", "-ann\n",
)  # fmt: skip


async def test_hostile_names_create_no_key(chat: System, names: Names) -> None:
    """In place of a user, a device, a conversation or a key: 4xx and an error, and Redis has only keys of well-formed
    names; paths, queries and headers included."""
    assert chat.router is not None
    (eve_,) = names("eve")
    store = redis.asyncio.Redis.from_url(chat.valkey.url)
    server = {"Authorization": f"Bearer {SERVER_KEY}"}
    eve = ChatClient(eve_)
    await eve.connect(chat.urls[0])
    async with httpx.AsyncClient(base_url=chat.router.url, trust_env=False, headers=server, timeout=60) as http:
        for name in NAMES:
            quoted = quote(name, safe="")
            calls: list[tuple[str, str, Any, dict[str, Any]]] = [
                ("POST", "/v1/accounts", {"user": name, "password": "correct horse"}, {}),
                ("POST", "/v1/login", {"user": name, "password": "correct horse"}, {}),
                ("POST", "/v1/tokens", {"user": name}, {}),
                ("POST", "/v1/conversations", {"kind": "group", "members": [name]}, {}),
                ("POST", "/v1/messages", {"from": eve_, "to": f"@{name}", "body": 1}, {}),
                ("POST", "/v1/messages", {"from": eve_, "to": name, "body": 1}, {}),
                ("POST", "/v1/messages", {"from": name, "to": f"@{eve_}", "body": 1}, {}),
                ("POST", "/v1/messages", {"from": eve_, "to": f"@{eve_}", "body": 1, "device": name, "n": 1}, {}),
                *(
                    (method, f"{path}{quoted[:3000]}", None, {})
                    for method, path in (
                        ("DELETE", "/v1/accounts/"), ("DELETE", f"/v1/sessions/{eve_}/"), ("DELETE", "/v1/sessions/"),
                        ("GET", "/v1/conversations/"), ("GET", "/v1/presence?users="),
                    )
                ),
            ]  # fmt: skip
            if name.isprintable() and name.isascii():
                calls.append(("GET", "/v1/conversations", None, {"Linnet-User": name[:4000]}))
            for method, path, body, headers in calls:
                answer = await http.request(method, path, json=body, headers=headers)
                harmless = (name == ".." and path.endswith("..")) or (path == "/v1/conversations" and not name)
                assert 400 <= answer.status_code < 500 or harmless, (method, path, body, answer.text)
                assert "redis" not in answer.text.lower()
            if len(name) < 1000:
                for kind, fields in (
                    ("send", {"to": name, "n": eve.next_n(), "body": 1}),
                    ("send", {"to": f"@{name}", "n": eve.next_n(), "body": 1}),
                    ("history", {"conversation": name}),
                    ("read", {"conversation": name, "seq": 1}),
                    ("presence", {"users": [name]}),
                ):
                    assert (await eve.ask(kind, **fields))["type"] == "error", (kind, name)
    found = [key.decode(errors="replace") async for key in store.scan_iter(count=5000)]
    await store.aclose()
    assert found
    assert [key for key in found if not KEY.fullmatch(key)] == []


KEY: Final = re.compile(r"[A-Za-z0-9._:{}~/-]{1,300}")


# -- what is told


BAD_ORIGIN: Final = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nOrigin: http://[\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def test_refused_requests_write_at_most_one_line_a_minute(start: Start) -> None:
    """A thousand invalid requests, upgrades on unknown paths and foreign origins: at most one line of each kind in a
    minute, and a count of all."""
    system = await start(gateways=1)
    assert system.router is not None
    gateway, router = system.gateways[0], system.router
    for port, request in (
        (gateway.port, b"NONSENSE\r\n\r\n"), (router.port, b"\x16\x03\x01\x02\x00"),
        (gateway.port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"),
        (router.port, b"GET /none HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        (gateway.port, b"GET /ws HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"),
        (gateway.port, BAD_ORIGIN),
    ):  # fmt: skip
        for _ in range(250):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            assert (await reader.read(64)).startswith(b"HTTP/1.1 4"), request
            writer.close()
    assert await system.metric("linnet_http_refused_total", gateway) == 500
    assert await system.metric("linnet_http_refused_total", router) == 500
    for process in system.processes:
        assert process.log.count("\n") < 10, process.log[-2000:]


async def test_secrets_are_in_no_log_answer_or_metric(start: Start) -> None:
    """At debug level, with valid and invalid tokens, logins, failures and a Redis with a password: no secret of the
    settings, token, password or body is in the logs or metrics of any process."""
    system = await start(gateways=1, LINNET_LOG_LEVEL="debug", LINNET_WEBHOOK_SECRET=WEBHOOK_SECRET)
    assert system.router is not None
    mine, forged, password, body = token("eve"), own("wrong" * 10), "a-password-of-eve", "a-body-of-eve"
    async with httpx.AsyncClient(base_url=system.router.url, trust_env=False, timeout=60) as http:
        await http.post("/v1/accounts", json={"user": "eve", "password": password})
        logged_in = (await http.post("/v1/login", json={"user": "eve", "password": password})).json()["token"]
        answers = [
            await http.post("/v1/login", json={"user": "eve", "password": password + "!"}),
            await http.post("/v1/login", json={"user": ["eve"], "password": password}),
            await http.post("/v1/login", content=b'{"password": "' + password.encode()),
            await http.get("/v1/conversations", headers={"Authorization": f"Bearer {forged}"}),
            await http.get(f"/v1/{SERVER_KEY}", headers={"Authorization": f"Basic {SERVER_KEY}"}),
        ]
    eve = ChatClient("eve")
    await eve.connect(system.urls[0], token=mine)
    await eve.sent("@eve", body)
    await eve.raw(json.dumps({"type": "send", "to": "@eve", "n": body, "body": [body] * 40}))
    await eve.event("error")
    with suppress(InvalidStatus):
        await ChatClient("eve").open(system.urls[0] + f"x?token={mine}", subprotocols=[f"bearer.{mine}"])
    bad = ChatClient("eve")
    await bad.open(system.urls[0])
    answers_ws = await bad.hello(token=forged)
    told = [answer.text for answer in answers] + [json.dumps(answers_ws)]
    for process in system.processes:
        told += [process.log, await process.metrics()]
    assert any(process.log for process in system.processes)
    for secret in (JWT_SECRET, SERVER_KEY, WEBHOOK_SECRET, mine, forged, logged_in, password, body):
        assert not [text for text in told if secret in text], secret


WEBHOOK_SECRET: Final = "a-webhook-secret-for-tests-of-32-bytes"
