"""From `hello` to `welcome`: refusals, the order of steps, and the contents of the welcome."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.commands import connect
from gateway.delivery.feed import State
from gateway.node import now_ms
from router.contract import keys
from router.contract.errors import LinnetError
from router.contract.tokens import issue
from router.store.sync import Sync, Synced
from tests import support
from tests.gateway.world import Client, PartedRedis, settings, token, world

# -- refusals


@pytest.mark.parametrize(
    ("make", "code", "close"),
    [
        (lambda of: None, "unauthorized", 4500),
        (lambda of: "", "unauthorized", 4500),
        (lambda of: "nonsense", "unauthorized", 4500),
        (lambda of: token(of.node, "bob")[:-2], "unauthorized", 4500),
        (lambda of: issue("bob", settings(), now_ms() - 7_200_000 * 24)[0], "token_expired", 4501),
    ],
)
async def test_bad_token_is_answered_with_an_error_and_a_final_close(
    valkey: EmbeddedValkey, make: Any, code: str, close: int
) -> None:
    """The error with the id of `hello` comes first, then a close code after which a client must not retry with this
    token."""
    async with world(valkey) as of:
        bob = of.client("bob")
        given = make(of)
        bob.say("hello", id=5, **({} if given is None else {"token": given}))
        assert (await bob.event("error", id=5))["code"] == code
        assert bob.connection.closed == (close, code)
        assert bob.session not in of.node.sessions.all
        await of.settled()
        assert await of.redis.fetch("EXISTS", keys.user("bob"), keys.devices("bob")) == 0


async def test_token_of_the_upgrade_is_used(valkey: EmbeddedValkey) -> None:
    """A token in `hello` takes precedence; neither is kept."""
    async with world(valkey) as of:
        bob = of.client("bob")
        bob.session.token = token(of.node, "bob")
        bob.say("hello")
        assert (await bob.event("welcome"))["user"] == "bob"
        cid = of.client("cid")
        cid.session.token = token(of.node, "bob")
        cid.say("hello", token=token(of.node, "cid"))
        assert (await cid.event("welcome"))["user"] == "cid"
        assert not bob.session.token
        assert not cid.session.token


async def test_deleted_user_is_refused(valkey: EmbeddedValkey) -> None:
    """4502: the token is valid, but its user no longer exists."""
    async with world(valkey) as of:
        await of.people("bob")
        await of.accounts.delete("bob")
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        assert await bob.closed() == (4502, "blocked")


async def test_session_that_started_before_a_kick_is_refused(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its registration was under way; a session that starts after the kick is accepted."""
    monkeypatch.setattr(connect, "STEP_MS", 1 << 53)  # its start is no sign of a step
    async with world(valkey) as of:
        await of.people("bob")
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        bob.session.started -= 60_000
        await of.node.users.kick("bob")
        assert await bob.closed() == (4504, "ended")
        kicked = await of.node.presence.clock_ms()
        await support.eventually(lambda: of.node.redis_clock.now_ms() > kicked)
        await of.client("bob").connected()


async def test_device_reconnects_elsewhere_after_redis_clock_was_put_back(valkey: EmbeddedValkey) -> None:
    """Sessions that started by the earlier clock do not make later ones start in the future."""
    async with world(valkey) as one, world(valkey) as other:
        for of, ahead_ms in ((one, 91_000), (other, 90_000)):
            of.node.redis_clock._ahead_ms += ahead_ms  # Redis's clock as it was
            await of.client("ann", str(ahead_ms)).connected()
            of.node.redis_clock._ahead_ms -= ahead_ms
        started = (await one.client("bob").connected()).session.started
        await support.eventually(lambda: other.node.redis_clock.now_ms() > started, every_s=0)
        await other.client("bob").connected()


