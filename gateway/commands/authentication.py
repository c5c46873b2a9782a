"""Who a token belongs to: for `hello`, and for `auth` on a session that goes on.

A token is checked at once. If it is signed with a key that is not here yet, the identity provider is asked first.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from gateway.delivery.feed import State
from gateway.delivery.session import Session
from router.contract import errors, wire
from router.contract.errors import LinnetError
from router.contract.tokens import Identity, UnknownKey, Verifier

Checked = Callable[[Identity | LinnetError], None]


class Deadlines(Protocol):
    def ready(self, session: Session) -> None:
        """The session's deadline is now its token's or its age's."""


class Authentication:
    def __init__(
        self,
        verifier: Verifier,
        now_ms: Callable[[], int],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        deadlines: Deadlines,
    ) -> None:
        self.verifier = verifier
        self._now_ms = now_ms
        self._spawn = spawn
        self._deadlines = deadlines

    def check(self, token: str, checked: Checked) -> None:
        """Call `checked` with the token's identity, or with why it is refused."""
        try:
            identity = self.verifier.check(token, self._now_ms())
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
        else:
            checked(identity)

    def auth(self, session: Session, command: wire.Auth) -> None:
        """A new token of the same user prolongs the session."""

        def checked(identity: Identity | LinnetError) -> None:
            if isinstance(identity, LinnetError):
                session.refuse(command, identity)
            elif identity.user != session.user:
                session.refuse(command, errors.Unauthorized("the token belongs to another user"))
            elif session.state is State.READY:  # else the session ended while the provider was asked
                session.expires_at = identity.expires_at
                self._deadlines.ready(session)
                session.answer(wire.Ok(id=command.id, expires_at=identity.expires_at))

        self.check(command.token, checked)
