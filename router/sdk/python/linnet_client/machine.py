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
EXPIRING: Final = 0.2  # a token is renewed when this share of its remaining life is left, within the two bounds below
EXPIRING_LEAST_S: Final = 2.0
EXPIRING_MOST_S: Final = 60.0
WRONG_CLOCK_S: Final = 30.0  # between renewals if tokens that the server accepts seem to have expired


class Status(StrEnum):
    """The states of the connection."""

    IDLE = "idle"
    PREPARING = "preparing"
    CONNECTING = "connecting"
    LIVE = "live"
    WAITING = "waiting"
    STOPPED = "stopped"


class Signal(StrEnum):
    """The causes of a change of state."""

    START = "start"
    PREPARED = "prepared"
    WELCOMED = "welcomed"
    LOST = "lost"
    WAITED = "waited"
    REFUSED = "refused"
    CLOSE = "close"


TABLE: Final[dict[tuple[Status, Signal], Status]] = {
    (Status.IDLE, Signal.START): Status.PREPARING,
    (Status.STOPPED, Signal.START): Status.PREPARING,
    (Status.PREPARING, Signal.PREPARED): Status.CONNECTING,
    (Status.PREPARING, Signal.LOST): Status.WAITING,
    (Status.CONNECTING, Signal.WELCOMED): Status.LIVE,
    (Status.CONNECTING, Signal.LOST): Status.WAITING,
    (Status.LIVE, Signal.LOST): Status.WAITING,
    (Status.WAITING, Signal.WAITED): Status.PREPARING,
    **{(state, Signal.CLOSE): Status.IDLE for state in Status},
    **{(state, Signal.REFUSED): Status.STOPPED for state in Status if state is not Status.IDLE},
}


def step(state: Status, signal: Signal) -> Status:
    """Return the next state; KeyError for a signal that the state does not have."""
    return TABLE[state, signal]


@dataclass(frozen=True, slots=True)
class Ending:
    """The reaction that the end of a connection asks for.

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


def renew_after_s(rest_s: float) -> float:
    """Return the wait before the renewal of an accepted token, which expires in `rest_s` by this clock."""
    if rest_s <= 0:
        return WRONG_CLOCK_S
    return max(0.0, rest_s - min(EXPIRING_MOST_S, max(rest_s * EXPIRING, EXPIRING_LEAST_S)))


def renew_again_s(rest_s: float) -> float:
    """Return the wait after a renewal that has failed."""
    return max(1.0, rest_s / 2) if rest_s > 0 else WRONG_CLOCK_S


def choose(gateways: list[str], failed: str | None) -> str:
    """Return a gateway: one of the two least loaded, but not the one that has just failed if there is another."""
    candidates = [url for url in gateways if url != failed] or gateways
    return random.choice(candidates[:2])
