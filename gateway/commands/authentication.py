"""Authentication: the user of a token, for `hello` and for `auth` on an open session.

A token is checked at once. If it is signed with an unknown key, the identity provider is asked for its keys first.
Redis is asked whether it was ended earlier (a logout, a new password): for `hello` when the session registers. A token
of the admin view opens no session.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from msgspec.structs import replace

from gateway.delivery.feed import State
from gateway.delivery.session import Session
from gateway.reconcile.sync import Syncs, end
from router.contract import errors, wire
from router.contract.errors import Internal, LinnetError
from router.contract.tokens import Identity, UnknownKey
from router.contract.verifier import Verifier
from router.process.isolate import fault
from router.store.sync import Synced
from router.store.users import Users

Checked = Callable[[Identity | LinnetError], None]


class Deadlines(Protocol):
    def ready(self, session: Session) -> None:
        """Set the session's deadline from its token and its age."""


class Authentication:
    def __init__(
        self,
        verifier: Verifier,
        now_ms: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        deadlines: Deadlines,
        users: Users,
        syncs: Syncs,
    ) -> None:
        self.verifier = verifier
        self._now_ms = now_ms
        self._spawn = spawn
        self._deadlines = deadlines
        self._users = users
        self._syncs = syncs

    def check(self, token: str, checked: Checked) -> None:
        """Call `checked` with the token's identity, or with the error for which it is refused."""
        try:
            identity = _ordinary(self.verifier.check(token, self._now_ms()))
        except UnknownKey:
            self._spawn(self._ask_provider(token, checked))
        except LinnetError as error:
            checked(error)
        else:
            checked(identity)

    async def _ask_provider(self, token: str, checked: Checked) -> None:
        try:
            identity = await self.verifier.identity(token, self._now_ms())
        except LinnetError as error:
            checked(error)
        except Exception as error:  # noqa: BLE001 - a bug: the client must get an answer, and the log has the trace
            fault("authentication", error)
            checked(Internal())
        else:
            checked(identity)

    def auth(self, session: Session, command: wire.Auth) -> None:
        """Extend the session by a new token of the same user."""
        try:
            identity = _ordinary(self.verifier.check(command.token, self._now_ms()))
        except UnknownKey:
            self._spawn(self._ask_provider(command.token, partial(self._asked, session, command)))
        else:
            self._extend(session, command, identity)

    def _asked(self, session: Session, command: wire.Auth, identity: Identity | LinnetError) -> None:
        try:
            if isinstance(identity, LinnetError):
                raise identity
            self._extend(session, command, identity)
        except LinnetError as error:
            session.refuse(command, error)

    def _extend(self, session: Session, command: wire.Auth, identity: Identity) -> None:
        """Ask Redis whether the token was ended, with `sync`, which also notes the session's new token."""
        if identity.user != session.user:
            raise errors.Unauthorized("wrong token: it must belong to the user of this session")
        question = replace(
            self._syncs.question(session), token=identity.token, token_expires_s=identity.expires_at // 1000
        )
        self._users.sync(question, partial(self._extended, session, command, identity))

    def _extended(self, session: Session, command: wire.Auth, identity: Identity, answer: Synced | LinnetError) -> None:
        if session.state is not State.READY:  # it ended meanwhile
            return
        if isinstance(answer, LinnetError):
            session.refuse(command, answer)
        elif answer.status != "ok":
            end(session, answer.status)
        else:
            session.expires_at, session.token_id = identity.expires_at, identity.token
            self._deadlines.ready(session)
            session.answer(wire.Ok(id=command.id, expires_at=identity.expires_at))


def _ordinary(identity: Identity) -> Identity:
    """The identity; `Unauthorized` for one of the admin view, whose tokens our own key alone signs."""
    if identity.admin:
        raise errors.Unauthorized("a token of the admin view opens no session: log in without `scope`")
    return identity
