"""The part of the checker that judges moderation: what a mute, a ban or slow mode forbids is not in the log.

A restraint and what it refuses are in one log, so its order is the truth. Ends of mutes and bans, and slow mode, are
judged by the stamps of events, which are of the same clock; not after that clock was stepped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from loadtest.chaos.proof.evidence import Conversation
from loadtest.chaos.proof.findings import Findings, Violation
from loadtest.chaos.proof.history import Entry

FORBIDDEN: Final = ("message", "edit", "react")


def check_restraints(findings: Findings) -> Iterator[Violation]:
    for conversation in findings.evidence.conversations.values():
        yield from _check(findings, conversation)


def _check(findings: Findings, conversation: Conversation) -> Iterator[Violation]:
    muted: dict[str, int | None] = {}
    banned: dict[str, int | None] = {}
    said: dict[str, int] = {}
    slow_s = latest = 0
    changes = {one.seq: one for one in conversation.restraints}
    for entry in conversation.entries:
        if not findings.stamps_hold(entry.stamp, latest):
            return
        latest = entry.stamp
        one = changes.get(entry.seq)
        if one is not None:
            findings.counts[one.kind] += 1
            match one.kind:
                case "mute":
                    muted[one.user] = one.until
                case "unmute":
                    muted.pop(one.user, None)
                case "ban":
                    banned[one.user] = one.until
                case "add" if _holds(banned, one.user, entry):
                    yield _violation(conversation, entry, f"{one.user} was added while banned")
                case "slow":
                    slow_s, said = one.slow_s, {}
                case _:
                    pass
        elif entry.kind in FORBIDDEN and _holds(muted, entry.user, entry):
            yield _violation(conversation, entry, f"{entry.kind} of {entry.user}, who was muted")
        elif entry.kind == "message" and slow_s and entry.user not in conversation.exempt:
            before = said.get(entry.user)
            if before is not None and entry.stamp - before < slow_s * 1000 - 1:
                what = f"{entry.user} wrote after {entry.stamp - before} ms in slow mode of {slow_s} s"
                yield _violation(conversation, entry, what)
            said[entry.user] = entry.stamp


def _holds(restrained: dict[str, int | None], user: str, entry: Entry) -> bool:
    if user not in restrained:
        return False
    until = restrained[user]
    return until is None or entry.stamp < until


def _violation(conversation: Conversation, entry: Entry, what: str) -> Violation:
    device = f"{entry.user}/{entry.device}"
    return Violation("moderation", what, entry.stamp, conversation.id, entry.seq, entry.n, (device,))
