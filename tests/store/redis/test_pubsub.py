"""The bus with a real server: confirmations, order, losses, deafness."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract.keys import Channels
from router.store.redis import pubsub as bus_module
from router.store.redis.client import Client
from router.store.redis.connection import address
from router.store.redis.pubsub import Bus
from tests import support
from tests.store.conftest import LIBRARY, Proxy, proxied

pytestmark = pytest.mark.usefixtures("either_loop")


class Listener:
    """A bus, its client, and all callbacks of the bus, in order."""

    def __init__(self, client: Client, url: str) -> None:
        self.client = client
        self.told: list[str] = []
        self.messages: list[tuple[bytes, bytes]] = []
        self.batches: list[int] = []
        self.bus = Bus(
            client,
            "echo",
            self._take,
            lambda: self.told.append("lost"),
            lambda: self.told.append("restored"),
            lambda channels: self.told.extend(f"channel {channel.decode()}" for channel in channels),
        )
        self.bus.topology = address(url)

    def _take(self, messages: list[tuple[bytes, bytes]]) -> None:
        self.messages += messages
        self.batches.append(len(messages))

    async def subscribed(self, *channels: str) -> bool:
        ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.bus.subscribe(channels, ready.set_result)
        assert not ready.done()  # never before the call returned
        return await ready

    async def heard(self, payload: bytes) -> None:
        await support.eventually(lambda: any(message[1] == payload for message in self.messages), every_s=0.001)

    async def publish(self, channel: str, payload: str) -> int:
        """Publish a payload; return the number of connections that received it."""
        reached = await self.client.fetch("SPUBLISH", channel, payload)
        assert isinstance(reached, int)
        return reached


def _same(left: list[str], right: list[str]) -> bool:
    return left == right


@asynccontextmanager
async def listening(server: EmbeddedValkey, through: Proxy | None = None) -> AsyncIterator[Listener]:
    client = await Client.connect(server.url, library=LIBRARY)
    listener = Listener(client, through.url if through else server.url)
    try:
        await listener.bus.connect(10)
        yield listener
    finally:
        await listener.bus.close()
        await client.close()


async def test_ready_means_that_messages_arrive(valkey: EmbeddedValkey) -> None:
    """A message published after `ready(True)` arrives; without a subscription none does."""
    async with listening(valkey) as listener:
        assert await listener.publish("a", "too early") == 0
        assert await listener.subscribed("a", "b")
        for channel in ("a", "b"):
            assert await listener.publish(channel, f"on {channel}") == 1
        await listener.heard(b"on b")
        assert listener.messages == [(b"a", b"on a"), (b"b", b"on b")]
        assert listener.told == []


async def test_many_channels_of_a_tick_are_sent_in_few_requests(valkey: EmbeddedValkey) -> None:
    async with listening(valkey) as listener:
        loop = asyncio.get_running_loop()
        waiting = [loop.create_future() for _ in range(2000)]
        for number, ready in enumerate(waiting):
            listener.bus.subscribe([f"c{number}"], ready.set_result)
        await asyncio.sleep(0)
        assert listener.bus.statistics().requests_in_flight <= 5
        assert all(await asyncio.gather(*waiting))
        assert await listener.publish("c1999", "x") == 1
        assert listener.bus.statistics().channels == 2001  # and the echo


async def test_subscribing_twice_is_ready_twice(valkey: EmbeddedValkey) -> None:
    """At the same time or one after the other: each callback is called when the channel is confirmed."""
    async with listening(valkey) as listener:
        assert all(await asyncio.gather(listener.subscribed("a"), listener.subscribed("a", "b")))
        assert await listener.subscribed("a")
        assert await listener.subscribed()
        assert await listener.publish("a", "x") == 1
        await listener.heard(b"x")
        assert len(listener.messages) == 1


async def test_leaving_and_returning_in_any_rhythm_ends_subscribed(valkey: EmbeddedValkey) -> None:
    """In one tick, or while the first request is in flight."""
    async with listening(valkey) as listener:
        bus = listener.bus
        assert await listener.subscribed("a")
        bus.unsubscribe(["a"])
        assert await listener.subscribed("a")
        assert await listener.publish("a", "same tick") == 1
        bus.unsubscribe(["a"])
        await asyncio.sleep(0)  # the request leaves
        assert await listener.subscribed("a")
        assert await listener.publish("a", "in flight") == 1
        bus.subscribe(["b"])
        bus.unsubscribe(["b", "never wanted"])
        assert await listener.subscribed()
        assert await listener.publish("b", "x") == 0
        await listener.heard(b"in flight")


async def test_messages_are_passed_on_before_later_confirmations(valkey: EmbeddedValkey) -> None:
    """A message on `a` before `b` was confirmed is passed on before `ready`, even if one read contains both."""
    async with listening(valkey) as listener:
        assert await listener.subscribed("a")
        bus = listener.bus
        order: list[object] = []
        bus._on_messages = order.extend
        bus.subscribe(["b"], order.append)
        await asyncio.sleep(0)
        bus.data_received(b"*3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$1\r\n1\r\n*3\r\n$10\r\nssubscribe\r\n$1\r\nb\r\n:2\r\n")
        assert order == [(b"a", b"1"), True]
        bus._finished = True  # the real confirmation would be one too many


async def test_messages_survive_a_cut_at_every_byte(valkey: EmbeddedValkey) -> None:
    stream = b"".join(
        b"*3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$%d\r\n%b\r\n" % (len(payload), payload)
        for payload in (b"", b"\r\n*3\r\n", b"x" * 30, b"\0")
    )
    expected = [(b"a", payload) for payload in (b"", b"\r\n*3\r\n", b"x" * 30, b"\0")]
    async with listening(valkey) as listener:
        for at in range(1, len(stream)):
            listener.messages.clear()
            listener.bus.data_received(stream[:at])
            listener.bus.data_received(stream[at:])
            assert listener.messages == expected


async def test_flood_is_passed_on_in_bounded_batches_and_in_order(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two batches the loop turns, and reading is paused."""
    monkeypatch.setattr(bus_module, "BATCH", 10)
    async with listening(valkey) as listener:
        assert await listener.subscribed("a")
        for number in range(5000):
            listener.client.publish("a", b"%d" % number)
        await listener.heard(b"4999")
        assert [payload for _, payload in listener.messages] == [b"%d" % number for number in range(5000)]
        assert max(listener.batches) == 10
        assert listener.bus.statistics().messages == 5000


