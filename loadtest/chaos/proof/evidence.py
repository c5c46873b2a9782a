"""The evidence of a run, in one folder: histories, logs, faults, processes.

histories/<user>_<device>.jsonl   what each device did and received (`history.py`)
clients/<installation>.jsonl             the same of applications on an SDK (`client_history.py`)
pages/<user>.jsonl                what a person did at the web page, and what the page showed (`pages.py`)
contents.jsonl                    what the logs make of each message, for the pages, read from Redis at the end
logs.jsonl                        the log of every conversation, read from Redis at the end
faults.jsonl                      each fault, its target, its begin and its end
losses.jsonl                      what faults deleted from Redis
hook.jsonl                        what the pre-send hook has said
relations.jsonl                   what users did about each other, with the answers
pairs.jsonl                       the record of each pair and both users' copies of it, read from Redis at the end
states.jsonl                      the state of every user, read from Redis at the end
processes.jsonl                   memory samples, and how each process ended
run.json                          seed, level and limits of the run, and the marks at which presence was settled
<process>.log                     the log of each process

This module contains the rows of all but the histories, and `load`. `checker.py` judges them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import redis

from loadtest.chaos.proof.client_history import ClientHistory, ClientRows
from loadtest.chaos.proof.history import Entry, History, Rows, digest, entry, now_ms
from loadtest.chaos.proof.page_history import Content, PageHistory, PageRows
from router.contract import keys, stamp
from router.contract.packing import unpack
from router.store.pairs import Record
from router.store.people import person_of

PAGE: int = 1000
KINDS: dict[str, str] = {"c": "contact", "o": "outgoing", "i": "incoming", "-": ""}


class Restraint(msgspec.Struct, frozen=True):
    """An event that restrains somebody, or ends that: `mute`, `unmute`, `ban`, `add`; `slow` is for all.

    `until`: its end (ms), None if it has none.
    """

    seq: int
    kind: str
    user: str = ""
    until: int | None = None
    slow_s: int = 0


class Conversation(msgspec.Struct):
    """`members`: user -> first and last seq that the user sees (last 0: no end). `exempt`: users without slow mode."""

    id: str
    head: int
    floor: int
    members: dict[str, tuple[int, int]]
    entries: list[Entry]
    restraints: list[Restraint] = []
    exempt: list[str] = []


class Fault(msgspec.Struct, frozen=True, array_like=True):
    kind: str
    target: str
    began: int
    ended: int


class Loss(msgspec.Struct, frozen=True, array_like=True):
    """Keys that a fault deleted: the log of a conversation up to a seq, or a user's row of the conversation.

    `whole`: the hash went with the log, so that no key knows of these events.
    """

    at: int
    conversation: str
    upto: int
    user: str
    whole: bool = False


class Sample(msgspec.Struct, frozen=True, array_like=True, tag="sample"):
    at: int
    process: str
    rss_bytes: int


class Ending(msgspec.Struct, frozen=True, array_like=True, tag="ending"):
    """`asked`: the signal that the process was sent; empty if it ended by itself."""

    at: int
    process: str
    code: int
    asked: str


class Mark(msgspec.Struct, frozen=True):
    """A moment after everything was calm for longer than presence takes: the users that were online and offline."""

    at: int
    online: list[str]
    offline: list[str]


class StoredState(msgspec.Struct, frozen=True):
    """A user's state in the store at the end: the user's version, and by key the version and the digest of the value
    (empty: removed)."""

    user: str
    version: int
    keys: dict[str, tuple[int, str]]


class Related(msgspec.Struct, frozen=True, array_like=True):
    """A call of `user` about `other`; `answer`: its status, 200 if it succeeded, 0 if there was none."""

    began: int
    ended: int
    user: str
    other: str
    action: str
    answer: int


class Judged(msgspec.Struct, frozen=True, array_like=True):
    """A verdict of the pre-send hook: the digest of a text, and of what it becomes; empty if it is rejected."""

    at: int
    body: str
    becomes: str


class StoredPair(msgspec.Struct, frozen=True):
    """Two users in the store at the end: by user the state of the contact (empty: none) and whether the user blocks the
    other, as the record says, and as the user's own copy says."""

    conversation: str
    record: dict[str, tuple[str, bool]]
    copies: dict[str, tuple[str, bool]]


