"""What the parts of the checker share: logs with an index, violations, counts, and what accounts collect for other
checks.

`checker.py` judges the deployment as a whole, `account.py` one device; both add to one `Findings`. Nothing here judges.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec

from loadtest.chaos.proof.evidence import Conversation, Evidence
from loadtest.chaos.proof.history import Entry
from router.contract import keys

FAILOVERS: Final = (
    "primary-kill", "primary-stall", "failover", "shard-kill", "shard-stall", "shard-takeover", "bus-cut",
)  # fmt: skip
# For this long after a failover a process may use the old primary, or read what the failover took back.
SETTLED_MS: Final = 10_000
# For this long after a clock was set right, processes may still act by the wrong time.
STEPPED_MS: Final = 20_000  # a client that does not read, or whose link is held, notices later
# Within this time every process has noticed that a setting of Redis breaks the durability.
NOTICED_MS: Final = 6_000
# Of these kinds are the faults by which a process may miss a part of Redis and still have the others.
PARTS: Final = ("shard-", "store-", "bus-")
NEVER: Final = 1 << 62
HASH_OF: Final = "hash of "  # in the target of a fault, before the user whose hash it deleted
# The log line of a failover, in local time: of a sentinel, or of a cluster's server that was elected. They start one
# themselves if a busy machine does not answer.
_SWITCHED: Final = re.compile(
    r"^\d+:[XSM] (\d+ \w+ \d+ [\d:.]+) . (?:\+switch-master|Failover election won)", re.MULTILINE
)


class Violation(msgspec.Struct, frozen=True):
    """`at`: when, as precisely as known; `devices`: those whose histories explain it."""

    promise: str
    what: str
    at: int = 0
    conversation: str = ""
    seq: int = 0
    n: int = 0
    devices: tuple[str, ...] = ()


class Log:
    """The log of a conversation, with an index."""

    def __init__(self, conversation: Conversation, lost: int = 0) -> None:
        """`lost`: the seq up to which a fault deleted the log. It counts as trimmed, so that its loss must be
        announced."""
        self.id = conversation.id
        self.head = conversation.head
        self.floor = max(conversation.floor, lost)
        self.members = conversation.members
        self.entries = conversation.entries
        self.by_seq = {entry.seq: entry for entry in conversation.entries}
        self.seqs = [entry.seq for entry in conversation.entries]
        self.deleted = {entry.target for entry in conversation.entries if entry.kind == "delete"}

    def visible(self, user: str) -> tuple[int, int]:
        """Return the first and last seq that the user may see; (1, 0) if the user is no member."""
        first, last = self.members.get(user, (1, -1))
        return first, last or self.head

    def moved(self, user: str) -> bool:
        """Whether the user joined or left, so that their messages of that time may have been refused."""
        return self.members.get(user) != (0, 0)

    def between(self, after: int, upto: int) -> list[Entry]:
        return self.entries[bisect_right(self.seqs, after) : bisect_right(self.seqs, upto)]


class Command(msgspec.Struct):
    """One n of one device: what was sent, and its answer."""

    conversation: str = ""
    seq: int = 0
    body: str = ""
    kind: str = ""
    target: int = 0
    at: int = 0
    refused: str = ""

    def repeats(self, entry: Entry, device: str) -> bool:
        """Whether this is a reaction that `entry` already contains: it is acked with the seq of that event."""
        user = device.partition("/")[0]
        return self.kind == "react" and (entry.kind, entry.user, entry.target) == ("react", user, self.target)


class Share(msgspec.Struct, frozen=True):
    """What a device received of the trimmed part of a conversation, which is (after, upto]."""

    device: str
    after: int
    upto: int
    had: frozenset[int]
    gaps: list[tuple[int, int]]

    def announced(self, seq: int) -> bool:
        return any(first <= seq <= last for first, last in self.gaps)


class Findings:
    """The violations and counts, and what all accounts collect together."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.lost: dict[str, int] = {}  # conversation -> up to which seq a fault deleted its log
        for loss in evidence.losses:
            self.lost[loss.conversation] = max(loss.upto, self.lost.get(loss.conversation, 0))
        # Direct conversations of users who called about each other, in which a message may have been refused.
        self.related = {keys.direct(one.user, one.other) for one in evidence.relations}
        # The pre-send hook: what it has made of texts, and the texts that it has rejected.
        self._replaced: dict[str, str] = {row.body: row.becomes for row in evidence.hook if row.becomes}
        self.rejected = {row.body for row in evidence.hook if not row.becomes}
        self._whole = [loss for loss in evidence.losses if loss.whole]
        self.logs = {name: Log(one, self.lost.get(name, 0)) for name, one in evidence.conversations.items()}
        self.violations: list[Violation] = []
        self.counts: Counter[str] = Counter()
        # Received events that no log has (deleted or rolled back): all devices must have received the same.
        self.unlogged: dict[tuple[str, int], Entry] = {}
        self.gone_at: dict[str, list[int]] = {}  # gateway -> when devices that it drained asked for a new connection
        # user -> conversation -> device -> read mark, and when the device first knew it
        self.read: dict[str, dict[str, dict[str, tuple[int, int]]]] = {}
        self.shares: dict[str, list[Share]] = {}
        self._failovers = [(began, ended + SETTLED_MS) for began, ended in _failovers(evidence)]
        self._unknown = {
            fault.target.removeprefix(HASH_OF): fault.began
            for fault in evidence.faults
            if fault.kind == "keys-deleted" and fault.target.startswith(HASH_OF)
        }
        self._steps = [fault for fault in evidence.faults if fault.kind == "gateway-clock"]
        changed = (fault for fault in evidence.faults if fault.kind == "valkey-settings")
        self._unfit = [(fault.began + NOTICED_MS, fault.ended) for fault in changed]
        stepped = (fault.began for fault in evidence.faults if fault.kind == "valkey-clock")
        self._stamps_until = min(stepped, default=NEVER)

    def same(self, sent: str, stored: str) -> bool:
        """Whether a stored text is the sent one, or what the pre-send hook has made of it."""
        return stored in (sent, self._replaced.get(sent))

    def forgotten(self, conversation: str, at: int) -> int:
        """The seq up to which no key knew anything of the conversation at this time; 0 if none was deleted."""
        return max(
            (loss.upto for loss in self._whole if loss.conversation == conversation and loss.at <= at), default=0
        )

    def may_be_unknown(self, conversation: str, at: int) -> bool:
        """Whether one of the two users may not have existed at this time: a fault deleted them, and they exist again
        only once they connect."""
        pair = keys.parties(conversation) if conversation.startswith(keys.DIRECT) else ()
        return any(self._unknown.get(user, NEVER) <= at for user in pair)

    def failed_over(self, since: int, until: int) -> bool:
        """Whether a failover may have taken back, by one of these times, something not acked at the other."""
        return any(began <= until and ended >= since for began, ended in self._failovers)

    def parts_away(self, at: int) -> bool:
        """Whether a part of a cluster may not have answered a process at this time."""
        return any(
            fault.kind.startswith(PARTS) and fault.began <= at <= fault.ended + SETTLED_MS
            for fault in self.evidence.faults
        )

    def unfit(self, since: int, until: int) -> bool:
        """Whether a setting of Redis broke the durability all that time, and the processes had noticed it before."""
        return any(began <= since and until <= ended for began, ended in self._unfit)

    def stamps_hold(self, at: int, before: int = 0) -> bool:
        """Whether the stamps of all events up to this time are right. Stamps of a clock that was put back are before
        the step, too, but below that of an earlier event of the log, `before`."""
        return at < self._stamps_until and (at >= before or self._stamps_until == NEVER)

    @property
    def clocks_stepped(self) -> bool:
        """Whether the clock of any process stepped in this run."""
        return any(fault.kind.endswith("-clock") for fault in self.evidence.faults)

    def stepped(self, gateway: str, at: int) -> bool:
        """Whether the clock of that gateway may have been wrong at this time."""
        return any(
            fault.target.startswith(f"{gateway} ") and fault.began <= at <= fault.ended + STEPPED_MS
            for fault in self._steps
        )


def _failovers(evidence: Evidence) -> Iterator[tuple[int, int]]:
    """Return the begin and the end of each failover."""
    for fault in evidence.faults:
        if fault.kind in FAILOVERS:
            yield fault.began, fault.ended
    for process, path in evidence.process_logs.items():
        if process.startswith(("sentinel", "server")):
            yield from ((at - SETTLED_MS, at) for at in _switched(path))


def _switched(path: Path) -> Iterator[int]:
    for match in _SWITCHED.finditer(path.read_text(errors="replace")):
        yield round(datetime.strptime(match[1], "%d %b %Y %H:%M:%S.%f").astimezone().timestamp() * 1000)
