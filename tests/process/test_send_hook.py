"""router/process/send_hook.py with a real hook that is slow, dead, or answers what is no verdict."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.json import encode

from router.contract import metrics
from router.contract.errors import RateLimited, Rejected, Unavailable
from router.contract.packing import pack
from router.process.http_client import Answer
from router.process.send_hook import OF_ONE_USER, NoVerdict, Question, SendHook, question_id, read_verdict
from tests import support
from tests.process.hook_server import FAULTS, HALF, SECRET, SLOW, Hook, hook_settings, hooking


def question(body: Any = "hello", user: str = "ann", **more: Any) -> Question:
    return Question(**({"id": "1", "at": 1, "action": "send", "from_": user, "body": body} | more))


@asynccontextmanager
async def asking(hook: Hook, **changes: Any) -> AsyncIterator[SendHook]:
    one = SendHook(hook_settings(hook.url, **changes))
    try:
        yield one
    finally:
        one.close()


def counted(result: str) -> float:
    return float(metrics.SEND_HOOK_QUESTIONS.labels(result)._value.get())


async def test_question_has_the_documented_fields() -> None:
    async with hooking() as hook, asking(hook) as asked:
        await asked.ask(question(conversation="g:1", kind="group", media="text"))
    assert hook.questions == [
        {
            "id": "1", "at": 1, "action": "send", "conversation": "g:1", "to": None, "kind": "group", "from": "ann",
            "seq": None, "media": "text", "body": "hello", "files": [],
        }
    ]  # fmt: skip


async def test_verdicts_accept_reject_and_replace() -> None:
    async with hooking() as hook, asking(hook) as asked:
        assert await asked.ask(question()) is None
        hook.verdict = lambda _: {"verdict": "reject", "reason": "be nice"}
        with pytest.raises(Rejected, match="be nice"):
            await asked.ask(question())
        hook.verdict = lambda _: {"verdict": "replace", "body": {"text": "***", "raw": {"$b64": "AAE="}}}
        assert await asked.ask(question()) == pack({"text": "***", "raw": b"\0\1"})


@pytest.mark.parametrize("policy", ["accept", "reject"])
async def test_answer_that_is_no_verdict_is_a_failure_and_the_next_question_is_asked(policy: str) -> None:
    """Another status, garbage, an answer that is too deep or too large, or one that ends half-way."""
    async with hooking() as hook, asking(hook, send_hook_on_failure=policy, send_hook_timeout_ms=30_000) as asked:
        for fault in FAULTS:
            hook.verdict = lambda _, fault=fault: fault  # type: ignore[misc]
            if policy == "accept":
                assert await asked.ask(question(fault)) is None
            else:
                with pytest.raises(Unavailable) as refused:
                    await asked.ask(question(fault))
                assert refused.value.retry_after
        hook.verdict = lambda _: {"verdict": "reject", "reason": "no"}
        with pytest.raises(Rejected):
            await asked.ask(question("after"))
        assert set(hook.bodies()) == {*FAULTS, "after"}


@pytest.mark.parametrize(
    ("answer", "action"),
    [
        ({"verdict": "replace"}, "send"),
        ({"verdict": "replace", "body": "x"}, "title"),
        ({"verdict": "replace", "body": "x" * 70_000}, "edit"),
        ({"verdict": "replace", "body": {"$b64": "no"}}, "send"),
        ({"verdict": "replace", "body": 2**60}, "send"),
        ({"verdict": "reject", "reason": "x" * 201}, "send"),
        ({"verdict": "reject", "reason": 1}, "send"),
        (["accept"], "send"),
    ],
)
def test_verdict_beyond_the_limits_is_none(answer: object, action: Any) -> None:
    with pytest.raises(NoVerdict):
        read_verdict(Answer(200, body=encode(answer)), action)


async def test_missing_answers_of_three_users_pause_the_questions_and_an_answer_resumes_them() -> None:
    async with hooking() as hook, asking(hook, send_hook_timeout_ms=30_000) as asked:
        hook.verdict = lambda _: HALF
        before = counted("missing")
        for user in ("ann", "bob", "eve"):
            assert await asked.ask(question(user=user)) is None
        assert counted("missing") == before + 3
        assert metrics.SEND_HOOK_PAUSED._value.get() == 1
        paused = counted("paused")
        assert await asked.ask(question(user="ann")) is None
        assert counted("paused") == paused + 1
        assert len(hook.questions) == 3
        hook.verdict = lambda _: {"verdict": "reject"}

        async def rejected() -> bool:
            try:
                await asked.ask(question(user="dan"))
            except Rejected:
                return True
            return False

        await support.eventually(rejected)
        assert metrics.SEND_HOOK_PAUSED._value.get() == 0


async def test_user_whose_questions_get_no_answer_costs_others_no_verdict() -> None:
    async with hooking() as hook, asking(hook, send_hook_timeout_ms=30_000) as asked:
        hook.verdict = lambda asked: HALF if asked["from"] == "mallory" else {"verdict": "reject"}
        for _ in range(5):
            assert await asked.ask(question(user="mallory")) is None
        with pytest.raises(Rejected):
            await asked.ask(question(user="ann"))


async def test_slow_hook_costs_the_timeout_and_no_more() -> None:
    async with hooking() as hook, asking(hook, send_hook_timeout_ms=100) as asked:
        hook.verdict = lambda _: SLOW
        assert await asked.ask(question()) is None
        assert not hook.is_released


async def test_hook_that_is_down_fails_as_the_policy_says() -> None:
    dead = Hook()
    dead.url = "http://127.0.0.1:9/"
    async with asking(dead) as asked:
        assert await asked.ask(question()) is None
    async with asking(dead, send_hook_on_failure="reject") as asked:
        with pytest.raises(Unavailable):
            await asked.ask(question())


async def test_questions_wait_for_a_place_and_all_get_a_verdict() -> None:
    async with hooking() as hook, asking(hook, send_hook_timeout_ms=30_000) as asked:
        hook.verdict = lambda asked: {"verdict": "replace", "body": asked["body"]}
        found = await asyncio.gather(*(asked.ask(question(number, f"u{number}")) for number in range(300)))
    assert found == [pack(number) for number in range(300)]


async def test_one_user_or_address_takes_no_more_than_some_places() -> None:
    """Of changes that are not messages, too. Others get their verdict; so does the user once there is room."""
    async with hooking() as hook, asking(hook, send_hook_timeout_ms=30_000) as asked:
        hook.verdict = lambda asked: SLOW if asked["from"] != "bob" else {"verdict": "reject"}
        waiting = [asyncio.ensure_future(asked.ask(question(action="profile"))) for _ in range(OF_ONE_USER)]
        names = [f"new{number}" for number in range(OF_ONE_USER)]
        waiting += [asyncio.ensure_future(asked.ask(question(user=name), "203.0.113.7")) for name in names]
        await support.eventually(lambda: len(hook.questions) == 2 * OF_ONE_USER)
        for one in (asked.ask(question(action="contact")), asked.ask(question(user="new99"), "203.0.113.7")):
            with pytest.raises(RateLimited) as refused:
                await one
            assert refused.value.retry_after
        with pytest.raises(Rejected):
            await asked.ask(question(user="bob"))
        hook.go_on()
        assert await asyncio.gather(*waiting) == [None] * 2 * OF_ONE_USER
        assert await asked.ask(question()) is None
        assert not asked._of_user


async def test_names_of_new_accounts_from_one_address_do_not_pause_the_questions() -> None:
    async with hooking() as hook, asking(hook, send_hook_timeout_ms=30_000) as asked:
        hook.verdict = lambda asked: HALF if asked["from"].startswith("new") else {"verdict": "reject"}
        for name in ("new1", "new2", "new3", "new4"):
            assert await asked.ask(question(user=name), "203.0.113.7") is None
        with pytest.raises(Rejected):
            await asked.ask(question())


async def test_neither_contents_nor_secret_nor_answer_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with hooking() as hook, asking(hook) as asked:
        hook.verdict = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nanswered!"
        await asked.ask(question("a private text"))
        hook.verdict = lambda _: {"verdict": "accept"}
        await asked.ask(question("a private text"))
    assert "pre-send hook fail" in caplog.text
    assert not any(said in caplog.text for said in ("private", "answered!", SECRET))


def test_id_is_of_all_parts() -> None:
    assert question_id("g:1", "ann", "phone", 1) == question_id("g:1", "ann", "phone", 1)
    assert question_id("g:1", "ann", "phone", 1) != question_id("g:1", "ann", "phone", 2)
