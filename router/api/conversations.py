"""Groups and channels: creating, changing and leaving them, and their members.

A change is first made in the conversation's slot, where its function decides, and then in the user's slot. If this
process dies in between, a router finds the change in the log and makes the second half.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from msgspec import UNSET, UnsetType, structs

from router.api.call import Call, rate_us
from router.api.profiles import refused_additions, require_addable
from router.api.review import review_new_title, review_title
from router.api.types.conversations import (
    MEMBERS_AT_ONCE,
    Conversation,
    ConversationChange,
    ConversationList,
    CreatedConversation,
    ListedConversation,
    ListQuery,
    Member,
    MemberList,
    MemberQuery,
    Membership,
    NewConversation,
    NewRole,
    Reads,
)
from router.api.uploads import pinned_picture
from router.contract import keys
from router.contract.errors import BadCommand, Forbidden, LinnetError, NotFound
from router.contract.signals import RECEIPT_MEMBERS
from router.store.answers import reply_of
from router.store.conversations import CLOSED_ROLES, ROLE_NAMES, ROLES, Avatar, Change, Description, MemberAction
from router.store.heads import Head
from router.store.openings import Wanted
from router.store.rows import Row
from router.store.rules import RulesChange

T = TypeVar("T")


async def create_conversation(call: Call, given: NewConversation) -> Conversation:
    """Create a group or channel. Users who do not let the caller add them are left out, and named in `not_added`."""
    members = _founders(call, given)
    await _require_users(call, members)
    not_added = await refused_additions(call, list(members))
    for user in not_added:
        del members[user]
    await review_new_title(call, given.kind, given.title)
    if call.actor is not None:
        await reply_of(call.services.users.spend_opening, call.actor)
    kind = keys.GROUP if given.kind == "group" else keys.CHANNEL
    conv = keys.new_conversation(kind)
    await call.services.conversations.create(conv, kind, given.title, members, *rate_us(call.services.settings))
    joins = (call.services.users.join(user, conv, given.title, 0, 0, 0, role) for user, role in members.items())
    await asyncio.gather(*joins)
    return CreatedConversation(**structs.asdict(await _describe(call, conv)), not_added=sorted(not_added))


def _founders(call: Call, given: NewConversation) -> dict[str, str]:
    """Role chars by user; the creator is an owner."""
    named = given.members if isinstance(given.members, dict) else dict.fromkeys(given.members, "member")
    members = {user: ROLES[role] for user, role in named.items()}
    if call.caller.user is not None:
        members[call.caller.user] = "o"
    if len(members) > MEMBERS_AT_ONCE:
        raise BadCommand(f"name at most {MEMBERS_AT_ONCE} members at a time, the creator included")
    return members


async def _require_users(call: Call, users: Iterable[str]) -> None:
    """Create the users that a backend names; refuse unknown users that another caller names."""
    if call.caller.server:
        await asyncio.gather(*(call.services.accounts.ensure(user) for user in users))
        return
    named = list(users)
    known = await asyncio.gather(*(reply_of(call.services.users.exists, user) for user in named))
    unknown = [user for user, exists in zip(named, known, strict=True) if not exists]
    if unknown:
        raise NotFound("no such user: " + ", ".join(unknown[:10]))


async def get_conversation(call: Call, _: None) -> Conversation:
    """Get one conversation of the caller."""
    return await _describe(call, call.conversation)


async def _describe(call: Call, conv: str) -> Conversation:
    store = call.services.conversations
    about = await store.describe(conv, call.actor)
    found: dict[str, str] = {}
    cursor = 0
    while len(found) < MEMBERS_AT_ONCE:
        page = await store.members.page(conv, None, cursor)
        found.update(page.roles)
        cursor = page.cursor
        if not cursor:
            break
    shown = dict(list(found.items())[:MEMBERS_AT_ONCE])
    muted = await _mutes(call, call.actor, {conv: about.mutes_until}) if call.actor is not None else {}
    return _conversation(about, shown, bool(cursor) or len(shown) < len(found), muted.get(conv, UNSET))


async def _mutes(call: Call, user: str, until: dict[str, int]) -> dict[str, int | None]:
    """The ends of the user's mutes, None for one without an end. `until`: until when some user may be muted there."""
    asked = [conv for conv, end in until.items() if end]
    if not asked:
        return {}
    store = call.services.conversations
    ends = await reply_of(store.members.mutes, user, asked)
    now_ms = await store.clock_ms(asked[0]) if ends else 0
    return {conv: end or None for conv, end in ends.items() if not 0 < end <= now_ms}


