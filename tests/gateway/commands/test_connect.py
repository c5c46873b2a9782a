"""From hello to welcome: who is refused and how, what the welcome says, and where a device begins."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from gateway.delivery.feed import State
from gateway.node import now_ms
from router.contract import keys, wire
from router.contract.errors import Unavailable
from router.contract.packing import MAX_INTEGER
from router.contract.tokens import UnknownKey, issue
from router.store.answers import ask
from router.store.users import Sync
from tests import support
from tests.gateway.world import Client, settings, token, world

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
async def test_a_bad_token_is_told_and_closed_for_good(
    valkey: EmbeddedValkey, make: Any, code: str, close: int
) -> None:
    """An error with the hello's id first, then a close code that says not to come back with it."""
    async with world(valkey) as of:
        bob = of.client("bob")
        given = make(of)
        bob.say("hello", id=5, **({} if given is None else {"token": given}))
        assert (await bob.event("error", id=5))["code"] == code
        assert bob.connection.closed == (close, code)
        assert bob.session not in of.node.sessions.all
        await of.settled()
        assert await of.redis.fetch("EXISTS", keys.user("bob"), keys.devices("bob")) == 0


async def test_a_token_that_came_with_the_upgrade_serves(valkey: EmbeddedValkey) -> None:
    """And one in the hello wins over it; neither is kept."""
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


async def test_a_deleted_user_does_not_come_in(valkey: EmbeddedValkey) -> None:
    """4502: the token is good, its user is not."""
    async with world(valkey) as of:
        await of.people("bob")
        await of.accounts.delete("bob")
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        assert await bob.closed() == (4502, "blocked")


async def test_a_session_that_started_before_a_kick_does_not_come_in(valkey: EmbeddedValkey) -> None:
    """Its register was under way; one that starts after it may."""
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
    """Sessions that started by the clock of before do not make later ones start in the future."""
    async with world(valkey) as one, world(valkey) as other:
        for of, ahead_ms in ((one, 91_000), (other, 90_000)):
            of.node.redis_clock._ahead_ms += ahead_ms  # Redis's clock as it was
            await of.client("ann", str(ahead_ms)).connected()
            of.node.redis_clock._ahead_ms -= ahead_ms
        await one.client("bob").connected()
        await one.next_ms()
        await other.client("bob").connected()


async def test_a_full_store_is_told_when_to_come_back(valkey: EmbeddedValkey) -> None:
    """Registering is refused near maxmemory: 4000, with a wait of its own for each client."""
    async with world(valkey) as of:
        with valkey.client() as redis:
            redis.config_set("maxmemory", 1_000_000)
        bob = of.client("bob")
        bob.say("hello", id=1, token=token(of.node, "bob"))
        code, reason = await bob.closed()
        assert (code, bob.of("error", id=1)[0]["code"]) == (4000, "unavailable")
        assert reason.startswith("retry_after=")


async def test_a_user_who_connects_too_often_waits(valkey: EmbeddedValkey) -> None:
    """30 at once, then one a second: 4008."""
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


