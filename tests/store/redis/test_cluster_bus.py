"""Sharded pub/sub on a real cluster: subscriptions follow their slots, and what moved is reported for repair."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from router.contract.keys import Channels
from router.store.redis import choose
from router.store.redis.cluster_bus import ClusterBus, Ear
from router.store.redis.cluster_client import ClusterClient
from router.store.redis.pubsub import Messages
from tests import support
from tests.cluster import FORM, Cluster, Node, long, slot
from tests.store.conftest import LIBRARY

CHANNELS = [f"x.0:{{c{i}}}:ch:{number}" for number in range(2) for i in range(256)]


def holder(cluster: Cluster, channel: str) -> Node:
    """The primary that has the channel's slot."""
    return holders(cluster, [channel])[channel]


def holders(cluster: Cluster, channels: Sequence[str]) -> dict[str, Node]:
    """The primaries that have the channels' slots."""
    nodes = {node.port: node for node in cluster.nodes}
    ranges = next(node for node in cluster.nodes if node.runs).call("CLUSTER", "SLOTS")
    return {
        channel: next(nodes[primary[1]] for first, last, primary, *_ in ranges if first <= slot(channel) <= last)
        for channel in channels
    }


class Listener:
    """A bus and what it has reported."""

    def __init__(self, client: ClusterClient) -> None:
        client.channels = Channels("x.0:")
        self.client = client
        self.messages: list[tuple[bytes, bytes]] = []
        self.restored: list[bytes] = []
        self.lost = 0
        made = choose.bus(client, "node", self._received, self._lost, lambda: None, self._restored)
        assert isinstance(made, ClusterBus)
        self.bus = made

    def _received(self, messages: Messages) -> None:
        self.messages += messages

    def _lost(self) -> None:
        self.lost += 1

    def _restored(self, channels: list[bytes]) -> None:
        self.restored += channels

    async def reports(self, channels: set[bytes]) -> None:
        """Wait until these channels were reported as restored, and all channels are subscribed; no others were."""
        await support.eventually(lambda: set(self.restored) >= channels, 60)
        await support.eventually(lambda: self.bus.statistics().restored)
        assert set(self.restored) == channels
        self.restored.clear()

    async def calls_go_to(self, node: Node, number: int) -> None:
        """Wait until the client knows that this server has a slot, and has subscribed there."""

        def known() -> bool:
            line = self.client.routing.owner(number)
            return line is not None and line.address.port == node.port and self.bus.statistics().restored

        await support.eventually(known)

    async def subscribed(self, *channels: str) -> None:
        outcomes: list[bool] = []
        for channel in channels:
            self.bus.subscribe([channel], outcomes.append)
        await support.eventually(lambda: len(outcomes) == len(channels))
        assert all(outcomes)

    async def receives(self, cluster: Cluster, *channels: str) -> None:
        """Check that what is published now at the channels' servers arrives, and nothing else."""
        self.messages.clear()
        by_node: dict[Node, list[str]] = {}
        for channel, node in holders(cluster, channels).items():
            by_node.setdefault(node, []).append(channel)
        for node, its in by_node.items():
            with node.client() as redis:
                for channel in its:
                    redis.execute_command("SPUBLISH", channel, "now")
        await support.eventually(lambda: {channel for channel, _ in self.messages} == set(map(str.encode, channels)))


@asynccontextmanager
async def listening(cluster: Cluster, *channels: str) -> AsyncIterator[Listener]:
    client = await choose.connected(cluster.url, "cluster", library=LIBRARY)
    assert isinstance(client, ClusterClient)
    listener = Listener(client)
    try:
        await listener.bus.connect(10)
        await listener.bus.probe(client.channels.probes())
        await listener.subscribed(*channels)
        yield listener
    finally:
        await listener.bus.close()
        await client.close()


async def test_channels_of_all_slots_are_received(cluster: Cluster) -> None:
    async with listening(cluster, *CHANNELS) as listener:
        await listener.receives(cluster, *CHANNELS[::5])
        assert not listener.restored
        assert listener.bus.statistics().restored
        listener.bus.unsubscribe(CHANNELS[:10])
        await listener.subscribed(CHANNELS[0])
        await listener.receives(cluster, CHANNELS[0])
        assert listener.bus.statistics().channels == len(CHANNELS) - 9


