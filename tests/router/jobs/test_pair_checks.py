"""Checks of pairs, by the marks beside the copies of their records."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, tags
from router.contract.errors import Unavailable
from router.jobs.pair_checks import PairChecks
from tests.store.clock import stepped
from tests.store.test_contacts import Town, town


async def test_router_finds_a_pair_whose_record_is_lost(valkey: EmbeddedValkey) -> None:
    """A check that fails leaves its mark, so the pair is due again when the claim has run out."""
    async with town(valkey, "ann", "bob") as t:
        await t.contacts.change("ann", "bob", "block")
        conv = keys.direct("ann", "bob")
        await t.client.fetch("DEL", keys.conversation(conv), keys.dirty(keys.partition(conv)))
        marks, checks = keys.copied(keys.partition("ann")), PairChecks(t.people, t.contacts)
        assert (await checks.round()).done == 0
        await t.client.fetch("ZADD", marks, 1, conv)

        async def fails(_: str) -> None:
            raise Unavailable

        checks_that_fail = PairChecks(t.people, t.contacts)
        checks_that_fail._rounds._work = fails
        assert (await checks_that_fail.round()).unavailable == 1
        assert await t.client.fetch("ZSCORE", marks, conv) is not None
        await t.client.fetch("ZADD", marks, 1, conv)
        assert (await checks.round()).done == 1
        assert not await t.block("ann", "bob")
        assert not (await t.people.everybody("ann"))["bob"].blocks
        assert await t.people.hiding(["ann", "bob"]) == []


async def test_pair_is_checked_after_the_clock_was_put_back(valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Half a minute is no reason to think that a mark is of another clock; an hour is."""
    async with stepped(valkey, tmp_path) as clock:
        t = Town(clock.client)
        for user in ("ann", "bob"):
            await t.accounts.ensure(user)
        await t.contacts.change("ann", "bob", "block")
        checks = PairChecks(t.people, t.contacts)
        assert (await checks.round()).done == 0
        await clock.step(-3600)
        assert (await checks.round()).done > 0
        for user in ("ann", "bob"):
            assert await t.client.fetch("ZCARD", keys.copied(keys.partition(user))) == 0


@pytest.mark.parametrize("partitions", tags.TAGS)
async def test_look_names_the_partitions_with_due_pairs(valkey: EmbeddedValkey, partitions: str) -> None:
    """With numbered tags, too: a process knows its tags only after it has read the deployment."""
    async with town(valkey, "ann", "bob") as t:
        keys.use_tags(partitions)
        await t.client.fetch("ZADD", keys.copied(7), 1, "d:ann:bob")
        assert await t.people.due() == [7]
