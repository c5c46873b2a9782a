"""router/jobs/webhooks.py with a real server that receives posts, and a real Redis with the waiting events."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, metrics
from router.contract.state import pack_value
from router.jobs.finisher import Finisher, push_after_ms
from router.jobs.webhooks import CONVERSATIONS, MAX_ATTEMPTS, Plan, Webhooks, backoff_s, plan, unseen, verdict
from router.store.answers import reply_of
from router.store.pushes import Wait, Waiting
from tests import support
from tests.process.test_http_client import request, serving
from tests.router.world import SECRET, World, settings, world

LATER_MS = 60_000  # after any deadline that these tests arm


class Hook:
    """The posts that a backend's endpoint has received; `status` is its next answer."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        self.retry_after = ""
        self.held = ""  # the user whose posts get no answer until `released`
        self.released = asyncio.Event()
        self.heads: list[str] = []
        self.bodies: list[bytes] = []

    @property
    def notices(self) -> list[dict[str, Any]]:
        return [json.loads(body) for body in self.bodies]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, body = await request(reader)
            self.heads.append(head)
            self.bodies.append(body)
            if self.held and json.loads(body)["user"] == self.held:
                await self.released.wait()
            fields = f"Retry-After: {self.retry_after}\r\n" if self.retry_after else ""
            writer.write(f"HTTP/1.1 {self.status} x\r\n{fields}Content-Length: 0\r\n\r\n".encode())


class Scene(World):
    """The world with an endpoint, and a message of ann that waits for bob."""

    hook: Hook
    webhooks: Webhooks
    conv: str
    seq: int
    at: int

    async def armed(self, body: Any = "hello") -> None:
        said = await self.say("ann", self.conv, body)
        self.seq, self.at = said.seq, said.at
        stores = self.conversations, self.users, self.pushes, self.dirty, self.contacts, self.files, self.audit
        await Finisher(settings(), *stores).finish(self.conv)

    async def waits(self, user: str = "bob") -> dict[str, Wait]:
        return (await self.pushes.waiting(user)).waits

    def deadline(self, user: str = "bob") -> float | None:
        with self.valkey.client() as redis:
            score: float | None = redis.zscore(keys.push(keys.partition(user)), user)
            return score


@asynccontextmanager
async def scene(valkey: EmbeddedValkey) -> AsyncIterator[Scene]:
    hook = Hook()
    async with serving(hook.handle) as hook.url, world(valkey) as w:
        s = Scene(w.client, valkey)
        s.hook = hook
        s.webhooks = Webhooks(settings(webhook_url=hook.url), s.conversations, s.users, s.pushes, s.state)
        s.conv = await s.direct("ann", "bob")
        await s.armed()
        try:
            yield s
        finally:
            s.webhooks.close()


# -- decisions


def waiting(seq: int, cursor: int = 0, read: int = 0, attempts: int = 0) -> Waiting:
    return Waiting({"d:ann:bob": Wait(seq, 0, read)}, {"d:ann:bob": cursor}, attempts)


@pytest.mark.parametrize(
    ("state", "place"),
    [
        (waiting(5), 0),
        (waiting(5, cursor=3), 3),
        (waiting(5, read=4), 4),
        (waiting(5, cursor=5), None),
        (waiting(5, read=6), None),
    ],
)
def test_cursor_or_read_mark_beyond_the_event_settles_it(state: Waiting, place: int | None) -> None:
    """Of any device, or the user's read mark."""
    assert unseen(state).get("d:ann:bob") == place


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (None, Plan({"d:ann:bob": 5}, {})),  # nothing to be had any more
        (1000, Plan({}, {"d:ann:bob": 5})),  # its window is over
        (999, Plan({}, {}, 1)),  # a device is behind, but not yet for long enough
    ],
)
def test_first_unseen_event_decides(first: int | None, expected: Plan) -> None:
    """A device that is a second behind a busy conversation gets no push; one that has stopped does."""
    assert plan(waiting(5, cursor=3), {"d:ann:bob": first}, 1000) == expected


