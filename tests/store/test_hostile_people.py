"""Many users who ask or block one: what they take of that user's memory, and what the user keeps."""

from __future__ import annotations

import asyncio
from struct import pack as struct_pack
from typing import Final

import pytest

from deploy.embedded import EmbeddedValkey
from deploy.limits import lua
from router.contract import keys, metrics
from router.contract.packing import pack
from tests.store.calling import called
from tests.store.test_contacts import Town, town

ACCOUNTS: Final = 5000
AT_ONCE: Final = 250
BYTES: Final = 2_000_000  # of all keys of the user; 5000 rows that are kept for ever would be beyond it
OWN: Final = {"draft/g:1": b"\xa2hi", "pin/g:1": b"\xc3"}


async def memory(t: Town, user: str) -> int:
    names = [of(user) for of in (keys.user, keys.people, keys.ends, keys.state, keys.versions, keys.removed)]
    return sum([await t.client.fetch("MEMORY", "USAGE", name, "SAMPLES", 0) or 0 for name in names])


async def settle_down(t: Town) -> None:
    """The user's own: keys of the state, a contact and a block."""
    for name, value in OWN.items():
        await called(t.state.write, "ann", name, value, None)
    await t.contacts.change("ann", "bob", "ask", "", 1)
    await t.contacts.change("bob", "ann", "accept")
    await t.contacts.change("ann", "eve", "block")


async def keeps_own(t: Town) -> None:
    assert [await t.state.values("ann", [name]) for name in OWN] == [[value] for value in OWN.values()]
    assert (await t.entry("ann", "bob"))["state"] == "contact"
    assert await t.block("ann", "eve")
    counts = await t.people.counts("ann")
    assert (counts.contacts, counts.blocks) == (1, 1)


@pytest.mark.processes  # none, but it takes too long for the quick check
async def test_five_thousand_accounts_that_ask_one_user_take_bounded_memory(valkey: EmbeddedValkey) -> None:
    """Whether they wait or cancel; the user's own keys are untouched."""
    async with town(valkey, "ann", "bob", "eve") as t:
        await settle_down(t)
        askers = [f"throw-away-{i}" for i in range(ACCOUNTS)]
        for first in range(0, ACCOUNTS, AT_ONCE):
            some = askers[first : first + AT_ONCE]
            await asyncio.gather(*(t.accounts.ensure(asker) for asker in some))
            await asyncio.gather(*(t.contacts.change(asker, "ann", "ask", "hello", 1) for asker in some))
            await asyncio.gather(*(t.contacts.change(asker, "ann", "remove") for asker in some[::2]))
        assert (await t.people.counts("ann")).incoming <= lua("set_relation", "INCOMING")
        assert await memory(t, "ann") < BYTES
        await keeps_own(t)


async def test_rows_that_others_make_are_bounded_and_the_users_own_have_room(valkey: EmbeddedValkey) -> None:
    """A block beyond them still holds; a request looks pending to its asker."""
    async with town(valkey, "ann", "bob", "eve", "mallory", "dan", "fay") as t:
        await settle_down(t)
        row = struct_pack(">QcBBQQ", 1, b"-", 0, 1, 0, 0)  # of another user's block
        rows = lua("set_relation", "ROWS")
        for first in range(0, rows, 2000):
            flat = [part for i in range(first, first + 2000) for part in (f"blocker-{i}", row)]
            await t.client.fetch("HSET", keys.people("ann"), *flat)
        size = await t.client.fetch("HLEN", keys.people("ann"))
        crowded = metrics.PEOPLE_CROWDED._value.get()
        blocked = await t.contacts.change("mallory", "ann", "block")
        assert (blocked.role, blocked.others_role) == ("b", "b")
        await t.contacts.change("dan", "ann", "ask", "", 1)
        assert await t.client.fetch("HLEN", keys.people("ann")) == size
        assert metrics.PEOPLE_CROWDED._value.get() == crowded + 1
        assert (await t.entry("dan", "ann"))["state"] == "outgoing"
        assert not await t.entry("ann", "dan")
        await t.contacts.change("ann", "mallory", "block")
        await t.contacts.change("ann", "fay", "ask", "", 1)
        assert {"mallory", "fay"} <= (await t.people.among("ann", ["mallory", "fay"])).keys()
        await t.contacts.change("ann", "mallory", "unblock")
        await keeps_own(t)
        await called(t.state.write, "ann", "draft/g:2", pack("x"), None)