class Run(msgspec.Struct):
    """`hook`: what happens to what the pre-send hook does not answer; empty if there is no hook."""

    seed: int
    seconds: float
    level: str
    drain_window_s: float
    rss_limit_bytes: int
    marks: list[Mark] = []
    hook: str = ""


class SentFile(msgspec.Struct, frozen=True, tag="sent"):
    """A file of an acked message; `sha256` is that of the bytes that were stored."""

    at: int
    conversation: str
    seq: int
    sha256: str
    members: list[str]


class FetchedFile(msgspec.Struct, frozen=True, tag="fetched"):
    """What a member got at the end; `digest`: the sha256 of the bytes that came."""

    at: int
    conversation: str
    seq: int
    sha256: str
    user: str
    status: int
    digest: str


FileRows = SentFile | FetchedFile


class Evidence(msgspec.Struct):
    run: Run
    conversations: dict[str, Conversation]
    histories: dict[str, Iterable[Rows]]
    faults: list[Fault] = []
    processes: list[Sample | Ending] = []
    process_logs: dict[str, Path] = {}
    losses: list[Loss] = []
    clients: Mapping[str, Iterable[ClientRows]] = {}
    states: list[StoredState] = []
    relations: list[Related] = []
    pairs: list[StoredPair] = []
    hook: list[Judged] = []
    files: list[FileRows] = []
    pages: Mapping[str, Iterable[PageRows]] = {}
    contents: list[Content] = []


def load(folder: Path) -> Evidence:
    """Load the evidence of a finished run."""
    logs = map(msgspec.json.Decoder(Conversation).decode, _lines(folder / "logs.jsonl"))
    faults = map(msgspec.json.Decoder(Fault).decode, _lines(folder / "faults.jsonl"))
    losses = map(msgspec.json.Decoder(Loss).decode, _lines(folder / "losses.jsonl"))
    states = map(msgspec.json.Decoder(StoredState).decode, _lines(folder / "states.jsonl"))
    relations = map(msgspec.json.Decoder(Related).decode, _lines(folder / "relations.jsonl"))
    pairs = map(msgspec.json.Decoder(StoredPair).decode, _lines(folder / "pairs.jsonl"))
    hook = map(msgspec.json.Decoder(Judged).decode, _lines(folder / "hook.jsonl"))
    files = map(msgspec.json.Decoder(SentFile | FetchedFile).decode, _lines(folder / "files.jsonl"))
    processes = map(msgspec.json.Decoder(Sample | Ending).decode, _lines(folder / "processes.jsonl"))
    return Evidence(
        run=msgspec.json.decode((folder / "run.json").read_bytes(), type=Run),
        conversations={one.id: one for one in logs},
        histories={
            path.stem.replace("_", "/", 1): History(path) for path in sorted((folder / "histories").glob("*.jsonl"))
        },
        faults=sorted(faults, key=lambda fault: fault.began),
        losses=list(losses),
        clients={path.stem: ClientHistory(path) for path in sorted((folder / "clients").glob("*.jsonl"))},
        states=list(states),
        relations=list(relations),
        pairs=list(pairs),
        hook=list(hook),
        files=list(files),
        pages={path.stem: PageHistory(path) for path in sorted((folder / "pages").glob("*.jsonl"))},
        contents=list(map(msgspec.json.Decoder(Content).decode, _lines(folder / "contents.jsonl"))),
        processes=list(processes),
        process_logs={path.stem: path for path in sorted(folder.glob("*.log"))},
    )


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with path.open("rb") as file:
            yield from file


def append(path: Path, *rows: Any) -> None:
    with path.open("ab") as file:
        for row in rows:
            file.write(msgspec.json.encode(row) + b"\n")


# -- the logs


def dump_logs(client: redis.Redis, path: Path) -> None:
    """Write the log and the members of every conversation, as Redis has them now."""
    for key in client.scan_iter(match=keys.EVERY_CONVERSATION, count=1000):
        fields: dict[bytes, bytes] = client.hgetall(key)  # type: ignore[assignment]  # not awaitable
        if b"m" in fields:  # else it has only the record of a pair
            append(path, _conversation(client, keys.conversation_of(key), fields))


def _conversation(client: redis.Redis, name: str, fields: dict[bytes, bytes]) -> Conversation:
    members = {}
    for field, value in fields.items():
        if field.startswith(b"u:"):
            _, joined, left = value.decode().split(" ")
            members[field[2:].decode()] = (int(joined), int(left))
    exempt = [field[2:].decode() for field, value in fields.items() if field[:2] == b"u:" and value[:1] in b"oa"]
    head = int.from_bytes(fields[b"m"][:8], "big")
    events = list(_events(client, keys.log(name)))
    restraints = [one for event in events if (one := _restraint(event)) is not None]
    return Conversation(
        name, head, int(fields.get(b"floor", 0)), members, [entry(event) for event in events], restraints, exempt
    )