async def test_callback_that_raises_harms_no_other(valkey: EmbeddedValkey) -> None:
    async with listening(valkey) as listener:

        def raises(_: bool) -> None:
            raise RuntimeError

        listener.bus.subscribe(["a"], raises)
        assert await listener.subscribed("b")
        assert await listener.publish("b", "x") == 1
        await listener.heard(b"x")
        assert listener.bus.statistics().callback_errors == 1


async def test_killed_subscribers_under_traffic_are_restored(valkey: EmbeddedValkey) -> None:
    """CLIENT KILL, as for a slow subscriber: one loss and one restore, and then every message arrives."""
    async with listening(valkey) as listener:
        channels = [f"c{number}" for number in range(1200)]
        assert await listener.subscribed(*channels)
        for times in range(1, 4):
            for number in range(500):
                listener.client.publish(channels[number], b"traffic")
            assert await listener.client.fetch("CLIENT", "KILL", "TYPE", "pubsub") == 1
            expected = ["lost", "restored"] * times
            await support.eventually(partial(_same, listener.told, expected))
            for channel in (channels[0], channels[-1]):
                assert await listener.publish(channel, f"after {times}") == 1
            await listener.heard(b"after %d" % times)
        assert listener.bus.statistics().reconnects == 3


async def test_killed_server_is_redialed(own_valkey: EmbeddedValkey) -> None:
    """During the outage `ready(False)` is called at once; the channels of these calls are restored with the rest."""
    async with listening(own_valkey) as listener:
        assert await listener.subscribed("before")
        os.kill(own_valkey.pid, signal.SIGSTOP)
        unconfirmed = asyncio.ensure_future(listener.subscribed("in flight"))
        await asyncio.sleep(0)
        own_valkey.kill()
        assert await unconfirmed is False
        assert listener.told == ["lost"]
        assert await listener.subscribed("down", "changed its mind") is False
        listener.bus.unsubscribe(["changed its mind"])
        own_valkey.start()
        await support.eventually(lambda: listener.told == ["lost", "restored"] and listener.client.available)
        for channel in ("before", "in flight", "down"):
            assert await listener.publish(channel, channel) == 1
        assert await listener.publish("changed its mind", "x") == 0
        await listener.heard(b"down")


async def test_channel_unsubscribed_by_the_server_is_subscribed_again(valkey: EmbeddedValkey) -> None:
    """Also while requests are in flight (its slot moved); it is reported when it is confirmed."""
    async with listening(valkey) as listener:
        bus = listener.bus
        assert await listener.subscribed("a", "b")
        taken = b"*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:0\r\n"
        bus.data_received(taken)
        assert listener.told == []
        await support.eventually(lambda: listener.told == ["channel a"])
        bus.unsubscribe(["b"])
        await asyncio.sleep(0)
        bus.data_received(taken)
        await support.eventually(lambda: listener.told == ["channel a"] * 2)
        bus.unsubscribe(["a"])
        bus.data_received(taken)  # no longer wanted: no restore
        assert await listener.subscribed("a")
        assert await listener.publish("a", "x") == 1
        assert await listener.publish("b", "x") == 0
        assert bus.statistics().taken_away == 2


