"""Links to routers for files: they need no token, and end within an hour. Pure.

A link contains what is served, so serving it asks Redis nothing; its last parameter is the signature. All routers sign
with a key that is derived from a secret they share. Links of the same half hour are the same, so that browsers and
caches find what they have.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from hashlib import sha256 as digest
from secrets import token_bytes
from typing import Final

import msgspec
from msgspec import Struct

from router.contract.settings import Settings

STEP_MS: Final = 1_800_000
PATH: Final = "/v1/files/"


class Linked(Struct, frozen=True, array_like=True):
    """The target of a link: an object, with its size, type and disposition."""

    sha256: str
    gen: str
    preview: int
    size: int
    type: str
    disposition: str


class Links:
    """Makes and checks links. `origin`: scheme and host before their path, "" for the API's own."""

    def __init__(self, key: bytes, origin: str = "") -> None:
        self._key = key
        self.origin = origin

    @classmethod
    def of(cls, settings: Settings) -> Links:
        """Links of a deployment. If its routers share no secret, only the router that made a link serves it."""
        secret = settings.jwt_secret or settings.server_key or settings.webhook_secret
        key = hmac.digest(secret.encode(), b"linnet media links", "sha256") if secret else token_bytes(32)
        return cls(key, settings.media_origin.rstrip("/"))

    def make(self, linked: Linked, now_ms: int) -> tuple[str, int]:
        """A link, and when it ends (ms): in half an hour to an hour."""
        ends = (now_ms // STEP_MS + 2) * STEP_MS
        data = urlsafe_b64encode(msgspec.msgpack.encode(linked)).decode().rstrip("=")
        return f"{self.origin}{PATH}{linked.sha256}?d={data}&ends={ends}&sig={self._sign(data, ends)}", ends

    def check(self, sha256: str, data: str, ends: int, sig: str, now_ms: int) -> Linked | None:
        """Return the target of a link; None if the link was not made here, or has ended."""
        if now_ms >= ends or not hmac.compare_digest(self._sign(data, ends).encode(), sig.encode()):
            return None
        try:
            linked = msgspec.msgpack.decode(urlsafe_b64decode(data + "=" * (-len(data) % 4)), type=Linked)
        except (msgspec.DecodeError, NotBase64, ValueError):
            return None
        return linked if linked.sha256 == sha256 else None

    def _sign(self, data: str, ends: int) -> str:
        return hmac.new(self._key, f"{data} {ends}".encode(), digest).hexdigest()[:43]