def dump_contents(client: redis.Redis, path: Path) -> None:
    """Write what the log of every conversation makes of each of its messages, as Redis has it now."""
    for key in client.scan_iter(match=keys.EVERY_CONVERSATION, count=1000):
        name = keys.conversation_of(key)
        append(path, *contents_of(name, _events(client, keys.log(name))))


def contents_of(name: str, events: Iterable[dict[str, Any]]) -> list[Content]:
    found: dict[int, Content] = {}
    for event in events:
        target = found.get(event.get("target", 0))
        if event["type"] == "message":
            of_files, answers = len(event.get("files") or ()), event.get("reply_to") is not None
            found[event["seq"]] = Content(
                name, event["seq"], event["from"], digest(event["body"]), [], of_files, answers
            )
        elif event["type"] == "edit" and target is not None:
            target.edits.append(digest(event["body"]))
        elif event["type"] == "react" and target is not None:
            users = [user for user in target.reactions.get(event["emoji"], ()) if user != event["from"]]
            target.reactions[event["emoji"]] = users if event.get("remove") else [*users, event["from"]]
    return list(found.values())


def _restraint(event: dict[str, Any]) -> Restraint | None:
    if event["type"] == "title" and "slow_s" in event:
        return Restraint(event["seq"], "slow", slow_s=event["slow_s"])
    if event["type"] != "member" or (event["action"] in ("remove", "role") and not event.get("banned")):
        return None
    kind = "ban" if event.get("banned") else event["action"]
    return Restraint(event["seq"], kind, event["user"], event.get("until"))


def dump_states(client: redis.Redis, path: Path) -> None:
    """Write the state of every user who has one, as Redis has it now."""
    for key in client.scan_iter(match=keys.EVERY_STATE, count=1000):
        append(path, stored_state(client, keys.user_of_state(key)))


def dump_pairs(client: redis.Redis, path: Path) -> None:
    """Write the record of every pair, and the copies of both users, as Redis has them now."""
    append(path, *stored_pairs(client))


def stored_pairs(client: redis.Redis) -> list[StoredPair]:
    now, found = now_ms(), []
    for key in client.scan_iter(match=keys.EVERY_CONVERSATION, count=1000):
        packed: bytes | None = client.hget(key, "pair") if b"d:" in key else None  # type: ignore[assignment]
        if packed is not None:
            record, conversation = msgspec.msgpack.decode(packed, type=Record), keys.conversation_of(key)
            says: dict[str, tuple[str, bool]] = {}
            copies: dict[str, tuple[str, bool]] = {}
            for user in keys.parties(conversation):
                other = keys.other_party(conversation, user)
                entry = record.entry(user, other, now)
                says[user] = (entry.state if entry else "", bool(record.of[user].blocked))
                copies[user] = _copy(client, user, other, now)
            found.append(StoredPair(conversation, says, copies))
    return found


def _copy(client: redis.Redis, user: str, other: str, now: int) -> tuple[str, bool]:
    row: bytes | None = client.hget(keys.people(user), other)  # type: ignore[assignment]  # not awaitable
    if row is None:
        return "", False
    person = person_of(row)
    return KINDS[person.kind] if person.counts(now) else "", person.blocks


def stored_state(client: redis.Redis, user: str) -> StoredState:
    fields: dict[bytes, bytes] = client.hgetall(keys.state(user))  # type: ignore[assignment]  # not awaitable
    meta = fields.pop(b"*", b"\0" * 8)
    found = {
        key.decode(): (int.from_bytes(row[:8], "big"), digest(unpack(row[16:])) if row[16:] else "")
        for key, row in fields.items()
    }
    return StoredState(user, int.from_bytes(meta[:8], "big"), found)


def _events(client: redis.Redis, key: str) -> Iterator[dict[str, Any]]:
    after = "-"
    while True:
        page: list[Any] = client.xrange(key, min=after, count=PAGE)  # type: ignore[assignment]  # not awaitable
        for _, values in page:
            yield stamp.decode(values[b"e"])
        if len(page) < PAGE:
            return
        after = "(" + page[-1][0].decode()
