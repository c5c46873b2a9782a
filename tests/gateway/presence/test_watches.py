"""Watches: each change of presence is sent to the sessions that watch, once, and a watch ends with its session."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from gateway.node import now_ms
from gateway.presence import departures, watches
from router.contract import keys, signals
from router.contract.errors import Unavailable
from router.store.answers import reply_of
from router.store.contacts import Contacts
from router.store.pairs import Pairs
from router.store.state import State
from tests import support
from tests.gateway.world import Client, World, world


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "COALESCE_S", 0.0)


async def lease_held(of: World) -> None:
    """Write the node's lease, and read it back."""
    of.node.lease.renew()
    await of.settled()
    await of.node.lease._round()


async def test_presence_contains_every_requested_user(valkey: EmbeddedValkey) -> None:
    """Online, last seen some time ago, never seen; a repeated name is answered once."""
    async with world(valkey) as of:
        await lease_held(of)
        ann = await of.client("ann").connected()
        await of.client("bob").connected()
        cid = await of.client("cid").connected()
        cid.end()
        await reply_of(of.node.users.mark_away, "cid", "phone", cid.session.id)
        answer = await ann.ask("presence", "presence", users=["bob", "cid", "dan", "bob"])
        states = answer["users"]
        assert {user: state["online"] for user, state in states.items()} == {"bob": True, "cid": False, "dan": False}
        assert states["dan"]["last_seen"] is None
        assert abs(states["cid"]["last_seen"] - now_ms()) < 60_000
        assert of.node.watches.users == {}


