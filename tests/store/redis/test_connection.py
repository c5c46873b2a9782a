"""Addresses, greetings and redials."""

import asyncio
import datetime
import ipaddress
import random
import ssl
from pathlib import Path
from typing import cast
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy.embedded import EmbeddedValkey
from router.contract.errors import StartupError
from router.store.redis import connection as link
from router.store.redis.connection import BACKOFF_S, Address, CommandTemplate, RedisArg, address, backoff, pack
from router.store.redis.pipeline import HotConnection
from tests import support
from tests.store.conftest import proxied
from tests.store.redis.test_pipeline import Replies, connected, scripted

pytestmark = pytest.mark.usefixtures("either_loop")


@pytest.mark.parametrize("last", [(), ("x" * 200, 7, b"\r\n", "")])
@pytest.mark.parametrize("given", [(b"",), (b"\r\n$1\r\n", b"a" * 300, b"z")])
def test_template_packs_the_same_bytes_as_the_whole_command(
    last: tuple[RedisArg, ...], given: tuple[bytes, ...]
) -> None:
    first = ("FCALL", "f", 1, "k\u00e9y", "")
    template = CommandTemplate(("k",), first, len(given), last)
    assert template.packed(given) == template.packed(given) == pack((*first, *given, *last))


def test_address_shows_no_secret() -> None:
    where = address("redis://user:se%40cret@host:7000/3")
    assert str(where) == repr(where) == "host:7000"
    assert where.greeting == (("AUTH", "user", "se@cret"), ("SELECT", "3"), ("PING",))


@pytest.mark.parametrize(
    "url", ["http://x", "redis://:sec/ret@host", "rediss://h?ssl_ca_certs=/nonexistent", "redis://h?db=x"]
)
def test_unusable_url_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(StartupError, match="LINNET_REDIS_URL") as error:
        address(url)
    assert "sec" not in str(error.value)
    assert "\n" not in str(error.value)


def test_backoff_grows_to_its_bound_with_jitter() -> None:
    assert backoff(0) == 0
    assert max(backoff(1) for _ in range(100)) <= BACKOFF_S[0]
    many = [backoff(1000) for _ in range(200)]
    assert max(many) <= BACKOFF_S[1]
    assert max(many) - min(many) > BACKOFF_S[1] / 2


def test_wait_before_a_dial_is_a_fraction_of_the_time_since_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the server is found soon after it is back, however short its restart was."""
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    passed = 0.0
    for failures in range(1, 40):
        longest = backoff(failures)
        assert longest <= 0.06 + passed * 0.3
        passed += longest / 2


class Told:
    """A topology that names the primary; after the first query, the greeting may take its time."""

    def __init__(self, valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
        self.address = address(valkey.url)
        self.epoch = 0
        self.asked = 0
        self._monkeypatch = monkeypatch

    async def primary(self) -> Address:
        self.asked += 1
        self._monkeypatch.setattr(link, "STALE_S", -1.0 if self.asked == 1 else 60.0)
        return self.address


async def test_server_that_greets_too_late_is_dialed_again(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A primary that stalled after the sentinels named it may have been replaced meanwhile."""
    told = Told(valkey, monkeypatch)
    connection = HotConnection(told, b"")
    await connection.connect(10)
    assert told.asked == 2
    await connection.close()


async def test_unreachable_server_stops_the_start(tmp_path: Path) -> None:
    (port,) = support.free_ports(1)
    connection = HotConnection(address(f"redis://:secret@127.0.0.1:{port}"), b"")
    with pytest.raises(StartupError, match=f"127.0.0.1:{port}") as error:
        await connection.connect(2)
    assert "secret" not in str(error.value)