async def test_refused_subscription_drops_the_connection(own_valkey: EmbeddedValkey) -> None:
    """Callbacks get False; when the server allows it, the restore subscribes to the channel."""
    async with listening(own_valkey) as listener:
        with own_valkey.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "resetchannels", "&echo", "&a")
            assert await listener.subscribed("a")
            assert await listener.subscribed("b") is False
            client.execute_command("ACL", "SETUSER", "default", "allchannels")
        await support.eventually(lambda: listener.bus.restored)
        assert await listener.publish("b", "x") == 1


class TestDeafness:
    @pytest.fixture(autouse=True)
    def _fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bus_module, "ECHO_S", 0.03)

    async def test_deaf_connection_is_replaced(self, valkey: EmbeddedValkey) -> None:
        """The connection is up and the server has its subscriptions, but sends no message, like a demoted primary."""
        async with proxied(valkey.url) as proxy, listening(valkey, proxy) as listener:
            assert await listener.subscribed("a")
            proxy.swallow = True
            await support.eventually(lambda: listener.told == ["lost"])
            proxy.swallow = False
            await support.eventually(lambda: listener.told == ["lost", "restored"])
            assert await listener.publish("a", "x") >= 1
            await listener.heard(b"x")
            assert listener.bus.statistics().deaf == 1

    async def test_lost_echo_subscription_is_deafness_too(self, valkey: EmbeddedValkey) -> None:
        async with listening(valkey) as listener:
            assert await listener.subscribed("a")
            listener.bus._transport.write(b"SUNSUBSCRIBE echo\r\n")  # type: ignore[union-attr] # it is up
            listener.bus._wanted.discard(b"echo")  # so that the reply does not restore it
            await support.eventually(lambda: "lost" in listener.told)
            assert listener.bus.statistics().deaf == 1

    async def test_bus_that_receives_echoes_is_kept(self, valkey: EmbeddedValkey) -> None:
        """For many echoes, none of which is passed to the caller."""
        async with listening(valkey) as listener:
            calls = listener.client.statistics().hot.calls
            await support.eventually(lambda: listener.client.statistics().hot.calls >= calls + 20)
            assert listener.told == []
            assert listener.messages == []

    async def test_stalled_server_makes_no_connection_deaf(
        self, own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Echoes that Redis has not confirmed prove nothing: neither those in flight nor those that failed."""
        monkeypatch.setattr("router.store.redis.pipeline.TIMEOUT_S", 0.3)
        async with listening(own_valkey) as listener:
            os.kill(own_valkey.pid, signal.SIGSTOP)
            await support.eventually(lambda: not listener.client.available)
            calls = listener.client.statistics().hot.calls
            os.kill(own_valkey.pid, signal.SIGCONT)
            await support.eventually(lambda: listener.client.statistics().hot.calls > calls + 3)
            assert await listener.subscribed("a")
            assert listener.told == []
            assert listener.bus.statistics().deaf == 0

    async def test_bus_deaf_again_after_a_fresh_dial_drops_the_command_connection(
        self, valkey: EmbeddedValkey, own_valkey: EmbeddedValkey
    ) -> None:
        """An address that moved: subscriptions are on one server, commands on another. Both end on the new one."""
        async with proxied(valkey.url) as proxy:
            client = await Client.connect(proxy.url, library=LIBRARY)
            try:
                proxy.server = address(own_valkey.url)  # for all later dials
                listener = Listener(client, proxy.url)
                await listener.bus.connect(10)
                await support.eventually(lambda: client.statistics().hot.reconnects == 1)
                await support.eventually(lambda: listener.bus.restored and client.available)
                assert await listener.subscribed("a")
                assert await listener.publish("a", "x") == 1
                await listener.heard(b"x")
            finally:
                await listener.bus.close()
                await client.close()

    async def test_mute_connection_is_replaced(self, valkey: EmbeddedValkey) -> None:
        """Echoes arrive and a confirmation does not: the connection is dropped, and the restore subscribes."""
        async with listening(valkey) as listener:
            bus = listener.bus
            assert await listener.subscribed("a")

            class Mute:
                """Swallows requests, as a proxy that lost them would."""

                def write(self, _: bytes) -> None: ...
                def is_closing(self) -> bool:
                    return False

            real, bus._transport = bus._transport, Mute()  # type: ignore[assignment]
            waiting = asyncio.ensure_future(listener.subscribed("b"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            bus._transport = real
            assert await waiting is False
            assert bus.statistics().mute == 1
            await support.eventually(lambda: listener.told == ["lost", "restored"])
            assert await listener.publish("b", "x") == 1
            await listener.heard(b"x")

    async def test_echo_that_is_no_number_is_passed_over(self, valkey: EmbeddedValkey) -> None:
        async with listening(valkey) as listener:
            assert await listener.subscribed("a")
            assert await listener.publish("echo", "junk") == 1
            assert await listener.publish("a", "x") == 1
            await listener.heard(b"x")
            assert listener.told == []


async def test_loss_before_the_restore_ends_is_one_loss(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening(valkey) as listener:
        bus, opened = listener.bus, listener.bus.opened

        def opened_and_lost() -> None:
            monkeypatch.undo()
            opened()
            bus.drop("at once again")

        monkeypatch.setattr(bus, "opened", opened_and_lost)
        bus.drop("first")
        await support.eventually(lambda: "restored" in listener.told)
        assert listener.told == ["lost", "restored"]
        assert bus.statistics().reconnects == 2


async def test_server_that_never_confirms_is_dropped(
    own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests in flight are bounded."""
    monkeypatch.setattr(bus_module, "MAX_REQUESTS", 20)
    async with listening(own_valkey) as listener:
        os.kill(own_valkey.pid, signal.SIGSTOP)
        for number in range(30):
            listener.bus.subscribe([f"c{number}"])
            await asyncio.sleep(0)
        await support.eventually(lambda: listener.told == ["lost"])
        os.kill(own_valkey.pid, signal.SIGCONT)
        await support.eventually(lambda: listener.told == ["lost", "restored"])
        assert await listener.publish("c29", "x") == 1


@pytest.mark.parametrize("seed", range(3))
async def test_subscriptions_match_the_wanted_channels_after_any_sequence(valkey: EmbeddedValkey, seed: int) -> None:
    """Random calls, ticks and kills: in the end both sides agree, and every callback was called once."""
    dice = random.Random(seed)
    async with listening(valkey) as listener:
        bus, wanted = listener.bus, {"echo"}
        asked = 0
        answers: list[bool] = []
        for _ in range(1500):
            some = [f"c{dice.randrange(30)}" for _ in range(dice.randrange(4))]
            match dice.randrange(30):
                case 0:
                    await asyncio.sleep(0)
                case 1:
                    await listener.client.fetch("PING")
                case 2 if dice.random() < 0.1:
                    await listener.client.fetch("CLIENT", "KILL", "TYPE", "pubsub")
                case 3 | 4 | 5 | 6 | 7 | 8 | 9 | 10 | 11 | 12 | 13 | 14:
                    bus.unsubscribe(some)
                    wanted -= set(some)
                case _:
                    bus.subscribe(some, answers.append)
                    wanted |= set(some)
                    asked += 1
        await support.eventually(lambda: bus.restored)
        assert await listener.subscribed()
        stored = await listener.client.fetch("PUBSUB", "SHARDCHANNELS")
        assert {channel.decode() for channel in stored} == wanted
        assert len(answers) == asked
        assert bus.statistics().requests_in_flight == 0
        assert listener.told == ["lost", "restored"] * (len(listener.told) // 2)


async def test_both_names_of_a_channel_are_received_while_a_deployment_is_moved(valkey: EmbeddedValkey) -> None:
    """Callers use one name: in messages, when the server unsubscribes a channel, and when they leave it."""
    client = await Client.connect(valkey.url, library=LIBRARY)
    plain = client.channels = Channels("", "id.0:")
    listener = Listener(client, valkey.url)
    channel, other = plain.user("bob"), Channels("id.0:").user("bob")
    try:
        await listener.bus.connect(10)
        assert await listener.subscribed(channel)
        for name in (channel, other):
            assert await listener.publish(name, f"on {name}") == 1
        await listener.heard(f"on {other}".encode())
        assert listener.messages == [(channel.encode(), f"on {name}".encode()) for name in (channel, other)]
        listener.bus._taken_away(other.encode())
        await support.eventually(lambda: listener.told == [f"channel {channel}"])
        listener.bus.unsubscribe([channel])
        assert await listener.subscribed(plain.user("ann"))
        for name in (channel, other):
            assert await listener.publish(name, "gone") == 0
    finally:
        await listener.bus.close()
        await client.close()
