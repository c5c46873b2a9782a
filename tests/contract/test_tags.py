"""Hash tags: the slots of partitions on a cluster are even, and never change."""

from __future__ import annotations

from hashlib import sha256

import pytest

from router.contract.tags import COUNT, NUMBERED, SPREAD, TAGS
from router.store.redis.slots import SLOTS, slot_of


def share_of_the_busiest(partitions: str, shards: int) -> float:
    """Return the partitions of the fullest of `shards` equal ranges of slots, as a multiple of the mean."""
    counts = [0] * shards
    for family in "cu":
        for tag in TAGS[partitions][family]:
            counts[slot_of(tag) * shards // SLOTS] += 1
    return max(counts) * shards / sum(counts)


def test_tags_never_change() -> None:
    """If a tag changed, all data of its partition would be lost."""
    found = {name: sha256(repr(sorted(tags.items())).encode()).hexdigest()[:16] for name, tags in TAGS.items()}
    assert found == {NUMBERED: "84d2ac635497565c", SPREAD: "7601a45c6cb382bf"}
    assert TAGS[NUMBERED]["f"][7] == "{f7}"


def test_spread_tags_have_slots_of_their_own() -> None:
    """If a slot moves, one whole partition moves, and no other."""
    slots = [slot_of(tag) for tags in TAGS[SPREAD].values() for tag in tags]
    assert len(set(slots)) == len(slots) == 3 * COUNT
    for family, first in (("u", 16), ("f", 32), ("c", 48)):
        assert [slot_of(tag) for tag in TAGS[SPREAD][family]] == [64 * part + first for part in range(COUNT)]


@pytest.mark.parametrize("family", ["c", "u", "f"])
def test_spread_tags_are_the_numbered_ones_with_an_ending(family: str) -> None:
    """The rights of a Redis user and the patterns of scans are therefore the same for both sets."""
    for numbered, spread in zip(TAGS[NUMBERED][family], TAGS[SPREAD][family], strict=True):
        assert spread.startswith(f"{numbered[:-1]}.")
        assert len(spread) <= len("{c255.0000}")


def test_spread_tags_are_even_over_equal_ranges() -> None:
    """Numbered tags are not even: the fullest of 48 ranges has twice the mean."""
    assert max(share_of_the_busiest(SPREAD, shards) for shards in range(2, 65)) <= 1.12
    assert share_of_the_busiest(NUMBERED, 48) > 2
