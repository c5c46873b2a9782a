"""The pre-send hook: a service of the operator that accepts, rejects or replaces what users write.

Each question is one post (`Question`), and a verdict is an answer 200 with

    {"verdict": "accept" | "reject" | "replace", "reason": "at most 200 characters", "body": …}

Everything else is a failure: no answer in time, another status, another content, a body beyond the limits. Then the
setting LINNET_SEND_HOOK_ON_FAILURE decides.

Invariants
- `ask` ends within twice the timeout: a question waits for one of AT_ONCE places at most as long as for its answer.
- A question that the hook cannot answer costs no other user their verdict (`breaker.py`): answers that are no verdict
  do not count, and of missing ones only those of several users.
- At most MAX_WAITING questions wait for a place; further ones count as failed.
- At most OF_ONE_USER questions of a user wait or are asked at once; further ones are refused. So no user takes all
  places. Of a caller without an account, the address counts, because they choose the name.
- Neither questions nor answers are in the log.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from hashlib import blake2b
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from router.contract import metrics
from router.contract.errors import LinnetError, RateLimited, Rejected, Unavailable
from router.contract.packing import pack, pack_body
from router.contract.settings import Settings
from router.process.breaker import Breaker
from router.process.http_client import Answer, NoAnswer
from router.process.poster import Poster

AT_ONCE: Final = 64
MAX_WAITING: Final = 4096
OF_ONE_USER: Final = 16
RETRY_S: Final = 2.0
REASON_CHARACTERS: Final = 200

Asked: TypeAlias = Literal["send", "edit", "title", "profile", "contact"]
REPLACEABLE: Final = ("send", "edit")


class Question(Struct, frozen=True, kw_only=True):
    """What a user is about to write. The fields that an action does not have are null.

    `id` is the same for all tries of one (user, device, n). `conversation` is null before a direct one exists; then
    `to` is the other user. `seq` is the message of an edit.
    """

    id: str
    at: int
    action: Asked
    conversation: str | None = None
    to: str | None = None
    kind: str | None = None
    from_: str = msgspec.field(name="from")
    seq: int | None = None
    media: str | None = None
    body: Any = None
    files: list[Any] = []


class _Verdict(Struct, frozen=True):
    verdict: Literal["accept", "reject", "replace"]
    reason: Annotated[str, Meta(max_length=REASON_CHARACTERS)] = ""
    body: Any = UNSET


class NoVerdict(Exception):
    """The answer is no verdict; the text is for the operator's log."""


_decode = msgspec.json.Decoder(_Verdict).decode


def question_id(*parts: str | int | bytes) -> str:
    return blake2b(pack(parts), digest_size=16).hexdigest()


def read_verdict(answer: Answer, action: Asked) -> _Verdict:
    """The verdict; its `body` is msgpack, if there is one. `NoVerdict` if the answer is none."""
    if answer.status != 200:
        raise NoVerdict(f"status {answer.status}")
    if not answer.whole:
        raise NoVerdict("the answer is too large")
    try:
        found = _decode(answer.body)
        if found.verdict != "replace":
            return found
        if action not in REPLACEABLE or isinstance(found.body, UnsetType):
            raise NoVerdict("`replace` needs a body, and only a message can be replaced")
        return msgspec.structs.replace(found, body=pack_body(found.body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LinnetError):
        raise NoVerdict("the answer is no verdict, or its body is no body of a message") from None


class SendHook:
    """Asks the operator's hook."""

    def __init__(self, settings: Settings) -> None:
        self._timeout_s = settings.send_hook_timeout_ms / 1000
        self._accepts = settings.send_hook_on_failure == "accept"
        self._poster = Poster(
            "LINNET_SEND_HOOK_URL", settings.send_hook_url, settings.send_hook_secret, self._timeout_s,
            "questions to the pre-send hook", AT_ONCE,
        )  # fmt: skip
        self._places = asyncio.Semaphore(AT_ONCE)
        self._waiting = 0
        self._of_user: Counter[str] = Counter()  # questions of each user that has some
        self._breaker = Breaker(time.monotonic)

    async def ask(self, question: Question, address: str = "") -> bytes | None:
        """Return None if the question's content is accepted, or the packed body that replaces it.

        `Rejected` with the hook's reason; `Unavailable` if the hook failed and failures reject; `RateLimited` if too
        many questions of the user wait. `address`: of a caller who has no account yet.
        """
        who = f"at {address}" if address else question.from_
        if self._of_user[who] >= OF_ONE_USER:
            raise RateLimited("too much of what you wrote waits for its check", RETRY_S)
        self._of_user[who] += 1
        try:
            return await self._asked(question, who)
        finally:
            self._of_user[who] -= 1
            if not self._of_user[who]:
                del self._of_user[who]

    async def _asked(self, question: Question, who: str) -> bytes | None:
        paused = self._breaker.open
        if not self._breaker.permits(who):
            return self._failed("paused")
        if not await self._place():
            return self._failed("busy")
        try:
            if self._breaker.open and not paused:  # it opened while this question waited
                return self._failed("paused")
            return await self._ask(question, who)
        finally:
            self._places.release()
            metrics.SEND_HOOK_PAUSED.set(self._breaker.open)

    async def _place(self) -> bool:
        """Wait for a place; False if there is none in time, or too many wait."""
        if self._waiting >= MAX_WAITING:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._places.acquire()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1

    async def _ask(self, question: Question, who: str) -> bytes | None:
        begun = time.perf_counter()
        try:
            answer = await self._poster.post(msgspec.json.encode(question), int(time.time()))
        except NoAnswer as error:
            self._breaker.missing(who)
            self._poster.report(str(error))
            return self._failed("missing")
        finally:
            metrics.SEND_HOOK_SECONDS.observe(time.perf_counter() - begun)
        self._breaker.answered()
        try:
            found = read_verdict(answer, question.action)
        except NoVerdict as error:
            self._poster.report(str(error))
            return self._failed("invalid")
        self._poster.report("")
        metrics.SEND_HOOK_QUESTIONS.labels(found.verdict).inc()
        if found.verdict == "reject":
            raise Rejected(found.reason or "this was rejected")
        return found.body if found.verdict == "replace" else None

    def _failed(self, result: str) -> bytes | None:
        """Count a question without a verdict; None if it counts as accepted, else `Unavailable`."""
        metrics.SEND_HOOK_QUESTIONS.labels(result).inc()
        if not self._accepts:
            raise Unavailable("this cannot be checked now: send it again", RETRY_S)
        return None

    def close(self) -> None:
        self._poster.close()