@pytest.mark.parametrize("step_ms", [-3_600_000, -90_000, 90_000, 3_600_000])
def test_event_of_a_stepped_clock_is_pushed_in_time(step_ms: int) -> None:
    """After the clock was put back, the message must not wait until it has caught up."""
    age = 500 + step_ms  # half a second, and the step
    todo = plan(waiting(5, cursor=3), {"d:ann:bob": age}, 1000)
    assert todo.missed or (todo.later_ms or 0) <= 1000


def test_one_conversation_is_posted_and_another_postponed() -> None:
    """Missed events are posted at their deadline; younger ones are decided when the first of them is due."""
    state = Waiting({conv: Wait(seq, 0, 0) for seq, conv in enumerate("abcd", start=1)}, dict.fromkeys("abcd", 0), 0)
    assert plan(state, {"a": 1500, "b": 100, "c": 300}, 1000) == Plan({"d": 4}, {"a": 1}, 700)


def test_post_is_bounded() -> None:
    """A post contains a limited number of conversations; the next one contains the others."""
    convs = [f"{i:04}" for i in range(CONVERSATIONS + 1)]
    state = Waiting({conv: Wait(1, 0, 0) for conv in convs}, dict.fromkeys(convs, 0), 0)
    assert list(plan(state, dict.fromkeys(convs, 2000), 1000).missed) == convs[:-1]


@pytest.mark.parametrize(
    ("status", "attempts", "expected"),
    [
        (200, 0, "sent"), (204, 11, "sent"), (301, 0, "retried"), (400, 0, "dropped"), (404, 3, "dropped"),
        (408, 0, "retried"), (410, 0, "dropped"), (429, 0, "retried"), (500, 0, "retried"), (None, 0, "retried"),
        (503, MAX_ATTEMPTS - 2, "retried"), (503, MAX_ATTEMPTS - 1, "dropped"), (None, MAX_ATTEMPTS - 1, "dropped"),
    ],
)  # fmt: skip
def test_verdict_follows_from_status_and_attempts(status: int | None, attempts: int, expected: str) -> None:
    """2xx is success, a permanent 4xx is dropped, all others are tried again a bounded number of times."""
    assert verdict(status, attempts) == expected


def test_attempts_come_later_and_later() -> None:
    """The delay doubles up to a maximum, and is reduced at random by up to half."""
    assert [backoff_s(attempts, 0) for attempts in (0, 1, 2, 30)] == [5, 10, 20, 3600]
    assert backoff_s(0, 0.999) > 2.4


# -- posts


async def test_missed_message_is_posted_once_and_settled(valkey: EmbeddedValkey) -> None:
    """One signed POST with the missed events; none waits afterwards."""
    async with scene(valkey) as s:
        now = s.at + LATER_MS
        await s.webhooks.push("bob", now)
        (notice,) = s.hook.notices
        assert notice == {
            "id": notice["id"],
            "at": now,
            "user": "bob",
            "conversations": [{"conversation": s.conv, "kind": "direct", "seq": s.seq, "unread": 1}],
        }
        header = next(line for line in s.hook.heads[0].split("\r\n") if line.startswith("Linnet-Signature: "))
        mac = hmac.new(SECRET.encode(), f"{now // 1000}.".encode() + s.hook.bodies[0], hashlib.sha256).hexdigest()
        assert header == f"Linnet-Signature: t={now // 1000},v1={mac}"
        assert await s.waits() == {}
        assert s.deadline() is None


async def test_many_messages_in_many_conversations_are_one_post(valkey: EmbeddedValkey) -> None:
    """Coalesced by user: each conversation once, up to its newest message."""
    async with scene(valkey) as s:
        await s.armed()
        first = s.conv
        s.conv = await s.group("ann", "bob")
        await s.armed()
        await s.webhooks.push("bob", s.at + LATER_MS)
        (notice,) = s.hook.notices
        assert {one["conversation"]: one["unread"] for one in notice["conversations"]} == {first: 2, s.conv: 1}


async def test_device_that_has_the_message_needs_no_push(valkey: EmbeddedValkey) -> None:
    """Its cursor has passed: settled without a post."""
    async with scene(valkey) as s:
        await s.device("bob")
        assert await reply_of(s.users.ack, "bob", "phone", "phone", {s.conv: s.seq})
        await s.webhooks.push("bob", s.at + LATER_MS)
        assert s.hook.notices == []
        assert await s.waits() == {}


