"""The state machine of the connection, and what each way of ending means. No I/O.

| state | meaning | leaves it |
|---|---|---|
| `idle` | not started, or closed | `start` → preparing |
| `preparing` | asks for the token and the gateways | `prepared` → connecting; `lost` → waiting |
| `connecting` | opens the socket, says `hello` | `welcomed` → live; `lost` → waiting |
| `live` | commands and events flow | `lost` → waiting |
| `waiting` | waits before the next try | `waited` → preparing |
| `stopped` | does not reconnect by itself | `start` → preparing |

In every state `close` leads to idle; in every state but idle `refused` leads to stopped. Any other signal is an error.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

FIRST_S: Final = 0.3
MOST_S: Final = 30.0


class State(StrEnum):
    """The states of a connection."""

    IDLE = "idle"
    PREPARING = "preparing"
    CONNECTING = "connecting"
    LIVE = "live"
    WAITING = "waiting"
    STOPPED = "stopped"


class Signal(StrEnum):
    """What changes the state."""

    START = "start"
    PREPARED = "prepared"
    WELCOMED = "welcomed"
    LOST = "lost"
    WAITED = "waited"
    REFUSED = "refused"
    CLOSE = "close"


TABLE: Final[dict[tuple[State, Signal], State]] = {
    (State.IDLE, Signal.START): State.PREPARING,
    (State.STOPPED, Signal.START): State.PREPARING,
    (State.PREPARING, Signal.PREPARED): State.CONNECTING,
    (State.PREPARING, Signal.LOST): State.WAITING,
    (State.CONNECTING, Signal.WELCOMED): State.LIVE,
    (State.CONNECTING, Signal.LOST): State.WAITING,
    (State.LIVE, Signal.LOST): State.WAITING,
    (State.WAITING, Signal.WAITED): State.PREPARING,
    **{(state, Signal.CLOSE): State.IDLE for state in State},
    **{(state, Signal.REFUSED): State.STOPPED for state in State if state is not State.IDLE},
}


def step(state: State, signal: Signal) -> State:
    """Return the next state; KeyError for a signal that the state does not have."""
    return TABLE[state, signal]


@dataclass(frozen=True, slots=True)
class Ending:
    """What the end of a connection asks for.

    `wait_s`: wait so long (None: back off); `token`: ask for another token, with this reason; `stop`: do not reconnect.
    """

    wait_s: float | None = None
    token: str | None = None
    stop: str | None = None


_STOPS: Final = {4409: "replaced", 4502: "banned", 4503: "bad_protocol", 4504: "ended"}
_TOKENS: Final = {4500: "unauthorized", 4501: "token_expired"}
_RETRY: Final = re.compile(r"retry_after=([0-9.]+)")


def ending(code: int, reason: str, drain_s: float | None = None) -> Ending:
    """Return what a close code and its reason ask for. `drain_s`: the wait of a `drain` event before it."""
    if code in _STOPS:
        return Ending(stop=_STOPS[code])
    if code in _TOKENS:
        return Ending(token=_TOKENS[code])
    if found := _RETRY.search(reason):
        return Ending(wait_s=float(found[1].rstrip(".")))
    return Ending(wait_s=drain_s)


def backoff_s(attempt: int) -> float:
    """Return a wait before the `attempt`-th try (from 0) in a row: full jitter between 0.3 and at most 30 s."""
    return random.uniform(FIRST_S, max(FIRST_S, min(MOST_S, FIRST_S * 2.0 ** min(attempt + 1, 10))))


def choose(gateways: list[str], failed: str | None) -> str:
    """Return a gateway: one of the two least loaded, but not the one that has just failed if there is another."""
    candidates = [url for url in gateways if url != failed] or gateways
    return random.choice(candidates[:2])
