"""Authentication: the user of a token, for `hello` and for `auth` on an open session.

A token is checked at once. If it is signed with an unknown key, the identity provider is asked for its keys first.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from gateway.delivery.feed import State
from gateway.delivery.session import Session
from router.contract import errors, wire
from router.contract.errors import Internal, LinnetError
from router.contract.tokens import Identity, UnknownKey, Verifier
from router.process.isolate import fault

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
    ) -> None:
        self.verifier = verifier
        self._now_ms = now_ms
        self._spawn = spawn
        self._deadlines = deadlines

    def check(self, token: str, checked: Checked) -> None:
        """Call `checked` with the token's identity, or with the error for which it is refused."""
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
        except Exception as error:  # noqa: BLE001 - a bug: the client must get an answer, and the log has the trace
            fault("authentication", error)
            checked(Internal())
        else:
            checked(identity)

    def auth(self, session: Session, command: wire.Auth) -> None:
        """Extend the session by a new token of the same user."""

        def checked(identity: Identity | LinnetError) -> None:
            if isinstance(identity, LinnetError):
                session.refuse(command, identity)
            elif identity.user != session.user:
                session.refuse(command, errors.Unauthorized("wrong token: it must belong to the user of this session"))
            elif session.state is State.READY:  # else the session ended while the provider was asked
                session.expires_at = identity.expires_at
                self._deadlines.ready(session)
                session.answer(wire.Ok(id=command.id, expires_at=identity.expires_at))

        self.check(command.token, checked)
