"""router/process/hooked.py with a real Valkey and a real hook."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from router.contract.errors import (
    Blocked,
    Conflict,
    LinnetError,
    NotFound,
    RateLimited,
    ReadOnly,
    Rejected,
    Unavailable,
)
from router.contract.packing import pack
from router.process.hooked import CONVERSATIONS, MAX_WAITING, HookedAppends
from router.process.send_hook import SendHook
from router.store import users
from router.store.accounts import Accounts
from router.store.appends import Append, Appended
from router.store.direct import DirectConversations
from router.store.pairs import Pairs
from router.store.profiles import Profiles
from router.store.users import Users
from tests import support
from tests.process.hook_server import HALF, SLOW, SLOW_HALF, SLOW_REJECT, Hook, hook_settings, hooking
from tests.store.calling import BURST_US, COST_US, Store, called, event, store


class Scene:
    def __init__(self, s: Store, hook: Hook, **changes: Any) -> None:
        self.store = s
        self.hook = hook
        self.users, self.pairs, self.profiles = Users(s.client), Pairs(s.client), Profiles(s.client)
        self.direct = DirectConversations(self.users, s.conversations, self.pairs, self.profiles, (COST_US, BURST_US))
        settings = hook_settings(hook.url, **({"send_hook_timeout_ms": 30_000} | changes))
        self.appends = HookedAppends(s.conversations, self.direct, SendHook(settings))
        self.group = ""

    def send(self, append: Append) -> asyncio.Future[Appended | LinnetError]:
        """Append without waiting."""
        future: asyncio.Future[Appended | LinnetError] = asyncio.get_running_loop().create_future()
        self.appends.append(append, future.set_result)
        return future

    async def said(self, user: str, n: int, conv: str = "", **more: Any) -> Appended:
        answer: Appended = await called(self.appends.append, event(conv or self.group, user, n, **more))
        return answer

    async def log(self, conv: str = "") -> list[Any]:
        return [entry.get("body") for entry in await self.store.log(conv or self.group)]

    def calls(self, function: str) -> int:
        return self.store.client.statistics().functions.get(function, 0)


@asynccontextmanager
async def scene(valkey: EmbeddedValkey, **changes: Any) -> AsyncIterator[Scene]:
    async with hooking() as hook, store(valkey.url) as s:
        made = Scene(s, hook, **changes)
        made.group = await s.group(ann="o", bob="m", ron="r")
        for user in ("ann", "bob"):
            await Accounts(s.client).ensure(user)
        try:
            yield made
        finally:
            await made.appends.close()
        assert not made.appends._waiting
        assert (made.appends._places, made.appends._bytes) == ({}, 0)


async def test_accepted_message_is_written_and_a_rejected_one_is_not(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as w:
        await w.said("ann", 1, body="hello")
        w.hook.verdict = lambda _: {"verdict": "reject", "reason": "be nice"}
        with pytest.raises(Rejected, match="be nice"):
            await w.said("ann", 2, body="rude")
        assert await w.log() == ["hello"]
        first, second = w.hook.questions
        assert first | {"id": "", "at": 0} == {
            "id": "", "at": 0, "action": "send", "conversation": w.group, "to": None, "kind": "group", "from": "ann",
            "seq": None, "media": "text", "body": "hello", "files": [],
        }  # fmt: skip
        assert first["id"] != second["id"]


async def test_replaced_body_is_written_and_the_resend_is_a_duplicate(valkey: EmbeddedValkey) -> None:
    """The fingerprint is of what the client sent."""
    async with scene(valkey) as w:
        w.hook.verdict = lambda _: {"verdict": "replace", "body": {"text": "****"}}
        sent = await w.said("ann", 1, body="rude")
        again = await w.said("ann", 1, body="rude")
        assert (again.seq, again.duplicate) == (sent.seq, True)
        assert sent.tail is not None
        assert len(w.hook.questions) == 1
        (logged,) = await w.store.log(w.group)
        assert (logged["body"], logged["media"], logged["n"], logged["from"]) == ({"text": "****"}, "text", 1, "ann")
        w.hook.verdict = lambda _: {"verdict": "replace", "body": "better"}
        await w.said("ann", 2, action="edit", target=sent.seq, body="ruder")
        assert w.hook.questions[1]["action"] == "edit"
        assert w.hook.questions[1]["seq"] == sent.seq
        assert await w.log() == [{"text": "****"}, "better"]


async def test_resend_of_an_acked_message_is_acked_whatever_the_hook_says_now(valkey: EmbeddedValkey) -> None:
    async with scene(valkey, send_hook_on_failure="reject") as w:
        sent = await w.said("ann", 1)
        for verdict in ({"verdict": "reject"}, HALF, "empty", SLOW):
            w.hook.verdict = lambda _, verdict=verdict: verdict  # type: ignore[misc]
            again = await w.said("ann", 1)
            assert (again.seq, again.duplicate) == (sent.seq, True)
        assert len(w.hook.questions) == 1


async def test_hook_is_not_asked_about_what_would_be_refused(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as w:
        await w.said("ann", 5, done=4)
        target = (await w.said("ann", 6, body="mine")).seq
        asked = len(w.hook.questions)
        pairs = keys.direct("ann", "bob")
        await called(w.store.conversations.create_direct, "ann", "bob", COST_US, BURST_US)
        await called(w.pairs.change, "bob", "ann", "block", "", 0)
        for append, error in (
            (event(w.group, "eve", 1), NotFound),
            (event(w.group, "ron", 1), ReadOnly),
            (event(w.group, "ann", 6, body="other"), Conflict),
            (event(w.group, "ann", 3), Conflict),
            (event(w.group, "bob", 1, action="edit", target=target), ReadOnly),
            (event(pairs, "ann", 1), Blocked),
            (event(keys.direct("ann", "nobody"), "ann", 1), NotFound),
        ):
            assert isinstance(await w.send(append), error), append
        assert len(w.hook.questions) == asked


async def test_reaction_delete_and_backend_are_not_asked_about(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as w:
        w.hook.verdict = lambda _: {"verdict": "reject"}
        sent = await w.said("ann", 1, server=True)
        await w.said("bob", 1, action="react", target=sent.seq, emoji="+")
        await w.said("ann", 2, action="delete", target=sent.seq)
        assert w.hook.questions == []
        assert w.calls("may_append") == 0


async def test_events_of_one_device_keep_their_order(valkey: EmbeddedValkey) -> None:
    """Of each kind; while the first waits, the others wait behind it, and other devices do not."""
    async with scene(valkey) as w:
        target = (await w.said("ann", 1, body="target")).seq
        w.hook.verdict = lambda asked: SLOW if asked["body"] == 2 else {"verdict": "accept"}
        waiting = [w.send(event(w.group, "ann", n, body=n)) for n in (2, 3)]  # type: ignore[arg-type]
        waiting.append(w.send(event(w.group, "ann", 4, action="react", target=target, emoji="+")))
        waiting.append(w.send(event(w.group, "ann", 5, body="last")))
        await support.eventually(lambda: 2 in w.hook.bodies())
        await w.said("bob", 1, body="meanwhile")
        await w.said("ann", 1, device="tablet", body="meanwhile, too")
        assert not any(one.done() for one in waiting)
        w.hook.go_on()
        answers = await asyncio.gather(*waiting)
        assert [answer.seq for answer in answers if isinstance(answer, Appended)] == sorted(
            answer.seq for answer in answers if isinstance(answer, Appended)
        )
        assert await w.log() == ["target", "meanwhile", "meanwhile, too", 2, 3, None, "last"]


async def test_resend_joins_the_question_that_waits(valkey: EmbeddedValkey) -> None:
    """One question, one event; each call has its answer, also if the verdict is a rejection."""
    async with scene(valkey) as w:
        w.hook.verdict = lambda _: SLOW
        first = w.send(event(w.group, "ann", 1))
        await support.eventually(lambda: w.hook.questions)
        second, third = w.send(event(w.group, "ann", 1)), w.send(event(w.group, "ann", 2, body="next"))
        w.hook.go_on()
        one, two = await first, await second
        assert isinstance(one, Appended)
        assert isinstance(two, Appended)
        assert (one.seq, one.duplicate, two.seq, two.duplicate) == (one.seq, False, one.seq, True)
        assert isinstance(await third, Appended)
        assert w.hook.bodies() == ["hello", "next"]
        w.hook.verdict = lambda _: {"verdict": "reject"}
        refusals = await asyncio.gather(*(w.send(event(w.group, "bob", 1)) for _ in range(3)))
        assert [type(refusal) for refusal in refusals] == [Rejected] * 3
        assert len(w.hook.questions) == 3


async def test_first_message_is_asked_about_before_the_conversation_exists(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as w:
        conv = keys.direct("ann", "bob")
        w.hook.verdict = lambda _: {"verdict": "reject"}
        assert isinstance(await w.send(event(conv, "ann", 1)), Rejected)
        assert await w.store.conversations.head(conv) is None
        asked = w.hook.questions[0]
        assert (asked["conversation"], asked["to"], asked["kind"]) == (None, "bob", "direct")
        w.hook.verdict = lambda asked: {"verdict": "replace", "body": f"checked {asked['body']}"}
        answers = await asyncio.gather(*(w.send(event(conv, "ann", n, body=str(n))) for n in (1, 2, 3)))
        assert all(isinstance(answer, Appended) for answer in answers)
        assert await w.log(conv) == ["checked 1", "checked 2", "checked 3"]
        assert [asked["to"] for asked in w.hook.questions] == ["bob", "bob", None, None]


async def test_first_message_that_would_be_refused_is_not_asked_about(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a block, by the setting that takes messages from contacts only, or by the rate of first messages."""
    monkeypatch.setattr(users, "OPEN_COST_US", users.OPEN_BURST_US)  # one is the burst, and two minutes until the next
    async with scene(valkey) as w:
        conv = keys.direct("ann", "bob")
        await w.profiles.change("bob", {"messages": "contacts"})
        assert isinstance(await w.send(event(conv, "ann", 1)), Blocked)
        await called(w.pairs.change, "ann", "bob", "ask", "", 1)
        await called(w.pairs.change, "bob", "ann", "accept", "", 0)
        await called(w.users.spend_opening, "ann")
        assert isinstance(await w.send(event(conv, "ann", 1)), RateLimited)
        await called(w.pairs.change, "bob", "ann", "block", "", 0)
        assert isinstance(await w.send(event(conv, "ann", 1)), Blocked)
        assert w.hook.questions == []


