"""Pushes: waiting users and their deadlines, and the values of idempotency keys."""

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.store.accounts import Accounts
from router.store.pushes import Pushes, Wait, Waiting
from router.store.redis.client import Client
from router.store.sync import Sync
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import connected, now

PART = keys.partition("ann")
A, B = "d:ann:bob", "d:ann:eve"
HOUR = 3_600_000


async def pushes_of(client: Client) -> Pushes:
    await Accounts(client).ensure("ann")
    return Pushes(client)


async def test_conversation_has_its_earliest_deadline_and_newest_seq(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        pushes = await pushes_of(client)
        begun = await now(client)
        for seq, hours in ((5, 9), (7, 8), (6, 9)):
            assert await pushes.schedule("ann", A, seq, hours * HOUR // 10)
        assert await pushes.schedule("ann", B, 3, HOUR)
        waits = (await pushes.waiting("ann")).waits
        assert {conv: wait.seq for conv, wait in waits.items()} == {A: 7, B: 3}
        assert 0 <= waits[A].due - begun - 8 * HOUR // 10 < HOUR // 20
        assert 0 <= waits[B].due - begun - HOUR < HOUR // 20


async def test_claim_hides_a_user_until_it_runs_out(valkey: EmbeddedValkey) -> None:
    """Only due users are claimed; a later message does not shorten the claim; that of a dead router runs out."""
    async with connected(valkey) as client:
        pushes, at = await pushes_of(client), await now(client)
        assert await pushes.claims((PART,), 10, 1000) == [[]]
        await pushes.schedule("ann", A, 1, -HOUR)
        waiting, due = await pushes.backlog(PART)
        assert (waiting, due is not None and 0 <= due - at + HOUR < HOUR) == (1, True)
        assert await pushes.claims((PART,), 10, -2000) == [["ann"]]  # a lease that has run out already
        assert await pushes.claims((PART,), 10, HOUR) == [["ann"]]
        await pushes.schedule("ann", B, 1, -1)
        assert await pushes.claims((PART,), 10, HOUR) == [[]]


async def test_user_who_is_not_due_is_not_claimed(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        pushes, at = await pushes_of(client), await now(client)
        await pushes.schedule("ann", A, 1, HOUR)
        assert await pushes.claims((PART,), 10, 1000) == [[]]
        waiting, due = await pushes.backlog(PART)
        assert (waiting, due is not None and due >= at + HOUR) == (1, True)


async def test_settling_keeps_later_events(valkey: EmbeddedValkey) -> None:
    """It removes the given seqs; the others keep their deadline, and after the last one the user waits no more."""
    async with connected(valkey) as client:
        pushes = await pushes_of(client)
        await pushes.schedule("ann", A, 5, -1)
        await pushes.schedule("ann", B, 5, HOUR)
        before = (await pushes.waiting("ann")).waits
        assert await pushes.claims((PART,), 10, 1000) == [["ann"]]
        await pushes.schedule("ann", A, 6, 2 * HOUR)
        await pushes.clear("ann", {A: 5})
        assert (await pushes.waiting("ann")).waits == {A: Wait(6, before[A].due, 0), B: before[B]}
        await pushes.clear("ann", {A: 6})
        assert await pushes.backlog(PART) == (1, before[B].due)
        await pushes.clear("ann", {A: 9, B: 5})
        assert await pushes.backlog(PART) == (0, None)
        assert await client.fetch("EXISTS", keys.pushes("ann")) == 0


async def test_failures_are_counted_until_one_succeeds(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        pushes, at = await pushes_of(client), await now(client)
        await pushes.schedule("ann", A, 5, -1)
        await pushes.schedule("ann", B, 5, -1)
        for _ in range(2):
            await pushes.retry("ann", HOUR)
        assert (await pushes.waiting("ann")).attempts == 2
        waiting, due = await pushes.backlog(PART)
        assert (waiting, due is not None and due >= at + HOUR) == (1, True)
        await pushes.clear("ann", {A: 5}, delay_ms=HOUR // 2)
        assert (await pushes.waiting("ann")).attempts == 0
        _, sooner = await pushes.backlog(PART)
        assert sooner is not None
        assert due is not None
        assert at + HOUR // 2 <= sooner < due
        await pushes.clear("ann", {B: 5})
        await pushes.retry("ann", 0)
        assert await pushes.waiting("ann") == Waiting({}, {}, 0)
        assert await pushes.backlog(PART) == (0, None)


async def test_waiting_contains_cursors_and_read_marks(valkey: EmbeddedValkey) -> None:
    """The furthest cursor of any device, and the read mark, of each waiting conversation."""
    async with connected(valkey) as client:
        pushes, users = await pushes_of(client), Users(client)
        for device, seq in (("phone", 4), ("desk", 7)):
            who = Sync(user="ann", device=device, session=device, node="node-1", started=1, register=True)
            await called(users.sync, who)
            await called(users.ack, "ann", device, device, {A: seq, "d:ann:zoe": 99})
        await called(users.deliver, "ann", A, "bob", 8, 8, b"\x80", False, 0)
        await called(users.read, "ann", A, 6, 6)
        await pushes.schedule("ann", A, 8, 900)
        await pushes.schedule("ann", B, 2, 900)
        waiting = await pushes.waiting("ann")
        assert {conv: (wait.seq, wait.read) for conv, wait in waiting.waits.items()} == {A: (8, 6), B: (2, 0)}
        assert (waiting.cursors, waiting.attempts) == ({A: 7, B: 0}, 0)


async def test_unknown_user_does_not_wait(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        assert not await Pushes(client).schedule("ann", A, 1, 0)
        assert await Pushes(client).backlog(PART) == (0, None)


async def test_waiting_conversations_of_one_user_are_bounded(valkey: EmbeddedValkey) -> None:
    """A thousand conversations; those that wait already still rise."""
    async with connected(valkey) as client:
        pushes = await pushes_of(client)
        told = [await pushes.schedule("ann", f"d:ann:user-{i}", 1, 0) for i in range(1002)]
        assert told.index(False) in (1000, 1001)
        assert await pushes.schedule("ann", "d:ann:user-0", 9, 0)
        assert len((await pushes.waiting("ann")).waits) == told.count(True)


async def test_idempotency_key_has_one_value(valkey: EmbeddedValkey) -> None:
    """The first value is kept, an answer replaces it, and the key still expires at its time."""
    async with connected(valkey) as client:
        pushes = Pushes(client)
        assert await pushes.claim_idempotency_key("ann", "key", "17") is None
        assert await pushes.claim_idempotency_key("ann", "key", "18") == b"17"
        assert await pushes.claim_idempotency_key("bob", "key", "19") is None
        await pushes.set_idempotency_answer("ann", "key", "done")
        assert await pushes.claim_idempotency_key("ann", "key", "20") == b"done"
        assert 0 < await client.fetch("TTL", keys.idempotency("ann", "key")) <= keys.IDEMPOTENCY_S
        await pushes.set_idempotency_answer("ann", "gone", "x")
        assert await pushes.claim_idempotency_key("ann", "gone", "21") is None
