"""A log that is lost while the conversation's hash is kept: its events are announced as lost, and writing goes on."""

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from tests.store.calling import called, store


async def test_lost_log_is_announced_by_the_floor(valkey: EmbeddedValkey) -> None:
    """To a reader without events and to one in its middle, before the next event is written."""
    async with store(valkey.url) as s:
        group = await s.group(ann="o")
        sent = [await s.send(group, "ann", n) for n in range(1, 6)]
        await s.client.fetch("DEL", keys.log(group))
        for after in (0, sent[2].seq):
            page = await called(s.conversations.range, group, "ann", after, 2**53, 100)
            assert (page.events, page.position, page.floor) == ([], sent[-1].seq, sent[-1].seq)
        page = await called(s.conversations.range, group, "ann", sent[-1].seq, 2**53, 100)
        assert page.floor < sent[-1].seq  # this reader lost nothing


@pytest.mark.parametrize("routed", [False, True])
async def test_log_that_begins_again_after_a_loss_announces_the_lost_events(
    valkey: EmbeddedValkey, routed: bool
) -> None:
    """Also after a later event was deleted, once a router has seen the log."""
    async with store(valkey.url) as s:
        group = await s.group(ann="o")
        sent = [await s.send(group, "ann", n) for n in range(1, 4)]
        await s.client.fetch("DEL", keys.log(group))
        new = [await s.send(group, "ann", n) for n in range(4, 7)]
        if routed:
            await s.dirty.mark_routed(group, new[-1].seq, 100, 10**12)
            await s.send(group, "ann", 7, action="delete", target=new[1].seq)
        page = await called(s.conversations.range, group, "ann", 0, 2**53, 100)
        assert page.floor == sent[-1].seq
        assert len(page.events) == 3
        page = await called(s.conversations.range, group, "ann", new[0].seq, 2**53, 100)
        assert page.floor <= new[0].seq


async def test_deleted_and_trimmed_events_are_no_loss(valkey: EmbeddedValkey) -> None:
    """First, middle and last of a log, and all of it: only trimmed events are announced."""
    async with store(valkey.url) as s:
        group = await s.group(ann="o")
        sent = [await s.send(group, "ann", n) for n in range(1, 6)]
        deletes = []
        for n, event in enumerate((sent[0], sent[1], sent[3], sent[4]), 6):
            deletes.append(await s.send(group, "ann", n, action="delete", target=event.seq))
        for after in (0, *(event.seq for event in (*sent, *deletes))):
            page = await called(s.conversations.range, group, "ann", after, 2**53, 100)
            assert page.floor == 0
        await s.dirty.mark_routed(group, deletes[-1].seq, 2, 10**12)
        floor = (await called(s.conversations.range, group, "ann", 0, 2**53, 100)).floor
        assert floor == deletes[1].seq
        await s.dirty.mark_routed(group, deletes[-1].seq, 0, 0)
        page = await called(s.conversations.range, group, "ann", 0, 2**53, 100)
        assert (page.events, page.floor) == ([], deletes[-1].seq)


async def test_lost_log_does_not_stop_writing_on_another_server(valkey: EmbeddedValkey) -> None:
    """As after a restart: the function reads the log's last event, and there is none."""
    async with store(valkey.url) as s:
        group = await s.group(ann="o")
        first = await s.send(group, "ann", 1)
        packed = await s.client.fetch("HGET", keys.conversation(group), "m")
        await s.client.fetch("HSET", keys.conversation(group), "m", packed[:24] + b"1" * 16 + packed[40:])
        await s.client.fetch("DEL", keys.log(group))
        again = await s.send(group, "ann", 2)
        assert again.seq > first.seq
        page = await called(s.conversations.range, group, "ann", 0, 2**53, 100)
        assert page.floor == first.seq
