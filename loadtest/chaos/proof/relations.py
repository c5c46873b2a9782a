"""The part of the checker that judges contacts and blocks.

After the answer to a block, the log of the direct conversation has nothing of either user until a block is lifted. At
the end both users' lists and keys say what the record of the pair says. (A fault may have deleted the record.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from loadtest.chaos.proof.evidence import Related, StoredPair, StoredState
from loadtest.chaos.proof.findings import Findings, Violation
from router.contract import keys

FORBIDDEN: Final = ("message", "edit", "react")
LATE_MS: Final = 60_000  # within which a call without an answer takes effect, if it does


def check_relations(findings: Findings) -> Iterator[Violation]:
    evidence = findings.evidence
    by_pair: dict[str, list[Related]] = {}
    for call in evidence.relations:
        findings.counts[f"answered {call.action}" if call.answer == 200 else "calls about others without effect"] += 1
        by_pair.setdefault(keys.direct(call.user, call.other), []).append(call)
    for conversation, calls in by_pair.items():
        yield from _writes_while_blocked(findings, conversation, calls)
    states = {one.user: one for one in evidence.states}
    for pair in evidence.pairs:
        if pair.conversation not in findings.lost:
            yield from _copies(pair, states)


def _writes_while_blocked(findings: Findings, conversation: str, calls: list[Related]) -> Iterator[Violation]:
    log = findings.logs.get(conversation)
    if log is None or conversation in findings.lost:
        return
    for block in calls:
        if block.action != "block" or block.answer != 200:
            continue
        # An end by the other user does not lift this block. An earlier one without an answer may come after it.
        lifts = [one for one in calls if one.user == block.user and one.action == "unblock"]
        if any(not _answered(one) and block.began - LATE_MS < one.began <= block.began for one in lifts):
            continue
        until = min((one.began for one in lifts if one.began > block.began), default=1 << 62)
        for entry in log.entries:
            if block.ended < entry.stamp < until and entry.kind in FORBIDDEN and findings.stamps_hold(entry.stamp):
                what = f"{entry.kind} of {entry.user} after {block.user} had blocked {block.other}"
                device = f"{entry.user}/{entry.device}"
                yield Violation("blocks", what, entry.stamp, conversation, entry.seq, entry.n, (device,))


def _answered(call: Related) -> bool:
    """Whether the answer says what the call did; else it may still take effect."""
    return 0 < call.answer < 500


def _copies(pair: StoredPair, states: dict[str, StoredState]) -> Iterator[Violation]:
    for user, (contact, blocks) in pair.record.items():
        other = keys.other_party(pair.conversation, user)
        if pair.copies[user] != (contact, blocks):
            what = f"{user} has {pair.copies[user]} about {other}, and the record {(contact, blocks)}"
            yield Violation("contacts", what, conversation=pair.conversation)
        own = states.get(user)
        has = {name for name, (_, body) in own.keys.items() if body} if own is not None else set()
        for name, wanted in ((f"contact/{other}", bool(contact)), (f"block/{other}", blocks)):
            if (name in has) != wanted:
                what = f"the state of {user} {'lacks' if wanted else 'has'} {name}"
                yield Violation("contacts", what, conversation=pair.conversation)
