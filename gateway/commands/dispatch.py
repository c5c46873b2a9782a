"""From a client's message to its handler: the table of states and commands.

A command goes message → struct (`wire`) → state table → rate → handler. A handler validates what only it can know,
calls the store, and answers in the reply's callback. No handler awaits, so the commands of a session reach Redis in
their order. Every refusal is one `error` event, written by `Session.refuse`.

Adding a command: a struct in `wire.py`, a handler in this package, its row in the table that `node.py` builds, a limit,
a metric, a test, a row in the page for client authors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from gateway.commands.rates import Rates
from gateway.delivery.feed import State
from gateway.delivery.session import Session
from router.contract import codecs, errors, metrics, wire
from router.contract.errors import BadCommand, Internal, LinnetError
from router.contract.integers import as_integer
from router.contract.packing import MAX_INTEGER

log = logging.getLogger("linnet.commands")

# A command that is not heavy costs a quarter of a send. A flood that continues although it is refused is closed.
LIGHT: Final = 0.25
HEAVY: Final = (wire.Send, wire.Edit, wire.Delete, wire.React, wire.History, wire.Presence, wire.State)
FLOOD_S: Final = 10.0

Handler = Callable[[Session, Any], None]
Handlers = Mapping[type[wire.Command], Handler]


class _Named(msgspec.Struct):
    """The fields of an invalid command by which the client can recognize it."""

    id: Any = None
    n: Any = None


class Dispatch:
    """The table of states and commands: `hello` is the handler of a new session, `ready` those of a session after its
    welcome.

    While `hello` is being answered, further messages wait in the session. A command that is not in the table is
    `bad_command`.
    """

    def __init__(self, hello: Handler, ready: Handlers, rates: Rates) -> None:
        self._table: Final[dict[State, Handlers]] = {
            State.HELLO: {wire.Hello: hello},
            State.CONNECTING: {},
            State.READY: ready,
            State.CLOSED: {},
        }
        self._rates = rates
        kinds: tuple[type[wire.Command], ...] = (wire.Hello, *ready)
        self._costs = {kind: rates.cost_s if kind in HEAVY else rates.cost_s * LIGHT for kind in kinds}
        self._ok = {kind: metrics.COMMANDS.labels(kind.__name__.lower(), "ok") for kind in kinds}

    def handle(self, session: Session, data: bytes) -> None:
        """Handle one message of a client."""
        command: wire.Commands | None = None
        try:
            try:
                command = session.codec.strict(data)
            except (ValueError, RecursionError):  # nearly never: integers as floats, or an error for the client
                command = session.codec.decode(data)
            handler = self._table[session.state].get(type(command))
            if handler is None:
                expected = "the first command must be hello" if session.state is State.HELLO else _NOT_ALLOWED
                raise BadCommand(expected)
            self._rates.spend(session, self._costs[type(command)])
            handler(session, command)
        except LinnetError as error:
            self._refused(session, command, data, error)
        except Exception:  # a bug: the client gets `internal`, the log gets the trace
            log.exception("a command failed; its client got the error internal")
            self._refused(session, command, data, Internal())
        else:
            self._ok[type(command)].inc()

    def _refused(self, session: Session, command: wire.Commands | None, data: bytes, error: LinnetError) -> None:
        if command is None:
            metrics.COMMANDS.labels("invalid", error.code).inc()
            self._rates.charge(session, self._rates.cost_s)
            named = _named(session.codec, data)
            session.answer(wire.ErrorEvent(id=named.id, n=named.n, code=error.code, message=error.message))
        else:
            session.refuse(command, error)
        if session.state is State.HELLO:
            code = errors.CLOSE_OF.get(error.code, errors.CLOSE_INTERNAL)
            session.close(code, error.code)
        elif self._rates.over_s(session) > FLOOD_S:
            session.close(errors.CLOSE_RATE_LIMITED, errors.retry_reason(FLOOD_S))


_NOT_ALLOWED: Final = "this command is not allowed in the current state"


def _named(codec: codecs.Codec, data: bytes) -> _Named:
    """Return `id` and `n` of an invalid command, each None if it cannot be read."""
    decode = msgspec.json.decode if codec.text else msgspec.msgpack.decode
    try:
        named = decode(data, type=_Named)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Named()
    named.id, named.n = as_integer(named.id), as_integer(named.n)
    long = type(named.id) is str and len(named.id) > wire.MAX_ID
    if long or (type(named.id) is not str and not _is_integer(named.id)):
        named.id = None
    if not _is_integer(named.n):
        named.n = None
    return named


def _is_integer(value: object) -> bool:
    return type(value) is int and abs(value) <= MAX_INTEGER
