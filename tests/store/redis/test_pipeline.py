"""The hot connection with real servers, and with bytes that are cut at every position."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract.errors import FunctionError, Internal, Unavailable
from router.store.redis import pipeline as hot
from router.store.redis.connection import Address, address
from router.store.redis.pipeline import HotConnection, server_error
from tests import support
from tests.store.conftest import LIBRARY

pytestmark = pytest.mark.usefixtures("either_loop")

NOWHERE = Address("127.0.0.1", 1, "", (("PING",),), None)


class Replies(list[object]):
    """Collects the values that callbacks receive; `await replies.until(n)` waits until there are n."""

    def __call__(self, value: object) -> None:
        self.append(value)

    async def until(self, number: int) -> "Replies":
        await support.eventually(lambda: len(self) >= number, every_s=0.001)
        return self


class Transport(asyncio.Transport):
    """The transport of a connection whose bytes the test feeds by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[HotConnection]:
    connection = HotConnection(address(url), LIBRARY.source)
    await connection.connect(10)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def by_hand() -> AsyncIterator[tuple[HotConnection, Transport]]:
    """A connection that is up and has no socket."""
    connection = HotConnection(NOWHERE, LIBRARY.source)
    transport = Transport()
    connection._greeted = asyncio.get_running_loop().create_future()
    connection.connection_made(transport)
    connection.data_received(b"+PONG\r\n")
    assert connection.up
    try:
        yield connection, transport
    finally:
        connection._finished = True
        connection.connection_lost(None)


STREAM = (
    b"+OK\r\n:42\r\n$-1\r\n$0\r\n\r\n$8\r\na\r\nb\r\n\0c\r\n*-1\r\n*0\r\n"
    b"*3\r\n:1\r\n-RATE 12\r\n*2\r\n$1\r\nx\r\n-OOM no\r\n-NOTFOUND gone\r\n>2\r\n+noise\r\n:1\r\n:-7\r\n"
)


def plain(value: object) -> object:
    """The text of an error, so that replies can be compared."""
    return [plain(one) for one in value] if isinstance(value, list) else repr(value)


async def test_replies_survive_a_cut_at_every_byte() -> None:
    """If the stream is cut in two, or into single bytes, the same replies arrive in the same order."""
    length = len(STREAM)
    cuts = [[STREAM[:at], STREAM[at:]] for at in range(1, length)]
    cuts.append([STREAM[at : at + 1] for at in range(length)])
    expected = None
    for pieces in [[STREAM], *cuts]:
        async with by_hand() as (connection, _):
            replies = Replies()
            for _ in range(10):
                connection.call(("GET", "x"), replies)
            for piece in pieces:
                connection.data_received(piece)
            got = plain(replies)
            expected = expected or got
            assert got == expected
            assert len(replies) == 10
            assert connection.statistics().in_flight_bytes == 0
    assert isinstance(expected, list)
    assert expected[:7] == [repr(b"OK"), "42", "None", repr(b""), repr(b"a\r\nb\r\n\0c"), "None", []]
    assert expected[7] == ["1", repr(FunctionError("RATE", "12")), [repr(b"x"), repr(Unavailable())]]
    assert expected[8:] == [repr(FunctionError("NOTFOUND", "gone")), "-7"]


async def test_commands_of_a_tick_leave_in_one_write_and_replies_arrive_in_order(valkey: EmbeddedValkey) -> None:
    async with connected(valkey.url) as connection:
        replies = Replies()
        batches = connection.statistics().batches
        for number in range(500):
            connection.call(("ECHO", number), replies)
        assert list(await replies.until(500)) == [str(number).encode() for number in range(500)]
        assert connection.statistics().batches == batches + 1


async def test_calls_soon_after_a_write_leave_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaves at once; those of the next turns leave in one write, when GATHER_S is over."""
    monkeypatch.setattr(hot, "GATHER_S", 0.5 * support.PATIENCE)
    async with by_hand() as (connection, transport):
        transport.written.clear()
        for _ in range(3):
            connection.call(("PING",), lambda _: None)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert len(transport.written) == 1
        await support.eventually(lambda: len(transport.written) == 2, every_s=0.001)
        assert transport.written[1] == 2 * transport.written[0]


async def test_calls_made_before_the_close_are_written(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also soon after another write, and if no caller waits for their replies."""
    monkeypatch.setattr(hot, "GATHER_S", 60.0)
    async with connected(valkey.url) as connection:
        for value in ("first", "last"):
            connection.call(("SET", "asked", value), lambda _: None)
            await asyncio.sleep(0)
    async with connected(valkey.url) as connection:
        replies = Replies()
        connection.call(("GET", "asked"), replies)
        assert await replies.until(1) == [b"last"]