async def test_a_key_that_is_not_here_yet_is_asked_for(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only then does a hello wait for the provider; what it says then decides."""
    async with world(valkey) as of:
        verifier = of.node.authentication.verifier
        check = verifier.check

        def unknown(*_: Any) -> Any:
            raise UnknownKey

        async def late(given: str, now_ms: int) -> Any:
            return check(given, now_ms)

        async def never(given: str, now_ms: int) -> Any:
            raise Unavailable("the identity provider cannot be reached", 5.0)

        monkeypatch.setattr(verifier, "check", unknown)
        monkeypatch.setattr(verifier, "identity", late)
        await of.client("bob").connected()
        monkeypatch.setattr(verifier, "identity", never)
        cid = of.client("cid")
        cid.say("hello", token=token(of.node, "cid"))
        assert await cid.closed() == (4000, "retry_after=5")
        gone = of.client("dan")
        gone.say("hello", token=token(of.node, "dan"))
        gone.end()
        await of.settled()
        assert gone.events == []


async def test_who_went_while_connecting_is_not_welcomed(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        bob = of.client("bob")
        bob.say("hello", token=token(of.node, "bob"))
        bob.end()
        await of.settled()
        assert (bob.events, bob.session.state) == ([], State.CLOSED)
        await of.client("bob").connected()


# -- the welcome


async def test_the_welcome_says_who_and_what_there_is(valkey: EmbeddedValkey) -> None:
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
            "more": False,
        }  # fmt: skip
        assert conversations == [
            {"conversation": direct, "kind": "direct", "title": "", "head": second.seq, "cursor": 0,
             "read": conversations[0]["read"], "unread": 1, "with": "ann",
             "role": "member"},
            {"conversation": group, "kind": "group", "title": "a title", "head": first.seq, "cursor": 0, "read": 0,
             "unread": 1, "role": "member"},
        ]  # fmt: skip
        await bob.until(lambda: len(bob.of("message")) == 3)


async def test_what_comes_while_connecting_comes_once_and_after_the_welcome(valkey: EmbeddedValkey) -> None:
    """Whatever the moment: before the channels stand, between registering and the heads, or after."""
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


async def test_a_group_that_moved_last_comes_first_though_its_row_did_not_move(valkey: EmbeddedValkey) -> None:
    """A group's event costs its members' rows nothing: what stands at the group decides."""
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


async def test_more_conversations_than_a_welcome_holds_follow_newest_first(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In `conversations` events, until `more` is false; each is told once and fed."""
    monkeypatch.setattr(wire, "WELCOME_LIMIT", 4)
    async with world(valkey) as of:
        question = of.node.syncs.question
        page = of.node.users.page

        def small(session: Any) -> Sync:
            return replace(question(session), limit=5)

        def short(user: str, device: str, below: int, reply: Any) -> None:
            page(user, device, below, reply, limit=3)

        monkeypatch.setattr(of.node.syncs, "question", small)
        monkeypatch.setattr(of.node.users, "page", short)
        users = [f"user{i}" for i in range(12)]
        for user in users:
            await of.say(user, await of.direct(user, "bob"))
        group = await of.group("bob")
        for user in users[:2]:
            await of.say(user, keys.direct(user, "bob"))
        bob = await of.client("bob").connected()
        told = [event for event in bob.events if event["type"] in ("welcome", "conversations")]
        assert [event["more"] for event in told] == [*[True] * (len(told) - 1), False]
        names = [state["conversation"] for event in told for state in event["conversations"]]
        names.remove(group)  # of the same millisecond as others
        assert names == [keys.direct("bob", user) for user in (*users[1::-1], *users[:1:-1])]
        assert len(told[0]["conversations"]) == 4
        assert len(bob.of("message")) == 14


# -- where a device begins


async def test_a_new_device_begins_a_hundred_events_back_without_a_gap(valkey: EmbeddedValkey) -> None:
    """Or at the read mark, if that is earlier. The next time it begins where it acked."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        said = [await of.say("ann", group, i) for i in range(130)]
        await ask(of.node.users.read, "bob", group, said[119].seq, 120)
        bob = await of.client("bob").connected()
        assert bob.bodies(group) == list(range(30, 130))
        await ask(of.node.users.ack, "bob", "phone", bob.session.id, {group: said[125].seq})
        bob.end()
        again = await of.client("bob").connected()
        assert again.bodies(group) == list(range(126, 130))
        assert bob.of("gap") == again.of("gap") == []
        (state,) = again.of("welcome")[0]["conversations"]
        assert (state["cursor"], state["read"], state["unread"]) == (said[125].seq, said[119].seq, 10)


@pytest.mark.parametrize("connected", [True, False])
async def test_who_is_put_out_of_a_group_that_was_empty_gets_what_was_written_before(
    valkey: EmbeddedValkey, connected: bool
) -> None:
    """A device that knows the group and has nothing of it yet is away meanwhile; of groups that it never met it is told
    nothing."""
    async with world(valkey) as of:
        bob = await of.client("bob").connected()
        if not connected:
            bob.end()
        group = await of.group("ann", "bob")
        if not connected:
            bob = await of.client("bob").connected()
        await bob.until(
            lambda: any(group == one["conversation"] for e in bob.events for one in e.get("conversations", ()))
        )
        await of.settled()
        bob.end()
        never = await of.group("ann", "bob")
        for conversation in (group, never):
            await of.say("ann", conversation, "with bob")
            await of.remove(conversation, "bob")
            await of.say("ann", conversation, "without bob")
        bob = await of.client("bob").connected()
        assert (bob.bodies(group), bob.bodies(never)) == (["with bob"], [])


async def test_an_early_read_mark_takes_a_new_device_further_back(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        said = [await of.say("ann", group, i) for i in range(130)]
        await ask(of.node.users.read, "bob", group, said[9].seq, 10)
        bob = await of.client("bob").connected()
        assert bob.bodies(group) == list(range(10, 130))


async def test_what_a_device_says_it_has_replaces_what_is_stored(valkey: EmbeddedValkey) -> None:
    """Down as well as up: a client that lost its storage gets it again."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        said = [await of.say("ann", direct, i) for i in range(6)]
        bob = await of.client("bob").connected()
        await ask(of.node.users.ack, "bob", "phone", bob.session.id, {direct: said[5].seq})
        bob.end()
        down = await of.client("bob").connected(cursors={direct: said[1].seq})
        assert down.bodies(direct) == [2, 3, 4, 5]
        down.end()
        up = await of.client("bob").connected(cursors={direct: said[4].seq, "d:cid:dan": 7})
        assert up.bodies(direct) == [5]
        assert await of.redis.fetch("HEXISTS", keys.cursor("bob", "phone"), "d:cid:dan") == 0


async def test_a_device_that_is_ahead_of_a_log_that_was_rolled_back_misses_nothing(valkey: EmbeddedValkey) -> None:
    """Its cursor names what never was."""
    async with world(valkey) as of:
        direct = await of.direct("ann", "bob")
        kept = await of.say("ann", direct, "kept")
        photograph = await of.photographed(direct)
        void = await of.say("ann", direct, "void")
        await of.failed_over(direct, photograph)
        bob = await of.client("bob").connected(cursors={direct: void.seq})
        await of.say("ann", direct, "new", seen=void.seq)
        await bob.event("message", body="new")
        assert bob.bodies(direct) == ["new"]
        assert [(gap["from"], gap["to"], gap["reason"]) for gap in bob.of("gap")] == [
            (kept.seq + 1, void.seq, "failover")
        ]


@pytest.mark.parametrize("known", [False, True])
async def test_what_a_device_claims_to_have_wedges_no_conversation(valkey: EmbeddedValkey, known: bool) -> None:
    """A cursor that no server gave out, said right before the first send to a new direct conversation or to a group
    whose server was replaced, takes none of their seqs away."""
    async with world(valkey) as of:
        conv = await of.group("ann", "bob") if known else keys.direct("ann", "bob")
        await of.people("ann", "bob")
        bob = await of.client("bob").connected()
        if known:
            await of.say("bob", conv, 0)
            await of.failed_over(conv, await of.photographed(conv))
        ann = of.client("ann")
        ann.say("hello", token=token(of.node, "ann"), device="phone", cursors={conv: MAX_INTEGER})
        ann.say("send", to=conv if known else "@bob", n=1, body=1)
        first = await ann.event("ack", n=1)
        ann.say("send", to=conv, n=2, body=2)
        second = await ann.event("ack", n=2)
        assert first["seq"] + 1 == second["seq"] < MAX_INTEGER // 2
        await bob.event("message", n=2)
        assert bob.bodies(conv)[-2:] == [1, 2]


async def test_a_channel_begins_near_its_end_for_whoever_comes(valkey: EmbeddedValkey) -> None:
    """Its history is public, and long: a device that is not new joins it a hundred events back."""
    async with world(valkey) as of:
        channel = await of.group("ann", kind=keys.CHANNEL)
        for i in range(120):
            await of.say("ann", channel, i)
        bob = await of.client("bob").connected()
        await of.put(channel, "bob", "r")
        await bob.event("member", user="bob", action="add")
        assert bob.bodies(channel) == list(range(21, 120))


async def test_a_group_that_vanished_is_not_told(valkey: EmbeddedValkey) -> None:
    """Its row may stand a while longer."""
    async with world(valkey) as of:
        group, other = await of.group("ann", "bob"), await of.group("ann", "bob")
        await of.node.conversations.remove_conversation(group, None)
        bob = of.client("bob")
        welcome = await bob.hello()
        assert [state["conversation"] for state in welcome["conversations"]] == [other]
        await support.eventually(lambda: set(of.node.subscriptions.hubs) == {other})


async def test_joins_that_are_told_twice_happen_once(valkey: EmbeddedValkey) -> None:
    """The second may come while the group's channel is still being subscribed for the first."""
    async with world(valkey) as of:
        group = await of.group("ann")
        bob = await of.client("bob").connected()
        with of.deaf():
            await of.put(group, "bob")
            await of.settled()
        row = await of.node.users.row("bob", group)
        assert row is not None
        for _ in range(3):
            of.node.membership.enter(bob.session, row)
        await bob.event("member", user="bob", action="add")
        await of.settled()
        assert len(bob.of("conversations")) == 1
        assert [hub.conversation for hub in bob.session.hubs] == [group]


async def test_row_lost_from_a_list_costs_one_connect_nothing(valkey: EmbeddedValkey) -> None:
    """A name that the list has and no row stands behind: the welcome comes, with the conversations that are whole."""
    async with world(valkey) as of:
        lost, whole = await of.direct("bob", "ann"), await of.direct("bob", "cid")
        for user, conv in (("ann", lost), ("cid", whole)):
            await of.say(user, conv)
        await of.redis.fetch("HDEL", keys.convs("bob"), lost)
        welcome = await of.client("bob").hello()
        assert [state["conversation"] for state in welcome["conversations"]] == [whole]


async def test_entries_tell_the_role_of_the_user(valkey: EmbeddedValkey) -> None:
    """In `welcome`, as it is by then, and in the entry of a group that the user comes into."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        await of.put(group, "bob", "r")
        channel = await of.group("bob", "ann", kind=keys.CHANNEL)
        bob = of.client("bob")
        entries = (await bob.hello())["conversations"]
        assert {entry["conversation"]: entry["role"] for entry in entries} == {group: "reader", channel: "owner"}
        late = await of.group("ann")
        await of.put(late, "bob", "a")
        told = await bob.until(lambda: [e for event in bob.of("conversations") for e in event["conversations"]])
        assert [(entry["conversation"], entry["role"]) for entry in told] == [(late, "admin")]
        assert not bob.session.roles
