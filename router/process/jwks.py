"""Gets the identity provider's key set: one GET of the operator's URL, bounded in time and size, without redirects.

When to ask, and what counts as a key, is decided in `contract/tokens.py`, which does no I/O.
"""

from __future__ import annotations

from typing import Final

from router.contract.tokens import Fetch
from router.process.http_client import HttpClient, NoAnswer

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 262_144


def fetcher(url: str) -> Fetch:
    """What a `Verifier` fetches with; a URL that cannot be asked is a `StartupError`."""
    http = HttpClient("LINNET_JWKS_URL", url, TIMEOUT_S, MAX_BYTES)

    async def fetch() -> bytes:
        try:
            answer = await http.get()
        except NoAnswer as error:
            raise OSError(str(error)) from None
        if answer.status != 200:
            raise OSError(f"status {answer.status} (200 was expected; redirects are not followed)")
        if not answer.whole:
            raise OSError(f"more than {MAX_BYTES} bytes")
        return answer.body

    return fetch
