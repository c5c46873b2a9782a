"""Asks the pre-send hook about what users write that is no message: titles, profiles, and requests to be a contact.

Each function does nothing unless a hook is set, and asks nothing about calls of a backend. The handler calls it last
before the change, because the hook is asked only about what would be accepted. So each first checks what the change
itself would refuse.
"""

from __future__ import annotations

import secrets
from typing import Any

from router.api.call import Call, now_ms
from router.contract import keys
from router.contract.errors import ReadOnly
from router.contract.packing import jsonable, pack, unpack
from router.process.send_hook import Asked, Question
from router.store.answers import reply_of


async def review_title(call: Call, conversation: str, changes: dict[str, Any]) -> None:
    """Ask about a change of a group's or channel's title or avatar."""
    if call.services.hook is None or call.actor is None or not changes:
        return
    about = await call.services.conversations.describe(conversation, call.actor)
    if about.kind == keys.DIRECT:
        raise ReadOnly("a direct conversation has no title")
    if about.role not in ("o", "a"):
        raise ReadOnly("this takes the role owner or admin")
    await _ask(call, "title", call.actor, changes, conversation, keys.KIND_NAMES[about.kind])


async def review_new_title(call: Call, kind: str, title: str) -> None:
    """Ask about the title of a new group or channel, which has no id yet."""
    if call.services.hook is None or call.actor is None or not title:
        return
    await reply_of(call.services.users.may_take, call.actor, "opens")
    await _ask(call, "title", call.actor, {"title": title}, None, kind)


async def review_profile(call: Call, changes: dict[str, Any]) -> None:
    """Ask about a change of the caller's own profile; privacy is not part of it."""
    if call.services.hook is None or call.actor is None or not changes:
        return
    if await call.services.profiles.read(call.actor) is not None:
        await _ask(call, "profile", call.actor, changes)


async def review_new_account(call: Call, user: str, name: str) -> None:
    """Ask about the name of a new account."""
    if call.services.hook is None or call.caller.server or not name:
        return
    if not await reply_of(call.services.users.exists, user):
        await _ask(call, "profile", user, {"name": name}, address=call.address)


async def review_contact(call: Call, other: str, message: str) -> None:
    """Ask about a request that the caller is about to make."""
    if call.services.hook is None or call.actor is None:
        return
    await reply_of(call.services.users.may_take, call.actor, "asks")
    await _ask(call, "contact", call.actor, message or None, to=other)


async def _ask(
    call: Call,
    action: Asked,
    user: str,
    body: Any,
    conversation: str | None = None,
    kind: str | None = None,
    to: str | None = None,
    address: str = "",
) -> None:
    hook = call.services.hook
    if hook is not None:
        await hook.ask(
            Question(
                id=secrets.token_hex(16),
                at=now_ms(),
                action=action,
                conversation=conversation,
                to=to,
                kind=kind,
                from_=user,
                body=jsonable(unpack(pack(body))),  # a copy, because the handler writes the body
            ),
            address,
        )
