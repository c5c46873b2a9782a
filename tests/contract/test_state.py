"""Keys and values of a user's state."""

import re

import pytest

from router.contract.errors import BadCommand, ReadOnly, TooLarge
from router.contract.state import KEY_PATTERN, MAX_KEY, MAX_VALUE_BYTES, check_key, pack_value, require_writable


@pytest.mark.parametrize(
    "key", ["a", "me", "draft/d:ann:bob", "a/b.c/..d/e..", "contact/@x", "-", ":", "...", "x" * MAX_KEY, "a/.b/c."]
)
def test_key_of_segments_is_accepted(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "key",
    ["", "/", "/a", "a/", "a//b", ".", "..", "./a", "../a", "a/.", "a/..", "a/../b", "a/./b", "x" * (MAX_KEY + 1),
     "a b", "ä", "a\n", "a/b\n", "a*", "*", "a\\b", "a%2Fb"],
)  # fmt: skip
def test_key_that_a_path_could_change_is_refused(key: str) -> None:
    with pytest.raises(BadCommand):
        check_key(key)
    assert re.search(KEY_PATTERN, key) is None


@pytest.mark.parametrize("key", ["me", "contact/bob", "contact/", "block/bob"])
def test_key_of_the_server_is_not_writable(key: str) -> None:
    with pytest.raises(ReadOnly):
        require_writable(key)


@pytest.mark.parametrize("key", ["me/x", "mean", "contact", "contacts/bob", "blocked", "notify/x"])
def test_other_keys_are_writable(key: str) -> None:
    require_writable(key)


def test_value_is_packed_within_its_limit() -> None:
    assert pack_value(None) is None
    assert pack_value({"$b64": "AA=="}) == b"\xc4\x01\0"
    assert len(pack_value("x" * (MAX_VALUE_BYTES - 3)) or b"") == MAX_VALUE_BYTES
    with pytest.raises(TooLarge):
        pack_value("x" * (MAX_VALUE_BYTES - 2))
    with pytest.raises(BadCommand):
        pack_value({1: 2})
