"""The command `state`, and what the user's sessions receive of changes, whatever happens meanwhile."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.reconcile import sync
from router.contract import codecs, keys, metrics
from router.contract.errors import Unavailable
from router.contract.packing import pack
from router.store.answers import reply_of
from router.store.state import State, Written
from tests.gateway.world import Client, World, world
from tests.support import eventually


async def elsewhere(of: World, key: str, value: Any, user: str = "ann") -> Written:
    """A write of another process."""
    packed = None if value is None else pack(value)
    return await reply_of(State(of.redis, (1, 1_000_000_000)).write, user, key, packed, None)


def told(client: Client) -> list[tuple[Any, Any, int]]:
    return [
        (event.get("key"), event.get("value"), event["version"]) for event in client.of("state") if "id" not in event
    ]


def has(client: Client, number: int) -> bool:
    return len(told(client)) == number


@pytest.mark.parametrize("codec", [codecs.JSON, codecs.MSGPACK], ids=lambda codec: codec.name)
async def test_state_is_answered_and_reaches_every_device(valkey: EmbeddedValkey, codec: codecs.Codec) -> None:
    async with world(valkey) as of:
        phone = await of.client("ann", codec=codec).connected()
        laptop = await of.client("ann", "laptop").connected()
        assert phone.of("welcome")[0]["state"] == 0
        value = {"text": "hi", "at": {"$b64": "/w=="} if codec.text else b"\xff"}
        first = await phone.ask("state", "state", key="draft/a", value=value)
        assert first == {"type": "state", "id": first["id"], "key": "draft/a", "value": value,
                         "version": first["version"], "prev": 0}  # fmt: skip
        second = await phone.ask("state", "state", key="draft/a", value=None)
        assert (second["value"], second["prev"]) == (None, first["version"])
        for device in (phone, laptop):
            await device.until(partial(has, device, 2))
            assert [(key, version) for key, _, version in told(device)] == [
                ("draft/a", first["version"]),
                ("draft/a", second["version"]),
            ]
        assert told(laptop)[0][1] == {"text": "hi", "at": {"$b64": "/w=="}}
        assert (await of.client("ann", "tablet").hello())["state"] == second["version"]


async def test_refused_state_changes_nothing(valkey: EmbeddedValkey) -> None:
    """Each refusal is one error with the command's id; a conflict has the version of the key."""
    async with world(valkey) as of:
        ann = await of.client("ann").connected()
        for code, fields in (
            ("read_only", {"key": "contact/bob", "value": 1}),
            ("read_only", {"key": "me", "value": None}),
            ("bad_command", {"key": "a//b", "value": 1}),
            ("bad_command", {"key": "x" * 129, "value": 1}),
            ("bad_command", {"key": "a", "value": 2**53}),
            ("bad_command", {"key": "a"}),
            ("too_large", {"key": "a", "value": "x" * 4096}),
            ("conflict", {"key": "a", "value": 1, "expect": 5}),
        ):
            assert (await ann.ask("state", "error", **fields))["code"] == code
        assert ann.events[-1]["version"] == 0
        written = await ann.ask("state", "state", key="a", value=1, expect=0)
        assert (await ann.ask("state", "error", key="a", value=2, expect=0))["version"] == written["version"]
        assert of.node.user_state.in_flight == 0


async def test_answer_waits_until_the_write_is_kept(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The event comes before; if the write may be lost, the answer is `unavailable`."""
    async with world(valkey) as of:
        ann = await of.client("ann").connected()
        kept: list[Any] = []
        monkeypatch.setattr(of.node.durability, "when_kept", lambda replid, reply: kept.append(reply))
        ann.say("state", id=7, key="a", value=1)
        await ann.event("state", key="a")
        assert ann.of("state", id=7) == []
        assert of.node._busy()
        await eventually(lambda: kept)
        kept.pop()(None)
        await ann.event("state", id=7)
        ann.say("state", id=8, key="a", value=2)
        await eventually(lambda: kept)
        kept.pop()(Unavailable(retry_after=1))
        assert (await ann.event("error", id=8))["code"] == "unavailable"
        assert not of.node._busy()


async def test_session_that_is_behind_receives_the_version_alone(valkey: EmbeddedValkey) -> None:
    """However many keys change while its connection is full."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        slow, quick = await of.client("ann", "slow").connected(), await of.client("ann").connected()
        slow.connection.room = 1
        await of.say("bob", group)
        await eventually(lambda: slow.connection.paused)
        for i in range(20):
            last = await elsewhere(of, f"k/{i}", i)
        await quick.until(lambda: len(told(quick)) == 20)
        slow.connection.drain()
        await slow.caught_up()
        assert (await slow.event("state"))["version"] == last.version
        assert told(slow) == [(None, None, last.version)]
        after = await elsewhere(of, "x", 1)
        await slow.event("state", key="x", version=after.version, prev=last.version)


async def test_change_while_a_session_connects_is_announced(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was written after the welcome's version was read, and before the session was ready."""
    async with world(valkey) as of:
        written: list[Written] = []
        lists = of.node.conversation_list
        settle = lists.settle_starts

        def late(*asked: Any) -> None:
            async def write() -> None:
                written.append(await elsewhere(of, "a", 1))
                settle(*asked)

            of.node.tasks.spawn(write())

        monkeypatch.setattr(lists, "settle_starts", late)
        ann = of.client("ann")
        assert (await ann.hello())["state"] == 0
        await ann.event("state", version=written[0].version)


async def test_change_that_was_missed_is_found_by_the_audit(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "RECHECK_S", 0.01)
    async with world(valkey) as of:
        ann = await of.client("ann").connected()
        of.node.audits.sessions([ann.session])
        with of.deaf():
            missed = await elsewhere(of, "a", 1)
            await of.settled()
        before = metrics.STATE_EVENTS.labels("audit")._value.get()
        of.node.audits.sessions([ann.session])
        await ann.event("state", version=missed.version)
        assert told(ann) == [(None, None, missed.version)]
        assert metrics.STATE_EVENTS.labels("audit")._value.get() == before + 1
        seen = await elsewhere(of, "b", 1)
        await ann.event("state", key="b")
        of.node.audits.sessions([ann.session])
        await ann.ask("ping", "pong")
        await of.settled()
        assert ann.session.sent_state == seen.version
        assert len(told(ann)) == 2


async def test_version_that_a_failover_took_back_is_announced(valkey: EmbeddedValkey) -> None:
    """The device has a change that the new server has not; it also learns so if nothing is written any more."""
    async with world(valkey) as of:
        ann = await of.client("ann").connected()
        kept = await elsewhere(of, "a", 1)
        names = (keys.state("ann"), keys.versions("ann"), keys.convs("ann"), keys.recent("ann"))
        photograph = {name: await of.redis.fetch("DUMP", name) for name in names}
        lost = await elsewhere(of, "b", 1)
        await ann.event("state", version=lost.version)
        for name, dump in photograph.items():
            await of.redis.fetch("RESTORE", name, 0, dump, "REPLACE")
        of.node.audits.sessions([ann.session])
        await of.settled()
        ann.session.since = b"another server!!" + ann.session.since[16:]
        of.node.audits.sessions([ann.session])
        await ann.until(lambda: told(ann)[-1] == (None, None, kept.version))
