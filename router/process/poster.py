"""Posts signed JSON to a URL of the operator: the webhook's receiver, the pre-send hook.

    Linnet-Signature: t=<unix seconds>,v1=<hex of HMAC-SHA256 over "<t>.<body>" with the secret>

Of an answer at most MAX_ANSWER_BYTES are read. The log gets one line when posts begin to fail and one when they succeed
again, at most one of each in LOG_EVERY_S; it never contains the secret, a body or an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from math import inf
from time import monotonic
from typing import Final

from router.process.http_client import IDLE, Answer, HttpClient

MAX_ANSWER_BYTES: Final = 262_144
LOG_EVERY_S: Final = 60.0

log = logging.getLogger("linnet.posts")


def signature(secret: str, at_s: int, body: bytes) -> str:
    mac = hmac.new(secret.encode(), b"%d.%s" % (at_s, body), hashlib.sha256)
    return f"t={at_s},v1={mac.hexdigest()}"


class Poster:
    """`setting`: the variable with the URL. `posts`: what the posts are called in the log. `idle`: connections kept."""

    def __init__(self, setting: str, url: str, secret: str, timeout_s: float, posts: str, idle: int = IDLE) -> None:
        self._http = HttpClient(setting, url, timeout_s, MAX_ANSWER_BYTES, idle)
        self._secret = secret
        self._posts = posts
        self._logged = False  # whether the last line says that posts fail
        self._logged_at = -inf

    async def post(self, body: bytes, at_s: int) -> Answer:
        """Post JSON and return the answer; `NoAnswer` if there is none in time."""
        headers = [("Content-Type", "application/json"), ("Linnet-Signature", signature(self._secret, at_s, body))]
        return await self._http.post(headers, body)

    def report(self, fault: str) -> None:
        """Log when posts begin to fail and when they succeed again ("" for a success), instead of each failure."""
        if not fault:
            if self._logged:
                log.info("%s succeed again", self._posts)
            self._logged = False
        elif not self._logged and (now := monotonic()) >= self._logged_at + LOG_EVERY_S:
            log.warning("%s fail: %s", self._posts, fault)
            self._logged, self._logged_at = True, now

    def close(self) -> None:
        self._http.close()