@pytest.mark.parametrize(("earlier_ms", "late_ms"), [(0, -60_000), (7_200_000, 3_600_000)])
async def test_device_moves_to_a_gateway_that_has_not_noticed_a_step_of_redis_clock(
    valkey: EmbeddedValkey, earlier_ms: int, late_ms: int
) -> None:
    """Its session only seems to be older than the one at the first gateway, where it started by a third clock or by the
    right one."""
    async with world(valkey) as late, world(valkey) as first:
        for of in (late, first):
            await of.node.lease.set_clock()
        first.node.redis_clock._ahead_ms += earlier_ms
        earlier = (await first.client("bob").connected()).session.started
        await support.eventually(lambda: first.node.redis_clock.now_ms() > earlier + 100)  # answers that took time
        late.node.redis_clock._ahead_ms += late_ms  # Redis's clock as it was
        await late.client("bob").connected()


@pytest.mark.parametrize(("ahead_ms", "code"), [(0, 4000), (2000, 4409)])
async def test_older_session_of_a_device_is_refused_after_its_clock_was_asked(
    valkey: EmbeddedValkey, ahead_ms: int, code: int
) -> None:
    """Where the clocks of two gateways cannot tell which is older, the device is to connect again."""
    async with world(valkey) as one, world(valkey) as other:
        for of in (one, other):
            await of.node.lease.set_clock()
        held: list[tuple[Sync, Callable[[Synced | LinnetError], None]]] = []
        sync, one.node.users.sync = one.node.users.sync, lambda *question: held.append(question)  # type: ignore[method-assign]
        bob = one.client("bob", "phone")
        bob.say("hello", token=token(one.node, "bob"), device="phone")
        await support.eventually(lambda: held)
        one.node.users.sync = sync  # type: ignore[method-assign]
        other.node.redis_clock._ahead_ms += ahead_ms  # the other session starts so much later
        await support.eventually(lambda: other.node.redis_clock.now_ms() > bob.session.started, every_s=0)
        await other.client("bob", "phone").connected()
        sync(*held[0])
        assert (await bob.closed())[0] == code


async def test_later_session_wins_although_gateways_follow_clocks_of_other_servers(valkey: EmbeddedValkey) -> None:
    """On a cluster, starts are times of the user's own server."""
    async with world(valkey, None, PartedRedis) as fast, world(valkey, None, PartedRedis) as slow:
        fast.node.redis_clock._ahead_ms += 3000
        earlier = await fast.client("bob", "phone").connected()
        # Their starts are exact to a round trip to Redis.
        await support.eventually(lambda: now_ms() > earlier.session.started + 500)
        later = await slow.client("bob", "phone").connected()
        assert (await earlier.closed())[0] == 4409
        assert later.session.state is State.READY


async def test_session_after_a_kick_connects_although_its_gateway_follows_a_slow_clock(valkey: EmbeddedValkey) -> None:
    async with world(valkey, None, PartedRedis) as of:
        await of.people("bob")
        of.node.redis_clock._ahead_ms -= 3000
        await of.node.users.kick("bob")
        kicked = await of.node.presence.clock_ms()
        await support.eventually(lambda: now_ms() > kicked + 1)
        await of.client("bob").connected()


async def test_full_store_refuses_a_connect_with_a_retry_time(valkey: EmbeddedValkey) -> None:
    """Near maxmemory a registration is refused with 4000 and a random wait for each client."""
    async with world(valkey) as of:
        with valkey.client() as redis:
            redis.config_set("maxmemory", 1_000_000)
        bob = of.client("bob")
        bob.say("hello", id=1, token=token(of.node, "bob"))
        code, reason = await bob.closed()
        assert (code, bob.of("error", id=1)[0]["code"]) == (4000, "unavailable")
        assert reason.startswith("retry_after=")


async def test_user_that_connects_too_often_is_slowed(valkey: EmbeddedValkey) -> None:
    """30 connects at once, then one a second; beyond that 4008."""
    async with world(valkey) as of:
        for i in range(300):  # more than 30 where a second passes meanwhile
            bob = of.client("bob", f"device{i % 3}")
            bob.say("hello", token=token(of.node, "bob"), device=f"device{i % 3}")
            await bob.until(partial(welcomed_or_closed, bob))
            if bob.connection.closed:
                break
        code, reason = await bob.closed()
        assert code == 4008
        assert reason.startswith("retry_after=")


