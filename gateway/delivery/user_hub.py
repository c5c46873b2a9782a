"""One user's channel: direct events and signals for the user's sessions on this node."""

from __future__ import annotations

from collections.abc import Callable

from gateway.delivery.session import Session
from router.contract import signals, stamp
from router.process.isolate import fault


class UserHub:
    """One user's channel: direct events, signals, and the user's sessions on this node."""

    __slots__ = ("channel", "confirmed", "sessions", "user", "waiting")

    def __init__(self, user: str, channel: str) -> None:
        self.user = user
        self.channel = channel
        self.confirmed = False
        self.waiting: list[Callable[[bool], None]] = []
        self.sessions: list[Session] = []

    def receive(self, payload: bytes) -> None:
        if stamp.is_event(payload):
            seq, prev, _, _ = stamp.slots(payload)
            about = stamp.author(payload)
            for session in self.sessions:
                try:
                    session.direct_event(about.conversation, seq, prev, payload)
                    if about.marks:
                        session.wrote(about, seq, prev)
                except Exception as error:  # noqa: BLE001 - one session's mistake must not keep it from the others
                    fault("fan-out", error)
        else:
            signal = signals.decode(payload)
            if signal is not None:
                for session in list(self.sessions):
                    session.signal(signal)
