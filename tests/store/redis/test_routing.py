"""Redirects step by step, against scripted servers: what is held, what waits for what, and what is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import hiredis
import pytest

from router.contract.errors import Unavailable
from router.store.redis.cluster import Cluster, Owners
from router.store.redis.connection import Address, pack
from router.store.redis.routing import HOLD_S, Line, Routing
from tests import support

pytestmark = pytest.mark.usefixtures("either_loop")

SLOT = 7
OWN = (b"PING", b"CLUSTER")


class Server:
    """A server that answers PING and MYID once all before it is answered, and all else when the test says so."""

    def __init__(self) -> None:
        self.got: list[tuple[bytes, ...]] = []  # all other commands
        self.ident = "a" * 40
        self.writer: asyncio.StreamWriter | None = None
        self.port = 0
        self._open: list[tuple[bytes, ...]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer, self._open = writer, []
        commands = hiredis.Reader()
        with suppress(ConnectionError):  # the client may be gone before the last answer
            while data := await reader.read(65536):
                commands.feed(data)
                while (command := commands.gets()) is not False:
                    self._open.append(tuple(command))
                    if command[0] not in OWN:
                        self.got.append(tuple(command))
                self._pong()
        writer.close()

    def answer(self, *replies: str) -> None:
        """Answer the oldest commands: lines of RESP without their ends."""
        assert self.writer is not None
        for reply in replies:
            del self._open[0]
            self.writer.write(f"{reply}\r\n".encode())
            self._pong()

    def _pong(self) -> None:
        while self._open and self._open[0][0] in OWN and self.writer is not None:
            self.writer.write(f"+{self.ident if self._open.pop(0)[0] == b'CLUSTER' else 'PONG'}\r\n".encode())

    @property
    def waits(self) -> bool:
        """Whether a command has no answer yet."""
        return bool(self._open)

    async def has(self, *names: str) -> None:
        """Wait for these commands; there are no others."""
        await support.eventually(lambda: len(self.got) >= len(names))
        assert self.got == [tuple(name.encode().split()) for name in names]


class Servers:
    """Two servers; the first has all slots. `replies` has the reply to each call, by its name."""

    def __init__(self, first: Server, second: Server) -> None:
        self.first, self.second = first, second
        self._cluster = Cluster(f"redis+cluster://127.0.0.1:{first.port},127.0.0.1:{second.port}")
        self.routing = Routing(self._cluster, b"", lambda: None)
        self.replies: dict[str, object] = {}

    def at(self, server: Server) -> Address:
        return self._cluster.at("127.0.0.1", server.port)

    def line(self, server: Server) -> Line:
        return self.routing.line(self.at(server))

    def map(self, server: Server, ident: str = "") -> None:
        """Take a newer map, in which this server has all slots."""
        at = self.at(server)
        self.routing.take(Owners(((0, 16383, at),), {at: ident} if ident else {}), newer=True)

    def call(self, *names: str) -> None:
        for name in names:
            self.routing.call(SLOT, pack(tuple(name.split())), lambda value, name=name: self._replied(name, value))  # type: ignore[misc]

    def _replied(self, name: str, value: object) -> None:
        assert name not in self.replies, "a second reply"
        self.replies[name] = value

    async def replied(self, *names: str) -> None:
        await support.eventually(lambda: set(self.replies) >= set(names))

    def moved(self, to: Server) -> str:
        return f"-MOVED {SLOT} 127.0.0.1:{to.port}"


@asynccontextmanager
async def serving() -> AsyncIterator[Servers]:
    servers = Server(), Server()
    listeners = [await asyncio.start_server(one.serve, "127.0.0.1", 0) for one in servers]
    for one, listener in zip(servers, listeners, strict=True):
        one.port = listener.sockets[0].getsockname()[1]
    made = Servers(*servers)
    try:
        made.map(servers[0])
        made.line(servers[1])
        await support.eventually(lambda: all(line.up for line in made.routing.lines.values()))
        yield made
    finally:
        await asyncio.gather(*(line.close() for line in made.routing.lines.values()))
        for listener in listeners:
            listener.close()


async def test_redirected_calls_wait_for_those_sent_before_them() -> None:
    """The second call is on its way to the old server. Neither the first nor a new one may reach the new one before."""
    async with serving() as s:
        s.call("GET 1")
        await s.first.has("GET 1")
        s.call("GET 2")
        await s.first.has("GET 1", "GET 2")
        s.first.answer(s.moved(s.second))
        await support.eventually(lambda: s.routing.held() == (1, 1))
        s.call("GET 3")
        assert s.routing.held() == (1, 2)
        assert s.second.got == []
        s.first.answer(s.moved(s.second))
        await s.second.has("GET 1", "GET 2", "GET 3")
        s.second.answer("+1", "+2", "+3")
        await s.replied("GET 1", "GET 2", "GET 3")
        assert s.replies == {"GET 1": b"1", "GET 2": b"2", "GET 3": b"3"}
        assert s.routing.waiting == (0, 0)
        assert s.routing.owner(SLOT) is s.line(s.second)


async def test_new_map_lets_no_call_overtake_one_on_its_way() -> None:
    """No redirect has come yet: the old server may still execute the call, or redirect it."""
    async with serving() as s:
        s.call("GET 1")
        await s.first.has("GET 1")
        s.map(s.second)
        s.call("GET 2")
        assert s.routing.held() == (1, 1)
        s.first.answer(s.moved(s.second))
        await s.second.has("GET 1", "GET 2")
        s.second.answer("+1", "+2")
        await s.replied("GET 1", "GET 2")


async def test_server_that_was_replaced_and_is_silent_is_left() -> None:
    """Its calls are `unavailable`, since it may have executed them; the call behind them goes to its successor."""
    async with serving() as s:
        s.call("GET 1")
        await s.first.has("GET 1")
        s.map(s.second)
        s.call("GET 2")
        await s.second.has("GET 2")
        s.second.answer("+2")
        await s.replied("GET 1", "GET 2")
        assert isinstance(s.replies["GET 1"], Unavailable)
        assert s.replies["GET 2"] == b"2"


async def test_call_in_flight_on_a_lost_connection_is_not_sent_again() -> None:
    """Its outcome is unknown. A redirected call was not executed, so it is."""
    async with serving() as s:
        s.call("GET 1", "GET 2")
        await s.first.has("GET 1", "GET 2")
        s.first.answer(s.moved(s.second))
        await support.eventually(lambda: s.routing.held() == (1, 1))
        assert s.first.writer is not None
        s.first.writer.close()
        await s.second.has("GET 1")
        s.second.answer("+1")
        await s.replied("GET 1", "GET 2")
        assert isinstance(s.replies["GET 2"], Unavailable)


async def test_ask_sends_once_to_the_target_and_keeps_the_owner() -> None:
    async with serving() as s:
        s.call("GET 1", "GET 2")
        await s.first.has("GET 1", "GET 2")
        s.first.answer(*[f"-ASK {SLOT} 127.0.0.1:{s.second.port}"] * 2)
        await s.second.has("ASKING", "GET 1", "ASKING", "GET 2")
        s.second.answer("+OK", "+1", "+OK", "+2")
        await s.replied("GET 1", "GET 2")
        assert s.routing.owner(SLOT) is s.line(s.first)
        s.call("GET 3")
        await s.first.has("GET 1", "GET 2", "GET 3")
        s.first.answer("+3")
        await s.replied("GET 3")


async def test_target_of_an_ask_that_is_down_does_not_keep_the_slot_from_its_owner() -> None:
    """The keys that have not moved are still at the owner. Calls that go on coming do not make the hold endless."""
    async with serving() as s:
        s.call("GET 1")
        await s.first.has("GET 1")
        await s.line(s.second).close()
        s.first.answer(f"-ASK {SLOT} 127.0.0.1:{s.second.port}")
        await support.eventually(lambda: s.routing.held() == (1, 1))
        tries = 1
        while not s.first.waits:
            tries += 1
            assert tries < 2000, "the slot is not served again"
            s.call(f"GET {tries}")
            await asyncio.sleep(0.01)
        assert isinstance(s.replies["GET 1"], Unavailable)
        while f"GET {tries}" not in s.replies:
            if s.first.waits:
                s.first.answer("+here")
            await asyncio.sleep(0)
        assert s.replies[f"GET {tries}"] == b"here"


@pytest.mark.parametrize("why", ["TRYAGAIN", "CLUSTERDOWN", "LOADING"])
async def test_call_that_cannot_be_served_now_is_tried_again(why: str) -> None:
    async with serving() as s:
        s.call("GET 1")
        await s.first.has("GET 1")
        s.first.answer(f"-{why} not now")
        await s.first.has("GET 1", "GET 1")
        s.first.answer("+1")
        await s.replied("GET 1")
        assert s.replies == {"GET 1": b"1"}
        assert s.routing.redirects[why] == 1


async def test_server_that_says_the_cluster_is_down_does_not_count_as_one_that_serves() -> None:
    """This ends when it says otherwise. Within HOLD_S its calls are tried again, later ones are refused at once."""
    async with serving() as s:
        line = s.line(s.first)
        s.call("GET 1")
        await s.first.has("GET 1")
        s.first.answer("-CLUSTERDOWN Hash slot not served")
        await s.first.has("GET 1", "GET 1")
        assert s.routing.serving == [line]
        s.first.answer("-CLUSTERDOWN The cluster is down")
        await support.eventually(lambda: not s.routing.serving)
        assert line.up
        while "GET 1" not in s.replies:
            if s.first.waits:
                s.first.answer("-CLUSTERDOWN The cluster is down")
            await asyncio.sleep(0)
        await support.eventually(lambda: asyncio.get_running_loop().time() - line.down_since > HOLD_S)
        sent = len(s.first.got)
        s.call("GET 2")
        await s.replied("GET 2")
        assert isinstance(s.replies["GET 2"], Unavailable)
        assert len(s.first.got) == sent
        line.note_state(serves=True)
        assert s.routing.serving == [line]
        s.call("GET 3")
        await support.eventually(lambda: len(s.first.got) > sent)
        s.first.answer("+3")
        await s.replied("GET 3")
        assert s.replies["GET 3"] == b"3"


async def test_servers_that_send_each_other_a_call_do_not_keep_it() -> None:
    """Each says that the other one has the slot: the call ends within the time of a hold, with few tries."""
    async with serving() as s:
        s.call("GET 1")
        tries = 0
        while not s.replies:
            for server, other in ((s.first, s.second), (s.second, s.first)):
                if server.waits:
                    server.answer(s.moved(other))
                    tries += 1
            await asyncio.sleep(0)
        assert isinstance(s.replies["GET 1"], Unavailable)
        assert 2 < tries < 50
        assert s.routing.waiting == (0, 0)


async def test_server_at_the_address_of_another_one_gets_no_calls() -> None:
    """Addresses are used again: the server that answers must be the one that the map names there."""
    async with serving() as s:
        s.map(s.first, s.first.ident)
        assert s.line(s.first).up
        s.first.ident = "b" * 40
        s.line(s.first).drop("the test")
        await support.eventually(lambda: "another server" in s.line(s.first).why)
        s.call("GET 1")
        await s.replied("GET 1")
        assert isinstance(s.replies["GET 1"], Unavailable)
        assert s.first.got == []
        s.map(s.first, "b" * 40)
        await support.eventually(lambda: s.line(s.first).up)
        s.map(s.first, "c" * 40)
        await support.eventually(lambda: not s.line(s.first).up)