def welcomed_or_closed(client: Client) -> bool:
    return bool(client.connection.closed or client.of("welcome"))


async def test_connection_lost_during_connect_gets_no_welcome(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        bob.end()
        await of.settled()
        assert (bob.events, bob.session.state) == ([], State.CLOSED)
        await of.client("bob").connected()


# -- the welcome


async def test_welcome_contains_user_limits_and_conversations(valkey: EmbeddedValkey) -> None:
    async with world(valkey, heartbeat_s=7.0) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        first = await of.say("ann", group)
        await of.say("bob", direct)
        second = await of.say("ann", direct)
        bob = of.client("bob", "laptop")
        welcome = await bob.hello(id="h", instance="tab")
        session, expires_at, conversations = (welcome.pop(name) for name in ("session", "expires_at", "conversations"))
        assert session == bob.session.id
        assert 3_500_000 < expires_at - now_ms() <= 3_600_000
        assert welcome == {
            "type": "welcome", "id": "h", "user": "bob", "device": "laptop", "gateway": of.node.name, "heartbeat_s": 7,
            "limits": {"frame_bytes": 131_072, "body_bytes": 65_536, "sends_per_s": 1e5, "send_burst": 100_000},
            "state": 0, "more": False,
        }  # fmt: skip
        assert conversations == [
            {"conversation": direct, "kind": "direct", "title": "", "head": second.seq, "cursor": 0,
             "read": conversations[0]["read"], "unread": 1, "with": "ann",
             "role": "member"},
            {"conversation": group, "kind": "group", "title": "a title", "head": first.seq, "cursor": 0, "read": 0,
             "unread": 1, "role": "member", "posting": "all"},
        ]  # fmt: skip
        await bob.until(lambda: len(bob.of("message")) == 3)


async def test_event_during_connect_arrives_once_after_the_welcome(valkey: EmbeddedValkey) -> None:
    """At every moment: before the subscriptions, between registering and reading the heads, and after."""
    async with world(valkey) as of, world(valkey) as elsewhere:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        for i in range(8):
            bob = of.client("bob", f"device{i}")
            bob.say("hello", token=token(of.node, "bob"), device=f"device{i}")
            for j in range(6):
                await elsewhere.say("ann", (group, direct)[j % 2], [i, j])
            for conv, last in ((group, 4), (direct, 5)):
                await bob.event("message", conversation=conv, body=[i, last])
                assert bob.bodies(conv) == [
                    [k, j] for k in range(i + 1) for j in range(6) if (j % 2 == 0) == (conv == group)
                ]
            assert bob.events[0]["type"] == "welcome"
            bob.end()


async def test_group_that_moved_last_is_listed_first_although_its_row_did_not_move(valkey: EmbeddedValkey) -> None:
    """An event in a group does not update the rows of its members, so the group's head decides."""
    async with world(valkey) as of:
        group, direct = await of.group("ann", "bob"), await of.direct("ann", "bob")
        await of.say("ann", direct, "older")
        await of.next_ms()
        await of.say("ann", group, "newer")
        bob = of.client("bob")
        welcome = await bob.hello()
        assert [state["conversation"] for state in welcome["conversations"]] == [group, direct]
        await bob.caught_up()
        assert [event["body"] for event in bob.of("message")] == ["newer", "older"]


# -- memory


async def test_connect_leaves_nothing_for_the_garbage_collector(valkey: EmbeddedValkey) -> None:
    """Objects that only a collection frees would leave holes in the memory of a node after a storm of connects."""
    async with world(valkey) as of:
        group = await of.group("bob", "cid")
        gc.collect()
        gc.disable()
        try:
            bob = of.client("bob")
            bob.say("hello", token=token(of.node, "bob"))
            assert [one["conversation"] for one in (await bob.event("welcome"))["conversations"]] == [group]
            await of.settled()
            assert [one for one in gc.get_objects() if isinstance(one, connect.Connect)] == []
        finally:
            gc.enable()
