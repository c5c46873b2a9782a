"""Judges what people at the web page saw, against the logs: every state of the page, and the last one most strictly.

G1  what a person wrote, changed, deleted or reacted with is in the log, and at the end in every page; nothing is shown
    as not sent
G2  a page shows the messages of a conversation in the order of the log, with the text that the author gave them, and
    never an earlier text after a later one; a deleted message stays deleted
G3  the log has each message and each edit once, and none that nobody wrote
G4  a page that shows another's message lacks none between it and the first one shown
G9  at the end each message is shown as read to its author
G6  the page raises no error

Everything that was begun has an end here, because no page is ended before.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from loadtest.chaos.proof.findings import Findings, Violation
from loadtest.chaos.proof.page_history import Asked, Content, PageRows, Raised, ShownMessage, Shows


def check_pages(pages: Mapping[str, Iterable[PageRows]], contents: list[Content], findings: Findings) -> None:
    """Add the violations and counts of all pages to the findings."""
    if not pages:
        return
    log: dict[str, dict[int, Content]] = defaultdict(dict)
    for content in contents:
        log[content.conversation][content.seq] = content
    gone: dict[tuple[str, int], str] = {}
    for user, history in pages.items():
        PageAccount(user, log, gone, findings).read(history)


class PageAccount:
    """The account of one page. `gone`: what pages showed of messages that the log does not have any more."""

    def __init__(
        self, user: str, log: dict[str, dict[int, Content]], gone: dict[tuple[str, int], str], findings: Findings
    ) -> None:
        self._user = user
        self._log = log
        self._gone = gone
        self._findings = findings
        self._asked: list[Asked] = []
        self._last: dict[str, Shows] = {}
        self._versions: dict[tuple[str, int], int] = {}
        self._deleted: set[tuple[str, int]] = set()

    def _add(self, promise: str, what: str, at: int, conversation: str = "", seq: int = 0) -> None:
        text = f"the page of {self._user} {what}"
        self._findings.violations.append(Violation(promise, text, at, conversation, seq))

    def read(self, history: Iterable[PageRows]) -> None:
        counts = self._findings.counts
        for row in history:
            match row:
                case Asked():
                    counts[f"{row.kind} at a page"] += 1
                    self._asked.append(row)
                case Raised():
                    self._add("G6", row.what, row.at)
                case Shows():
                    counts["states of pages"] += 1
                    counts["states of pages with somebody who types"] += row.typing
                    self._last[row.conversation] = row
                    self._window(row)
        for row in self._last.values():
            self._end(row)
        self._check_asked()

    def _window(self, row: Shows) -> None:
        name, seqs = row.conversation, [one.seq for one in row.messages]
        stored = [seq for seq in seqs if seq]
        if stored != sorted(set(stored)) or any(seqs[len(stored) :]):
            self._add("G2", f"shows messages in the order {seqs}", row.at, name)
        # An own message may be acked before what comes before it is received. Those of others are received in order.
        received = max((one.seq for one in row.messages if not one.mine), default=0)
        for seq in self._log[name]:
            if seqs and seqs[0] < seq < received and seq not in stored:
                self._add("G4", f"shows {received} and not {seq}", row.at, name, seq)
        for one in row.messages:
            if one.state == "Not sent":
                self._add("G1", f"shows {one.body} as not sent", row.at, name, one.seq)
            if one.seq:
                self._message(row, one)

    def _message(self, row: Shows, one: ShownMessage) -> None:
        name, place = row.conversation, (row.conversation, one.seq)
        content = self._log[name].get(one.seq)
        if content is None:
            log = self._findings.logs.get(name)
            if log is None or one.seq not in log.deleted:
                self._add("G2", f"shows {one.seq}, which is not in the log", row.at, name, one.seq)
            elif one.deleted:
                self._deleted.add(place)
            elif place in self._deleted:
                self._add("G2", f"shows {one.seq} again after its deletion", row.at, name, one.seq)
            elif self._gone.setdefault(place, one.body) != one.body:
                self._add("G2", f"shows {one.body} at {one.seq}, others show {self._gone[place]}", row.at, name)
        elif one.deleted or one.mine != (content.user == self._user) or one.body not in content.bodies:
            self._add("G2", f"shows {one}, the log has {content}", row.at, name, one.seq)
        else:
            version = content.bodies.index(one.body)
            if version < self._versions.get(place, 0):
                self._add("G2", f"shows an earlier text of {one.seq} again", row.at, name, one.seq)
            self._versions[place] = version

    def _end(self, row: Shows) -> None:
        """Compare the last state with the log: all that is above the first message shown, as it is now."""
        name, shown = row.conversation, {one.seq: one for one in row.messages if one.seq}
        waiting = len(row.messages) - len(shown)
        if waiting:
            self._add("G1", f"still shows {waiting} messages on their way", row.at, name)
        log = self._findings.logs.get(name)
        for seq, one in shown.items():
            if log is not None and seq in log.deleted and not one.deleted:
                self._add("G1", f"does not show that {seq} was deleted", row.at, name, seq)
        for seq, content in self._log[name].items():
            if seq < min(shown, default=0):
                continue
            found = shown.get(seq)
            if found is None:
                self._add("G1", f"does not show {seq} at the end", row.at, name, seq)
                continue
            reactions = {emoji: len(users) for emoji, users in content.reactions.items()}
            of_log = (content.bodies[-1], bool(content.edits), content.files, content.answers, reactions)
            of_page = (found.body, found.edited, found.files, found.answers, found.reactions)
            if of_page != of_log:
                self._add("G1", f"shows {of_page} at {seq} at the end, the log has {of_log}", row.at, name, seq)
            if found.mine and not found.state.startswith("Read"):
                self._add("G9", f"shows {seq} as {found.state!r} at the end", row.at, name, seq)

    def _check_asked(self) -> None:
        """Compare what the person wanted with the logs, in both directions."""
        wanted = Counter(
            (one.kind, one.conversation, one.body) for one in self._asked if one.kind in ("message", "edit")
        )
        for one in self._asked:
            content = self._log[one.conversation].get(one.target)
            log = self._findings.logs.get(one.conversation)
            if one.kind == "delete" and (log is None or one.target not in log.deleted):
                self._add("G1", f"deleted {one.target}, which the log has", one.at, one.conversation, one.target)
            elif one.kind == "react" and (content is None or self._user not in content.reactions.get(one.body, [])):
                self._add("G1", f"reacted to {one.target}, and the log has no {one.body}", one.at, one.conversation)
        found: Counter[tuple[str, str, str]] = Counter()
        for name, messages in self._log.items():
            for content in messages.values():
                if content.user == self._user:
                    found["message", name, content.body] += 1
                    found.update(("edit", name, body) for body in content.edits)
            # What was deleted is known by what its page showed.
            found.update(
                ("message", name, body)
                for (where, _), body in self._gone.items()
                if where == name and wanted["message", name, body]
            )
        for kind, name, body in sorted(wanted.keys() | found.keys()):
            want, have = wanted[kind, name, body], found[kind, name, body]
            if have < want:
                self._add("G1", f"was told to send the {kind} {body}, which is not in the log", 0, name)
            elif have > want:
                self._add(
                    "G3", f"was told {want} times to send the {kind} {body}, the log has it {have} times", 0, name
                )
