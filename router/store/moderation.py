"""Mutes and bans of users in a group or channel.

They belong to the user, not to the membership: leaving, coming back and a new role do not change them. They end by
Redis's clock. The functions decide who may do what; `append` and `member` refuse what a mute or ban forbids.

Invariant: each act is noted in the step in which it is done, and a router moves it to the audit (`audit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, TypeAlias

import msgpack
from msgspec import Struct

from router.contract import keys
from router.contract.errors import LinnetError, from_function
from router.contract.packing import pack
from router.contract.stamp import tail
from router.store.redis.client import Client, RedisArg

Restraint: TypeAlias = Literal["mute", "unmute", "unban"]
BANS_STEP: Final = 1000
AS_SERVER: Final = "!"  # as prelude_rules.lua has it


class Ban(Struct, frozen=True):
    """A ban: its end (ms; 0: none), since when, the user who decided it ("": a server key), and the reason.

    `as_server`: that user is a moderator of the deployment, who is not named to those who run the conversation.
    """

    user: str
    until: int
    at: int
    by: str
    reason: str
    as_server: bool = False


class Removal(Struct, frozen=True):
    """The `member` event with which a ban removed a member; `seq` is 0 if the user was no member."""

    seq: int


class Act(Struct, frozen=True, kw_only=True):
    """What a user, or a moderator or backend as the server (`actor` None), does to `user`.

    `by` is the name for the audit, "" for a server key; (device, n) are the event's own.
    """

    conversation: str
    actor: str | None
    by: str
    user: str
    until: int = 0
    reason: str = ""
    device: str = ""
    n: int = 0


class Moderation:
    """Mutes and bans in one Redis; `cap` is the greatest number of events in a log."""

    def __init__(self, client: Client, cap: int) -> None:
        self._client = client
        self._cap = cap

    async def restrain(self, act: Act, action: Restraint) -> bool:
        """Mute or unmute a user, or end a ban; False if the user was not muted or banned."""
        said = {} if action == "unmute" else {"until": pack(act.until or None)}
        event = self._event(act, action, said)
        args = (act.user, action, act.until, act.reason, act.by, event.first, event.rest)
        return bool(await self._call("moderate", act, args))

    async def ban(self, act: Act) -> Removal:
        """Ban a user, and remove them if they are a member."""
        event = self._event(act, "remove", {"banned": pack(True), "until": pack(act.until or None)})
        once = event.first, event.rest
        args = (act.user, "ban", "", 0, *once, *once, act.until, act.reason, act.by)
        change, _, seq, *_ = await self._call("member", act, args)
        return Removal(seq if change == b"remove" else 0)

    async def bans(self, conv: str, cursor: int = 0) -> tuple[list[Ban], int]:
        """Some of the bans that are not over, and the cursor of the next page, 0 after the last."""
        key = keys.conversation(conv)
        now = await self._client.clock_ms(key)
        following, found = await self._client.fetch("HSCAN", key, cursor, "MATCH", "b:*", "COUNT", BANS_STEP)
        bans = [_ban(name[2:].decode(), packed) for name, packed in zip(found[::2], found[1::2], strict=True)]
        return [ban for ban in bans if not 0 < ban.until <= now], int(following)

    def _event(self, act: Act, action: str, more: dict[str, bytes]) -> Any:
        fields = {"user": pack(act.user), "action": pack(action), "role": pack(None), **more}
        return tail("member", act.conversation, act.actor or "", act.device, act.n, fields)

    async def _call(self, function: str, act: Act, args: Sequence[RedisArg]) -> Any:
        conv = act.conversation
        channel = "" if conv[0] == keys.DIRECT else self._client.channels.conversation(conv)
        where = keys.conversation(conv), keys.log(conv), keys.dirty(keys.partition(conv))
        try:
            return await self._client.fcall(function, where, (conv, channel, self._cap, act.actor or "", *args))
        except LinnetError as error:
            raise from_function(error) from None


def _ban(user: str, packed: bytes) -> Ban:
    until, at, by, reason = msgpack.unpackb(packed)
    return Ban(user, until, at, by.removeprefix(AS_SERVER), reason, by.startswith(AS_SERVER))
