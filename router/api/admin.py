"""The calls of the admin view: for admins of the deployment with a token of that view, and for backends.

Only the listener of the admin view serves them. What they show is not what users see of each other: all users, all
conversations and their settings. A log is read only with a reason, which is in the audit before the first event is
sent.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import unquote

from router.api.call import Call
from router.api.messages import read_log
from router.api.moderation import require_admin, spend_act
from router.api.types.admin import (
    AdminBacklog,
    AdminConversation,
    AdminConversations,
    AdminConversationsQuery,
    AdminDevice,
    AdminDevices,
    AdminDevicesQuery,
    AdminGateway,
    AdminNodes,
    AdminRouter,
    AdminUser,
    AdminUsers,
    AdminUsersQuery,
)
from router.api.types.messages import Events, EventsQuery
from router.contract import keys, text
from router.contract.addressing import visible
from router.contract.errors import BadCommand, LinnetError, NotFound
from router.store.answers import reply_of
from router.store.conversations import ROLE_NAMES, Description
from router.store.directory import KnownUser
from router.store.presence import Device, state

REASON_CHARACTERS: Final = 500
AT_ONCE: Final = 50  # members whose devices are read at the same time


async def list_users(call: Call, given: AdminUsersQuery) -> AdminUsers:
    """List users: all of them, those whose names begin with `prefix`, those in one state."""
    require_admin(call)
    found, after = await call.services.directory.users(given.prefix or "", given.state, given.after, given.limit)
    devices = await reply_of(call.services.presence.devices, [one.user for one in found])
    gateways, now = await call.services.presence.gateways(), await call.services.presence.clock_ms()

    def shown(one: KnownUser, has: list[Device] | LinnetError) -> AdminUser:
        seen = state(has, gateways, now)
        return AdminUser(
            one.user, one.state, one.name, list(one.roles), one.created, one.password, one.suspended_until,
            seen.online, seen.last_seen,
        )  # fmt: skip

    return AdminUsers([shown(*both) for both in zip(found, devices, strict=True)], after != "", after)


async def list_conversations(call: Call, given: AdminConversationsQuery) -> AdminConversations:
    """List conversations with their settings: all of them, or one."""
    require_admin(call)
    if given.conversation is not None:
        about = await call.services.conversations.describe(visible(None, given.conversation), None)
        return AdminConversations([_shown(about)], False, "")
    named, after = await call.services.directory.conversations(given.after, given.limit)
    found = await asyncio.gather(*(_described(call, conv) for conv in named))
    return AdminConversations([_shown(one) for one in found if one is not None], after != "", after)


async def _described(call: Call, conv: str) -> Description | None:
    try:
        return await call.services.conversations.describe(conv, None)
    except NotFound:  # it was removed, or there is only the record of two users who have not written
        return None


def _shown(about: Description) -> AdminConversation:
    rules = about.rules
    return AdminConversation(
        about.conversation, keys.KIND_NAMES[about.kind], about.title, about.head, about.count, about.at, about.made,
        about.size, about.reacting, rules.posting, rules.adding, rules.slow_s,
    )  # fmt: skip


async def read_events(call: Call, given: EventsQuery) -> Events:
    """Read a conversation's log. The header `Linnet-Reason` says why, as percent-encoded UTF-8; the audit has it."""
    require_admin(call)
    conv = visible(None, call.path["conversation"])
    reason = _reason(call)
    await call.services.conversations.describe(conv, None)
    await spend_act(call)
    await call.services.audit.note_reading(conv, call.actor or "", reason)
    return await read_log(call, conv, None, given)


def _reason(call: Call) -> str:
    try:
        reason = unquote(call.request.headers.get("linnet-reason", ""), errors="strict").strip()
        text.check("Linnet-Reason", reason)
    except ValueError:
        raise BadCommand("Linnet-Reason must be percent-encoded UTF-8 without control characters") from None
    if not 1 <= len(reason) <= REASON_CHARACTERS:
        raise BadCommand(f"say in the header Linnet-Reason why you read this, in 1-{REASON_CHARACTERS} characters")
    return reason


async def list_devices(call: Call, given: AdminDevicesQuery) -> AdminDevices:
    """List the devices of the members, and what each has: one with `acked` ≥ a message's seq has that message."""
    require_admin(call)
    conv = visible(None, call.path["conversation"])
    about = await call.services.conversations.describe(conv, None)
    page = await call.services.conversations.members.page(conv, None, given.cursor)
    found: list[AdminDevice] = []
    without: list[str] = []
    members = sorted(page.roles)
    for start in range(0, len(members), AT_ONCE):
        some = members[start : start + AT_ONCE]
        for user, own in zip(some, await _places(call, conv, some, page.roles), strict=True):
            found += own
            without += [] if own else [user]
    return AdminDevices(conv, about.head, found, without, page.cursor != 0, page.cursor)


async def _places(call: Call, conv: str, users: list[str], roles: dict[str, str]) -> list[list[AdminDevice]]:
    services = call.services
    gateways, now = await services.presence.gateways(), await services.presence.clock_ms()
    devices = await reply_of(services.presence.devices, users)

    async def of(user: str, own: list[Device] | LinnetError) -> list[AdminDevice]:
        if isinstance(own, LinnetError):
            raise own
        rows = await asyncio.gather(*(reply_of(services.users.device_row, user, one.device, conv) for one in own))
        found = []
        for device, row in zip(own, rows, strict=True):
            seen = state([device], gateways, now)
            found.append(
                AdminDevice(
                    user,
                    ROLE_NAMES.get(roles[user], "member"),
                    device.device,
                    bool(seen.online),
                    device.gateway or None,
                    row.cursor if row else None,
                    row.read if row else 0,
                    seen.last_seen,
                )
            )
        return found

    return await asyncio.gather(*(of(user, own) for user, own in zip(users, devices, strict=True)))


async def list_nodes(call: Call, _: None) -> AdminNodes:
    """List gateways and routers with their load and lag, and the work that waits for routers."""
    require_admin(call)
    services = call.services
    now = await services.presence.clock_ms()
    gateways = await services.presence.gateways()
    routers = await services.row_formats.routers(now)
    backlog = await services.dirty.backlog(range(keys.PARTITIONS))
    return AdminNodes(
        [
            AdminGateway(node, row.url, row.alive(now), row.draining, row.connections, row.started, row.lag_ms, row.cpu)
            for node, row in sorted(gateways.items())
        ],
        [AdminRouter(node, row.lag_ms, row.cpu) for node, row in sorted(routers.items())],
        AdminBacklog(backlog.count, backlog.overdue_ms),
    )
