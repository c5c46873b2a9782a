"""Reports of messages and users: who may report what, the copy that moderators read, and how long it is kept."""

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys, stamp
from router.contract.errors import BadCommand, NotFound, Quota
from router.store.audit import Audit
from router.store.reports import Report, Reports, ReportState
from tests.store.calling import Store, store
from tests.store.test_moderation import later


async def listed(s: Store, after: str = "0", state: ReportState | None = None, limit: int = 100) -> list[Report]:
    """A page that begins in a later millisecond than now."""
    now = await s.client.clock_ms()
    while await s.client.clock_ms() <= now + 1:
        pass
    return (await Reports(s.client).page(after, state, limit)).reports


async def test_report_has_a_copy_that_outlives_the_message(valkey: EmbeddedValkey) -> None:
    """The same report again is the first one; another reporter's is another."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m", cem="r")
        seq = (await s.send(conv, "bob", 1, body="an insult")).seq
        reports = Reports(s.client)
        first, new = await reports.report_message("cem", conv, seq, "rude")
        assert new
        assert await reports.report_message("cem", conv, seq, "again") == (first, False)
        second, new = await reports.report_message("ann", conv, seq, "rude")
        assert new
        assert second != first
        await s.send(conv, "bob", 2, action="delete", target=seq)
        found = await listed(s)
        assert [one.id for one in found] == [first, second]
        one = found[0]
        assert (one.reporter, one.user, one.conversation, one.seq, one.reason) == ("cem", "bob", conv, seq, "rude")
        assert (one.state, one.note) == ("open", "")
        assert stamp.decode(one.event or b"")["body"] == "an insult"


async def test_only_messages_that_the_reporter_sees_can_be_reported(valkey: EmbeddedValkey) -> None:
    """Neither those before the reporter was added or after they left, nor other events, nor what never was."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o")
        before = (await s.send(conv, "ann", 1)).seq
        added = (await s.conversations.member(conv, "ann", "bob", "put")).seq
        during = (await s.send(conv, "ann", 2)).seq
        await s.conversations.member(conv, "ann", "bob", "remove")
        after = (await s.send(conv, "ann", 3)).seq
        reports = Reports(s.client)
        for seq in (before, added, after, 1 << 50):
            with pytest.raises(NotFound):
                await reports.report_message("bob", conv, seq, "")
        with pytest.raises(NotFound):
            await reports.report_message("eve", conv, during, "")
        with pytest.raises(NotFound):
            await reports.report_message("bob", keys.new_conversation("g"), during, "")
        assert (await reports.report_message("bob", conv, during, ""))[1]
        assert len(await listed(s)) == 1


async def test_reports_are_decided_reopened_and_noted(valkey: EmbeddedValkey) -> None:
    """Each change of the state is in the audit; lists are by state, in pages of any size."""
    async with store(valkey.url) as s:
        reports = Reports(s.client)
        ids = [(await reports.report_user("ann", user, "spam"))[0] for user in ("bob", "cem", "dan")]
        assert (await reports.decide(ids[0], "resolved", "warned", "mod")).note == "warned"
        assert (await reports.decide(ids[1], "dismissed", None, "mod")).state == "dismissed"
        assert (await reports.decide(ids[1], None, "a note", "mod")).state == "dismissed"
        assert (await reports.decide(ids[0], "open", None, "")).note == "warned"
        states: tuple[ReportState | None, ...] = ("open", "resolved", "dismissed", None)
        found = [[one.user for one in await listed(s, state=state)] for state in states]
        assert found == [["bob", "dan"], [], ["cem"], ["bob", "cem", "dan"]]
        assert [one.user for one in await listed(s, after=ids[0], limit=1)] == ["cem"]
        entries = (await later(Audit(s.client))).entries
        assert [(one.action, one.actor, one.user, one.report) for one in entries] == [
            ("report_resolved", "mod", "bob", ids[0]),
            ("report_dismissed", "mod", "cem", ids[1]),
            ("report_open", "", "bob", ids[0]),
        ]
        for wrong in ("", "x", "1", "1.2", "1.512.x", "1.2.unknown", "9" * 40, "1.x.y", "-1.2.x"):
            with pytest.raises(NotFound):
                await reports.decide(wrong, "open", None, "")
        with pytest.raises(BadCommand):
            await reports.page("x", None, 1)


async def test_copy_is_erased_some_time_after_closing(valkey: EmbeddedValkey) -> None:
    """Not that of an open report, nor of one that was opened again."""
    async with store(valkey.url) as s:
        conv = await s.group(ann="o", bob="m")
        reports = Reports(s.client)
        seqs = [(await s.send(conv, "ann", n)).seq for n in (1, 2, 3)]
        ids = [(await reports.report_message("bob", conv, seq, ""))[0] for seq in seqs]
        for report in ids[:2]:
            await reports.decide(report, "resolved", None, "mod")
        await reports.decide(ids[1], "open", None, "mod")
        assert await reports.erase() == 0
        assert await reports.erase(age_ms=-1000) == 1
        assert await reports.erase(age_ms=-1000) == 0
        assert [one.event is None for one in await listed(s)] == [True, False, False]


async def test_number_of_reports_is_bounded(valkey: EmbeddedValkey) -> None:
    """The oldest that is closed makes room; if all are open, further ones are refused."""
    async with store(valkey.url) as s:
        reports = Reports(s.client)
        first, _ = await reports.report_user("ann", "bob", "")
        by_time = keys.reports("u", keys.partition("bob"))[1]
        crowd = [part for number in range(9999) for part in (number + 1, f"other-{number}")]
        await s.client.fetch("ZADD", by_time, *crowd)
        with pytest.raises(Quota):
            await reports.report_user("cem", "bob", "")
        assert await reports.report_user("ann", "bob", "") == (first, False)
        await reports.decide(first, "resolved", None, "")
        second, new = await reports.report_user("cem", "bob", "")
        assert new
        with pytest.raises(NotFound):
            await reports.decide(first, "open", None, "")
        assert [one.id for one in await listed(s, state="open")] == [second]


async def test_id_of_a_report_that_made_room_is_of_no_later_one(valkey: EmbeddedValkey) -> None:
    """The same user reports the same one anew: a moderator with the old list decides nothing about it."""
    async with store(valkey.url) as s:
        reports = Reports(s.client)
        old, _ = await reports.report_user("ann", "bob", "then")
        for key in keys.reports("u", keys.partition("bob")):
            await s.client.fetch("DEL", key)
        new, is_new = await reports.report_user("ann", "bob", "now")
        assert is_new
        assert old.split(".")[1:] == new.split(".")[1:]
        with pytest.raises(NotFound):
            await reports.decide(old, "dismissed", None, "mod")
        assert [(one.id, one.state) for one in await listed(s)] == [(new, "open")]
        assert (await reports.decide(new, "dismissed", None, "mod")).reason == "now"