async def test_channel_of_a_server_that_is_down_is_not_reached(cluster: Cluster) -> None:
    async with listening(cluster, *CHANNELS) as listener:
        assert all(map(listener.bus.reaches, CHANNELS))
        line = listener.client.routing.owner(slot(CHANNELS[0]))
        assert line is not None
        line.drop("a test")
        await support.eventually(lambda: not listener.bus.reaches(CHANNELS[0]), every_s=0)
        elsewhere = [channel for channel in CHANNELS if listener.client.routing.owner(slot(channel)) is not line]
        assert all(map(listener.bus.reaches, elsewhere))
        await support.eventually(lambda: listener.bus.reaches(CHANNELS[0]))


async def test_ready_is_false_if_the_channel_is_unsubscribed_before(cluster: Cluster) -> None:
    async with listening(cluster) as listener:
        outcomes: list[bool] = []
        listener.bus.subscribe(CHANNELS[:2], outcomes.append)
        listener.bus.unsubscribe(CHANNELS[:1])
        await support.eventually(lambda: outcomes)
        assert outcomes == [False]


async def test_channels_of_a_slot_that_moves_are_followed_and_reported(cluster: Cluster) -> None:
    """Exactly those, once for each move, by a gateway that sends no command itself."""
    async with listening(cluster, *CHANNELS) as listener:
        moving = [channel for channel in CHANNELS if slot(channel) == slot(CHANNELS[7])]
        source = holder(cluster, moving[0])
        target = next(node for node in cluster.primaries if node is not source and node.info()["role"] == "master")
        for one, other in ((source, target), (target, source)):
            await cluster.move(slot(moving[0]), one, other)
            await listener.reports({channel.encode() for channel in moving})
            await listener.receives(cluster, *moving, *CHANNELS[100:120])
        assert listener.lost == 0


async def test_ear_whose_echo_has_moved_takes_another_one(cluster: Cluster) -> None:
    """So it goes on to prove that it receives, with a channel in a slot that is still at its server."""
    async with listening(cluster, *CHANNELS[:40]) as listener:
        ear = next(iter(listener.bus._ears.values()))

        async def echoes() -> None:
            number = ear._published
            await support.eventually(lambda: ear._received > number)

        await echoes()
        moving = slot(ear._echo.decode())
        source = next(node for node in cluster.primaries if node.port == ear.line.address.port)
        target = next(node for node in cluster.primaries if node is not source and node.info()["role"] == "master")
        await cluster.move(moving, source, target)
        try:
            await listener.calls_go_to(target, moving)
            await echoes()
            assert listener.bus.is_at(ear.line, ear._echo)
        finally:
            await cluster.move(moving, target, source)


async def test_failover_by_hand_reports_the_channels_of_its_server(cluster: Cluster) -> None:
    await cluster.home()
    async with listening(cluster, *CHANNELS) as listener:
        first, second = cluster.primaries[0], cluster.replicas[0][0]
        for old, new in ((first, second), (second, first)):
            its = {channel.encode() for channel, node in holders(cluster, CHANNELS).items() if node is old}
            await cluster.fail_over(new)
            await cluster.agree(0, new)
            await listener.reports(its)
            await listener.calls_go_to(new, 0)
            await listener.receives(cluster, *CHANNELS[::5])


async def test_server_that_is_silent_is_left_by_the_map(cluster: Cluster) -> None:
    """It neither closes its connections nor says that it was replaced."""
    await cluster.home()
    async with listening(cluster, *CHANNELS) as listener:
        old, new = cluster.primaries[0], cluster.replicas[0][0]
        its = {channel.encode() for channel, node in holders(cluster, CHANNELS).items() if node is old}
        old.pause()
        try:
            await support.eventually(lambda: new.info()["role"] == "master", 60)
            await listener.reports(its)
        finally:
            old.resume()
        await support.eventually(lambda: old.info()["role"] == "slave", 60)
        await listener.receives(cluster, *CHANNELS[::5])
        await cluster.caught_up(old, new)
        await cluster.fail_over(old)
        await cluster.agree(0, old)


