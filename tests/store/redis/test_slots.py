"""Keys and channels are mapped to the slots that the servers compute."""

import pytest

from router.store.redis.slots import slot_of


@pytest.mark.parametrize(
    ("name", "slot"), [("linnet:gateways", 2235), ("linnet:deployment", 12682), ("linnet:tick", 9870), ("foo", 12182)]
)
def test_name_without_a_tag_is_hashed_as_a_whole(name: str, slot: int) -> None:
    assert slot_of(name) == slot


def test_tag_alone_decides() -> None:
    assert slot_of("{foo}:conv:a") == slot_of("9f.0:{foo}:ch:b") == slot_of(b"x{foo}{bar}") == slot_of("foo")


def test_empty_tag_is_none() -> None:
    assert slot_of("{}foo") != slot_of("foo")
    assert slot_of("{foo") != slot_of("foo")