def _conversation(
    about: Description, members: dict[str, str], more: bool, muted_until: int | UnsetType | None
) -> Conversation:
    return Conversation(
        conversation=about.conversation,
        kind=keys.KIND_NAMES[about.kind],
        title=about.title,
        members={user: role_name(role) for user, role in members.items()},
        more_members=more,
        size=about.size,
        head=about.head,
        count=about.count,
        at=about.at,
        made=about.made,
        role=role_name(about.role) if about.role else None,
        reacting=about.reacting,
        avatar=about.avatar,
        posting=about.rules.posting,
        adding=about.rules.adding,
        slow_s=about.rules.slow_s,
        muted_until=muted_until,
    )


def role_name(char: str) -> str:
    """The role's name; the internal roles of direct conversations (a user is blocked) are shown as `member`."""
    return ROLE_NAMES.get(char, "member")


async def list_conversations(call: Call, given: ListQuery) -> ConversationList:
    """List the user's conversations."""
    page = await call.services.users.conversations(call.user, given.cursor or None, given.limit)
    rows = [row for row in page.rows if not row.left]
    heads = await reply_of(call.services.conversations.heads, [row.conversation for row in rows])
    if error := next((head for head in heads if isinstance(head, LinnetError)), None):
        raise error
    found = [(row, head) for row, head in zip(rows, heads, strict=True) if isinstance(head, Head)]
    mutes = await _mutes(call, call.user, {row.conversation: head.mutes_until for row, head in found})
    roles = await _roles(call, [row for row, _ in found if row.role is None])
    listed = [_listed(row, head, roles, mutes.get(row.conversation, UNSET)) for row, head in found]
    return ConversationList(listed, page.more, page.below if page.more else 0)


async def _roles(call: Call, rows: list[Row]) -> dict[str, str]:
    """The user's role chars in conversations whose rows have none yet."""
    asked = [row.conversation for row in rows if row.kind != keys.DIRECT]
    if not asked:
        return {}
    wanted = [Wanted(conv, None) for conv in asked]
    openings = await reply_of(call.services.conversations.openings, call.user, wanted)
    return {conv: one.role for conv, one in zip(asked, openings, strict=True) if one is not None}


def _listed(row: Row, head: Head, roles: dict[str, str], muted_until: int | UnsetType | None) -> ListedConversation:
    """An entry of the list: a direct conversation as of the user's row, the others as of their head."""
    direct = row.kind == keys.DIRECT
    count = row.count if direct else head.count
    return ListedConversation(
        conversation=row.conversation,
        kind=keys.KIND_NAMES[row.kind],
        title="" if direct else head.title,
        head=row.head if direct else head.seq,
        read=row.read,
        unread=row.unread(count, head.deleted),
        with_=row.title if direct else None,
        role=role_name(row.role or roles.get(row.conversation, "m")),
        posting=UNSET if direct else head.rules.posting,
        muted_until=muted_until,
    )


async def patch_conversation(call: Call, given: ConversationChange) -> Conversation:
    """Change the title, the avatar, or the rules: who may react, post and add members, and slow mode."""
    numbers, avatar = call.services.event_numbers, None
    if given.avatar is not UNSET:
        avatar = await _avatar(call, given.avatar)
    written = {"title": given.title, "avatar": given.avatar}
    changes = {name: value for name, value in written.items() if value is not UNSET}
    await review_title(call, call.conversation, changes)
    await call.services.conversations.title(
        call.conversation,
        call.actor,
        None if given.title is UNSET else given.title,
        reacting=None if given.reacting is UNSET else given.reacting,
        avatar=avatar,
        rules=RulesChange(_given(given.posting), _given(given.adding), _given(given.slow_s)),
        device=numbers.device,
        n=numbers.next(),
    )
    return await _describe(call, call.conversation)


def _given(value: T | UnsetType) -> T | None:
    return None if isinstance(value, UnsetType) else value


