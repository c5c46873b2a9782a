"""The commands that append an event, with and without a pre-send hook."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from tests import support
from tests.gateway.world import World, world
from tests.process.hook_server import SECRET, SLOW, Hook, hooking


@asynccontextmanager
async def hooked(valkey: EmbeddedValkey, **changes: Any) -> AsyncIterator[tuple[World, Hook]]:
    async with hooking() as hook:
        given = {"send_hook_url": hook.url, "send_hook_secret": SECRET, "send_hook_timeout_ms": 30_000} | changes
        async with world(valkey, **given) as of:
            yield of, hook


async def test_without_a_hook_events_are_appended_by_the_store_itself(valkey: EmbeddedValkey) -> None:
    """The same callable, and no call of Redis more."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        assert of.node.sends._appends is of.node.conversations
        before = dict(of.redis.statistics().functions)
        await ann.ask("send", "ack", to=group, n=1, body="hello")
        after = of.redis.statistics().functions
        assert {name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name)} == {
            "append": 1
        }


async def test_rejected_message_is_an_error_with_the_reason(valkey: EmbeddedValkey) -> None:
    async with hooked(valkey) as (of, hook):
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        hook.verdict = lambda asked: (
            {"verdict": "reject", "reason": "be nice"} if asked["body"] == "rude" else {"verdict": "accept"}
        )
        error = await ann.ask("send", "error", to=group, n=1, body="rude")
        assert (error["code"], error["message"], error["n"]) == ("rejected", "be nice", 1)
        ack = await ann.ask("send", "ack", to=group, n=1, body="hello")
        assert not ack["duplicate"]
        await bob.event("message", n=1)
        assert bob.bodies(group) == ["hello"]
        assert of.node.sends.in_flight == 0


async def test_replaced_message_is_what_everybody_receives(valkey: EmbeddedValkey) -> None:
    """In a group and in a direct conversation, live and from the log."""
    async with hooked(valkey) as (of, hook):
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        hook.verdict = lambda _: {"verdict": "replace", "body": "****"}
        for to in (group, "@bob"):
            await ann.ask("send", "ack", to=to, n=1, body="rude")
        direct = keys.direct("ann", "bob")
        for conv in (group, direct):
            await bob.event("message", conversation=conv)
            await ann.event("message", conversation=conv)
            assert ann.bodies(conv) == bob.bodies(conv) == ["****"]
            page = await bob.ask("history", "history", conversation=conv, before=2**53 - 1, limit=5)
            assert [event["body"] for event in page["events"]] == ["****"]


async def test_first_messages_in_a_pipeline_keep_their_order(valkey: EmbeddedValkey) -> None:
    async with hooked(valkey) as (of, hook):
        await of.people("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for n in range(1, 21):
            ann.say("send", to="@bob", n=n, body=n)
        await ann.event("ack", n=20)
        await bob.event("message", n=20)
        assert bob.bodies(keys.direct("ann", "bob")) == hook.bodies() == list(range(1, 21))
        assert [event["n"] for event in ann.of("ack")] == list(range(1, 21))


async def test_slow_verdict_delays_nobody_else(valkey: EmbeddedValkey) -> None:
    async with hooked(valkey) as (of, hook):
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        hook.verdict = lambda asked: SLOW if asked["from"] == "ann" else {"verdict": "accept"}
        ann.say("send", to=group, n=1, body="slow")
        await support.eventually(lambda: hook.questions)
        ann.say("send", to=group, n=2, body="behind it")
        await bob.ask("send", "ack", to=group, n=1, body="meanwhile")
        await ann.event("message", n=1)
        assert ann.of("ack") == []
        hook.go_on()
        await ann.event("ack", n=2)
        await bob.event("message", n=2)
        assert bob.bodies(group) == ["meanwhile", "slow", "behind it"]


async def test_resend_on_another_connection_joins_the_question(valkey: EmbeddedValkey) -> None:
    async with hooked(valkey) as (of, hook):
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        hook.verdict = lambda _: SLOW
        ann.say("send", to=group, n=1, body="hello")
        await support.eventually(lambda: hook.questions)
        ann.end()
        again = await of.client("ann").connected()
        again.say("send", to=group, n=1, body="hello")
        hook.go_on()
        ack = await again.event("ack", n=1)
        assert ack["duplicate"]
        await again.event("message", n=1)
        assert again.bodies(group) == ["hello"]
        assert hook.bodies() == ["hello"]
