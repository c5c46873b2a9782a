"""The command `state`: it writes a key of the user's state, up to its answer or `error`.

Every command ends in exactly one answer; `in_flight` counts the commands without one. The answer is sent once the write
is kept (`store/durability.py`). The function that writes publishes the change, so the user's sessions, this one too,
receive it from their channel, before or after the answer.
"""

from __future__ import annotations

from functools import partial

from gateway.commands.sending import FULL_RETRY_S
from gateway.delivery.session import Session, state_event
from gateway.presence.lease import Lease
from router.contract import wire
from router.contract.errors import LinnetError, Unavailable
from router.contract.state import NULL, pack_value, require_writable
from router.store.durability import Durability
from router.store.state import State, Written


class UserState:
    """The handler of the command `state`."""

    def __init__(self, state: State, durability: Durability, lease: Lease) -> None:
        self._state = state
        self._durability = durability
        self._lease = lease
        self.in_flight = 0

    def write(self, session: Session, command: wire.State) -> None:
        require_writable(command.key)
        value = pack_value(command.value)
        if self._lease.full:
            raise Unavailable("the store is full", FULL_RETRY_S)
        self._durability.at_user(session.user).require_fit()
        self.in_flight += 1
        reply = partial(self._written, session, command, value)
        self._state.write(session.user, command.key, value, command.expect, reply)

    def _written(
        self, session: Session, command: wire.State, value: bytes | None, answer: Written | LinnetError
    ) -> None:
        if isinstance(answer, LinnetError):
            self._kept(session, command, value, None, answer)
        else:
            kept = partial(self._kept, session, command, value, answer)
            self._durability.at_user(session.user).when_kept(answer.replid, kept)

    def _kept(
        self,
        session: Session,
        command: wire.State,
        value: bytes | None,
        written: Written | None,
        error: LinnetError | None,
    ) -> None:
        self.in_flight -= 1
        if error is not None:
            session.refuse(command, error)
        elif written is not None:
            session.answer(
                state_event(session.codec, command.key, value or NULL, written.version, written.prev, command.id)
            )
