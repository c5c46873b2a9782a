"""Every Redis key and channel, spelled once.

Conversations fall into `PARTITIONS` by crc32 of their id, users likewise; the partition is the cluster hash tag
(`{c12}`, `{u200}`), and everything that one function touches bears one tag. No key has a TTL but `idem`
(IDEMPOTENCY_S). The kind of a conversation is the first letter of its id, so neither process asks Redis for it.

key                            type    what                                                 written by / read by
{c<p>}:conv:<conv>             hash    `m` packed meta, kind, title, ver, routed, floor,    functions / both
                                       made, size, owners, gone; `u:<user>` role joined
                                       left, `d:<user>/<device>` dedup rows, `w:<user>`
                                       its devices with a row, `e:<seq>` edits of a message,
                                       `a:<user>` seq at which a channel's member was added
{c<p>}:log:<conv>              stream  ids <seq>-0; `e` the event's bytes, `f` author of a  append, done / range
                                       message
{c<p>}:dirty                   zset    conv -> due ms; `~conv` a quiet log that will age;   append / claim, done
                                       sentinel `!` at +inf
{u<q>}:user:<user>             hash    created, name, pw, deleted, rates, known             accounts, sync / both
{u<q>}:convs:<user>            hash    conv -> packed row (kind, mark, head, count, ...)    deliver, join, read / sync
{u<q>}:recent:<user>           zset    conv -> raised at, in us                             deliver, join, read / sync
{u<q>}:groups:<user>           zset    group or channel -> joined seq                       join / sync
{u<q>}:dev:<user>              hash    device -> session row; `*` the kick mark of all      sync, leave, kick / both
{u<q>}:cursor:<user>:<device>  hash    conv -> acked seq                                    ack, sync / sync, pushes
{u<q>}:push                    zset    user -> due ms; sentinel `!`                         arm / claim_push
{u<q>}:pushes:<user>           hash    conv -> waiting seq and when; attempts               arm / pushed
{u<q>}:idem:<user>:<key>       string  what an Idempotency-Key stands for; expires          router / router
linnet:gateways                hash    node -> lease row                                    gateways / both
linnet:deployment              hash    partitions and format of this deployment             first start / every start

channel                        who listens                    what
{c<p>}:ch:<conv>               gateways with a member here    events; typing and receipts
{u<q>}:ch:<user>               gateways with a session        direct events; joins, kicks, receipts of own devices
{u<q>}:pr:<user>               gateways with a watcher        presence may have changed
{c<p>}:echo:<node>             one gateway                    is this subscription alive?
"""

from __future__ import annotations

import re
from secrets import token_urlsafe
from typing import Final
from zlib import crc32

PARTITIONS: Final = 256
FORMAT: Final = 1
IDEMPOTENCY_S: Final = 86_400
GATEWAYS: Final = "linnet:gateways"
DEPLOYMENT: Final = "linnet:deployment"
TICK: Final = "linnet:tick"

DIRECT: Final = "d"
GROUP: Final = "g"
CHANNEL: Final = "c"
KIND_NAMES: Final = {DIRECT: "direct", GROUP: "group", CHANNEL: "channel"}

_CONVERSATION: Final = re.compile(r"(?:d:[A-Za-z0-9._-]{1,64}:[A-Za-z0-9._-]{1,64}|[gc]:[A-Za-z0-9_-]{22})\Z")


def is_conversation(conv: str) -> bool:
    """Whether the string can be an id of ours; nothing else ever becomes part of a key."""
    return _CONVERSATION.match(conv) is not None


def new_conversation(kind: str) -> str:
    """A fresh id for a group (`g`) or channel (`c`)."""
    return f"{kind}:{token_urlsafe(16)}"


def direct(user: str, other: str) -> str:
    """The id of the one direct conversation of two users (or of one with herself)."""
    return f"d:{user}:{other}" if user <= other else f"d:{other}:{user}"


def parties(conv: str) -> tuple[str, str]:
    """The two users of a direct conversation."""
    _, user, other = conv.split(":")
    return user, other


def other_party(conv: str, user: str) -> str:
    """Who `user` talks to in a direct conversation; not defined for somebody who is no party to it."""
    first, second = parties(conv)
    return second if user == first else first


def partition(name: str) -> int:
    return crc32(name.encode()) % PARTITIONS


def _c(conv: str) -> str:
    return f"{{c{partition(conv)}}}"


def _u(user: str) -> str:
    return f"{{u{partition(user)}}}"


def conversation(conv: str) -> str:
    return f"{_c(conv)}:conv:{conv}"


EVERY_CONVERSATION: Final = "{c*}:conv:*"  # for a scan; never on the hot path


def conversation_of(key: bytes) -> str:
    """The conversation whose hash this key is."""
    return key.partition(b":conv:")[2].decode()


def log(conv: str) -> str:
    return f"{_c(conv)}:log:{conv}"


def dirty(part: int) -> str:
    return f"{{c{part}}}:dirty"


def user(name: str) -> str:
    return f"{_u(name)}:user:{name}"


def convs(name: str) -> str:
    return f"{_u(name)}:convs:{name}"


def recent(name: str) -> str:
    return f"{_u(name)}:recent:{name}"


def groups(name: str) -> str:
    return f"{_u(name)}:groups:{name}"


def devices(name: str) -> str:
    return f"{_u(name)}:dev:{name}"


def cursor(name: str, device: str) -> str:
    return f"{_u(name)}:cursor:{name}:{device}"


def push(part: int) -> str:
    return f"{{u{part}}}:push"


def pushes(name: str) -> str:
    return f"{_u(name)}:pushes:{name}"


def idempotency(name: str, key_hash: str) -> str:
    return f"{_u(name)}:idem:{name}:{key_hash}"


def conversation_channel(conv: str) -> str:
    return f"{_c(conv)}:ch:{conv}"


def user_channel(name: str) -> str:
    return f"{_u(name)}:ch:{name}"


def presence_channel(name: str) -> str:
    return f"{_u(name)}:pr:{name}"


def echo_channel(node: str) -> str:
    return f"{_c(node)}:echo:{node}"
