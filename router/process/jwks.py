"""Fetches the identity provider's key set: one GET of the operator's URL, bounded in time and size, without redirects.

`contract/verifier.py`, which does no I/O, decides when to fetch and which keys are used.
"""

from __future__ import annotations

from typing import Final

from router.contract.verifier import Fetch
from router.process.http_client import HttpClient, NoAnswer

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 262_144


def fetcher(url: str) -> Fetch:
    """The `fetch` of a `Verifier`; `StartupError` if the URL is not valid."""
    http = HttpClient("LINNET_JWKS_URL", url, TIMEOUT_S, MAX_BYTES)

    async def fetch() -> bytes:
        try:
            answer = await http.get()
        except NoAnswer as error:
            raise OSError(str(error)) from None
        if answer.status != 200:
            raise OSError(f"status {answer.status}, expected 200 (redirects are not followed)")
        if not answer.whole:
            raise OSError(f"expected at most {MAX_BYTES} bytes")
        return answer.body

    return fetch
