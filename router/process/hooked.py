"""Appends that the pre-send hook has let through.

If a hook is set, gateways and routers use this in the place of `Conversations.append`.

1. `may_append` is asked first, so the hook gets no question about what would be refused, or was accepted before. Its
   refusal is the answer.
2. A message or edit of a user that is new is asked about. What the hook lets through is appended, with its body if the
   hook replaces it. The fingerprint stays that of the client's own content, so a resend is still a resend.
3. The first message of a direct conversation is asked about before the conversation exists, and creates it then.

Invariants
- The events of a device reach a conversation in the order of the calls: while one is asked about, later ones of any
  kind wait behind it, at most MAX_WAITING of them.
- A resend of an event that waits joins it: it is asked about once, and every call gets an answer.
- If an event is to be sent again (`Unavailable`), so are those behind it, because they would overtake it. Those that
  were accepted before are acked even then.
- Every call gets one answer, never before `append` has returned.
- At most MAX_BYTES of events wait in this process, and at most CONVERSATIONS of one user's are asked about at once, so
  that no user takes all places of the hook.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from functools import partial
from time import time_ns
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from router.contract import keys, metrics, stamp
from router.contract.errors import Internal, LinnetError, NotFound, RateLimited, Rejected, Unavailable
from router.contract.packing import jsonable, pack
from router.process.isolate import fault
from router.process.send_hook import OF_ONE_USER, Question, SendHook, question_id
from router.store.answers import Reply
from router.store.appends import Append, Appended
from router.store.attaching import REFUSED
from router.store.conversations import Conversations
from router.store.direct import DirectConversations

MAX_WAITING: Final = 64  # of one device in one conversation
CONVERSATIONS: Final = OF_ONE_USER  # each has one question at a time
MAX_BYTES: Final = 64 << 20
RETRY_S: Final = 1.0

Place: TypeAlias = tuple[str, str, str]  # conversation, user, device
_HEAD: Final = ("seq", "prev", "count", "at", "type", "conversation", "from", "device", "n")
_NO_SLOTS: Final = stamp.Slots(0, 0, 0, 0)
_ASKED: Final = ("message", "edit")


class Appends(Protocol):
    """Where events are appended: `Conversations`, or `HookedAppends`."""

    def append(self, a: Append, reply: Reply[Appended]) -> None: ...


class _Event:
    """One event that waits, with the calls that wait for it."""

    __slots__ = ("append", "calls")

    def __init__(self, append: Append, reply: Reply[Appended]) -> None:
        self.append = append
        self.calls = [(append, reply)]

    def is_resent_by(self, a: Append) -> bool:
        own = self.append
        return a.n == own.n > 0 and a.fingerprint == own.fingerprint and a.action == own.action


class HookedAppends:
    """Appends of one process; there is one task for each question."""

    def __init__(self, conversations: Conversations, direct: DirectConversations, hook: SendHook) -> None:
        self._conversations = conversations
        self._direct = direct
        self._hook = hook
        self._tasks: set[asyncio.Task[None]] = set()
        # Events that wait, in order; the first is the one that is being checked or asked about.
        self._waiting: dict[Place, deque[_Event]] = {}
        self._places: Counter[str] = Counter()  # of each user that has some
        self._bytes = 0

    def append(self, a: Append, reply: Reply[Appended]) -> None:
        """Append an event as `Conversations.append` does, if the hook lets it through; `Rejected` if it does not."""
        place = a.conversation, a.user, a.device
        waiting = self._waiting.get(place)
        if waiting is None:
            if not _is_asked(a):
                self._conversations.append(a, reply)
                return
            if self._places[a.user] >= CONVERSATIONS:
                _later(reply, RateLimited("too many of your messages wait for their check", RETRY_S))
                return
            waiting = self._waiting[place] = deque()
            self._places[a.user] += 1
            self._wait(waiting, a, reply)
            self._next(place)
            return
        for event in waiting:
            if event.is_resent_by(a) and len(event.calls) < MAX_WAITING:
                if self._holds(a, reply):
                    event.calls.append((a, reply))
                return
        if len(waiting) < MAX_WAITING:
            self._wait(waiting, a, reply)
        else:
            _later(reply, RateLimited("too many commands wait for this conversation: wait for their acks", RETRY_S))

    def _wait(self, waiting: deque[_Event], a: Append, reply: Reply[Appended]) -> None:
        if self._holds(a, reply):
            waiting.append(_Event(a, reply))
            metrics.SEND_HOOK_WAITING.inc()

    def _holds(self, a: Append, reply: Reply[Appended]) -> bool:
        """Count the bytes of a call that is to wait. If too many wait, answer it and return False."""
        if self._bytes > MAX_BYTES:
            _later(reply, Unavailable("too many messages wait for their check", RETRY_S))
            return False
        self._bytes += len(a.tail.rest)
        return True

    def _pop(self, place: Place) -> _Event:
        event = self._waiting[place].popleft()
        self._bytes -= sum(len(call.tail.rest) for call, _ in event.calls)
        metrics.SEND_HOOK_WAITING.dec()
        return event

    async def close(self) -> None:
        """End the questions, and the connections to the hook."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._hook.close()

    def _next(self, place: Place) -> None:
        """Append what needs no question, and check the first event that does."""
        waiting = self._waiting[place]
        while waiting:
            first = waiting[0].append
            if _is_asked(first):
                self._conversations.may_append(first, partial(self._checked, place))
                return
            self._write(self._pop(place), first)
        del self._waiting[place]
        user = place[1]
        self._places[user] -= 1
        if not self._places[user]:
            del self._places[user]

    def _checked(self, place: Place, answer: bool | LinnetError) -> None:
        append = self._waiting[place][0].append
        if answer is True:
            self._spawn(place, append, opens=False)
        elif answer is False:
            self._through(place, append)
        elif isinstance(answer, NotFound) and _may_open(append):
            other = keys.other_party(append.conversation, append.user)
            self._direct.may_create(append.user, other, partial(self._may_create, place))
        else:
            self._refuse(place, answer)

    def _may_create(self, place: Place, refusal: LinnetError | None) -> None:
        if refusal is None:
            self._spawn(place, self._waiting[place][0].append, opens=True)
        else:
            self._refuse(place, refusal)

    def _spawn(self, place: Place, append: Append, opens: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(place, append, opens))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, place: Place, append: Append, opens: bool) -> None:
        try:
            event = stamp.decode(stamp.fill(append.tail, _NO_SLOTS))
            body = await self._hook.ask(_question(append, event, opens))
            if body is not None:
                append = _with_body(append, event, body)
        except Rejected as error:
            self._conversations.may_append(append, partial(self._rejected, place, error))
        except RateLimited as error:  # the user's other changes wait: what is behind this one must not overtake it
            self._refuse(place, Unavailable(error.message, error.retry_after))
        except LinnetError as error:
            self._refuse(place, error)
        except Exception as error:  # noqa: BLE001 - a bug: the callers must get an answer, and the log has the trace
            fault("send_hook", error)
            self._refuse(place, Internal())
        else:
            if opens:
                other = keys.other_party(append.conversation, append.user)
                self._direct.create(append.user, other, True, partial(self._created, place, append))
            else:
                self._through(place, append)

    def _rejected(self, place: Place, error: Rejected, answer: bool | LinnetError) -> None:
        """Refuse the first event, unless another process has written it meanwhile: it was sent there, too."""
        if answer is False:
            self._through(place, self._waiting[place][0].append)
        else:
            self._refuse(place, error)

    def _created(self, place: Place, append: Append, answer: bool | LinnetError) -> None:
        if isinstance(answer, LinnetError):
            self._refuse(place, answer)
        else:
            self._through(place, append)

    def _through(self, place: Place, append: Append) -> None:
        """Append the first event, as the hook left it."""
        self._write(self._pop(place), append)
        self._next(place)

    def _write(self, event: _Event, append: Append) -> None:
        """Append an event for all its calls: Redis answers the second one that it is a duplicate."""
        if append is event.append:
            for call, reply in event.calls:
                self._conversations.append(call, reply)
            return
        for call, reply in event.calls:
            replaced = partial(_appended_replaced, reply, append.tail)
            self._conversations.append(msgspec.structs.replace(call, tail=append.tail), replaced)

    def _refuse(self, place: Place, error: LinnetError) -> None:
        """Refuse the first event. If it is to be sent again, so are those behind it that are new, as Redis says."""
        _refuse_calls(self._pop(place), error)
        if isinstance(error, Unavailable):
            while self._waiting[place]:
                behind = self._pop(place)
                self._conversations.may_append(behind.append, partial(self._refuse_if_new, behind, error))
        self._next(place)

    def _refuse_if_new(self, event: _Event, error: LinnetError, answer: bool | LinnetError) -> None:
        if answer is False:
            self._write(event, event.append)
        else:
            _refuse_calls(event, error)


