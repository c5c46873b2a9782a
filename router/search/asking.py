"""Asks the routers that keep the partitions' index, this one and others, and answers them.

A router posts its questions to the owner's private port, with a key that both derive from the server key.

Invariants
- What a router that does not answer keeps is left out, and the answer says that it is incomplete.
- Only candidates are exchanged: where messages are, no words of them. Who may see them is decided by the router that
  asks, from the log.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from typing import Final

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from router.process.http_client import HttpClient, NoAnswer
from router.search.index import Candidate, Index, Question
from router.search.indexer import Indexer
from router.search.owners import Owners
from router.search.shelf import Damaged

PATH: Final = "/search"
TIMEOUT_S: Final = 3.0
MAX_QUESTIONS_BYTES: Final = 1 << 21
MAX_ANSWER_BYTES: Final = 1 << 23
CLIENTS: Final = 256  # of other routers that are kept


class Answers(Struct, frozen=True):
    """Candidates of each partition, the newest first; `incomplete`: there may be others."""

    candidates: dict[int, list[Candidate]]
    incomplete: bool


_encode: Final = msgspec.msgpack.Encoder().encode
_questions: Final = msgspec.msgpack.Decoder(dict[int, Question]).decode
_answers: Final = msgspec.msgpack.Decoder(Answers).decode


def key_of(server_key: str) -> str:
    """The key with which routers ask each other."""
    return hmac.new(server_key.encode(), b"linnet search", sha256).hexdigest()


class Asking:
    def __init__(self, owners: Owners, indexer: Indexer, key: str) -> None:
        self._owners = owners
        self._indexer = indexer
        self._key = key
        self._clients: dict[str, HttpClient] = {}

    async def ask(self, questions: Mapping[int, Question]) -> Answers:
        """Ask the owner of each partition."""
        of: dict[str | None, dict[int, Question]] = {}
        for part, question in questions.items():
            of.setdefault(self._owners.urls[part], {})[part] = question
        ownerless, own = of.pop(None, None), of.pop("", {})
        others = (self._post(url, some) for url, some in of.items() if url)
        found = await asyncio.gather(self.answer(own), *others)
        candidates = {part: some for one in found for part, some in one.candidates.items()}
        return Answers(candidates, ownerless is not None or any(one.incomplete for one in found))

    async def answer(self, questions: Mapping[int, Question]) -> Answers:
        """Answer for the partitions that this router keeps."""
        candidates: dict[int, list[Candidate]] = {}
        incomplete = False
        for number, question in questions.items():
            part = self._indexer.parts.get(number)
            incomplete = incomplete or part is None or not part.whole
            if part is not None:
                try:
                    candidates[number] = await self._indexer.use(number, partial(Index.candidates, question=question))
                except Damaged:
                    incomplete = True
        return Answers(candidates, incomplete)

    async def _post(self, url: str, questions: Mapping[int, Question]) -> Answers:
        client = self._clients.get(url)
        if client is None:
            while len(self._clients) >= CLIENTS:
                self._clients.pop(next(iter(self._clients))).close()
            client = self._clients[url] = HttpClient("a router's lease", url + PATH, TIMEOUT_S, MAX_ANSWER_BYTES)
        try:
            answer = await client.post([("Authorization", f"Bearer {self._key}")], _encode(questions))
            return _answers(answer.body) if answer.status == 200 else Answers({}, True)
        except (NoAnswer, msgspec.MsgspecError):
            return Answers({}, True)

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    # -- the other side

    def serve(self) -> Starlette:
        """The application on the private port, for other routers."""
        return Starlette(routes=[Route(PATH, self._serve, methods=["POST"])])

    async def _serve(self, request: Request) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not self._key or not hmac.compare_digest(given.encode(), self._key.encode()):
            return Response(status_code=401)
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_QUESTIONS_BYTES:
                return Response(status_code=413)
        try:
            questions = _questions(body)
        except msgspec.MsgspecError:
            return Response(status_code=400)
        return Response(_encode(await self.answer(questions)), media_type="application/msgpack")
