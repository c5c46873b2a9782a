"""The parts of search in one router, made together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from router.contract import metrics
from router.contract.errors import StartupError
from router.contract.settings import Settings
from router.search.asking import PATH, Answers, Asking, key_of
from router.search.index import Question
from router.search.indexer import Indexer
from router.search.owners import Owners
from router.search.shelf import Shelf
from router.store.conversations import Conversations
from router.store.moved import Moved
from router.store.redis.client import Client
from router.store.searchers import Searchers

NODE_FILE: Final = "node"  # the name of this router, so that it keeps its partitions when it comes back


class Search:
    def __init__(self, settings: Settings, client: Client) -> None:
        folder = Path(unquote(urlsplit(settings.search_url).path))
        self._searchers = Searchers(client)
        self._node, self._lock = _taken(folder)
        self._key = key_of(settings.server_key) if settings.server_key else ""
        self._shelf = Shelf(folder)
        self._owners = Owners(self._searchers, self._node, _url(settings))
        self._indexer = Indexer(self._shelf, self._owners, Moved(client), Conversations(client, 0))
        self._asking = Asking(self._owners, self._indexer, self._key)

    async def start(self) -> None:
        """`StartupError` if other routers keep a part of the index, and there is no key with which to ask them."""
        others = (await self._searchers.living()).keys() - {self._node}
        if others and not self._key:
            raise StartupError(
                "search on more than one router needs LINNET_SERVER_KEY, the same on all: routers ask each other"
            )

    async def run(self, stop: asyncio.Event) -> None:
        """Keep the index until the process stops."""
        await self._indexer.run(stop)
        await self._owners.end()

    async def ask(self, questions: Mapping[int, Question]) -> Answers:
        """Candidates of the partitions, from whoever keeps them."""
        with metrics.SEARCH_SECONDS.time():
            answers = await self._asking.ask(questions)
        metrics.SEARCH_INCOMPLETE.inc(answers.incomplete)
        return answers

    def serves(self, others: Any) -> Any:
        """The application of the private port: the questions of other routers, and `others` behind them."""
        asked = self._asking.serve()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await (asked if scope.get("path") == PATH else others)(scope, receive, send)

        return app

    async def close(self) -> None:
        self._asking.close()
        await self._shelf.close()
        os.close(self._lock)


def _taken(folder: Path) -> tuple[str, int]:
    """Take the folder for this process; return the router's name, which is in it, and the lock."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / NODE_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        name = os.read(lock, 64).decode(errors="replace").strip()
        if not name:
            name = token_hex(8)
            os.write(lock, name.encode())
    except BlockingIOError:
        raise StartupError("the folder of LINNET_SEARCH_URL is used by another process: give each its own") from None
    except OSError as error:
        raise StartupError(f"cannot write the folder of LINNET_SEARCH_URL: {error.strerror}") from None
    return name, lock


def _url(settings: Settings) -> str:
    """Where other routers reach this one's private port."""
    host, _, port = (settings.search_address or settings.admin_listen).rpartition(":")
    if host in ("0.0.0.0", "[::]"):  # noqa: S104 - compared, not bound
        host = socket.gethostname()
    return f"http://{host}:{port}"
