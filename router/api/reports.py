"""Reports of messages and users: made by any user, read and closed by the moderators of the deployment."""

from __future__ import annotations

from typing import Any, cast

import msgspec
from starlette.responses import Response

from router.api.call import Call
from router.api.moderation import require_rank, spend_act
from router.api.types.moderation import MadeReport, NewReport, Report, ReportChange, Reports, ReportsQuery
from router.contract import metrics, packing
from router.contract.errors import BadCommand, NotFound
from router.store import reports
from router.store.answers import reply_of


async def create_report(call: Call, given: NewReport) -> Response | MadeReport:
    """Report a message that one sees, or a user. The same report again is answered with the id of the first (200)."""
    reporter, services = call.user, call.services
    if given.user is not None and not await reply_of(services.users.exists, given.user):
        raise NotFound("no such user")
    await reply_of(services.users.spend_report, reporter)
    if given.user is not None:
        made, new = await services.reports.report_user(reporter, given.user, given.reason)
    elif given.conversation is not None and given.seq is not None:
        conv = call.known(given.conversation, reporter)
        made, new = await services.reports.report_message(reporter, conv, given.seq, given.reason)
    else:
        raise BadCommand("name `user`, or `conversation` and `seq`")
    if new:
        metrics.MODERATION_ACTS.labels("report").inc()
        return MadeReport(made)
    return Response(msgspec.json.encode(MadeReport(made)), 200, {"Cache-Control": "no-store"}, "application/json")


async def list_reports(call: Call, given: ReportsQuery) -> Reports:
    """List reports, oldest first, for moderators and server keys.

    `event` is a copy of the message, made when the report came; null of a user, and 90 days after closing.
    """
    require_rank(call)
    page = await call.services.reports.page(given.after, given.state, given.limit)
    return Reports([_shown(one) for one in page.reports], page.more, page.missing)


async def patch_report(call: Call, given: ReportChange) -> Report:
    """Resolve, dismiss or reopen a report, or note something on it."""
    _, by = require_rank(call)
    await spend_act(call)
    state = None if given.state is msgspec.UNSET else given.state
    note = None if given.note is msgspec.UNSET else given.note
    changed = await call.services.reports.decide(call.path["report"], state, note, by)
    if state is not None:
        metrics.MODERATION_ACTS.labels(f"report_{state}").inc()
    return _shown(changed)


def _shown(report: reports.Report) -> Report:
    event: Any = None if report.event is None else msgspec.Raw(packing.json_of_packed(report.event))
    return Report(
        id=report.id,
        at=report.at,
        reporter=report.reporter,
        conversation=report.conversation or None,
        seq=report.seq or None,
        user=report.user,
        reason=report.reason,
        state=report.state,
        note=report.note or None,
        event=cast("Any", event),
    )