@pytest.mark.parametrize("policy", ["accept", "reject"])
async def test_hook_that_fails_leaves_what_waits_to_the_policy_in_order(valkey: EmbeddedValkey, policy: str) -> None:
    async with scene(valkey, send_hook_on_failure=policy) as w:
        w.hook.verdict = lambda _: HALF
        answers = await asyncio.gather(*(w.send(event(w.group, "ann", n, body=str(n))) for n in range(1, 6)))
        if policy == "accept":
            assert await w.log() == ["1", "2", "3", "4", "5"]
        else:
            assert [type(answer) for answer in answers] == [Unavailable] * 5
            w.hook.verdict = lambda _: {"verdict": "accept"}
            await asyncio.gather(*(w.send(event(w.group, "ann", n, body=str(n))) for n in range(1, 6)))
            assert await w.log() == ["1", "2", "3", "4", "5"]


async def test_event_that_is_to_be_sent_again_is_not_overtaken(valkey: EmbeddedValkey) -> None:
    """If the hook fails for one event only, those behind it are sent again, too; all arrive in order."""
    async with scene(valkey, send_hook_on_failure="reject") as w:
        target = (await w.said("ann", 1, body="target")).seq
        w.hook.verdict = lambda asked: HALF if asked["body"] == "2" else {"verdict": "accept"}
        behind = event(w.group, "ann", 4, action="react", target=target, emoji="+")
        sent = [event(w.group, "ann", 2, body="2"), event(w.group, "ann", 3, body="3"), behind]
        answers = await asyncio.gather(*map(w.send, sent))
        assert [type(answer) for answer in answers] == [Unavailable] * 3
        assert await w.log() == ["target"]
        w.hook.verdict = lambda _: {"verdict": "accept"}
        await asyncio.gather(*map(w.send, sent))
        assert await w.log() == ["target", "2", "3", None]


