"""Values in Redis that cannot be decoded: their reader gets exactly one answer."""

from collections.abc import Callable
from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import Internal, LinnetError
from router.store import users
from router.store.conversations import Conversations
from router.store.presence import Presence
from router.store.redis import decoding
from router.store.redis.decoding import answer
from router.store.users import Users
from tests.store.calling import called, store
from tests.support import eventually


@pytest.mark.parametrize("read", [int, bytes.decode, lambda value: value[7]])
def test_undecodable_value_is_answered_internal_once(read: Callable[[Any], object]) -> None:
    told: list[object] = []
    answer(told.append, read, b"\xff")
    (error,) = told
    assert isinstance(error, Internal)


def test_damage_of_one_kind_is_logged_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted each time: a client can ask for a damaged value as often as its rate lets it."""
    now = 1000.0
    monkeypatch.setattr(decoding, "monotonic", lambda: now)
    monkeypatch.setattr(decoding, "_logged", {})
    before = decoding.UNREADABLE._value.get()
    for _ in range(3):
        decoding.unreadable(ValueError())
    decoding.unreadable(TypeError())
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    now += decoding.QUIET_S
    decoding.unreadable(ValueError())
    assert len(caplog.records) == 3
    assert decoding.UNREADABLE._value.get() == before + 5


def test_callback_that_raises_is_not_called_twice() -> None:
    told: list[object] = []

    def raises(value: object) -> None:
        told.append(value)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        answer(raises, int, b"7")
    assert told == [7]


@pytest.mark.parametrize("reader", [users._number, users._paged])
def test_damaged_reply_of_the_user_slot_is_answered(reader: Callable[[Callable[[object], None], object], None]) -> None:
    told: list[object] = []
    reader(told.append, b"junk")
    assert [type(value) for value in told] == [Internal]


async def test_damaged_values_are_answered_without_harm_to_others(valkey: EmbeddedValkey) -> None:
    """A damaged cursor, conversation hash and device row."""
    async with store(valkey.url) as s:
        damaged, whole = await s.group(ann="o"), await s.group(ann="o")
        for key, field in (
            (keys.conversation(damaged), "m"),
            (keys.cursor("ann", "phone"), damaged),
            (keys.devices("ann"), "phone"),
        ):
            await s.client.fetch("HSET", key, field, "junk")
        told: list[object] = []
        Users(s.client).cursor("ann", "phone", damaged, told.append)
        s.conversations.heads([damaged, whole], told.append)
        Presence(s.client).devices(["ann", "bob"], told.append)
        await eventually(lambda: len(told) == 3)
        cursor, heads, devices = told
        assert isinstance(cursor, Internal)
        assert isinstance(heads, list)
        assert [head is None for head in heads] == [True, False]
        assert devices == [[], []]
        with pytest.raises(LinnetError):
            await s.send(damaged, "ann", 1)
        await s.send(whole, "ann", 1)
        assert isinstance(s.conversations, Conversations)
        with pytest.raises(LinnetError):
            await called(s.conversations.range, damaged, None, 0, 10, 10)