async def _avatar(call: Call, sha256: str | None) -> Avatar | None:
    """The avatar with its pin, None if the conversation has it already; NotFound unless it is the caller's picture."""
    conv = call.conversation
    if sha256 is None:
        return Avatar(None, b"")
    if (await call.services.conversations.describe(conv, call.actor)).avatar == sha256:
        return None
    return Avatar(sha256, await pinned_picture(call, conv, sha256))


async def delete_conversation(call: Call, _: None) -> None:
    """Delete a conversation. A router then removes it from its members."""
    await call.services.conversations.remove_conversation(call.conversation, call.actor)


async def list_members(call: Call, given: MemberQuery) -> MemberList:
    """List all members, page by page."""
    page = await call.services.conversations.members.page(call.conversation, call.actor, given.cursor)
    members = [Member(user, role_name(role)) for user, role in page.roles.items()]
    return MemberList(members, page.cursor != 0, page.cursor)


async def get_reads(call: Call, _: None) -> Reads:
    """Get how far each member has read: in direct conversations and groups of at most 32 members."""
    services, conv = call.services, call.conversation
    if (await services.conversations.describe(conv, call.actor)).size > RECEIPT_MEMBERS:
        raise Forbidden(f"conversations of more than {RECEIPT_MEMBERS} members have no receipts")
    members = await _showing_receipts(call, await services.conversations.members.all(conv))
    rows = await asyncio.gather(*(services.users.row(user, conv) for user in members))
    return Reads({user: row.read if row is not None else 0 for user, row in zip(members, rows, strict=True)})


async def _showing_receipts(call: Call, members: set[str]) -> list[str]:
    """The members whose read marks the caller may see: those who send receipts and are not hidden by a block."""
    if call.actor is None:
        return sorted(members)
    if call.conversation[0] == keys.DIRECT:
        roles = await reply_of(call.services.conversations.roles, call.conversation, sorted(members))
        if any(role in CLOSED_ROLES for role in roles):
            return [call.actor]
    others = sorted(members - {call.actor})
    people = await call.services.people.among(call.actor, others)
    profiles = await call.services.profiles.read_all(others)
    shown = {
        user
        for user, profile in zip(others, profiles, strict=True)
        if not (user in people and people[user].hidden) and (profile is None or profile.privacy.receipts == "everyone")
    }
    return sorted(shown | (members & {call.actor}))


async def put_member(call: Call, given: NewRole) -> Membership:
    """Add a user, or give a member another role. Members may give themselves a lower role."""
    user = call.path["user"]
    await _require_users(call, [user])
    if call.actor is not None and user != call.actor:
        (role,) = await reply_of(call.services.conversations.roles, call.conversation, [user])
        if not role:
            await require_addable(call, user)
    return await _change(call, user, "put", ROLES[given.role] if given.role else None)


async def delete_member(call: Call, _: None) -> None:
    """Remove a member, or leave. A group ends when its last member leaves."""
    await _change(call, call.path["user"], "remove")


async def join_conversation(call: Call, _: None) -> Membership:
    """Join a channel, as a reader."""
    user = call.user
    await _require_users(call, [user])
    return await _change(call, user, "join")


async def change_member(
    call: Call, conv: str, actor: str | None, user: str, action: MemberAction, role: str | None = "m"
) -> Change:
    """Make a change in the conversation's slot."""
    numbers, store = call.services.event_numbers, call.services.conversations
    return await store.member(conv, actor, user, action, role, device=numbers.device, n=numbers.next())


async def _change(call: Call, user: str, action: MemberAction, role: str | None = "m") -> Membership:
    conv, services = call.conversation, call.services
    change = await change_member(call, conv, user if action == "join" else call.actor, user, action, role)
    if action == "remove":
        if change.action == "none":
            raise NotFound("no such member")
        await services.users.leave(user, conv, change.seq)
    else:
        await follow(call, user, conv, change)
    return Membership(conv, user, role_name(change.role), change.seq)


async def follow(call: Call, user: str, conv: str, change: Change) -> None:
    """Make the change in the user's slot, after the conversation's. A user who is added has read what was before."""
    read = (0, 0) if change.action == "role" else (change.seq, change.count)
    head = await call.services.conversations.head(conv)
    title = head.title if head is not None else ""
    await call.services.users.join(user, conv, title, change.seq, *read, change.role)