async def test_resend_behind_an_event_that_is_to_be_sent_again_is_acked(valkey: EmbeddedValkey) -> None:
    """It was accepted before, so it overtakes nothing; what is new behind it is to be sent again."""
    async with scene(valkey, send_hook_on_failure="reject") as w:
        sent = await w.said("ann", 1, body="old")
        w.hook.verdict = lambda _: SLOW_HALF
        waiting = w.send(event(w.group, "ann", 2, body="2"))
        await support.eventually(lambda: "2" in w.hook.bodies())
        resent = [w.send(event(w.group, "ann", 1, body="old")) for _ in range(2)]
        reaction = event(w.group, "ann", 3, action="react", target=sent.seq, emoji="+")
        behind = [w.send(reaction), w.send(event(w.group, "ann", 4, body="4"))]
        w.hook.go_on()
        assert [type(answer) for answer in (await waiting, *await asyncio.gather(*behind))] == [Unavailable] * 3
        for again in await asyncio.gather(*resent):
            assert isinstance(again, Appended)
            assert (again.seq, again.duplicate) == (sent.seq, True)
        assert w.hook.bodies() == ["old", "2"]
        assert await w.log() == ["old"]


async def test_rejected_message_that_another_process_has_written_meanwhile_is_acked(valkey: EmbeddedValkey) -> None:
    """A resend reaches another gateway, and the hook has two minds about it."""
    async with scene(valkey) as w:
        w.hook.verdict = lambda _: SLOW_REJECT
        waiting = w.send(event(w.group, "ann", 1, body="once"))
        await support.eventually(lambda: w.hook.questions)
        written = await called(w.store.conversations.append, event(w.group, "ann", 1, body="once"))
        w.hook.go_on()
        answer = await waiting
        assert isinstance(answer, Appended)
        assert (answer.seq, answer.duplicate) == (written.seq, True)
        with pytest.raises(Rejected):
            await w.said("ann", 2)


