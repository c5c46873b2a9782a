"""Which slots belong where: plans for the primaries of a cluster, and what keeps them safe. No server is asked here.

A plan is as even as slots can be divided: EVEN of the mean load, or no move makes it better. A primary may get slots
if it has a replica, none of its replicas lags behind, and its memory stays below FULL of its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from router.contract import keys
from router.store.redis.slots import slot_of

FULL: Final = 0.75  # of a server's memory limit
EVEN: Final = 1.02  # of the mean: a plan does not go below
UNEVEN: Final = 1.25  # of the mean, from which on `check` says so


class SlotsError(Exception):
    """Nothing was moved, or no more is; the text is one line for the terminal."""


class Primary(msgspec.Struct, frozen=True):
    """A primary with what it has of the cluster."""

    address: str
    ident: str
    slots: frozenset[int]
    loads: dict[int, int]  # of its slots with keys
    replicas: int
    lagging: int  # replicas that are not connected, or have not received everything
    used: int = 0  # bytes of memory
    limit: int = 0  # the same, at most; 0 without a limit

    @property
    def load(self) -> int:
        return sum(self.loads.values())


class Move(msgspec.Struct, frozen=True):
    slot: int
    source: str
    target: str

    def __str__(self) -> str:
        return f"move {self.slot} --to {self.target}   # from {self.source}"


def with_partitions() -> frozenset[int]:
    """Return all slots that contain a partition of the deployment."""
    return frozenset(slot_of(tag) for family in "cuf" for tag in keys.tags(family))


def plan(primaries: Sequence[Primary]) -> list[Move]:
    """Moves that give each primary its share of the load, as far as slots can be divided; empty if all have it.

    Each step takes the busiest and the idlest primary, and the slot (or two slots that change places) that makes them
    most equal.
    """
    loads = {one.address: dict(one.loads) for one in primaries}
    before = {slot: one.address for one in primaries for slot in one.loads}
    mean = sum(one.load for one in primaries) / max(len(primaries), 1)
    while True:
        sums = {address: sum(its.values()) for address, its in loads.items()}
        most, least = max(sums, key=lambda at: sums[at]), min(sums, key=lambda at: sums[at])
        gap = sums[most] - sums[least]
        back: list[int | None] = [None, *loads[least]]
        fitting = [
            (abs(net - gap / 2), other is not None, slot, other)
            for slot, load in loads[most].items()
            for other in back
            if 0 < (net := load - (loads[least][other] if other is not None else 0)) < gap
        ]
        if sums[most] <= EVEN * mean or not fitting:
            break
        _, _, slot, other = min(fitting, key=lambda one: one[:3])
        loads[least][slot] = loads[most].pop(slot)
        if other is not None:
            loads[most][other] = loads[least].pop(other)
    after = {slot: address for address, its in loads.items() for slot in its}
    return [Move(slot, source, after[slot]) for slot, source in before.items() if after[slot] != source]


def isolation(primaries: Sequence[Primary], slot: int, target: str) -> list[Move]:
    """Moves after which the target has this slot and no other with keys; `SlotsError` if that would not help."""
    named = {one.address: one for one in primaries}
    if target not in named:
        raise SlotsError(f"{target} is no primary of this cluster: {', '.join(sorted(named))}")
    others = {one.address: {at: load for at, load in one.loads.items() if at != slot} for one in primaries}
    leaving = others.pop(target)
    takers = [one.address for one in primaries if one.address in others and one.replicas and not one.lagging]
    if leaving and not takers:
        raise SlotsError("there is no other primary with replicas that could take what else the server has")
    home = next(one for one in primaries if slot in one.slots)
    moves = []
    for number, load in sorted(leaving.items(), key=lambda one: -one[1]):
        least = min(takers, key=lambda at: sum(others[at].values()))
        others[least][number] = load
        moves.append(Move(number, target, least))
    if home.address != target:
        moves.append(Move(slot, home.address, target))
    now = max(one.load for one in primaries)
    then = max([home.loads.get(slot, 0), *(sum(its.values()) for its in others.values())])
    if moves and then >= now:
        raise SlotsError(
            f"that would not help: the busiest primary has {now} now, and would have {then}; add a primary first"
        )
    return moves


def require_safe(target: Primary, size: int = 0) -> None:
    """Raise `SlotsError` if a primary must not get slots with so many bytes."""
    if not target.replicas:
        raise SlotsError(f"{target.address} has no replica: if it dies, the slots that it gets are lost")
    if target.lagging:
        raise SlotsError(f"{target.lagging} replicas of {target.address} lag behind: try again later")
    if target.limit and target.used + size > FULL * target.limit:
        raise SlotsError(
            f"{target.address} would have {(target.used + size) / target.limit:.0%} of its memory limit; {FULL:.0%} is"
            " the most that a move may fill"
        )


def check(primaries: Sequence[Primary], by: str = "keys") -> list[str]:
    """One line for each primary, and then what is wrong."""
    ours = with_partitions()
    lines = [
        f"{one.address}: {len(one.slots)} slots, {len(one.slots & ours)} partitions, {one.load} {by},"
        f" {one.replicas} replicas" + (f", {one.lagging} of them behind" if one.lagging else "")
        for one in primaries
    ]
    loads = [one.load for one in primaries]
    mean = sum(loads) / max(len(loads), 1)
    if mean and max(loads) > UNEVEN * mean:
        lines.append(f"uneven: the largest has {max(loads) / mean:.2f} times the mean; see plan")
    for name, copies in (("leases", keys.GATEWAYS_COPIES), ("deployment", keys.DEPLOYMENT_COPIES)):
        at = {one.address for one in primaries for copy in copies if slot_of(copy) in one.slots}
        if len(at) < min(len(copies), len(primaries)):
            lines.append(f"the copies of the {name} are on {len(at)} servers: move one of {', '.join(copies)}")
    return lines
