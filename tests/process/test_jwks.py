"""Fetches of the provider's key set, from a real server that misbehaves."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm

from router.contract.errors import StartupError
from router.contract.settings import Settings
from router.contract.verifier import Verifier
from router.process import jwks
from router.process.jwks import fetcher
from tests.support import eventually


@asynccontextmanager
async def provider(answer: bytes, hold: asyncio.Event | None = None) -> AsyncIterator[str]:
    """A server that sends these bytes to each connection and keeps it open while the context lasts."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        if hold is not None:
            await hold.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    finally:
        if hold is not None:
            hold.set()
        server.close()
        await server.wait_closed()


def http(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (status.encode(), len(body), body)


async def test_token_of_the_provider_is_accepted() -> None:
    """From the URL alone to an identity."""
    private = ed25519.Ed25519PrivateKey.generate()
    document = f'{{"keys": [{OKPAlgorithm.to_jwk(private.public_key())}]}}'
    async with provider(http(document.encode())) as url:
        verifier = Verifier(Settings(jwks_url=url), fetcher(url))
        token = jwt.encode({"sub": "ada", "exp": 2_000_000_000}, private, algorithm="EdDSA")
        assert (await verifier.identity(token, 1_700_000_000_000)).user == "ada"


@pytest.mark.parametrize("answer", [http(b"", "500 Oops"), http(b"x" * 300_000), b"nonsense\r\n\r\n", b""])
async def test_wrong_answer_is_an_oserror(answer: bytes) -> None:
    """An error status, too many bytes, no HTTP, or no answer: the verifier handles an OSError."""
    async with provider(answer) as url:
        with pytest.raises(OSError):  # noqa: PT011  # whichever
            await fetcher(url)()


async def test_fetch_from_a_stalled_provider_ends_with_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fetch takes no longer than the limit."""
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.05)
    async with provider(b"HTTP/1.1 200 OK\r\n", asyncio.Event()) as url:
        with pytest.raises(OSError, match="no answer within"):
            await fetcher(url)()


async def test_fetch_from_a_slow_provider_ends_without_holding_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends one byte at a time, in head or body; the fetch ends with the limit and closes the connection."""
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.2)
    ended = 0

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        head = (await reader.readuntil(b"\r\n\r\n")).partition(b" ")[2]
        writer.write(b"HTTP/1.1 200 OK\r\n" + (b"X-Long: " if head.startswith(b"/head") else b"\r\n"))
        with suppress(OSError):
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0)
        ended += 1
        writer.close()

    threads = threading.active_count()
    server = await asyncio.start_server(dribble, "127.0.0.1", 0)
    async with server:
        base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for path in ("/head", "/body"):
            with pytest.raises(OSError, match=r"no answer within|can't parse|too"):
                await asyncio.wait_for(fetcher(base + path)(), 30)
        await eventually(lambda: ended == 2)
    assert threading.active_count() == threads


async def test_redirect_of_the_key_set_is_not_followed() -> None:
    """A redirect is a failure: keys come only from the URL of the setting."""
    async with provider(http(b'{"keys": []}')) as elsewhere:
        location = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}\r\nContent-Length: 0\r\n\r\n".encode()
        async with provider(location) as url:
            with pytest.raises(OSError, match="status 302"):
                await fetcher(url)()


async def test_proxy_variables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment could answer with other keys."""
    async with provider(http(b"the proxy's")) as proxy, provider(http(b"the provider's")) as url:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.removesuffix("/jwks"))
        monkeypatch.setenv("no_proxy", "")
        assert await fetcher(url)() == b"the provider's"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "jwks.json"])
def test_only_http_urls_are_accepted(url: str) -> None:
    """A wrong setting stops the process instead of reading a file."""
    with pytest.raises(StartupError, match="LINNET_JWKS_URL"):
        fetcher(url)