async def test_queue_of_a_device_and_questions_of_a_user_are_bounded(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as w:
        w.hook.verdict = lambda _: SLOW
        queued = [w.send(event(w.group, "ann", n)) for n in range(1, MAX_WAITING + 1)]
        assert isinstance(await w.send(event(w.group, "ann", 1000)), RateLimited)
        others = [await w.store.group(ann="o") for _ in range(CONVERSATIONS)]
        started = [w.send(event(group, "ann", 1)) for group in others]
        assert isinstance(await started[-1], RateLimited)
        assert not started[0].done()
        bobs = w.send(event(w.group, "bob", 1))
        w.hook.go_on()
        assert isinstance(await bobs, Appended)
        assert all(isinstance(answer, Appended) for answer in await asyncio.gather(*queued, *started[:-1]))


async def test_bytes_that_wait_are_bounded(valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.process.hooked.MAX_BYTES", 100)
    async with scene(valkey) as w:
        w.hook.verdict = lambda _: SLOW
        first = w.send(event(w.group, "ann", 1, body="x" * 200))
        assert isinstance(await w.send(event(w.group, "ann", 1, body="x" * 200)), Unavailable)
        assert isinstance(await w.send(event(w.group, "ann", 2)), Unavailable)
        assert isinstance(await w.send(event(w.group, "bob", 1)), Unavailable)
        w.hook.go_on()
        assert isinstance(await first, Appended)
        assert isinstance(await w.send(event(w.group, "bob", 1)), Appended)


async def test_bug_in_an_answer_holds_up_no_event_behind_it(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as w:
        w.hook.verdict = lambda asked: {"verdict": "reject" if asked["body"] == "a" else "accept"}

        def buggy(_: object) -> None:
            raise RuntimeError("a bug")

        w.appends.append(event(w.group, "ann", 1, body="a"), buggy)
        assert isinstance(await w.send(event(w.group, "ann", 2, body="b")), Appended)


async def test_files_of_a_message_are_in_the_question(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as w:
        plain = event(w.group, "ann", 1)
        info = [{"sha256": "ab" * 32, "type": "image/png"}]
        fields = {"media": pack("image"), "body": pack(None), "files": pack(info)}
        await w.send(msgspec.structs.replace(plain, tail=stamp.tail("message", w.group, "ann", "phone", 1, fields)))
        assert w.hook.questions[0]["files"] == info
        assert w.hook.questions[0]["media"] == "image"
