"""Reports of messages and of users, for the moderators of the deployment.

A report of a message is in the slot of its conversation, with a copy of the message as it was then; a report of a user
is in that user's slot. Its name there follows from the reporter and what is reported, so a repetition is the same one.
Its id is the time at which it was made, its partition and its name. Another report may have the name later, when this
one has made room; the time tells them apart.

Invariants
- A report is never added below the cursor of a reader: a page ends before the present.
- A page without the reports of a server that does not answer says so (`missing`).
- At most 10,000 reports are kept for each partition; the oldest that is closed makes room for another.
- The copy of a message is erased some time after the report was closed (`erase`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final, Literal, TypeAlias

import msgpack
from msgspec import Struct

from router.contract import keys
from router.contract.errors import BadCommand, FunctionError, LinnetError, NotFound, Quota, Unavailable, from_function
from router.store.redis.client import Client

ReportState: TypeAlias = Literal["open", "resolved", "dismissed"]

STATES: Final[tuple[ReportState, ...]] = ("open", "resolved", "dismissed")
SETTLED_US: Final = 2_000_000  # by how much the clocks of several servers may differ
ERASE_MS: Final = 90 * 86_400_000


class Report(Struct, frozen=True):
    """A report of the message `seq` of `conversation`, or of `user`. `event`: the message's bytes, None once erased."""

    id: str
    at: int
    reporter: str
    user: str
    reason: str
    state: str
    note: str
    conversation: str = ""
    seq: int = 0
    event: bytes | None = None


class Page(Struct, frozen=True):
    """Reports, oldest first, and whether there are more. `missing`: partitions that could not be read."""

    reports: list[Report]
    more: bool
    missing: int


class Reports:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def report_message(self, reporter: str, conv: str, seq: int, reason: str) -> tuple[str, bool]:
        """Report a message that the reporter sees; the id, and whether the report is new."""
        part = keys.partition(conv)
        where = *_keys(part)[:-1], keys.conversation(conv), keys.log(conv)
        return await self._report(part, where, reporter, "", conv, seq, reason)

    async def report_user(self, reporter: str, user: str, reason: str) -> tuple[str, bool]:
        """Report a user; the id, and whether the report is new."""
        part = keys.PARTITIONS + keys.partition(user)
        return await self._report(part, _keys(part)[:-1], reporter, user, "", 0, reason)

    async def _report(
        self, part: int, where: Sequence[str], reporter: str, user: str, conv: str, seq: int, reason: str
    ) -> tuple[str, bool]:
        name = blake2b(f"{reporter} {user} {conv} {seq}".encode(), digest_size=16).hexdigest()
        args = name, reporter, user, conv, seq, reason
        try:
            new, at = await self._client.fcall("report", where, args)
        except FunctionError as error:
            if error.reply_code == "QUOTA":
                raise Quota("too many reports are open") from None
            raise from_function(error) from None
        return f"{int(at)}.{part}.{name}", bool(new)

    async def page(self, after: str, state: ReportState | None, limit: int) -> Page:
        """The reports after this id."""
        at, last = (0, 2 * keys.PARTITIONS) if after == "0" else _after(after)
        now = await self._client.clock_ms() * 1000
        upto = now - (1000 if self._client.one_server else SETTLED_US)
        by_time = 1 if state is None else 2 + STATES.index(state)
        answers = await self._client.fetch_each(
            ("ZRANGEBYSCORE", _keys(part)[by_time], f"{'(' if part <= last else ''}{at}", upto,
             "WITHSCORES", "LIMIT", 0, limit + 1)
            for part in range(2 * keys.PARTITIONS)
        )  # fmt: skip
        found: list[tuple[int, int, str]] = []
        missing = 0
        for part, names in enumerate(answers):
            if isinstance(names, Unavailable):
                missing += 1
                continue
            scored = zip(names[::2], names[1::2], strict=True)
            found += [(int(float(score)), part, name.decode()) for name, score in scored]
        found.sort()
        read = await asyncio.gather(*(self._read(place) for place in found[:limit]))
        return Page([report for report in read if report is not None], len(found) > limit, missing)

    async def _read(self, place: tuple[int, int, str]) -> Report | None:
        packed = await self._client.fetch("HGET", _keys(place[1])[0], place[2])
        return _report(".".join(map(str, place)), packed) if packed else None

    async def decide(self, report: str, state: ReportState | None, note: str | None, by: str) -> Report:
        """Resolve, dismiss or reopen a report, or note something on it; `by` is the name for the audit."""
        at, part, name = _position(report)
        args = name, at, report, state or "", "-" if note is None else f"+{note}", by
        try:
            packed = await self._client.fcall("decide_report", _keys(part), args)
        except LinnetError as error:
            raise from_function(error) from None
        return _report(report, packed)

    async def erase(self, age_ms: int = ERASE_MS) -> int:
        """Erase copies of messages in reports that were closed so long ago; return how many.

        Those of a server that does not answer are left for later.
        """
        erased = 0
        parts = [_keys(part) for part in range(keys.PARTITIONS)]
        exist = await self._client.fetch_each(("EXISTS", closed) for *_, closed, _ in parts)
        for (report, *_, closed, _), found in zip(parts, exist, strict=True):
            if found == 1:
                with suppress(Unavailable):
                    erased += int(await self._client.fcall("erase_reports", (report, closed), (age_ms,)))
        return erased


def _keys(part: int) -> tuple[str, ...]:
    """The keys of the reports in a partition: first those of conversations, then those of users."""
    return keys.reports("c", part) if part < keys.PARTITIONS else keys.reports("u", part - keys.PARTITIONS)


def _position(report: str) -> tuple[int, int, str]:
    """Time (µs), partition and name of an id."""
    at, _, rest = report.partition(".")
    part, _, name = rest.partition(".")
    numbers = all(text.isascii() and text.isdigit() and len(text) <= 16 for text in (at, part))
    if not numbers or int(part) >= 2 * keys.PARTITIONS or not name:
        raise NotFound("no such report")
    return int(at), int(part), name


def _after(report: str) -> tuple[int, int]:
    try:
        return _position(report)[:2]
    except NotFound:
        raise BadCommand("`after` must be 0, or the id of a report") from None


def _report(id_: str, packed: bytes) -> Report:
    row: dict[bytes, Any] = msgpack.unpackb(packed, raw=True)
    texts = {name: row[name.encode()].decode() for name in ("reporter", "user", "reason", "state", "note")}
    return Report(
        id=id_,
        at=int(row[b"at"]) // 1000,
        **texts,
        conversation=row[b"conversation"].decode(),
        seq=int(row[b"seq"]),
        event=row.get(b"event"),
    )
