"""The judge of moderation against forged logs: it finds what a mute, a ban or slow mode forbids, and nothing else."""

from __future__ import annotations

import pytest

from loadtest.chaos.proof.evidence import Conversation, Evidence, Fault, Restraint, Run
from loadtest.chaos.proof.findings import Findings
from loadtest.chaos.proof.history import Entry
from loadtest.chaos.proof.restraints import check_restraints

GROUP = "g:forged"


def event(seq: int, kind: str = "message", user: str = "bob", stamp: int = 0) -> Entry:
    return Entry(seq, seq - 1, seq, stamp or 1000 * seq, kind, user, "phone", seq, 0, "")


def found(log: list[Entry], restraints: list[Restraint], *faults: Fault) -> list[int]:
    """The seqs of the violations."""
    run = Run(seed=0, seconds=1, level="fsync", drain_window_s=1, rss_limit_bytes=1)
    group = Conversation(GROUP, len(log), 0, {}, log, restraints, ["ann"])
    findings = Findings(Evidence(run, {GROUP: group}, {}, list(faults)))
    return [one.seq for one in check_restraints(findings)]


@pytest.mark.parametrize("kind", ["message", "edit", "react"])
def test_event_of_a_muted_user_is_found(kind: str) -> None:
    """Until the mute is lifted; deletes are allowed, and so are events of others."""
    log = [event(1), event(2, "member"), event(3, kind), event(4, "delete"), event(5, user="cem"), event(6, "member")]
    restraints = [Restraint(2, "mute", "bob"), Restraint(6, "unmute", "bob")]
    assert found([*log, event(7, kind)], restraints) == [3]


def test_mute_ends_at_its_end() -> None:
    """A later mute replaces it."""
    log = [event(1, "member"), event(2, stamp=4999), event(3, stamp=5000), event(4, "member"), event(5, stamp=6000)]
    assert found(log, [Restraint(1, "mute", "bob", 5000), Restraint(4, "mute", "bob", 7000)]) == [2, 5]


def test_user_who_was_added_while_banned_is_found() -> None:
    log = [event(1, "member"), event(2, "member", stamp=4999), event(3, "member", stamp=5000)]
    restraints = [Restraint(1, "ban", "bob", 5000), Restraint(2, "add", "bob"), Restraint(3, "add", "bob")]
    assert found(log, restraints) == [2]


def test_message_too_early_in_slow_mode_is_found() -> None:
    """Of members; owners are exempt, edits are free, and the window begins anew with each setting."""
    stamps = [1000, 1500, 2000, 2500, 3999, 4500, 9000, 9100]
    kinds = ["title", "message", "message", "edit", "message", "message", "title", "message"]
    users = ["ann", "bob", "ann", "bob", "bob", "bob", "ann", "bob"]
    log = [event(seq, kinds[seq - 1], users[seq - 1], stamps[seq - 1]) for seq in range(1, 9)]
    restraints = [Restraint(1, "slow", slow_s=2), Restraint(7, "slow")]
    assert found([*log, event(9, "message", "ann", 9101)], restraints) == [6]


def test_events_after_a_step_of_the_clock_are_not_judged() -> None:
    log = [event(1, "member"), event(2), event(3)]
    assert found(log, [Restraint(1, "mute", "bob")], Fault("valkey-clock", "x", 2500, 3000)) == [2]


def test_events_after_a_clock_that_was_put_back_are_not_judged() -> None:
    """Their stamps are before the step, too."""
    log = [event(1, "member", stamp=9000), event(2, stamp=9100), event(3, stamp=5000)]
    assert found(log, [Restraint(1, "slow", slow_s=2)], Fault("valkey-clock", "by -4 s", 9200, 9300)) == []
