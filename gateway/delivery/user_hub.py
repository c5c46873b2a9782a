"""One user's channel: it passes direct events and signals on to the user's sessions on this node."""

from __future__ import annotations

from collections.abc import Callable

from gateway.delivery.session import Session
from router.contract import signals, stamp
from router.process.isolate import fault


class UserHub:
    """One user's channel and sessions on this node."""

    __slots__ = ("channel", "confirmed", "sessions", "user", "waiting")

    def __init__(self, user: str, channel: bytes) -> None:
        self.user = user
        self.channel = channel
        self.confirmed = False  # the server has confirmed the subscription
        self.waiting: tuple[Callable[[bool], None], ...] = ()  # called once it is confirmed; nearly always empty
        self.sessions: list[Session] = []

    def receive(self, payload: bytes) -> None:
        """Take a direct event or a signal from the channel."""
        if payload[0] & 0xF0 == 0x80:  # as `stamp.is_event`, without its call
            seq, prev, _, _ = stamp.slots(payload)
            about = stamp.author(payload)
            marks = about.type == "message" and not about.server
            for session in self.sessions:
                try:
                    session.direct_event(about.conversation, seq, prev, payload)
                    if marks:
                        session.author_has_read(about, seq, prev)
                except Exception as error:  # noqa: BLE001 - one session that raises must not keep it from the others
                    fault("fan-out", error)
        else:
            signal = signals.decode(payload)
            if signal is not None:
                for session in list(self.sessions):
                    session.signal(signal)