async def test_reason_of_a_failed_dial_stays_while_the_next_one_waits() -> None:
    """The server refuses the first greeting, and does not answer the second."""
    dials: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dials.put_nowait(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connection = HotConnection(address(f"redis://:guess@127.0.0.1:{server.sockets[0].getsockname()[1]}"), b"")
    connection.start()
    first = await dials.get()
    first.write(b"-WRONGPASS invalid password\r\n")
    second = await dials.get()
    why = connection.why
    await connection.close()
    for writer in (first, second):
        writer.close()
    server.close()
    assert "WRONGPASS" in why


async def test_wrong_password_is_reported_and_the_right_one_works(own_valkey: EmbeddedValkey) -> None:
    with own_valkey.client() as client:
        client.config_set("requirepass", "p:a/ss @word")
    wrong = HotConnection(address(own_valkey.url.replace("://", "://:guess@")), b"")
    with pytest.raises(StartupError, match="WRONGPASS"):
        await wrong.connect(2)
    async with connected(own_valkey.url.replace("://", f"://:{quote('p:a/ss @word', safe='')}@")) as connection:
        replies = Replies()
        connection.call(("PING",), replies)
        assert list(await replies.until(1)) == [b"PONG"]


async def test_reason_is_logged_when_it_is_new_and_then_once_a_minute(
    own_valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server is back after an outage with another password: both reasons are logged, each of them once."""
    monkeypatch.setattr(link, "BACKOFF_S", (0.01, 0.01))
    async with connected(own_valkey.url) as connection:
        own_valkey.kill()
        await support.eventually(lambda: connection._failures > 5)
        assert len([record for record in caplog.records if "Connect call failed" in record.getMessage()]) <= 1
        assert connection.why
        own_valkey.start()
        await support.eventually(lambda: connection.up)
        with own_valkey.client() as client:
            client.config_set("requirepass", "new")
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await support.eventually(lambda: "NOAUTH" in connection.why)
        failures = connection._failures
        await support.eventually(lambda: connection._failures > failures + 3)
        told = [record.getMessage() for record in caplog.records if "NOAUTH" in record.getMessage()]
        assert len(told) == 1
        monkeypatch.setattr(link, "LOG_AGAIN_S", 0.0)  # the minute is over
        await support.eventually(lambda: caplog.text.count("NOAUTH") > 2)


@pytest.mark.processes
async def test_unix_socket_and_database_are_used(tmp_path: Path) -> None:
    server = EmbeddedValkey(tmp_path / "v")
    server.start()
    try:
        async with connected(f"unix://{tmp_path}/v/valkey.sock?db=5") as connection:
            replies = Replies()
            connection.call(("CLIENT", "INFO"), replies)
            (info,) = await replies.until(1)
            assert b" db=5 " in cast(bytes, info)
    finally:
        server.kill()


def certificate(folder: Path, host: str = "") -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, or for a name, and its key."""
    subject = x509.DNSName(host) if host else x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([subject]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_certificate_is_verified(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """A server whose certificate the URL's CA has signed is used; without that CA it is refused."""
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    async with proxied(valkey.url, context) as proxy:
        async with connected(f"{proxy.url}?ssl_ca_certs={cert}") as connection:
            replies = Replies()
            connection.call(("ECHO", b"x" * 100_000), replies)
            assert list(await replies.until(1)) == [b"x" * 100_000]
        untrusting = HotConnection(address(proxy.url), b"")
        with pytest.raises(StartupError, match="CERTIFICATE_VERIFY_FAILED"):
            await untrusting.connect(2)


async def test_server_that_accepts_and_stays_silent_is_abandoned(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dialing has a deadline that includes the greeting; the next attempt succeeds."""
    monkeypatch.setattr("router.store.redis.connection.DIAL_S", 0.1)
    async with proxied(valkey.url) as proxy:
        proxy.swallow = True
        connection = HotConnection(address(proxy.url), b"")
        connecting = asyncio.ensure_future(connection.connect(15))
        await support.eventually(lambda: proxy.accepted >= 3)
        proxy.swallow = False
        await connecting
        await support.eventually(
            lambda: sum(not task.done() for task in proxy.tasks) == 1
        )  # no failed one is left open
        await connection.close()


async def test_link_that_is_lost_soon_after_opening_backs_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that greets and disconnects is not dialed in a tight loop; after a long connection there is no delay."""

    hangs_up = False

    def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+PONG\r\n")
        if hangs_up:
            writer.close()

    async with scripted(answer) as url, connected(url) as connection:
        hangs_up = True
        connection.drop("the first of many")
        await support.eventually(lambda: connection.reconnects >= 4)
        assert connection._failures >= 4
        monkeypatch.setattr("router.store.redis.connection.YOUNG_S", -1.0)
        await support.eventually(lambda: connection._failures == 0)


async def test_dial_that_succeeds_as_its_time_runs_out_leaves_one_keeper(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two keepers would dial two sockets, and the replies of one would answer the calls of the other."""
    dials: list[asyncio.Timeout] = []
    counts: list[int] = []
    timeout = asyncio.timeout

    def kept(delay: float | None) -> asyncio.Timeout:
        made = timeout(delay)
        if delay == link.DIAL_S:
            dials.append(made)
        return made

    def count() -> None:
        counts.append(sum("._keep " in repr(task.get_coro()) for task in asyncio.all_tasks()))

    class Connection(HotConnection):
        def opened(self) -> None:
            super().opened()
            if len(dials) == 1:
                dials[0]._on_timeout()  # type: ignore[attr-defined]  # the loop's own call, in the turn we want it in

        def closed(self, why: str) -> None:
            super().closed(why)
            asyncio.get_running_loop().call_soon(count)

    monkeypatch.setattr(asyncio, "timeout", kept)
    async with proxied(valkey.url) as proxy:
        connection = Connection(address(proxy.url), b"")
        await connection.connect(10)
        assert (counts, proxy.accepted) == ([1], 2)
        replies = Replies()
        for n in range(10):
            connection.call(("ECHO", n), replies)
        assert list(await replies.until(10)) == [b"%d" % n for n in range(10)]
        await connection.close()
