"""Accounts, logins, tokens, sessions and presence.

A wrong password, an unknown user and an account without a password get the same answer after the same time. Guesses are
counted per user in the user's slot, and for unknown users per name in this process, so that a rate does not show which
users exist. Known devices and addresses of a user have rates of their own, so that strangers cannot lock them out.
"""

from __future__ import annotations

import asyncio
import hmac
from ipaddress import ip_network
from typing import Final

from router.api.addresses import dialable
from router.api.call import Call, now_ms
from router.api.conversations import change_member, follow
from router.api.moderation import require_admin, spend_act
from router.api.review import review_new_account
from router.api.types.accounts import (
    AccountMade,
    Gateways,
    LoginAnswer,
    LoginRequest,
    NewAccount,
    PresenceAnswer,
    PresenceQuery,
    Renewal,
    TokenAnswer,
    TokenRequest,
)
from router.contract import keys
from router.contract.errors import Conflict, Forbidden, NotFound, TokenExpired, Unauthorized, Unavailable
from router.contract.packing import MAX_INTEGER
from router.contract.tokens import issue, login_end_s
from router.store.accounts import SOURCE_CHARACTERS, GuessSource
from router.store.answers import reply_of
from router.store.presence import HIDDEN, state


async def create_account(call: Call, given: NewAccount) -> AccountMade:
    """Create an account."""
    call.services.addresses.spend(call.address)
    call.services.passwords.require_good(given.password, given.user)  # before the pre-send hook is asked
    await review_new_account(call, given.user, given.name)
    password = await call.services.passwords.hash(given.password, given.user)
    await call.services.accounts.create(given.user, password.decode(), given.name)
    return AccountMade(given.user, given.name)