async def test_every_type_of_argument_is_sent(valkey: EmbeddedValkey) -> None:
    """bytes, str, int and float are sent as Redis expects them; another type is a bug, reported to the callback."""
    async with connected(valkey.url) as connection:
        replies = Replies()
        for part in (b"\0\r\n", "grüße", -5, 1.5):
            connection.call(("ECHO", part), replies)
        assert list(await replies.until(4)) == [b"\0\r\n", "grüße".encode(), b"-5", b"1.5"]
        connection.call(("ECHO", None), replies)  # type: ignore[arg-type] # on purpose
        connection.call(("ECHO", "\ud800"), replies)
        assert len(replies) == 4  # never before the call returned
        assert [type(error) for error in (await replies.until(6))[4:]] == [Internal, Internal]


async def test_callback_may_call_again(valkey: EmbeddedValkey) -> None:
    async with connected(valkey.url) as connection:
        replies = Replies()

        def again(value: object) -> None:
            connection.call(("ECHO", "second"), replies)
            replies(value)

        connection.call(("ECHO", "first"), again)
        assert list(await replies.until(2)) == [b"first", b"second"]


async def test_callback_that_raises_harms_no_other(valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(valkey.url) as connection:
        replies = Replies()

        def raises(_: object) -> None:
            raise RuntimeError

        for _ in range(3):
            connection.call(("PING",), replies)
            connection.call(("PING",), raises)
        connection.call(("PING",), replies)
        await replies.until(4)
        assert connection.statistics().callback_errors == 3
        assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_errors_within_arrays_are_values(valkey: EmbeddedValkey) -> None:
    """After a failed command in a transaction, and an error in a function's reply, the rest is readable."""
    async with connected(valkey.url) as connection:
        replies = Replies()
        for command in (("SET", "s", "1"), ("MULTI",), ("LPUSH", "s", "x"), ("GET", "s"), ("EXEC",)):
            connection.call(command, replies)
        connection.call(("FCALL", "nested_00000000", 0), replies)
        connection.call(("FCALL", "broken_00000000", 0), replies)
        executed, nested, broken = (await replies.until(7))[4:]
        assert isinstance(executed, list)
        assert isinstance(executed[0], FunctionError)
        assert executed[0].reply_code == "WRONGTYPE"
        assert executed[1] == b"1"
        assert plain(nested) == ["1", repr(FunctionError("RATE", "12")), repr(b"after")]
        assert isinstance(broken, FunctionError)
        assert broken.reply_code == "ERR"
        assert broken.detail.endswith("boom")
        assert connection.statistics().errors["WRONGTYPE"] == 1


@pytest.mark.parametrize("code", sorted(hot.UNAVAILABLE))
def test_temporary_error_of_redis_is_unavailable(code: str) -> None:
    error = server_error(f"{code} some text")
    assert isinstance(error, Unavailable)
    assert error.retry_after


def test_server_that_became_a_cluster_node_is_unavailable() -> None:
    """Functions that touch two slots end with these errors; the resend is answered by a process in cluster mode."""
    for text in (
        "CROSSSLOT Keys in request don't hash to the same slot",
        "ERR Script attempted to access keys that do not hash to the same slot script: append_1, on @user_function:8.",
        "ERR Attempted to access a non local key in a cluster node script: append_1, on @user_function:8.",
    ):
        assert isinstance(server_error(text), Unavailable)


def test_errors_of_functions_keep_code_and_detail() -> None:
    """Redis appends the position in the script to raised errors; it is not part of the detail."""
    for text, code, detail in (
        ("NOTFOUND", "NOTFOUND", ""),
        ("ERR NOTFOUND", "NOTFOUND", ""),
        ("ERR syntax error", "ERR", "syntax error"),
        ("READONLY_ you may read", "READONLY_", "you may read"),
        ("RATE 123456 script: append_1, on @user_function:8.", "RATE", "123456"),
    ):
        error = server_error(text)
        assert isinstance(error, FunctionError)
        assert (error.reply_code, error.detail) == (code, detail)


async def test_calls_beyond_the_bounds_are_refused_at_once(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound on calls and one on bytes; calls that were accepted before are answered."""
    async with connected(valkey.url) as connection:
        monkeypatch.setattr(hot, "MAX_CALLS", 10)
        replies = Replies()
        for number in range(12):
            connection.call(("ECHO", number), replies)
        await replies.until(12)
        assert sum(isinstance(reply, Unavailable) for reply in replies) == 2
        monkeypatch.setattr(hot, "MAX_BYTES", 1000)
        replies = Replies()
        for _ in range(3):
            connection.call(("ECHO", b"x" * 800), replies)
        await replies.until(3)
        assert sum(isinstance(reply, Unavailable) for reply in replies) == 1
        assert connection.statistics().refused == 3
        assert connection.statistics().in_flight_bytes == 0


async def test_calls_that_wait_for_the_library_count_towards_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that missed it, and the calls made while it loads."""
    monkeypatch.setattr(hot, "MAX_CALLS", 10)
    async with by_hand() as (connection, _):
        replies = Replies()
        for number in range(6):
            connection.call(("ECHO", number), replies)
        connection.data_received(b"-ERR Function not found\r\n" * 6)
        for number in range(6):
            connection.call(("ECHO", number), replies)
        await replies.until(3)
        assert [type(reply) for reply in replies] == [Unavailable] * 3
        assert (connection.statistics().refused, connection.statistics().in_flight) == (3, 10)


async def test_killed_server_fails_every_call_once_and_is_redialed(own_valkey: EmbeddedValkey) -> None:
    """Calls in flight at the kill and calls during the outage are `Unavailable`; after the restart calls work."""
    async with connected(own_valkey.url) as connection:
        replies = Replies()
        connection.call(("SET", "kept", "1"), replies)
        await replies.until(1)
        os.kill(own_valkey.pid, signal.SIGSTOP)  # so that all of these are in flight when it dies
        for _ in range(100):
            connection.call(("INCR", "x"), replies)
        own_valkey.kill()
        await replies.until(101)
        assert all(isinstance(reply, Unavailable) for reply in replies[1:])
        assert not connection.up
        connection.call(("PING",), replies)
        assert len(replies) == 101
        assert isinstance((await replies.until(102))[-1], Unavailable)
        own_valkey.start()
        await support.eventually(lambda: connection.up)
        connection.call(("GET", "kept"), replies)
        assert (await replies.until(103))[-1] == b"1"
        assert connection.statistics().reconnects == 1
        assert connection.statistics().in_flight_bytes == 0


async def test_silent_server_is_abandoned(own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a reply within the timeout the connection is dropped, the call is `Unavailable`, and a redial follows."""
    monkeypatch.setattr(hot, "TIMEOUT_S", 2.0)
    async with connected(own_valkey.url) as connection:
        replies = Replies()
        connection.call(("CLIENT", "PAUSE", 60_000, "WRITE"), replies)
        await replies.until(1)
        connection.call(("SET", "x", "1"), replies)
        assert isinstance((await replies.until(2))[-1], Unavailable)
        await support.eventually(lambda: connection.up)
        assert connection.statistics().timeouts == 1


async def test_idle_connection_is_kept(own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeout is one of calls: without calls in flight, and with answered calls, the connection is kept."""
    monkeypatch.setattr(hot, "TIMEOUT_S", 1.0)
    async with connected(own_valkey.url) as connection:
        for _ in range(15):  # each pause ends with the server's next cron, a tenth of a second later
            replies = Replies()
            connection.call(("CLIENT", "PAUSE", 5, "ALL"), replies)
            connection.call(("PING",), replies)
            await replies.until(2)
        assert connection.statistics().timeouts == 0


Answer = Callable[[bytes, asyncio.StreamWriter], None]


@asynccontextmanager
async def scripted(answer: Answer) -> AsyncIterator[str]:
    """A server that answers with the test's function."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Future[None]] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                answer(data, writer)
        writer.close()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.ensure_future(talk(reader, writer)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await asyncio.gather(*tasks)


async def test_server_that_loads_its_data_set_is_not_up() -> None:
    asked = 0

    def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(b"-LOADING data set\r\n" if asked < 4 else b"+PONG\r\n")

    async with scripted(answer) as url, connected(url) as connection:
        assert asked == 4
        assert connection.up


@pytest.mark.parametrize("last", [b"$10\r\nabc", b"what is this", b"+OK\r\n+unasked\r\n"])
async def test_broken_reply_drops_the_connection_and_answers_every_call(last: bytes) -> None:
    """A cut reply, garbage, or one reply too many: all waiting calls are `Unavailable`, and a redial follows."""

    def answer(data: bytes, writer: asyncio.StreamWriter) -> None:
        if b"PING" in data:
            writer.write(b"+PONG\r\n")
        else:
            writer.write(last)
            writer.close()

    async with scripted(answer) as url, connected(url) as connection:
        replies = Replies()
        connection.call(("GET", "x"), replies)
        await replies.until(1)
        assert isinstance(replies[0], Unavailable) or replies[0] == b"OK"
        await support.eventually(lambda: connection.reconnects == 1 and connection.up)


async def test_callback_of_a_lost_call_finds_the_connection_down(own_valkey: EmbeddedValkey) -> None:
    """So it does not call in vain."""
    async with connected(own_valkey.url) as connection:
        told: list[bool] = []
        os.kill(own_valkey.pid, signal.SIGSTOP)
        connection.call(("PING",), lambda _: told.append(connection.up))
        own_valkey.restart()
        await support.eventually(lambda: connection.up and told)
        assert told == [False]


class TestFunctionNotFound:
    """The library is loaded when the server reports that a function is missing."""

    async def test_calls_run_again_once_and_in_order(self, valkey: EmbeddedValkey) -> None:
        """The server executes calls before, with and after the miss, in flight or new, in the order of the calls."""
        async with connected(valkey.url) as connection:
            replies = Replies()

            def push(number: int) -> None:
                connection.call(("FCALL", "push_00000000", 1, "list", number), replies)

            def push_more(_: object) -> None:
                for number in range(10, 20):
                    push(number)

            push(0)  # misses
            connection.call(("FUNCTION", "STATS"), push_more)
            for number in range(1, 10):
                push(number)
            await replies.until(20)
            assert list(replies) == list(range(1, 21))
            with valkey.client() as client:
                assert client.lrange("list", 0, -1) == [str(number).encode() for number in range(20)]
            assert connection.statistics().loads == 1
            assert connection.statistics().in_flight_bytes == 0

    async def test_functions_flushed_under_traffic_are_loaded_again(self, valkey: EmbeddedValkey) -> None:
        async with connected(valkey.url) as connection:
            replies = Replies()
            for number in range(100):
                connection.call(("FCALL", "push_00000000", 1, "list", number), replies)
                if number % 30 == 29:
                    with valkey.client() as client:
                        client.function_flush()
                if number % 7 == 0:
                    await replies.until(number)
            await replies.until(100)
            assert sorted(reply for reply in replies if isinstance(reply, int)) == list(range(1, 101))

    async def test_function_that_the_library_lacks_is_unavailable(self, valkey: EmbeddedValkey) -> None:
        """After one load and a second try; the calls beside it are not harmed."""
        async with connected(valkey.url) as connection:
            replies = Replies()
            connection.call(("FCALL", "nosuch_00000000", 0), replies)
            connection.call(("FCALL", "echo_00000000", 0, "x"), replies)
            await replies.until(2)
            assert isinstance(replies[0], Unavailable)
            assert replies[1] == [b"x"]

    async def test_failed_load_is_unavailable(self, valkey: EmbeddedValkey) -> None:
        """A server without memory for the library: no call hangs, and a later one tries again."""
        async with connected(valkey.url) as connection:
            with valkey.client() as client:
                client.config_set("maxmemory", 1)
                replies = Replies()
                connection.call(("FCALL", "echo_00000000", 0, "x"), replies)
                assert isinstance((await replies.until(1))[0], Unavailable)
                client.config_set("maxmemory", 0)
            connection.call(("FCALL", "echo_00000000", 0, "x"), replies)
            assert (await replies.until(2))[1] == [b"x"]

    async def test_two_simultaneous_loads_both_succeed(self, valkey: EmbeddedValkey) -> None:
        async with connected(valkey.url) as one, connected(valkey.url) as other:
            replies = Replies()
            for connection in (one, other):
                connection.call(("FCALL", "echo_00000000", 0, "x"), replies)
            assert list(await replies.until(2)) == [[b"x"], [b"x"]]

    async def test_kill_while_the_library_loads_fails_every_call(self, own_valkey: EmbeddedValkey) -> None:
        """Missed calls, calls in flight and held calls are each answered once."""
        async with connected(own_valkey.url) as connection:
            replies = Replies()
            stopped = asyncio.Event()
            connection.call(("FCALL", "echo_00000000", 0, "x"), replies)

            def stop(_: object) -> None:
                os.kill(own_valkey.pid, signal.SIGSTOP)
                connection.call(("FCALL", "echo_00000000", 0, "held"), replies)
                stopped.set()

            connection.call(("PING",), stop)  # its reply arrives with the miss, before the load is written
            await stopped.wait()
            assert connection.statistics().loads == 1
            own_valkey.kill()
            await replies.until(2)
            assert [type(reply) for reply in replies] == [Unavailable, Unavailable]
            assert connection.statistics().in_flight_bytes == 0