async def test_device_that_keeps_up_has_time(valkey: EmbeddedValkey) -> None:
    """It has all but the newest message, which is younger than the window: neither posted nor settled."""
    async with scene(valkey) as s:
        await s.device("bob")
        assert await reply_of(s.users.ack, "bob", "phone", "phone", {s.conv: s.seq})
        await s.armed()
        await s.webhooks.push("bob", s.at + 1)
        assert s.hook.notices == []
        assert (await s.waits())[s.conv].seq == s.seq
        deadline = s.deadline()
        assert deadline is not None
        assert s.at + push_after_ms(settings()) - 1 <= deadline < s.at + push_after_ms(settings()) + LATER_MS
        await s.webhooks.push("bob", s.at + LATER_MS)
        assert len(s.hook.notices) == 1


@pytest.mark.parametrize(
    ("value", "posted"),
    [
        ({"push": "none"}, False),
        ({"push": "none", "until": None}, False),
        ({"push": "none", "until": 2**53 - 1}, False),
        ({"push": "none", "until": 1}, True),
        ({"push": "all"}, True),
        ({"push": "none", "until": "soon"}, True),
        ("none", True),
        (None, True),
    ],
)
async def test_silenced_conversation_is_in_no_post(valkey: EmbeddedValkey, value: Any, posted: bool) -> None:
    """Another one is; and what was missed meanwhile is not posted later."""
    async with scene(valkey) as s:
        silenced = s.conv
        await reply_of(s.state.write, "bob", f"notify/{silenced}", pack_value(value), None)
        s.conv = await s.group("ann", "bob")
        await s.armed()
        await s.webhooks.push("bob", s.at + LATER_MS)
        (notice,) = s.hook.notices
        named = {one["conversation"] for one in notice["conversations"]}
        assert named == ({silenced, s.conv} if posted else {s.conv})
        assert await s.waits() == {}


async def test_failed_post_is_made_again_with_the_same_id(valkey: EmbeddedValkey) -> None:
    """Waiting events and the number of attempts are in Redis: any router continues."""
    async with scene(valkey) as s:
        now = s.at + LATER_MS
        for attempts, status in enumerate((500, 429), start=1):
            s.hook.status = status
            await s.webhooks.push("bob", now)
            assert (await s.pushes.waiting("bob")).attempts == attempts
            deadline = s.deadline()
            assert deadline is not None
            after = deadline - await s.client.clock_ms()
            assert 2400 * attempts - 20_000 < after <= 5000 * attempts
        s.hook.status = 200
        another = Webhooks(settings(webhook_url=s.hook.url), s.conversations, s.users, s.pushes, s.state)
        await another.push("bob", now)
        another.close()
        assert len({notice["id"] for notice in s.hook.notices}) == 1
        assert await s.waits() == {}


async def test_message_during_backoff_does_not_shorten_it(valkey: EmbeddedValkey) -> None:
    """A failing endpoint does not get more posts because users go on sending."""
    async with scene(valkey) as s:
        s.hook.status = 500
        await s.webhooks.push("bob", s.at + 10 * LATER_MS)
        deadline = s.deadline()
        await s.armed()
        assert s.deadline() == deadline
        assert (await s.waits())[s.conv].seq == s.seq


