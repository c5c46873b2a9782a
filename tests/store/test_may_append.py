"""may_append.lua, may_open.lua and may_take.lua: they foretell what the functions that write would answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import Blocked, LinnetError, RateLimited
from router.store.accounts import Accounts
from router.store.appends import Append
from router.store.attaching import REFUSED
from router.store.pairs import Pairs
from router.store.users import Users
from tests.store.calling import Store, called, event, store

Scene = Callable[[Store, str], Awaitable[Append]]


async def _new(s: Store, group: str) -> Append:
    return event(group, "ann", 1)


async def _accepted(s: Store, group: str) -> Append:
    await s.send(group, "ann", 1)
    return event(group, "ann", 1)


async def _accepted_before_the_removal(s: Store, group: str) -> Append:
    await s.send(group, "bob", 1)
    await s.conversations.member(group, None, "bob", "remove")
    return event(group, "bob", 1)


async def _other_content(s: Store, group: str) -> Append:
    await s.send(group, "ann", 1)
    return event(group, "ann", 1, body="other")


async def _answered(s: Store, group: str) -> Append:
    await s.send(group, "ann", 5, done=4)
    return event(group, "ann", 3)


async def _old(s: Store, group: str) -> Append:
    for n in range(10, 42):
        await s.send(group, "ann", n)
    return event(group, "ann", 1)


async def _stranger(s: Store, group: str) -> Append:
    return event(group, "eve", 1)


async def _removed(s: Store, group: str) -> Append:
    await s.conversations.member(group, None, "bob", "remove")
    return event(group, "bob", 1)


async def _reader(s: Store, group: str) -> Append:
    return event(group, "ron", 1)


async def _edit_of_another_author(s: Store, group: str) -> Append:
    sent = await s.send(group, "ann", 1)
    return event(group, "bob", 1, action="edit", target=sent.seq)


async def _own_edit(s: Store, group: str) -> Append:
    sent = await s.send(group, "ann", 1)
    return event(group, "ann", 2, action="edit", target=sent.seq, body="better")


async def _reaction(s: Store, group: str) -> Append:
    sent = await s.send(group, "ann", 1)
    return event(group, "bob", 1, action="react", target=sent.seq, emoji="+")


async def _repeated_reaction(s: Store, group: str) -> Append:
    sent = await s.send(group, "ann", 1)
    await s.send(group, "bob", 1, action="react", target=sent.seq, emoji="+")
    return event(group, "bob", 2, action="react", target=sent.seq, emoji="+")


async def _reply_to_nothing(s: Store, group: str) -> Append:
    return msgspec.structs.replace(event(group, "ann", 1), target=1)


async def _file_that_may_not_be_used(s: Store, group: str) -> Append:
    return msgspec.structs.replace(event(group, "ann", 1), files=REFUSED.pins)


async def _too_fast(s: Store, group: str) -> Append:
    meta = await s.client.fetch("HGET", keys.conversation(group), "m")
    slow = (3_600_000_000).to_bytes(4, "big") + (3_600_000_000).to_bytes(4, "big")  # one an hour
    await s.client.fetch("HSET", keys.conversation(group), "m", meta[:16] + slow + meta[24:])
    await s.send(group, "ann", 1)
    return event(group, "ann", 2)


async def _no_conversation(s: Store, group: str) -> Append:
    return event(keys.direct("ann", "bob"), "ann", 1)


SCENES: Final[tuple[Scene, ...]] = (
    _new, _accepted, _accepted_before_the_removal, _other_content, _answered, _old, _stranger, _removed, _reader,
    _edit_of_another_author, _own_edit, _reaction, _repeated_reaction, _reply_to_nothing, _file_that_may_not_be_used,
    _too_fast, _no_conversation,
)  # fmt: skip


async def _outcome(method: Callable[..., None], append: Append) -> bool | tuple[object, ...]:
    """Whether the event is new, or the refusal."""
    try:
        answer = await called(method, append)
    except LinnetError as error:
        after = None if error.retry_after is None else round(error.retry_after, -2)
        return error.code, error.message, after, getattr(error, "reason", None), getattr(error, "next", None)
    return answer if isinstance(answer, bool) else not answer.duplicate


async def _photograph(s: Store, conv: str) -> list[object]:
    return [await s.client.fetch("DUMP", key) for key in (keys.conversation(conv), keys.log(conv))]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__.strip("_"))
async def test_question_is_answered_as_the_append_is_and_changes_nothing(valkey: EmbeddedValkey, scene: Scene) -> None:
    async with store(valkey.url) as s:
        group = await s.group(ann="o", bob="m", ron="r")
        append = await scene(s, group)
        before = await _photograph(s, append.conversation)
        foretold = await _outcome(s.conversations.may_append, append)
        assert await _photograph(s, append.conversation) == before
        assert foretold == await _outcome(s.conversations.append, append)


async def test_scenes_have_every_outcome(valkey: EmbeddedValkey) -> None:
    """Else the test above would compare nothing."""
    found = set()
    async with store(valkey.url) as s:
        for scene in SCENES:
            outcome = await _outcome(
                s.conversations.may_append, await scene(s, await s.group(ann="o", bob="m", ron="r"))
            )
            found.add(outcome if isinstance(outcome, bool) else (outcome[0], outcome[3]))
    assert found == {
        True, False, ("conflict", "content"), ("conflict", "answered"), ("conflict", "old"), ("not_found", None),
        ("read_only", None), ("rate_limited", None),
    }  # fmt: skip


async def test_first_message_may_be_refused_by_a_block_or_by_the_setting_contacts_only(valkey: EmbeddedValkey) -> None:
    async with store(valkey.url) as s:
        pairs = Pairs(s.client)
        assert await called(pairs.may_open, "ann", "bob", False)
        assert await called(pairs.may_open, "ann", "ann", True)
        with pytest.raises(Blocked):
            await called(pairs.may_open, "ann", "bob", True)
        await called(pairs.change, "ann", "bob", "ask", "", 1)
        await called(pairs.change, "bob", "ann", "accept", "", 0)
        assert await called(pairs.may_open, "ann", "bob", True)
        await called(pairs.change, "bob", "ann", "block", "", 0)
        with pytest.raises(Blocked):
            await called(pairs.may_open, "ann", "bob", False)


async def test_rate_that_has_nothing_left_is_foretold(valkey: EmbeddedValkey) -> None:
    """Asking takes nothing."""
    async with store(valkey.url) as s:
        users = Users(s.client)
        await Accounts(s.client).ensure("ann")
        refused = None
        for _ in range(1000):
            foretold = await _refusal(users.may_take, "ann", "asks")
            assert await _refusal(users.may_take, "ann", "asks") == foretold
            refused = await _refusal(users.spend_request, "ann")
            assert foretold == refused
            if refused:
                break
        assert refused is RateLimited


async def _refusal(method: Callable[..., None], *args: str) -> type[LinnetError] | None:
    try:
        await called(method, *args)
    except LinnetError as error:
        return type(error)
    return None
