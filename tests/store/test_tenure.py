"""No seq of a conversation is used twice, and no version of a user's state, although a lost server had the slot.

On a cluster, a slot can move to a server that has had its replication id for longer than the one that was lost, and it
can return to a server that wrote the conversation last. Both are real here: three primaries, their replicas, and slots
that move. A lost write is one that readers received and that no replica has.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from struct import unpack
from typing import Any, Protocol

import pytest

from router.contract import keys
from router.store.redis.functions import build
from tests.cluster import Cluster, Node, slot
from tests.store.calling import BURST_US, COST_US, event
from tests.store.function_calls import PartsClient, World


class Written(Protocol):
    """What is written at a server of the cluster."""

    async def append(self, node: Node, times: int = 1) -> list[int]: ...


class _Placed:
    """Data in a slot of the first primary's range."""

    def __init__(self, key_of: Callable[[World], str]) -> None:
        client = PartsClient.make("redis://127.0.0.1:1/0", library=build())  # it catches calls and never connects
        assert isinstance(client, PartsClient)
        self._world = next(
            world for number in range(10**6) if slot(key_of(world := World(client, number))) < 16384 // 3 - 1
        )
        self.slot = slot(key_of(self._world))
        self._source = client.library.source.decode()

    def load(self, *nodes: Node) -> None:
        for node in nodes:
            with node.client() as client:
                client.function_load(self._source, replace=True)

    async def _call(self, node: Node, make: Callable[[], Any]) -> Any:
        return node.call(*(await self._world.caught(make)).command)


class UserState(_Placed):
    """A user and their state."""

    def __init__(self) -> None:
        super().__init__(lambda world: keys.user(world.ann))

    async def create(self, node: Node) -> None:
        await self._call(node, lambda: self._world.accounts.ensure(self._world.ann))

    async def append(self, node: Node, times: int = 1) -> list[int]:
        """Versions of new changes."""
        state, ann = self._world.state, self._world.ann
        return [
            (await self._call(node, lambda: state.write(ann, "a", b"\x02", None, _ignored)))[0] for _ in range(times)
        ]

    async def claim(self, node: Node) -> None:
        await self._call(node, lambda: self._world.pushes.hold_tenures([self._world.part]))

    async def must_begin_anew(self, node: Node, known: int) -> bool:
        """Whether a device that has this version is told to replace everything."""
        found = await self._call(node, lambda: self._world.state.entries(self._world.ann, known, "", 10))
        return bool(found[1])


def _ignored(_: object) -> None:
    """The reply of a call that is caught never comes."""


class Conversation(_Placed):
    """One conversation."""

    def __init__(self) -> None:
        super().__init__(lambda world: keys.conversation(world.group))
        self._n = 0

    async def create(self, node: Node) -> None:
        conversations, group = self._world.conversations, self._world.group
        members = {self._world.ann: "o"}
        call = await self._world.caught(lambda: conversations.create(group, "g", "", members, COST_US, BURST_US))
        assert node.call(*call.command) == 1

    async def append(self, node: Node, times: int = 1) -> list[int]:
        """Seqs of new events."""
        seqs = []
        for _ in range(times):
            self._n += 1
            new = event(self._world.group, self._world.ann, self._n)
            call = await self._world.caught(lambda new=new: self._world.conversations.append(new, lambda _: None))  # type: ignore[misc]
            seqs.append(unpack(">Q", node.call(*call.command)[:8])[0])
        return seqs

    async def claim(self, node: Node) -> None:
        """What every router does once a second."""
        call = await self._world.caught(lambda: self._world.dirty.claims([self._world.dirty_part], 8, 1000))
        node.call(*call.command)

    def marks(self, node: Node) -> list[bytes]:
        entries = node.call("ZRANGE", keys.dirty(self._world.dirty_part), 0, -1)
        return [entry for entry in entries if entry.startswith(b"!") and entry != b"!"]


@asynccontextmanager
async def clustered(folder: Path, *replicas: int) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, replicas)
    try:
        yield await cluster.start()
    finally:
        cluster.close()


