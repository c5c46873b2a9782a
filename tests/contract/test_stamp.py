"""An event's bytes: slots at fixed offsets, and golden bytes that no version may change.

During a rollout gateways of two versions run side by side, and logs contain events of even older ones. A changed
fingerprint would turn resends into conflicts; changed bytes would make the event another one.
"""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.contract import stamp
from router.contract.errors import TooLarge
from router.contract.packing import MAX_BODY_BYTES, MAX_INTEGER, pack, pack_body

GROUP = "g:0123456789012345678901"
SLOT = st.integers(0, 2**64 - 1)

GOLDEN_EVENT = bytes.fromhex(
    "8c"  # a map of 12
    "a3736571cf0000000000000102"  # seq
    "a470726576cf0000000000000101"  # prev
    "a5636f756e74cf0000000000000007"  # count
    "a26174cf0000018bcfe56800"  # at
    "a474797065a76d657373616765"  # type message
    "ac636f6e766572736174696f6eb8673a30313233343536373839303132333435363738393031"
    "a466726f6da3616e6e"
    "a6646576696365a570686f6e65"
    "a16e05"
    "a56d65646961a474657874"
    "a4626f647982a474657874a26869a3726177c4020001"
    "a87265706c795f746f02"
)
BODY = {"text": "hi", "raw": b"\0\1"}
FIELDS = {"media": pack("text"), "body": pack(BODY), "reply_to": pack(2)}


def test_bytes_of_an_event_never_change() -> None:
    """Golden: the same event has the same bytes in every version."""
    tail = stamp.tail("message", GROUP, "ann", "phone", 5, FIELDS)
    assert stamp.fill(tail, stamp.Slots(0x102, 0x101, 7, 1_700_000_000_000)) == GOLDEN_EVENT


@pytest.mark.parametrize(
    ("action", "fields", "golden"),
    [
        ("message", FIELDS, "79caa52678c94e3a"),
        ("message", {"media": pack("text"), "body": pack("hi")}, "cde7f861b37a3a97"),
        ("edit", {"target": pack(4), "body": pack("hi")}, "e2e2a0d4962328dd"),
        ("delete", {"target": pack(4)}, "90fa57cf920472d1"),
        (
            "react",
            {"target": pack(4), "emoji": pack("+"), "remove": pack(False)},
            "7b3bc64546d4d3f0",
        ),
    ],
)
def test_fingerprint_of_a_content_never_changes(action: str, fields: dict[str, bytes], golden: str) -> None:
    """Golden: a gateway of another version recognizes a resend."""
    assert stamp.fingerprint(pack(action), *fields.values()).hex() == golden


def test_fingerprints_of_different_contents_differ() -> None:
    """Each part contains its own length, so the end of one part is never read as the beginning of the next."""
    parts = [
        ("ab", "c"),
        ("a", "bc"),
        ("abc", ""),
        ("", "abc"),
        ("abc",),
        (1, "c"),
        ("1", "c"),
        (b"ab", "c"),
        (["a", "b"],),
    ]
    assert len({stamp.fingerprint(*map(pack, part)) for part in parts}) == len(parts)
    assert len(stamp.fingerprint()) == 8


@given(st.tuples(SLOT, SLOT, SLOT, SLOT))
def test_slots_are_read_at_the_offsets_where_they_were_filled(slots: tuple[int, int, int, int]) -> None:
    """A reader finds them without decoding, and a decoder finds the same values."""
    event = stamp.fill(stamp.tail("title", GROUP, "ann", "phone", 1, {"title": pack("x")}), stamp.Slots(*slots))
    assert stamp.slots(event) == slots
    whole = stamp.decode(event)
    assert (whole["seq"], whole["prev"], whole["count"], whole["at"]) == slots


def test_function_library_stamps_at_the_same_offsets() -> None:
    """The offsets that Lua counts from 1 (prelude.lua, range.lua …) are those of the golden event."""
    offsets = {7: 0x102, 21: 0x101, 36: 7, 48: 1_700_000_000_000}
    for at, value in offsets.items():
        assert int.from_bytes(GOLDEN_EVENT[at - 1 : at + 7]) == value
    tail = stamp.tail("message", GROUP, "ann", "phone", 5, FIELDS)
    assert GOLDEN_EVENT[:1] == tail.first
    assert GOLDEN_EVENT[56 - 1 :] == tail.rest


@given(st.sampled_from(["message", "member", "title", "edit", "delete", "react"]))
def test_type_is_read_without_decoding(kind: str) -> None:
    event = stamp.fill(stamp.tail(kind, GROUP, "ann", "phone", 1, {"a": b"\x01"}), stamp.Slots(1, 0, 1, 1))
    told = {"message": stamp.is_message(event), "member": stamp.is_member(event), "title": stamp.is_title(event)}
    assert told == {name: name == kind for name in told}
    assert stamp.is_event(event)


def test_author_contains_the_users_of_an_event() -> None:
    packed = {"user": pack("bob"), "action": pack("add"), "role": pack("member")}
    event = stamp.fill(stamp.tail("member", GROUP, "ann", "", 0, packed), stamp.Slots(1, 0, 1, 1))
    assert stamp.author(event) == stamp.Author("member", GROUP, "ann", "", "bob", "add", "member")


def test_header_counts_the_fields() -> None:
    """The map has the four slots, five common fields and the fields of its type."""
    for count in range(4):
        packed = {f"f{i}": pack(i) for i in range(count)}
        event = stamp.fill(stamp.tail("edit", GROUP, "ann", "phone", 1, packed), stamp.Slots(1, 0, 1, 1))
        assert len(msgpack.unpackb(event)) == 9 + count


def test_event_size_is_bounded() -> None:
    """A body of the largest size fits with the longest other fields; more is refused."""
    body = pack_body("x" * (MAX_BODY_BYTES - 3))
    fields = {"media": pack("m" * 64), "body": body, "reply_to": pack(MAX_INTEGER)}
    stamp.tail("message", "d:" + "a" * 64 + ":" + "b" * 64, "a" * 64, "d" * 64, MAX_INTEGER, fields)
    with pytest.raises(TooLarge):
        stamp.tail("message", GROUP, "ann", "phone", 1, {"body": body, "media": pack("m" * 23_000)})
