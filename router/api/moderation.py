"""Moderation by people who run a group or channel, or the deployment: mutes, bans, suspensions, and the audit.

Users with a role in the deployment (moderators and admins) mute, ban and delete messages anywhere, as the server does.
Their role counts with a token of the admin view, so a token that a browser keeps gives no such right.

A mute or ban belongs to the user, not to the membership: it outlasts leaving, removal, a new role and coming back.
`reason` is never in an event. Each act is in the audit within a router's round.

Each act of a user is first taken from their rate of acts, also one that changes nothing. So a user cannot soon push the
acts of others out of the audit, nor fill a conversation's `acts` before a router has moved them.
"""

from __future__ import annotations

from router.api.call import Call
from router.api.types.moderation import (
    Audit,
    AuditEntry,
    AuditQuery,
    Ban,
    Bans,
    BansQuery,
    NewRoles,
    Restraint,
    Roles,
    Target,
)
from router.contract import metrics
from router.contract.addressing import visible
from router.contract.errors import Forbidden, NotFound
from router.store import moderation
from router.store.accounts import ADMIN_RANK, rank_of
from router.store.answers import reply_of
from router.store.conversations import ROLES
from router.store.moderation import Act


async def put_mute(call: Call, given: Restraint) -> None:
    """Mute a user, member or not: sends, edits, reactions and typing are refused. A later mute replaces an earlier."""
    await spend_act(call)
    await _require_user(call)
    await call.services.moderation.restrain(await _act(call, given), "mute")
    metrics.MODERATION_ACTS.labels("mute").inc()


async def delete_mute(call: Call, _: None) -> None:
    """End a mute; the same if there is none."""
    await spend_act(call)
    if await call.services.moderation.restrain(await _act(call), "unmute"):
        metrics.MODERATION_ACTS.labels("unmute").inc()


async def put_ban(call: Call, given: Restraint) -> None:
    """Ban a user, and remove them if they are a member. Until the ban ends they cannot be added and cannot join."""
    await spend_act(call)
    await _require_user(call)
    removal = await call.services.moderation.ban(await _act(call, given))
    if removal.seq:
        await call.services.users.leave(call.path["user"], call.path["conversation"], removal.seq)
    metrics.MODERATION_ACTS.labels("ban").inc()


async def delete_ban(call: Call, _: None) -> None:
    """End a ban; the same if there is none. The user does not become a member by that."""
    await spend_act(call)
    if await call.services.moderation.restrain(await _act(call), "unban"):
        metrics.MODERATION_ACTS.labels("unban").inc()


async def list_bans(call: Call, given: BansQuery) -> Bans:
    """List the bans, page by page; for owners, admins, moderators and server keys.

    Owners and admins see neither the name nor the reason of a moderator of the deployment.
    """
    if call.caller.rank:
        conv = visible(None, call.path["conversation"])
        await call.services.conversations.describe(conv, None)
    else:
        conv = call.conversation
        about = await call.services.conversations.describe(conv, call.actor)
        if about.role not in (ROLES["owner"], ROLES["admin"]):
            raise Forbidden("this takes the role owner or admin")
    bans, cursor = await call.services.moderation.bans(conv, given.cursor)
    return Bans([_shown(ban, call.caller.rank > 0) for ban in bans], cursor != 0, cursor)


def _shown(ban: moderation.Ban, to_moderator: bool) -> Ban:
    """A ban as its reader sees it. Who runs the conversation learns nothing of a moderator of the deployment."""
    hides = ban.as_server and not to_moderator
    by, reason = (None, "") if hides else (ban.by or None, ban.reason)
    return Ban(ban.user, ban.until or None, ban.at, by, reason)


async def put_suspension(call: Call, given: Restraint) -> None:
    """Suspend a user: their sessions are closed with 4502, their tokens refused, and they are offline to all others.

    Messages to them are accepted and wait. Moderators may suspend users without a role, admins also moderators.
    """
    rank, by = require_rank(call)
    await spend_act(call)
    await call.services.accounts.suspend(call.path["user"], rank, by, given.until or 0, given.reason)
    metrics.MODERATION_ACTS.labels("suspend").inc()


async def delete_suspension(call: Call, _: None) -> None:
    """End a suspension; the same if there is none."""
    rank, by = require_rank(call)
    await spend_act(call)
    if await call.services.accounts.unsuspend(call.path["user"], rank, by):
        metrics.MODERATION_ACTS.labels("unsuspend").inc()


async def get_roles(call: Call, _: None) -> Roles:
    """Get the roles that a user has in the deployment."""
    roles = await call.services.accounts.roles(call.path["user"])
    if roles is None:
        raise NotFound("no such user")
    return Roles(call.path["user"], list(roles))


async def put_roles(call: Call, given: NewRoles) -> Roles:
    """Set the roles that a user has in the deployment."""
    await call.services.accounts.set_roles(call.path["user"], given.roles)
    metrics.MODERATION_ACTS.labels("roles").inc()
    return await get_roles(call, None)


async def get_audit(call: Call, given: AuditQuery) -> Audit:
    """Read the audit: acts of people who run groups or the deployment, and of backends. For moderators and server keys.

    Each act is there once, a few seconds after it. The newest 10,000 acts of each partition are kept.
    """
    require_rank(call)
    page = await call.services.audit.page(given.after, given.limit)
    return Audit(
        [
            AuditEntry(
                one.id,
                one.at,
                one.actor or None,
                one.action,
                Target(one.user or None, one.conversation or None, one.seq or None, one.report or None),
                one.reason or None,
            )
            for one in page.entries
        ],
        page.more,
        page.missing,
    )


def require_rank(call: Call) -> tuple[int, str]:
    """The rank of the caller, and the name for the audit; Forbidden without a role in the deployment."""
    if not call.caller.rank:
        raise Forbidden("this takes a role in the deployment and a token of the admin view, or the server key")
    return call.caller.rank, call.actor or ""


def require_admin(call: Call) -> None:
    """Raise Forbidden unless the caller is an admin of the deployment, with a token of the admin view, or a backend."""
    if call.caller.rank < ADMIN_RANK:
        raise Forbidden("this takes the role admin in the deployment and a token of the admin view, or the server key")


async def spend_act(call: Call) -> None:
    """Take one from the caller's rate of acts; a backend has none."""
    if call.actor is not None:
        await reply_of(call.services.users.spend_act, call.actor)


async def _moderates(call: Call, actor: str) -> bool:
    """Whether the caller may touch the user in the path by a role in the deployment: users of a lower rank."""
    user = call.path["user"]
    if not call.caller.rank or user == actor:
        return False
    return rank_of(await call.services.accounts.roles(user) or ()) < call.caller.rank


async def _require_user(call: Call) -> None:
    if not await reply_of(call.services.users.exists, call.path["user"]):
        raise NotFound("no such user")


async def _act(call: Call, given: Restraint | None = None) -> Act:
    """The act; as the server if the caller is a moderator who may touch the user."""
    numbers, actor = call.services.event_numbers, call.actor
    if actor is not None and await _moderates(call, actor):
        conv, actor = visible(None, call.path["conversation"]), None
    else:
        conv = call.conversation
    return Act(
        conversation=conv,
        actor=actor,
        by=call.actor or "",
        user=call.path["user"],
        until=(given.until or 0) if given else 0,
        reason=given.reason if given else "",
        device=numbers.device,
        n=numbers.next(),
    )