async def test_watcher_receives_only_changes(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """One event for each change, none for a state that the watcher already has."""
    monkeypatch.setattr(departures, "AWAY_GRACE_S", 0.0)
    async with world(valkey) as of:
        await lease_held(of)
        ann = await of.client("ann").connected()
        await ann.ask("presence", "presence", users=["bob"], watch=True)
        bob = await of.client("bob").connected()
        told = await ann.until(lambda: [event["users"] for event in ann.of("presence") if "id" not in event])
        assert told == [{"bob": {"online": True, "last_seen": told[0]["bob"]["last_seen"]}}]
        laptop = await of.client("bob", "laptop").connected()
        of.node.watches.touched("bob")
        await of.settled()
        for client in (laptop, bob):
            client.end()
            of.node.departures.turn()
            of.node.lease.turn()
            await of.settled()
        offline = await ann.until(lambda: [event for event in ann.of("presence") if "id" not in event][1:])
        assert [event["users"]["bob"]["online"] for event in offline] == [False]
        assert len(ann.of("presence")) == 3


async def test_lost_hint_is_repaired_by_the_next_round(valkey: EmbeddedValkey) -> None:
    """Every watched user is read again once per heartbeat."""
    async with world(valkey) as of:
        await lease_held(of)
        ann = await of.client("ann").connected()
        await ann.ask("presence", "presence", users=["bob"], watch=True)
        await of.settled()
        with of.deaf():
            await of.client("bob").connected()
            await of.settled()
        assert len(ann.of("presence")) == 1
        of.node.watches.touch_all()
        await ann.until(lambda: len(ann.of("presence")) == 2)


async def test_users_of_a_dead_gateway_go_offline_without_a_hint(valkey: EmbeddedValkey) -> None:
    """The leases show it each time they are read."""
    async with world(valkey) as of:
        await lease_held(of)
        other = await of.register("bob", "phone", now_ms())
        assert other.status == "ok"
        await reply_of(of.node.presence.renew, "other", "", 1, 0, now_ms())
        await of.node.lease._round()
        ann = await of.client("ann").connected()
        answer = await ann.ask("presence", "presence", users=["bob"], watch=True)
        assert answer["users"]["bob"]["online"]
        await of.settled()
        await reply_of(of.node.presence.renew, "other", "", 1, 0, now_ms() - 60_000)
        await of.node.lease._round()
        await ann.until(lambda: [event for event in ann.of("presence", id=None) if not event["users"]["bob"]["online"]])


async def test_watches_end_with_their_session(valkey: EmbeddedValkey) -> None:
    """The last session that watches a user ends the subscription."""
    async with world(valkey) as of:
        ann, cid = await of.client("ann").connected(), await of.client("cid").connected()
        for client in (ann, cid):
            await client.ask("presence", "presence", users=["bob"], watch=True)
        await ann.ask("presence", "presence", users=["dan"], watch=True)
        channel = keys.Channels().presence("bob").encode()
        assert of.node.watches.users.keys() == {"bob", "dan"}
        ann.end()
        assert of.node.watches.users.keys() == {"bob"}
        assert channel in of.node.bus._wanted
        cid.end()
        await of.settled()
        assert of.node.watches.users == {}
        assert channel not in of.node.bus._wanted


async def test_watches_of_a_session_are_bounded(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command beyond the bound is refused as a whole; users that are watched already cost nothing."""
    monkeypatch.setattr(watches, "MAX_WATCHES", 3)
    async with world(valkey) as of:
        ann = await of.client("ann").connected()
        await ann.ask("presence", "presence", users=["a", "b", "c"], watch=True)
        await ann.ask("presence", "presence", users=["c", "a"], watch=True)
        assert (await ann.ask("presence", "error", users=["c", "d"], watch=True))["code"] == "too_large"
        assert of.node.watches.users.keys() == {"a", "b", "c"}
        await ann.ask("presence", "presence", users=["d"])


async def test_hints_are_joined(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose devices connect and end quickly costs one read per interval; an unwatched user costs none."""
    async with world(valkey) as of:
        ann = await of.client("ann").connected()
        await ann.ask("presence", "presence", users=["bob"], watch=True)
        await of.settled()
        reads: list[list[str]] = []
        later: list[Any] = []
        monkeypatch.setattr(of.node.watches, "_later", lambda _, callback: later.append(callback))
        monkeypatch.setattr(of.node.presence, "devices", lambda users, reply: reads.append(users))
        for _ in range(50):
            of.redis.publish(keys.Channels().presence("bob"), signals.encode(signals.Touched("bob")))
            of.node.watches.touched("bob", "nobody")
        await of.settled()
        assert len(later) == 1
        later[0]()
        assert reads == [["bob"]]


async def test_many_watched_users_are_read_in_parts(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next part is read when the last has been answered or refused, so that commands find room among the calls.
    Users that are touched meanwhile are read once afterwards."""
    monkeypatch.setattr(watches, "USERS_PER_READ", 2)
    async with world(valkey) as of:
        ann = await of.client("ann").connected()
        await ann.ask("presence", "presence", users=["a", "b", "c", "d", "e"], watch=True)
        await of.settled()
        await support.eventually(lambda: not of.node.watches._reading)
        asked: list[tuple[list[str], Any]] = []
        later: list[Any] = []
        monkeypatch.setattr(of.node.watches, "_later", lambda _, callback: later.append(callback))
        monkeypatch.setattr(of.node.presence, "devices", lambda users, reply: asked.append((users, reply)))

        of.node.watches.touch_all()
        later.pop()()
        answers: list[Any] = [[[], []], Unavailable(), [[]]]
        for answer in answers:
            assert len(asked) == 1
            users, reply = asked.pop()
            of.node.watches.touched("b")
            reply(answer)
        assert (users, asked, len(later)) == (["e"], [], 1)
        later.pop()()
        assert [users for users, _ in asked] == [["b"]]


async def test_many_watched_users_are_decided_in_parts(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The leases are read every few seconds, and messages must not wait for that."""
    monkeypatch.setattr(watches, "USERS_PER_READ", 2)
    async with world(valkey) as of:
        await lease_held(of)
        ann = await of.client("ann").connected()
        users = ["a", "b", "c", "d", "e"]
        for user in users:
            await of.register(user, "phone", now_ms() - 60_000)
        await reply_of(of.node.presence.renew, "other", "", 5, 0, now_ms())
        await of.node.lease._round()
        await ann.ask("presence", "presence", users=users, watch=True)
        await reply_of(of.node.presence.renew, "other", "", 5, 0, now_ms() - 60_000)
        await of.node.lease._round()
        await ann.until(lambda: sum(len(event["users"]) for event in ann.of("presence", id=None)) == len(users))
        told = [set(event["users"]) for event in ann.of("presence", id=None)]
        assert [len(some) for some in told] == [2, 2, 1]
        assert set.union(*told) == set(users)


async def test_change_before_the_confirmation_is_seen(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        await lease_held(of)
        ann = await of.client("ann").connected()
        with of.deaf():
            answer = await ann.ask("presence", "presence", users=["bob"], watch=True)
            await of.register("bob", "phone", now_ms())
            await reply_of(of.node.presence.renew, "other", "", 1, 0, now_ms())
            await of.node.lease._round()
        assert not answer["users"]["bob"]["online"]
        of.node.watches._subscribed("bob", True)
        await ann.until(lambda: len(ann.of("presence")) == 2)
        await support.eventually(lambda: not of.node.watches._touched)


async def test_request_between_two_changes_sends_the_first_to_all_watchers(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer shows a change that no watcher here has yet: it is sent to all, and the change back is sent again."""
    monkeypatch.setattr(departures, "AWAY_GRACE_S", 0.0)
    async with world(valkey) as of:
        await lease_held(of)
        bob = await of.client("bob").connected()
        ann, cid = await of.client("ann").connected(), await of.client("cid").connected()
        assert (await ann.ask("presence", "presence", users=["bob"], watch=True))["users"]["bob"]["online"]
        with of.deaf():
            await reply_of(of.node.users.mark_away, "bob", "phone", bob.session.id)
            await of.settled()
        assert not (await cid.ask("presence", "presence", users=["bob"], watch=True))["users"]["bob"]["online"]
        await of.client("bob", "laptop").connected()
        await ann.until(lambda: ann.of("presence")[-1]["users"]["bob"]["online"])
        await cid.until(lambda: cid.of("presence")[-1]["users"]["bob"]["online"])
        assert [event["users"]["bob"]["online"] for event in ann.of("presence")] == [True, False, True]


async def test_session_that_raises_costs_no_other_session_its_change(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that raises costs nothing either: the next hint is read as usual."""
    async with world(valkey) as of:
        await lease_held(of)
        watchers = [await of.client(user).connected() for user in ("ann", "cid", "dan")]
        for watcher in watchers:
            await watcher.ask("presence", "presence", users=["bob"], watch=True)

        def broken(*_: object) -> None:
            raise RuntimeError("broken")

        devices = of.node.presence.devices
        monkeypatch.setattr(of.node.presence, "devices", broken)
        of.node.watches.touched("bob")
        await support.eventually(lambda: not of.node.watches._reading)
        monkeypatch.setattr(of.node.presence, "devices", devices)
        watchers[1].connection.write = broken  # type: ignore[method-assign,assignment]
        await of.client("bob").connected()
        of.node.watches.touched("bob")
        for watcher in (watchers[0], watchers[2]):
            await watcher.until(lambda: [event for event in watcher.of("presence") if "id" not in event])  # noqa: B023


async def test_presence_that_cannot_be_read_is_null(valkey: EmbeddedValkey) -> None:
    """Not known is not offline: the watchers of a user keep what they know until the user can be read again."""
    async with world(valkey) as of:
        await lease_held(of)
        ann = await of.client("ann").connected()
        bob = await of.client("bob").connected()
        assert (await ann.ask("presence", "presence", users=["bob"], watch=True))["users"]["bob"]["online"]
        kept = await of.redis.fetch("HGETALL", keys.devices("bob"))
        await of.redis.fetch("SET", keys.devices("bob"), "no hash")
        of.node.watches.touched("bob")
        await support.eventually(lambda: not of.node.watches._reading)
        assert not [event for event in ann.of("presence") if "id" not in event]
        states = (await ann.ask("presence", "presence", users=["bob", "ann"]))["users"]
        assert (states["bob"], states["ann"]["online"]) == ({"online": None, "last_seen": None}, True)
        await of.redis.fetch("DEL", keys.devices("bob"))
        await of.redis.fetch("HSET", keys.devices("bob"), *kept)
        assert (await ann.ask("presence", "presence", users=["bob"]))["users"]["bob"]["online"]
        assert bob.of("error") == []


async def test_watcher_of_a_user_that_could_not_be_read_hears_that_the_user_is_offline(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        await lease_held(of)
        await of.people("bob")
        ann = await of.client("ann").connected()
        await of.redis.fetch("SET", keys.devices("bob"), "no hash")
        answer = await ann.ask("presence", "presence", users=["bob", "ann"], watch=True)
        assert answer["users"]["bob"]["online"] is None
        await of.redis.fetch("DEL", keys.devices("bob"))
        of.node.watches.touched("bob")
        await ann.event("presence", users={"bob": {"online": False, "last_seen": None}})


async def test_every_watcher_whose_answer_was_null_is_sent_the_presence_once_it_is_known(
    valkey: EmbeddedValkey,
) -> None:
    """Also one that came after another watcher had been told."""
    async with world(valkey) as of:
        await lease_held(of)
        await of.client("bob").connected()
        ann, cem, dan = [await of.client(name).connected() for name in ("ann", "cem", "dan")]
        assert (await ann.ask("presence", "presence", users=["bob"], watch=True))["users"]["bob"]["online"]
        rows, kept = keys.devices("bob"), f"{keys.devices('bob')}:kept"
        await of.redis.fetch("COPY", rows, kept)
        await of.redis.fetch("SET", rows, "no hash")
        for watcher in (cem, dan):
            answer = await watcher.ask("presence", "presence", users=["bob", watcher.user], watch=True)
            assert answer["users"]["bob"]["online"] is None
        await of.redis.fetch("RENAME", kept, rows)  # in one step: a read may be due, and must not find bob offline
        of.node.watches.touched("bob")

        def told(watcher: Client) -> list[bool]:
            return [event["users"]["bob"]["online"] for event in watcher.of("presence") if "id" not in event]

        for watcher in (cem, dan):
            await watcher.until(lambda watcher=watcher: told(watcher))  # type: ignore[misc]
            assert told(watcher) == [True]
        assert told(ann) == [], "she knew it"
        assert not any(watch.untold for watch in of.node.watches.users.values())


async def test_presence_whose_callback_raises_is_answered(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(valkey) as of:
        ann = await of.client("ann").connected()

        def broken(*_: object) -> None:
            raise RuntimeError("broken")

        monkeypatch.setattr(of.node.watches, "_states", broken)
        assert (await ann.ask("presence", "error", users=["bob"]))["code"] == "internal"


async def test_users_with_a_block_between_them_are_offline_to_each_other(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the block on, for watchers and for a question; no change is sent until the block ends. Others see it."""
    monkeypatch.setattr(departures, "AWAY_GRACE_S", 0.0)
    async with world(valkey) as of:
        await lease_held(of)
        clients = {user: await of.client(user).connected() for user in ("ann", "bob", "cid")}
        contacts = contacts_of(of)
        for user, other in (("ann", "bob"), ("bob", "ann"), ("cid", "bob")):
            await clients[user].ask("presence", "presence", users=[other], watch=True)
        await contacts.change("ann", "bob", "block")
        nothing = {"online": False, "last_seen": None}
        for user, other in (("ann", "bob"), ("bob", "ann")):
            await clients[user].event("presence", users={other: nothing})
            for watch in (False, True):
                answer = await clients[user].ask("presence", "presence", users=[other], watch=watch)
                assert answer["users"] == {other: nothing}
        clients["bob"].end()
        of.node.departures.turn()
        await clients["cid"].until(lambda: len(unasked(clients["cid"])) == 1)
        clients["bob"] = await of.client("bob").connected()
        await clients["cid"].until(lambda: len(unasked(clients["cid"])) == 2)
        assert len(unasked(clients["ann"])) == 1
        await clients["bob"].ask("presence", "presence", users=["ann"], watch=True)
        await contacts.change("ann", "bob", "unblock")
        for user, other in (("ann", "bob"), ("bob", "ann")):
            await clients[user].until(partial(seen_online, clients[user], other))
        assert len(unasked(clients["cid"])) == 2


async def test_presence_for_contacts_only_is_shown_to_contacts(valkey: EmbeddedValkey) -> None:
    """The setting and a new contact take effect at once for watchers."""
    async with world(valkey) as of:
        await lease_held(of)
        contacts = contacts_of(of)
        for user in ("ann", "bob", "cid"):
            await of.people(user)
        await contacts.change("ann", "bob", "ask", "", 1)
        await contacts.change("bob", "ann", "accept")
        ann, bob, cid = [await of.client(user).connected() for user in ("ann", "bob", "cid")]
        for client in (bob, cid):
            await client.ask("presence", "presence", users=["ann"], watch=True)
        await of.node.profiles.change("ann", {"presence": "contacts"})
        await cid.event("presence", users={"ann": {"online": False, "last_seen": None}})
        ann.end()
        await of.settled()
        await contacts.change("cid", "ann", "ask", "", 1)
        await contacts.change("ann", "cid", "accept")
        answer = await bob.ask("presence", "presence", users=["ann"])
        assert (await cid.ask("presence", "presence", users=["ann"]))["users"] == answer["users"]


async def test_watcher_is_sent_no_change_before_it_is_known_who_sees_the_user(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session here watches the user already, so changes come while the new watcher still waits."""
    async with world(valkey) as of:
        await lease_held(of)
        ann, cid = [await of.client(user).connected() for user in ("ann", "cid")]
        await of.people("bob")
        await contacts_of(of).change("bob", "ann", "block")
        await cid.ask("presence", "presence", users=["bob"], watch=True)
        await of.settled()
        hidden_from = of.node.people.hidden_from
        asked: list[Any] = []
        monkeypatch.setattr(of.node.people, "hidden_from", lambda *given: asked.append(given))
        ann.say("presence", users=["bob"], watch=True)
        await support.eventually(lambda: asked)
        await of.client("bob").connected()
        await cid.until(lambda: unasked(cid))
        assert ann.of("presence") == []
        for given in asked:
            hidden_from(*given)
        await ann.event("presence", users={"bob": {"online": False, "last_seen": None}})


async def test_watchers_that_cannot_be_asked_about_cost_one_timer(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a client asks while the user's server does not answer."""
    async with world(valkey) as of:
        await lease_held(of)
        ann = await of.client("ann").connected()
        await ann.ask("presence", "presence", users=["bob"], watch=True)
        await of.settled()
        await support.eventually(lambda: not of.node.watches._reading)
        later: list[Any] = []
        monkeypatch.setattr(of.node.watches, "_later", lambda _, callback, *given: later.append((callback, given)))
        with monkeypatch.context() as patch:
            patch.setattr(of.node.people, "hidden_from", lambda user, viewers, reply: reply(Unavailable()))
            for _ in range(5):
                answer = await ann.ask("presence", "presence", users=["bob"], watch=True)
                of.node.watches.look_who_sees("bob")
                assert answer["users"]["bob"]["online"] is None
            looks = [(callback, given) for callback, given in later if given == ("bob",) or given == ("bob", False)]
            assert len(looks) == 1
        await of.client("bob").connected()
        of.node.watches.touched("bob")
        for callback, given in [*later]:
            callback(*given)
        await ann.until(lambda: unasked(ann))


async def test_watchers_that_see_a_user_hear_of_a_new_profile(valkey: EmbeddedValkey) -> None:
    """Not those with a block between, and not of a change that changes nothing."""
    async with world(valkey) as of:
        await lease_held(of)
        bob, cid = [await of.client(user).connected() for user in ("bob", "cid")]
        await of.people("ann")
        await contacts_of(of).change("ann", "cid", "block")
        for client in (bob, cid):
            await client.ask("presence", "presence", users=["ann"], watch=True)
        for name in ("Ann", "Ann", "Anne"):
            await of.node.profiles.change("ann", {"name": name})
        await bob.until(lambda: bob.of("profile")[1:])
        await of.settled()
        assert [event["user"] for event in bob.of("profile")] == ["ann", "ann"]
        assert cid.of("profile") == []


def contacts_of(of: World) -> Contacts:
    client, node = of.node.client, of.node
    return Contacts(Pairs(client), node.people, node.profiles, node.users, State(client, (1, 1_000_000)))


def seen_online(client: Any, other: str) -> bool:
    return any(other in states and states[other]["online"] for states in unasked(client))


def unasked(client: Any) -> list[dict[str, Any]]:
    """The states that a client got without asking."""
    return [event["users"] for event in client.of("presence") if "id" not in event]
