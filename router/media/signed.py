"""Links that lead to the object store itself, which serves the bytes; no router is asked.

The store sends the headers that an object got when it was put, without those of `serving`. So only what a browser shows
in place is linked to in this way: pictures that were encoded anew here, their previews, audio and video. All else is
served by routers.

Invariants
- A link ends within LIFE_S. It is given out again for half of that, so browsers find what they have: a store signs the
  present second, so each new link is another address.
- At most KEPT links are remembered, and at most AT_ONCE are signed at a time.
- If the store does not sign, the caller makes a link to a router. It is not asked again for PAUSE_S.
"""

from __future__ import annotations

from asyncio import Semaphore
from collections.abc import Callable
from time import monotonic
from typing import Final

from router.media import names
from router.media.links import Linked
from router.media.serving import SHOWN
from router.store.objects import Objects

LIFE_S: Final = 3600
KEPT: Final = 10_000
AT_ONCE: Final = 16
PAUSE_S: Final = 5.0


class SignedLinks:
    """Makes links to the objects of a store."""

    def __init__(self, objects: Objects, clock: Callable[[], float] = monotonic) -> None:
        self._objects = objects
        self._clock = clock
        self._kept: dict[str, tuple[str, int]] = {}  # by object, the oldest link first
        self._signing = Semaphore(AT_ONCE)
        self._paused_until = -PAUSE_S

    async def make(self, linked: Linked, now_ms: int) -> tuple[str, int] | None:
        """A link, and when it ends (ms); None if a router must serve this file."""
        if linked.type not in SHOWN or not linked.disposition.startswith("inline"):
            return None
        name = names.object_of(linked.sha256, linked.gen, linked.preview)
        async with self._signing:
            kept = self._kept.get(name)
            if kept is not None and kept[1] - LIFE_S * 500 > now_ms:
                return kept
            if self._clock() < self._paused_until:
                return None
            url = await self._objects.signed(name, LIFE_S)
            if url is None:
                self._paused_until = self._clock() + PAUSE_S
                return None
        self._kept.pop(name, None)
        self._kept[name] = made = url, (now_ms // 1000 + LIFE_S) * 1000
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return made
