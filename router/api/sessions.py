"""Passwords, and the sessions of a user: changes, resets, logouts.

A new password ends the tokens of the old one, and a logout ends tokens, before they expire. A token that was ended is
refused by routers and gateways, and the sessions that it opened are closed within a heartbeat. Which tokens count is
decided by `functions/end_tokens.lua`. The answer is sent once the end is kept, as that to a message.
"""

from __future__ import annotations

from hashlib import sha256
from secrets import token_urlsafe

from router.api.accounts import guess_source
from router.api.call import Call
from router.api.moderation import require_admin, spend_act
from router.api.types.sessions import (
    Logout,
    PasswordChange,
    PasswordReset,
    ResetRequest,
    ResetToken,
    SessionEntry,
    Sessions,
)
from router.contract.errors import BadCommand, Conflict, Forbidden, LinnetError, NotFound, Unauthorized
from router.contract.wire import is_name
from router.store.answers import reply_of
from router.store.presence import Device, state


async def change_password(call: Call, given: PasswordChange) -> None:
    """Change the password. All other tokens of the user end, and so do their sessions; the calling token goes on.

    A wrong old password counts as a wrong login.
    """
    services, user = call.services, call.user
    source = guess_source(call, user)
    await services.accounts.take_guess(user, source)
    stored, _ = await services.accounts.password(user)
    if not await services.passwords.verify(stored, given.old) or stored is None:
        raise Forbidden("the old password is wrong")
    await services.accounts.confirm_guess(user, source)
    password = await services.passwords.hash(given.new, user)
    try:
        ended = await services.accounts.change_password(user, password.decode(), stored.decode(), call.caller.token.id)
    except Conflict:
        raise Forbidden("the old password is wrong") from None
    await reply_of(services.durability.at_user(user).when_kept, ended)


async def create_reset(call: Call, given: ResetRequest) -> ResetToken:
    """Issue a token with which a user who has forgotten the password sets a new one: once, within an hour.

    It voids an earlier one. The backend passes it to the user, for example by mail. An admin of the deployment may make
    one for users without a role there.
    """
    require_admin(call)
    await spend_act(call)
    secret = token_urlsafe(24)
    expires_s = await call.services.accounts.offer_reset(given.user, _digest(secret), call.actor or "")
    return ResetToken(given.user, f"{given.user}.{secret}", expires_s * 1000)


async def reset_password(call: Call, given: PasswordReset) -> None:
    """Set a new password with a reset token. All tokens of the user end."""
    services = call.services
    services.addresses.spend(call.address)
    user, _, secret = given.token.rpartition(".")
    digest = _digest(secret)
    if not is_name(user) or not await services.accounts.has_reset(user, digest):
        raise Unauthorized("the reset token is wrong, used or expired")
    password = await services.passwords.hash(given.new, user)
    try:
        ended = await services.accounts.reset_password(user, password.decode(), digest)
    except (Conflict, NotFound):
        raise Unauthorized("the reset token is wrong, used or expired") from None
    await reply_of(services.durability.at_user(user).when_kept, ended)


def _digest(secret: str) -> str:
    return sha256(secret.encode()).hexdigest()


async def list_sessions(call: Call, _: None) -> Sessions:
    """List the user's devices, with their last sessions; `current`: the session was opened with the calling token."""
    gateways, now = await call.services.presence.gateways(), await call.services.presence.clock_ms()
    found = []
    for device in await _devices(call):
        seen = state([device], gateways, now)
        current = bool(device.token) and device.token == call.caller.token.id
        found.append(SessionEntry(device.device, bool(seen.online), device.started, seen.last_seen, current))
    return Sessions(sorted(found, key=lambda one: one.started, reverse=True))


async def logout(call: Call, given: Logout) -> None:
    """Log out: end the calling token, the token of one `device`, all `others`, or all of the user's (`everywhere`).

    Sessions that these tokens opened are closed with 4500, and their devices are forgotten with their cursors.
    """
    accounts, user, token = call.services.accounts, call.user, call.caller.token
    if given.device is not None:
        ended = await accounts.end_device(user, given.device)
    elif given.everywhere:
        ended = await accounts.end_all_tokens(user, "", [one.device for one in await _devices(call)])
    elif given.others:
        others = [one.device for one in await _devices(call) if not token.id or one.token != token.id]
        ended = await accounts.end_all_tokens(user, token.id, others)
    elif call.caller.server:
        raise BadCommand("a server key logs a user out with `device`, `others` or `everywhere`")
    else:
        own = [one.device for one in await _devices(call) if one.token == token.id]
        ended = await accounts.end_token(user, token, call.caller.expires_at // 1000, own)
    await reply_of(call.services.durability.at_user(user).when_kept, ended)


async def _devices(call: Call) -> list[Device]:
    (devices,) = await reply_of(call.services.presence.devices, [call.user])
    if isinstance(devices, LinnetError):
        raise devices
    return devices
