"""Origins of browser pages: the parser of LINNET_ORIGINS, and the origins of a server's own pages.

Both processes use this parser, so the gateway's upgrades and the API's CORS answers accept the same pages. The callers
decide on statuses and headers.

Invariants
- Each parsed origin is in the form in which browsers send it: lower case, no path, no port that its scheme implies. An
  entry that can never match (no scheme, a path, a wildcard within) is refused.
- An `Origin` header is compared as a whole and never parsed.
"""

from __future__ import annotations

import re
from typing import Final

ANY: Final = "*"
EXPECTED: Final = "expected origins as browsers send them, comma-separated, such as https://app.example, or `*`"

_ORIGIN: Final = re.compile(
    r"([a-z][a-z0-9+.-]*)://([a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?/?"
)
_IMPLIED: Final = {"http": "80", "https": "443"}
_NEVER: Final = ("ws", "wss", "file")  # no page has such an origin


def parse(setting: str) -> frozenset[str]:
    """The origins of the setting, with `ANY` if any page may connect; a ValueError states the expected form."""
    return frozenset(_canonical(part.strip().lower()) for part in setting.split(",") if part.strip())


def _canonical(entry: str) -> str:
    if entry == ANY:
        return entry
    found = _ORIGIN.fullmatch(entry)
    if found is None or found[1] in _NEVER or int(found[3] or 1) > 65_535:
        raise ValueError(EXPECTED)
    scheme, host, port = found.groups()
    return f"{scheme}://{host}" if port in (None, _IMPLIED.get(scheme)) else f"{scheme}://{host}:{port}"


def own(host: str) -> frozenset[str]:
    """The origins of pages that the server itself serves, by the `Host` header; none if the header is empty."""
    host = host.lower()
    if not host:
        return frozenset()
    implied = {f"{scheme}://{host.removesuffix(f':{port}')}" for scheme, port in _IMPLIED.items()}
    return frozenset({f"http://{host}", f"https://{host}", *implied})