def _key_of(node: Node) -> str:
    """A key in a slot of this node."""
    return next(key for number in range(256) if node.owner(slot(key := keys.dirty(number))) == node.id) + ":tick"


async def lose(primary: Node, successor: Node, written: Written, *others: Node) -> list[int]:
    """Write what no replica receives, then replace the primary by `successor`; return the seqs or versions."""
    await Cluster.caught_up(successor, primary)
    replicas = (successor, *others)
    for node in replicas:
        node.pause()
    primary.call("CLIENT", "KILL", "TYPE", "replica")
    lost = await written.append(primary, 4)
    for node in (primary, *others):
        node.kill()
    successor.resume()
    return lost


async def test_conversation_of_a_lost_server_moves_to_an_older_one(starts_processes: None, tmp_path: Path) -> None:
    """The third server has had its id since before the second one, which gave out the seqs, was promoted."""
    async with clustered(tmp_path, 2, 0, 0) as cluster:
        first, older, _ = cluster.primaries
        second, third = cluster.replicas[0]
        conversation = Conversation()
        conversation.load(*cluster.primaries)
        older.call(
            "FCALL", build().named("write_tick"), 1, _key_of(older)
        )  # it has looked up its id before the others are new
        await conversation.create(first)
        before = await conversation.append(first, 3)
        await cluster.fail_over(second)
        await conversation.append(second)
        lost = await lose(second, third, conversation, first)
        await cluster.fail_over(third, "TAKEOVER")
        await cluster.agree(conversation.slot, third)
        await cluster.move(conversation.slot, third, older)
        after = await conversation.append(older, 2)
        assert before[0] == 1
        assert after[0] > lost[-1]
        assert len(conversation.marks(older)) == 1


@pytest.mark.parametrize("claims", ["before the loss", "after the loss"])
async def test_conversation_returns_from_a_lost_server(starts_processes: None, tmp_path: Path, claims: str) -> None:
    """The server that it returns to wrote it last, as far as the data tells."""
    async with clustered(tmp_path, 0, 1, 0) as cluster:
        home, other, _ = cluster.primaries
        (successor,) = cluster.replicas[1]
        conversation = Conversation()
        conversation.load(*cluster.primaries)
        await conversation.create(home)
        await conversation.append(home, 3)
        await cluster.move(conversation.slot, home, other)
        if claims == "before the loss":
            await conversation.claim(other)
        lost = await lose(other, successor, conversation)
        await cluster.fail_over(successor, "TAKEOVER")
        await cluster.agree(conversation.slot, successor)
        if claims == "after the loss":
            await conversation.claim(successor)
        await cluster.move(conversation.slot, successor, home)
        after = await conversation.append(home, 2)
        assert after[0] > lost[-1]
        assert after[1] == after[0] + 1
        assert len(conversation.marks(home)) == 1


@pytest.mark.parametrize("claims", ["before the loss", "after the loss"])
async def test_user_returns_from_a_lost_server(starts_processes: None, tmp_path: Path, claims: str) -> None:
    """A device that has a lost version learns that it must replace everything."""
    async with clustered(tmp_path, 0, 1, 0) as cluster:
        home, other, _ = cluster.primaries
        (successor,) = cluster.replicas[1]
        state = UserState()
        state.load(*cluster.primaries)
        await state.create(home)
        before = await state.append(home, 3)
        assert before == sorted(before)
        await cluster.move(state.slot, home, other)
        if claims == "before the loss":
            await state.claim(other)
        lost = await lose(other, successor, state)
        await cluster.fail_over(successor, "TAKEOVER")
        await cluster.agree(state.slot, successor)
        if claims == "after the loss":
            await state.claim(successor)
        await cluster.move(state.slot, successor, home)
        after = await state.append(home, 2)
        assert after[0] > lost[-1]
        assert after[1] > after[0]
        for version in lost:
            assert await state.must_begin_anew(home, version)
        for version in (before[-1], *after):
            assert not await state.must_begin_anew(home, version)
