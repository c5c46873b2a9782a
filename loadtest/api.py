"""The HTTP API and the tokens, as far as a test needs them for its preparation. All calls block."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import msgspec

TOKEN_TTL_S = 86_400
MEMBERS_AT_ONCE = 1000
AT_ONCE = 8  # calls at the same time


class Api:
    """A client of the router. With a `secret`, it signs tokens itself; without one, it asks for each with the server
    key."""

    def __init__(self, url: str, server_key: str, secret: str) -> None:
        self._url = url.rstrip("/")
        self._key = server_key
        self._secret = secret

    def call(self, method: str, path: str, body: Any = None, user: str = "") -> Any:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        if user:
            headers["Linnet-User"] = user
        data = None if body is None else msgspec.json.encode(body)
        request = urllib.request.Request(f"{self._url}/v1{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return msgspec.json.decode(text) if text else None

    def token(self, user: str) -> str:
        if self._secret:
            claims = {"sub": user, "exp": int(time.time()) + TOKEN_TTL_S}
            return jwt.encode(claims, self._secret, algorithm="HS256")
        return str(self.call("POST", "/tokens", {"user": user})["token"])

    def group(self, members: Iterable[str], kind: str = "group") -> str:
        """Create a group and return its id; the first member becomes its owner."""
        users = list(members)
        first = dict.fromkeys(users[:MEMBERS_AT_ONCE], "member") | {users[0]: "owner"}
        made = self.call("POST", "/conversations", {"kind": kind, "title": "load", "members": first})
        conversation = str(made["conversation"])
        with ThreadPoolExecutor(AT_ONCE) as pool:
            joins = [f"/conversations/{conversation}/members/{user}" for user in users[MEMBERS_AT_ONCE:]]
            list(pool.map(lambda path: self.call("PUT", path, {"role": "member"}), joins))
        return conversation

    def groups(self, all_members: Iterable[Iterable[str]]) -> list[str]:
        """Create one group of each set of members."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.group, all_members))
