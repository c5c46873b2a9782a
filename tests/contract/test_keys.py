"""Keys and channels: one hash tag for all keys of a function, and no unchecked text of a client in a key."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.contract import keys, tags
from router.contract.wire import is_name

GROUP = "g:0123456789012345678901"
TAGS = tags.TAGS[tags.SPREAD]
NAMES = st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True)
CHANNELS = keys.Channels("0123456789ab.0:")
CONVERSATION_KEYS = (keys.conversation, keys.log, CHANNELS.conversation)
USER_KEYS: tuple[Callable[[str], str], ...] = (
    keys.user, keys.convs, keys.recent, keys.groups, keys.devices, keys.pushes, CHANNELS.user,
    CHANNELS.presence, lambda user: keys.cursor(user, "phone"), lambda user: keys.idempotency(user, "hash"),
)  # fmt: skip


def tag(key: str) -> str:
    """The hash tag as Redis Cluster finds it: between the first brace and the next closing one."""
    found = re.match(r"[^{]*\{([^}]+)\}", key)
    assert found
    return found[1]


@given(NAMES, NAMES)
def test_keys_of_a_conversation_share_one_tag(user: str, other: str) -> None:
    """Otherwise one function could not use them all; the worklist of its partition has the same tag."""
    for conv in (keys.direct(user, other), keys.new_conversation(keys.GROUP), keys.new_conversation(keys.CHANNEL)):
        part = keys.partition(conv)
        assert {tag(of(conv)) for of in CONVERSATION_KEYS} == {tag(keys.dirty(part))} == {TAGS["c"][part][1:-1]}


@given(NAMES)
def test_keys_of_a_user_share_one_tag(user: str) -> None:
    part = keys.partition(user)
    assert {tag(of(user)) for of in USER_KEYS} == {tag(keys.push(part))} == {TAGS["u"][part][1:-1]}


@given(st.lists(NAMES, min_size=2, max_size=6, unique=True))
def test_different_objects_have_different_keys(users: list[str]) -> None:
    """Names contain no colon, so no name and device can be read as another pair."""
    made = [of(user) for user in users for of in USER_KEYS]
    made += [keys.cursor(user, device) for user in users for device in users if device != "phone"]
    made += [of(conv) for conv in {keys.direct(users[0], user) for user in users} for of in CONVERSATION_KEYS]
    made += [CHANNELS.echo(user) for user in users]
    assert len(set(made)) == len(made)


def test_partitions_never_change() -> None:
    """Golden: with another hash or number of partitions every stored conversation would be lost."""
    assert (keys.PARTITIONS, keys.PLAIN, keys.MOVING, keys.OWN) == (256, "1", "1-2", "2")
    assert [keys.partition(name) for name in ("ann", "bob", "d:ann:bob", GROUP)] == [115, 64, 115, 20]
    assert keys.log(GROUP) == keys.of_conversation(GROUP)[1] == "{c20.b30}:log:g:0123456789012345678901"
    assert keys.cursor("ann", "phone") == "{u115.cp}:cursor:ann:phone"
    assert keys.copied(115) == "{u115.cp}:copied"  # in the slot of its users, whose functions use it
    keys.use_tags(tags.NUMBERED)
    assert keys.log(GROUP) == keys.of_conversation(GROUP)[1] == "{c20}:log:g:0123456789012345678901"
    assert keys.cursor("ann", "phone") == "{u115}:cursor:ann:phone"


def test_conversations_spread_evenly_over_partitions() -> None:
    """A partition is a share of a shard's load."""
    counts = [0] * keys.PARTITIONS
    for i in range(25_600):
        counts[keys.partition(f"user-{i}")] += 1
    assert min(counts) > 50
    assert max(counts) < 200


@given(NAMES, NAMES)
def test_two_users_have_one_direct_conversation(user: str, other: str) -> None:
    """Both orders of the two names give the same id, and each user finds the other in it."""
    conv = keys.direct(user, other)
    assert conv == keys.direct(other, user)
    assert keys.is_conversation(conv)
    assert len(conv) <= 160
    assert keys.parties(conv) == tuple(sorted((user, other)))
    assert (keys.other_party(conv, user), keys.other_party(conv, other)) == (other, user)


@pytest.mark.parametrize("kind", [keys.GROUP, keys.CHANNEL])
def test_new_ids_are_valid_and_unguessable(kind: str) -> None:
    """They contain 128 random bits; the first letter is the kind."""
    made = {keys.new_conversation(kind) for _ in range(1000)}
    assert len(made) == 1000
    assert all(keys.is_conversation(conv) and conv[0] == kind for conv in made)


@pytest.mark.parametrize(
    "conv",
    ["", "g", "g:", "d::", "d:ann", "d:ann:", "d::bob", "d:ann:bob:cid", "x:0123456789012345678901", GROUP + "0",
     GROUP[:-1], GROUP + "\n", "\n" + GROUP, "d:ann:bob\n", "d:ann:b ob", "d:{ann}:bob", "d:ann}:bob",
     "g:01234567890123456789{}", "g:0123456789012345678.01", "d:ann:" + "b" * 65, "d:änn:bob", "d:ann:bob\0",
     "D:ann:bob", "d:ann:*", "d:ann:b%b", "d:ann\r\nPING:bob"],
)  # fmt: skip
def test_text_of_another_form_is_no_conversation(conv: str) -> None:
    """A client's text never becomes part of a key: no brace that would move the key to another slot, no newline."""
    assert not keys.is_conversation(conv)


@pytest.mark.parametrize("name", ["{a}", "a}", "a{b", "a:b", "a b", "a\n", "", "a" * 65, "é", "a\0", "*", "a/b", "@a"])
def test_text_of_another_form_is_no_name(name: str) -> None:
    assert not is_name(name)


def test_channels_of_two_deployments_or_databases_differ() -> None:
    """All databases of a server share one set of channels."""
    buses = [keys.channels(keys.OWN, f"{ident}.{database}:") for ident in ("aa", "bb") for database in (0, 1)]
    for of in ("conversation", "user", "presence", "echo"):
        assert len({getattr(bus, of)("bob") for bus in buses}) == len(buses)


@given(NAMES)
def test_channels_of_a_moving_deployment_are_received_under_both_names(user: str) -> None:
    """A process of each step of the move receives events of the steps before and after it."""
    plain, moving, own = (keys.channels(form, "aa.0:") for form in (keys.PLAIN, keys.MOVING, keys.OWN))
    assert plain.user(user) == f"{TAGS['u'][keys.partition(user)]}:ch:{user}"
    for sender, receiver in ((plain, moving), (moving, plain), (moving, own), (own, moving), (plain, plain)):
        published, wanted = sender.user(user).encode(), receiver.user(user).encode()
        also = None if receiver.also is None else keys.renamed(wanted, receiver.also.encode())
        assert published in (wanted, also)
        assert keys.renamed(published, receiver.bus.encode()) == wanted


def test_names_that_differ_only_in_case_share_a_key() -> None:
    """All other names have different keys."""
    assert keys.names("Ada.L-7") == keys.names("aDA.l-7") == f"{TAGS['u'][keys.partition('ada.l-7')]}:name:ada.l-7"
    assert keys.names("ada") != keys.names("ada.")