async def test_late_answer_to_an_unsubscription_is_no_answer_to_another_request(
    cluster: Cluster,
) -> None:
    """MOVED names its slot; a request of another slot goes on waiting for its own answer."""
    async with listening(cluster, *CHANNELS[:4]) as listener:
        ear = next(iter(listener.bus._ears.values()))
        mine = next(channel for channel in CHANNELS[10:] if listener.bus._routing.owner(slot(channel)) is ear.line)
        other = next(i for i in range(16384) if i != slot(mine))
        outcomes: list[bool] = []
        listener.bus.subscribe([mine], outcomes.append)
        await asyncio.sleep(0)
        ear._refused(f"MOVED {other} 127.0.0.1:1")
        await support.eventually(lambda: outcomes == [True])
        await listener.receives(cluster, mine)


async def test_ear_that_receives_nothing_is_dropped(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ear has an echo at its own server, which shows that subscriptions work there."""
    monkeypatch.setattr("router.store.redis.pubsub.ECHO_S", 0.1)
    async with listening(cluster, *CHANNELS[:60]) as listener:
        ear = next(ear for ear in listener.bus._ears.values() if ear._wanted)
        its = [channel.encode() for channel in CHANNELS[:60] if listener.bus._routing.owner(slot(channel)) is ear.line]
        monkeypatch.setattr(ear, "_echo_received", lambda payload: None)  # as if its messages did not arrive
        await support.eventually(lambda: listener.bus.statistics().deaf)
        await support.eventually(lambda: set(listener.restored) >= set(its))
        assert set(listener.restored) >= set(its)


async def test_requests_have_channels_of_one_slot(cluster: Cluster) -> None:
    """A server answers CROSSSLOT otherwise, and that ends the connection."""
    async with listening(cluster) as listener:
        ear = next(iter(listener.bus._ears.values()))
        names = [channel.encode() for channel in CHANNELS]
        requests = ear._chunks(b"ssubscribe", names)
        assert sorted(channel for request in requests for channel in request.channels) == sorted(names)
        assert all(len({slot(channel.decode()) for channel in request.channels}) == 1 for request in requests)


async def test_last_of_quick_changes_counts(cluster: Cluster) -> None:
    """A confirmation from before an unsubscription says nothing about the subscription after it."""
    async with listening(cluster) as listener:
        open_requests: list[int] = []
        number = slot(CHANNELS[0])

        def ready(good: bool) -> None:
            assert good
            open_requests.append(ear.statistics().requests_in_flight)

        ear = next(ear for line, ear in listener.bus._ears.items() if line is listener.client.routing.owner(number))

        listener.bus.subscribe(CHANNELS[:1])
        await asyncio.sleep(0)
        listener.bus.unsubscribe(CHANNELS[:1])
        await asyncio.sleep(0)
        listener.bus.subscribe(CHANNELS[:1], ready)
        await support.eventually(lambda: open_requests)
        assert open_requests == [0]
        await listener.receives(cluster, CHANNELS[0])


@long
@pytest.mark.alone
async def test_many_channels_are_back_within_a_second_of_a_failover(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of make cluster-check. No call meets a redirect meanwhile, from which the client could learn of it."""
    number = 10_000 if FORM == "full" else 2_000
    channels = [f"x.0:{{c{i % 256}}}:ch:many-{i}" for i in range(number)]
    await cluster.home()
    async with listening(cluster, *channels) as listener:
        old, new = cluster.primaries[0], cluster.replicas[0][0]
        moving = {channel.encode() for channel, node in holders(cluster, channels).items() if node is old}
        taken: list[float] = []
        take = listener.bus.taken

        def note(ear: Ear, channel: bytes) -> None:
            taken.append(time.monotonic())
            take(ear, channel)

        monkeypatch.setattr(listener.bus, "taken", note)
        failing_over = asyncio.create_task(asyncio.to_thread(asyncio.run, cluster.fail_over(new)))
        await support.eventually(
            lambda: len(taken) >= len(moving) and listener.bus.statistics().restored, every_s=0.001
        )
        took = time.monotonic() - taken[0]
        await failing_over
        await listener.reports(moving)
        print(f"\n    {len(moving)} of {number} channels confirmed {took:.3f} s after the first was taken away")
        assert took <= 1.0 or FORM == "quick"
        await listener.receives(cluster, *channels)
        await cluster.home()
