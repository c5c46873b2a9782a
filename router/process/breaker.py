"""A breaker: it decides whether another server is asked, by the answers that were missing.

States
- closed: every question is asked.
- open: no question is asked, except one probe in PROBE_S.

1. It opens if the answers to questions of USERS different users were missing since the last answer. So one user, whose
   questions the other server cannot answer, does not open it.
2. Any answer closes it, of a probe or of a question that was asked before. What the answer says does not matter.
3. The user of a probe without an answer is no probe again for SAME_USER_S, while other users have questions.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Final

USERS: Final = 3
PROBE_S: Final = 1.0
SAME_USER_S: Final = 5.0


class Breaker:
    """`now_s`: a clock that never goes back."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._unanswered: set[str] = set()  # users, at most USERS
        self._probed_at = -inf
        self._prober = ""

    @property
    def open(self) -> bool:
        return len(self._unanswered) >= USERS

    def permits(self, user: str) -> bool:
        """Whether a question of this user is asked. If the breaker is open, it is the probe then."""
        if not self.open:
            return True
        now = self._now_s()
        if now - self._probed_at < (SAME_USER_S if user == self._prober else PROBE_S):
            return False
        self._probed_at, self._prober = now, user
        return True

    def answered(self) -> None:
        self._unanswered.clear()

    def missing(self, user: str) -> None:
        """The answer to a question of this user is missing."""
        if self.open:
            return
        self._unanswered.add(user)
        if len(self._unanswered) == USERS:
            self._probed_at, self._prober = self._now_s(), user