async def login(call: Call, given: LoginRequest) -> LoginAnswer:
    """Log in with a password: get a token, and the gateways to connect to.

    A device that has a token of this user, even an expired one, sends it as `Authorization: Bearer`: its guesses are
    then counted apart from those of strangers, so that strangers cannot lock it out. With `scope`, which only the
    listener of the admin view takes, users with a role in the deployment get a token for that view, for 15 minutes.
    """
    services = call.services
    if given.scope and not call.private:
        raise Forbidden("only the listener of the admin view takes `scope`")
    services.addresses.spend(call.address)
    source = guess_source(call, given.user)
    await services.accounts.take_guess(given.user, source)
    stored, generation = await services.accounts.password(given.user)
    if stored is None:
        services.unknown_users.spend(given.user)
    if not await services.passwords.verify(stored, given.password):
        raise Unauthorized("wrong user or password")
    await services.accounts.confirm_guess(given.user, source)
    issued_ms = _issued_ms(call)
    if given.scope:
        if not await services.accounts.roles(given.user):
            raise Forbidden("the admin view takes a role in the deployment")
        token, expires_at = issue(given.user, services.settings, issued_ms, None, generation, admin=True)
        return LoginAnswer(given.user, given.device, token, expires_at, [])
    token, expires_at = issue(given.user, services.settings, issued_ms, issued_ms // 1000, generation)
    return LoginAnswer(given.user, given.device, token, expires_at, await _gateways(call))


def _issued_ms(call: Call) -> int:
    """The time at which a token is issued: by Redis's clock if this node's does not agree with it."""
    return call.services.verifier.clocks.moments(now_ms())[-1]


def guess_source(call: Call, user: str) -> GuessSource:
    """The source of a guess at this user's password; Redis only gets digests that are keyed by the token secret."""

    def digest(text: str) -> str:
        made = hmac.digest(call.services.settings.jwt_secret.encode(), f"{user} {text}".encode(), "sha256")
        return made.hex()[:SOURCE_CHARACTERS]

    token = call.token
    known = token is not None and call.services.verifier.once_issued_to(token) == user
    # Only the signed part, because the encoding of a signature has unused bits.
    return GuessSource(digest(_network(call.address)), digest(token.rpartition(".")[0]) if token and known else "")


def _network(address: str) -> str:
    """The address, or for IPv6 its /64 network, because a host can choose the other half."""
    try:
        return str(ip_network((address, 64), strict=False)) if ":" in address else address
    except ValueError:  # a socket without an address
        return address


async def get_gateways(call: Call, _: None) -> Gateways:
    """List the gateways to connect to."""
    return Gateways(await _gateways(call))


async def _gateways(call: Call) -> list[str]:
    """URLs of the live gateways, the least loaded first. Gateways behind one proxy have one URL, listed once.

    Right after Redis's clock was put back, no gateway has renewed its lease by the new time: then all with a lease that
    has not run out count as live.
    """
    gateways = (await call.services.presence.gateways()).values()
    now = await call.services.presence.clock_ms()
    running = [g for g in gateways if g.lease_until > now]
    living = [g for g in running if g.alive(now)] or running
    host = call.request.headers.get("host", "")
    urls = [dialable(g.url, host) for g in sorted(living, key=lambda g: g.connections)]
    return list(dict.fromkeys(url for url in urls if url))


async def create_token(call: Call, given: TokenRequest) -> TokenAnswer:
    """Issue a token for a user, who is created if they do not exist."""
    known = await call.services.accounts.ensure(given.user)
    token, expires_at = issue(given.user, call.services.settings, _issued_ms(call), generation=known.generation)
    return TokenAnswer(given.user, token, expires_at)


async def renew_token(call: Call, _: None) -> Renewal:
    """Change a token from a login, or from an earlier renewal, into a later one of the same login.

    A login ends `LINNET_SESSION_TTL_S` after it; then the user logs in again. Other tokens are 403: they are renewed
    where they come from.
    """
    settings, token = call.services.settings, call.token
    login_s = call.services.verifier.login_s(token) if token and not call.caller.server else None
    if login_s is None:
        raise Forbidden("only a token from POST /v1/login or from a renewal can be renewed")
    issued_ms = _issued_ms(call)
    if login_end_s(login_s, settings) * 1000 <= issued_ms:
        raise TokenExpired("the login has ended; log in again")
    renewed, expires_at = issue(call.user, settings, issued_ms, login_s, call.caller.generation)
    return Renewal(renewed, expires_at, await _gateways(call))


async def delete_account(call: Call, _: None) -> None:
    """End the user for ever: sessions, memberships, account. The name is never given out again.

    If the user was the only owner of a group or channel, an admin becomes owner, else the member who was added first.
    """
    user = call.path["user"]
    call.require_user(user)
    await _close_direct(call, user)
    await call.services.profiles.mark(user)
    await call.services.accounts.end(user)
    await call.services.profiles.mark(user)  # a router may have settled the first mark before the end
    for _round in range(_ROUNDS):
        await _close_direct(call, user, ended=True)
        groups = await call.services.accounts.delete(user)
        if not groups:
            return
        for group in groups:
            await _remove_from(call, group, user)
    raise Unavailable("the user is being added to groups meanwhile: call again", 1.0)


_ROUNDS: Final = 3  # if the user is added to a group meanwhile, another round removes them


async def _close_direct(call: Call, user: str, ended: bool = False) -> None:
    """End what the user was to others: contacts end, and the others of direct conversations cannot write any more, so
    that no message is acked that the user cannot read.

    Existing messages stay readable. This runs before the end of the account, so that there is no time between, and once
    more after it, for conversations that were opened meanwhile. Sends find the end in the row that they read anyway.
    If the account has `ended`, the rows of the others are marked, too, and their devices learn that the conversation is
    gone.
    """
    for other in await call.services.people.everybody(user):
        await call.services.contacts.end(user, other)
    cursor = 0
    while True:
        found, cursor = await call.services.users.direct(user, cursor)
        for conv in found:
            if (other := keys.other_party(conv, user)) != user:
                await call.services.contacts.end(user, other)
                if ended:
                    await call.services.users.leave(other, conv, MAX_INTEGER)
        if not cursor:
            return


async def _remove_from(call: Call, group: str, user: str) -> None:
    """Remove the user from one group; if they are the last owner, make another member owner first."""
    seq = MAX_INTEGER  # of a conversation that no longer exists: there can be no later change
    for actor in (user, None):
        try:
            seq = (await change_member(call, group, actor, user, "remove")).seq
            break
        except Conflict:
            await _pass_ownership(call, group, user)
        except NotFound:
            continue
    await call.services.users.leave(user, group, seq)


async def _pass_ownership(call: Call, group: str, user: str) -> None:
    """Make another member owner. If there is none, only the server key can manage the group or channel."""
    if heir := await call.services.conversations.members.heir(group, user):
        await follow(call, heir, group, await change_member(call, group, None, heir, "put", "o"))


async def delete_sessions(call: Call, _: None) -> None:
    """Disconnect a user, or one of their devices; they may connect again.

    An admin of the deployment may do it to users without a role there.
    """
    user, by = call.path["user"], None
    if call.actor is not None and call.actor != user:
        require_admin(call)
        await spend_act(call)
        by = call.actor
    if not await reply_of(call.services.users.exists, user):
        raise NotFound("no such user")
    await call.services.users.kick(user, call.path.get("device"), "" if call.caller.server else by)


async def presence(call: Call, given: PresenceQuery) -> PresenceAnswer:
    """Get which users are online, and when the others were last seen. Users who hide from the caller are offline."""
    users = given.users.split(",")
    hidden = await asyncio.gather(*(_hidden_from_caller(call, user) for user in users))
    devices = await reply_of(call.services.presence.devices, users)
    gateways, now = await call.services.presence.gateways(), await call.services.presence.clock_ms()
    return PresenceAnswer(
        {
            user: HIDDEN if hides else state(has if hides is False else Unavailable(), gateways, now)
            for user, has, hides in zip(users, devices, hidden, strict=True)
        }
    )


async def _hidden_from_caller(call: Call, user: str) -> bool | None:
    """Whether the user's presence is hidden from the caller; None if the user's server does not answer."""
    if call.actor is None:
        return False
    try:
        return bool(await reply_of(call.services.people.hidden_from, user, [call.actor]))
    except Unavailable:
        return None