def _refuse_calls(event: _Event, error: LinnetError) -> None:
    for _, reply in event.calls:
        try:
            reply(error)
        except Exception as bug:  # noqa: BLE001 - a bug in one reply must not hold up the other calls
            fault("send_hook", bug)


def _appended_replaced(reply: Reply[Appended], tail: stamp.Tail, answer: Appended | LinnetError) -> None:
    reply(answer if isinstance(answer, LinnetError) else msgspec.structs.replace(answer, tail=tail))


def _later(reply: Reply[Appended], error: LinnetError) -> None:
    asyncio.get_running_loop().call_soon(reply, error)


def _is_asked(a: Append) -> bool:
    return a.action in _ASKED and not a.server


def _may_open(a: Append) -> bool:
    """Whether an event to a conversation that does not exist may create it."""
    return a.conversation[0] == keys.DIRECT and a.action == "message" and not a.target and a.files != REFUSED.pins


def _question(a: Append, event: dict[str, Any], opens: bool) -> Question:
    return Question(
        id=question_id(a.conversation, a.user, a.device, a.n, a.fingerprint),
        at=time_ns() // 1_000_000,
        action="edit" if a.action == "edit" else "send",
        conversation=None if opens else a.conversation,
        to=keys.other_party(a.conversation, a.user) if opens else None,
        kind=keys.KIND_NAMES[a.conversation[0]],
        from_=a.user,
        seq=a.target if a.action == "edit" else None,
        media=event.get("media"),
        body=jsonable(event["body"]),
        files=event.get("files", []),
    )


def _with_body(a: Append, event: dict[str, Any], body: bytes) -> Append:
    """The event with another body. All its other bytes stay, because values have one encoding."""
    fields = {name: pack(value) for name, value in event.items() if name not in _HEAD} | {"body": body}
    tail = stamp.tail(a.action, a.conversation, a.user, a.device, a.n, fields)
    return msgspec.structs.replace(a, tail=tail)
