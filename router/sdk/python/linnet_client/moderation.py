"""Moderation, by those who run a group, a channel or the deployment; and reports, by anyone."""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypedDict
from urllib.parse import quote

ReportState = Literal["open", "resolved", "dismissed"]


class Caller(Protocol):
    """The client, as moderation needs it."""

    async def call(self, method: str, path: str, body: Any = None) -> Any: ...


class Rules(TypedDict, total=False):
    """What a group or channel allows.

    `posting`: who may send and edit; `adding`: who may add members and readers; `reacting`: whether readers may react;
    `slow_s`: the seconds between two messages of a member, 0 for none.
    """

    posting: Literal["all", "admins"]
    adding: Literal["all", "admins"]
    reacting: Literal["all", "members"]
    slow_s: int


class Ban(TypedDict):
    """A ban. `by`: None for the server, and for a moderator whom the caller may not see."""

    user: str
    until: int | None
    at: int
    by: str | None
    reason: str


class Report(TypedDict):
    """A report. `user`: the author of the message, or the user who is reported; `event`: a copy of the message."""

    id: str
    at: int
    reporter: str
    conversation: str | None
    seq: int | None
    user: str
    reason: str
    state: ReportState
    note: str | None
    event: Any


class ReportPage(TypedDict):
    """Reports, oldest first; `missing` as in `AuditPage`."""

    reports: list[Report]
    more: bool
    missing: int


class AuditEntry(TypedDict):
    """One act. `actor`: None for the server; `target`: what it is about (`user`, `conversation`, `seq`, `report`)."""

    id: str
    at: int
    actor: str | None
    action: str
    target: dict[str, Any]
    reason: str | None


class AuditPage(TypedDict):
    """Acts in their order.

    `missing`: how many of the audit's 512 parts are not in it, because their server does not answer. If there are some,
    ask again later from the same place.
    """

    entries: list[AuditEntry]
    more: bool
    missing: int


class Moderation:
    """What people who run a group or channel may do, and moderators everywhere.

    Moderators need a token of the admin view. `until` is the end of a restraint, in milliseconds since the epoch;
    without it there is none. `reason` is for the audit; the user does not see it.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def rules(self, conversation: str) -> Rules:
        """Return what a group or channel allows."""
        found = await self._caller.call("GET", _path(conversation))
        return Rules(
            posting=found["posting"], adding=found["adding"], reacting=found["reacting"], slow_s=found["slow_s"]
        )

    async def change(self, conversation: str, change: Rules) -> None:
        """Change what a group or channel allows."""
        await self._caller.call("PATCH", _path(conversation), change)

    async def mute(self, conversation: str, user: str, *, until: int | None = None, reason: str = "") -> None:
        """Let a user read, but not write."""
        await self._restrain(_path(conversation, "members", user, "mute"), until, reason)

    async def unmute(self, conversation: str, user: str) -> None:
        """End a mute."""
        await self._caller.call("DELETE", _path(conversation, "members", user, "mute"))

    async def ban(self, conversation: str, user: str, *, until: int | None = None, reason: str = "") -> None:
        """Remove a user, and keep them out."""
        await self._restrain(_path(conversation, "bans", user), until, reason)

    async def unban(self, conversation: str, user: str) -> None:
        """End a ban."""
        await self._caller.call("DELETE", _path(conversation, "bans", user))

    async def bans(self, conversation: str) -> list[Ban]:
        """Return all bans that are not over."""
        found, page = list[Ban](), {"more": True, "cursor": 0}
        while page["more"]:
            page = await self._caller.call("GET", f"{_path(conversation, 'bans')}?cursor={page['cursor']}")
            found += page["bans"]
        return found

    async def suspend(self, user: str, *, until: int | None = None, reason: str = "") -> None:
        """End a user's sessions and calls in the whole deployment. For moderators."""
        await self._restrain(f"/v1/accounts/{quote(user)}/suspension", until, reason)

    async def unsuspend(self, user: str) -> None:
        """End a suspension."""
        await self._caller.call("DELETE", f"/v1/accounts/{quote(user)}/suspension")

    async def audit(self, *, after: str = "0", limit: int = 100) -> AuditPage:
        """Return what was done after an entry, in its order. For moderators."""
        page: AuditPage = await self._caller.call("GET", f"/v1/audit?after={quote(after)}&limit={limit}")
        return page

    async def _restrain(self, path: str, until: int | None, reason: str) -> None:
        await self._caller.call("PUT", path, {"until": until, "reason": reason})


class Reports:
    """Reports of messages and users: anyone makes them, moderators with a token of the admin view read and close
    them."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def message(self, conversation: str, seq: int, reason: str) -> str:
        """Report a message; return the report's id."""
        return await self._make({"conversation": conversation, "seq": seq, "reason": reason})

    async def user(self, user: str, reason: str) -> str:
        """Report a user; return the report's id."""
        return await self._make({"user": user, "reason": reason})

    async def _make(self, report: dict[str, Any]) -> str:
        made: str = (await self._caller.call("POST", "/v1/reports", report))["id"]
        return made

    async def read(self, state: ReportState | None = None, *, after: str = "0", limit: int = 50) -> ReportPage:
        """Return reports after one, in their order. For moderators."""
        of = f"state={state}&" if state is not None else ""
        page: ReportPage = await self._caller.call("GET", f"/v1/reports?{of}after={quote(after)}&limit={limit}")
        return page

    async def close(self, report: str, state: ReportState, note: str | None = None) -> None:
        """Close a report, or open it again. For moderators."""
        change = {"state": state} if note is None else {"state": state, "note": note}
        await self._caller.call("PATCH", f"/v1/reports/{quote(report)}", change)


def _path(conversation: str, *more: str) -> str:
    return "/v1/conversations/" + "/".join(quote(part, safe="") for part in (conversation, *more))
