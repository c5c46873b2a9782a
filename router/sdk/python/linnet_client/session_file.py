"""The files that the command line keeps between runs: the login, and a store for each process that runs at a time."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from linnet_client.client import Client
from linnet_client.errors import ClientError, StoreInUse
from linnet_client.http import Api, Login

STORES: Final = 4
RENEW: Final = 0.1  # of a token's lifetime is left
NO_LOGIN: Final = "no login is stored; run: linnet login USER"


def default_home() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "linnet"


def claims(token: str) -> dict[str, Any]:
    """Return the claims of a token, unchecked; none if it is no JWT."""
    try:
        payload = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@dataclass(slots=True)
class Session:
    """The stored login of one folder, readable by its owner alone."""

    home: Path
    api: str
    user: str
    token: str

    @property
    def _file(self) -> Path:
        return self.home / "session.json"

    @classmethod
    def read(cls, home: Path) -> Session:
        try:
            found = json.loads((home / "session.json").read_text())
            return cls(home, found["api"], found["user"], found["token"])
        except FileNotFoundError:
            raise ClientError(NO_LOGIN) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClientError(f"{home / 'session.json'} cannot be read: {error}") from None

    def write(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = self._file.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(made, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump({"api": self.api, "user": self.user, "token": self.token}, file)
        made.replace(self._file)

    def keep(self, token: str) -> None:
        self.token = token
        self.write()

    def login(self) -> Login:
        return Login(self.api, self.user, token=self.token, save=self.keep)

    async def fresh_token(self) -> str:
        """Return the token, renewed if it is about to expire."""
        found = claims(self.token)
        issued, expires = found.get("iat"), found.get("exp")
        if isinstance(issued, (int, float)) and isinstance(expires, (int, float)) and "login" in found:
            if time.time() >= expires:
                raise ClientError("the login has expired; run: linnet login USER")
            if expires - time.time() < (expires - issued) * RENEW:
                return await self.login()("expiring")
        return self.token

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        return await Api(self.api).call(method, path, body, token=await self.fresh_token())

    async def client(self, command: str) -> Client:
        """Open a client on the command's first store that no other process uses.

        Each kind of command has stores of its own, so that `send` does not take events from `listen`.
        """
        origin = hashlib.sha256(Api(self.api).origin.encode()).hexdigest()[:8]
        for number in range(1, STORES + 1):
            store = self.home / f"{self.user}-{origin}-{command}-{number}.db"
            client = Client(self.api, self.user, self.login(), store=store, device=f"cli-{command}")
            try:
                await client.open()
            except StoreInUse:
                continue
            return client
        raise ClientError(f"{STORES} linnet processes of this user are running; end one")
