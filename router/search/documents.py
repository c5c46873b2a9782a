"""What of an event is searched: a body that is a string, the `text` of a body that is a map, and the names of files."""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from router.contract.words import plain, words

_LINK: Final = re.compile(r"https?://[^\s]", re.IGNORECASE)
LINK: Final = "link"


class File(Struct, frozen=True):
    kind: str = "file"
    name: str = ""


class Indexed(Struct, frozen=True):
    """The fields of an event that matter to search; `target` is the seq that an edit or a delete is about."""

    seq: int
    at: int
    type: str
    from_: str = msgspec.field(name="from", default="")
    body: Any = None
    files: list[File] = []
    target: int = 0


indexed: Final = msgspec.msgpack.Decoder(Indexed).decode


def edited(message: Indexed, edit: Indexed) -> Indexed:
    """An edit that stands for the message as it is now: author, time and files are the message's."""
    return structs.replace(edit, at=message.at, from_=message.from_, files=message.files)


def text_of(body: Any) -> str:
    """The text of a body; "" if it has none."""
    if isinstance(body, dict):
        body = body.get("text")
    return body if isinstance(body, str) else ""


def searched(event: Indexed) -> str:
    """The text that is searched: each part on lines of its own, so that no phrase goes over from one to the next."""
    return "\n".join(filter(None, (text_of(event.body), *(file.name for file in event.files))))


def tags(event: Indexed) -> str:
    """The words by which a search is narrowed to an author, or to what a message has, as `has` and `by` make them."""
    return " ".join((by(event.from_), *map(has, sorted(contents(event)))))


def by(user: str) -> str:
    """A word for a user, short and of letters and digits. Two users may have the same; a hit's event is looked at."""
    return "u" + blake2b(user.encode(), digest_size=5).hexdigest()


def has(kind: str) -> str:
    return "h" + kind


def contents(event: Indexed) -> set[str]:
    """The kinds of its files, and `link` if its text has one."""
    return {file.kind for file in event.files} | ({LINK} if _LINK.search(text_of(event.body)) else set())


def words_of(event: Indexed) -> str:
    """The words of an event, as the index stores them."""
    return plain(words(searched(event)))
