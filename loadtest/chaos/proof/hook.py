"""The part of the checker that judges the pre-send hook.

If the policy is to reject what the hook does not answer, the logs have only texts that it has let through, as it left
them. If the policy is to accept that, texts may pass unchecked while the hook fails, and they are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from loadtest.chaos.proof.findings import Findings, Violation

ASKED: Final = ("message", "edit")


def check_hook(findings: Findings) -> Iterator[Violation]:
    evidence = findings.evidence
    if not evidence.run.hook:
        return
    let_through = {row.becomes for row in evidence.hook}
    findings.counts["texts that the hook rejected"] = sum(not row.becomes for row in evidence.hook)
    findings.counts["texts that the hook replaced"] = sum(row.becomes not in ("", row.body) for row in evidence.hook)
    for log in findings.logs.values():
        for entry in log.entries:
            if entry.kind not in ASKED or not entry.n:
                continue
            unchecked = entry.body not in let_through
            findings.counts["texts that passed unchecked"] += unchecked
            if unchecked and evidence.run.hook == "reject":
                what, device = f"{entry.kind} that the hook never let through", f"{entry.user}/{entry.device}"
                yield Violation("hook", what, entry.stamp, log.id, entry.seq, entry.n, (device,))