async def test_message_during_a_post_has_its_own(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """The post settles the events in it; the newer message goes on waiting."""
    async with scene(valkey) as s:
        describe = s.webhooks._describe

        async def meanwhile(user: str, missed: Any) -> Any:
            await s.armed()
            return await describe(user, missed)

        monkeypatch.setattr(s.webhooks, "_describe", meanwhile)  # between the plan and the post
        told = s.seq
        await s.webhooks.push("bob", s.at + LATER_MS)
        assert s.hook.notices[0]["conversations"][0]["seq"] == told
        assert (await s.waits())[s.conv].seq == s.seq > told


async def test_permanent_refusal_drops_the_post(valkey: EmbeddedValkey) -> None:
    """410: dropped, counted, and none waits."""
    async with scene(valkey) as s:
        dropped = metrics.WEBHOOKS.labels("dropped")
        before = dropped._value.get()
        s.hook.status = 410
        await s.webhooks.push("bob", s.at + LATER_MS)
        assert dropped._value.get() == before + 1
        assert await s.waits() == {}


async def test_endpoint_that_is_gone_is_logged_once(valkey: EmbeddedValkey, caplog: pytest.LogCaptureFixture) -> None:
    """Two failures, one line; the events are kept for later attempts."""
    async with scene(valkey) as s:
        nobody = Webhooks(settings(webhook_url="http://127.0.0.1:9/"), s.conversations, s.users, s.pushes, s.state)
        for _ in range(2):
            await nobody.push("bob", s.at + LATER_MS)
        nobody.close()
        assert [record.message.partition(":")[0] for record in caplog.records] == ["webhook posts fail"]
        assert (await s.pushes.waiting("bob")).attempts == 2


async def test_two_routers_post_once(valkey: EmbeddedValkey) -> None:
    """A claim hides the user from the other router; a round claims every due user."""
    async with scene(valkey) as s:
        with valkey.client() as redis:
            redis.zadd(keys.push(keys.partition("bob")), {"bob": 1})
        s.webhooks._push_after_ms = 0
        another = Webhooks(settings(webhook_url=s.hook.url), s.conversations, s.users, s.pushes, s.state)
        another._push_after_ms = 0
        rounds = await asyncio.gather(s.webhooks.round(), another.round())
        another.close()
        assert sum(one.done for one in rounds) == 1
        assert len(s.hook.notices) == 1


async def test_slow_answer_delays_only_its_own_post(valkey: EmbeddedValkey) -> None:
    """While the post for one user is unanswered, users with later deadlines are posted and settled."""
    async with scene(valkey) as s:
        s.hook.held = "bob"
        s.webhooks._push_after_ms = 0
        with valkey.client() as redis:
            redis.zadd(keys.push(keys.partition("bob")), {"bob": 1})
            stop = asyncio.Event()
            run = asyncio.create_task(s.webhooks.run(stop))
            await support.eventually(lambda: len(s.hook.notices) == 1)
            s.conv = await s.direct("ann", "cid")
            await s.armed()
            redis.zadd(keys.push(keys.partition("cid")), {"cid": 1})
        await support.eventually(lambda: [notice["user"] for notice in s.hook.notices] == ["bob", "cid"])
        await support.eventually(lambda: s.deadline("cid") is None)
        assert s.deadline("bob") is not None
        stop.set()
        s.hook.released.set()
        await run
        assert await s.waits() == {}


@pytest.mark.parametrize(("status", "asked", "wait_s"), [(429, "120", 120), (503, "600", 600), (503, "1", 2.5)])
async def test_retry_waits_at_least_as_long_as_retry_after(
    valkey: EmbeddedValkey, status: int, asked: str, wait_s: float
) -> None:
    """It postpones the user's next post; a short one does not shorten the backoff."""
    async with scene(valkey) as s:
        s.hook.status, s.hook.retry_after = status, asked
        before = await s.client.clock_ms()
        await s.webhooks.push("bob", s.at + LATER_MS)
        deadline = s.deadline()
        assert deadline is not None
        assert deadline >= before + 1000 * wait_s


async def test_backlog_is_measured(valkey: EmbeddedValkey) -> None:
    """Waiting users, over all partitions."""
    async with scene(valkey) as s:
        await s.webhooks.measure()
        assert metrics.PUSH_BACKLOG._value.get() == 1


async def test_removed_member_gets_a_push_only_for_readable_events(valkey: EmbeddedValkey) -> None:
    """A conversation or log that no longer exists is settled, because its events cannot be read."""
    async with scene(valkey) as s:
        s.conv = await s.group("ann", "bob")
        await s.armed()
        await s.conversations.remove_conversation(s.conv, "ann")
        await s.webhooks.push("bob", s.at + LATER_MS)
        assert [one["kind"] for one in s.hook.notices[0]["conversations"]] == ["direct"]
        assert await s.waits() == {}
