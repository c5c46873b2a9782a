"""Gets the identity provider's key set: one GET in a thread, bounded in time and size.

When to ask, and what counts as a key, is decided in `contract/tokens.py`, which does no I/O.
"""

from __future__ import annotations

import asyncio
import http.client
from typing import Final
from urllib.request import urlopen

from router.contract.errors import StartupError
from router.contract.tokens import Fetch

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 262_144


def fetcher(url: str) -> Fetch:
    """What a `Verifier` fetches with; the URL is the operator's."""
    if not url.startswith(("https://", "http://")):
        raise StartupError("LINNET_JWKS_URL must be an http:// or https:// URL")

    def get() -> bytes:
        try:
            with urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310  # the scheme is checked above
                document: bytes = answer.read(MAX_BYTES + 1)
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP answer: {type(error).__name__}") from None
        if len(document) > MAX_BYTES:
            raise OSError("the key set is too large")
        return document

    async def fetch() -> bytes:
        async with asyncio.timeout(2 * TIMEOUT_S):  # the limit above is per read: a dribble would hold everybody
            return await asyncio.to_thread(get)

    return fetch
