"""Every Redis key and channel, spelled once.

Conversations fall into `PARTITIONS` by crc32 of their id, users likewise; the partition is the cluster hash tag
(`{c12}`, `{u200}`), and everything that one function touches bears one tag. No key has a TTL but `idem`
(IDEMPOTENCY_S). The kind of a conversation is the first letter of its id, so neither process asks Redis for it.

key                            type    what                                                 written by / read by
{c<p>}:conv:<conv>             hash    `m` packed meta, kind, title, ver, routed, floor,    functions / both
                                       made, size, owners, gone; `u:<user>` role joined
                                       left, `d:<user>/<device>` dedup rows, `w:<user>`
                                       its devices with a row, `e:<seq>` edits of a message,
                                       `a:<user>` seq at which a channel's member was added,
                                       `h:<user>` earlier times in a group, packed, `deleted`,
                                       `r:<seq>` reactions to a message, `noted` (all have
                                       been), `reacting`
{c<p>}:log:<conv>              stream  ids <seq>-0; `e` the event's bytes, `f` author of a  append, done / range
                                       message
{c<p>}:dirty                   zset    conv -> due ms; `~conv` a quiet log that will age;   append / claim, done
                                       sentinel `!` at +inf
{u<q>}:user:<user>             hash    created, name, pw, deleted, rates, known             accounts, sync / both
{u<q>}:name:<name>             string  user and ms; which of the names that differ in case  claim_name / claim_name
                                       alone is given out; <name> is in lower case
{u<q>}:convs:<user>            hash    conv -> packed row (kind, mark, head, count, ...)    deliver, join, read / sync
{u<q>}:recent:<user>           zset    conv -> raised at, in us                             deliver, join, read / sync
{u<q>}:groups:<user>           zset    group or channel -> joined seq                       join / sync
{u<q>}:dev:<user>              hash    device -> session row; `*` the kick mark of all      sync, leave, kick / both
{u<q>}:cursor:<user>:<device>  hash    conv -> acked seq                                    ack, sync / sync, pushes
{u<q>}:push                    zset    user -> due ms; sentinel `!`                         arm / claim_push
{u<q>}:pushes:<user>           hash    conv -> waiting seq and when; attempts               arm / pushed
{u<q>}:idem:<user>:<key>       string  what an Idempotency-Key stands for; expires          router / router
linnet:gateways                hash    node -> lease row                                    gateways / both
linnet:deployment              hash    partitions, format, id, fingerprint (store/            first start / every start
                                       deployment.py)

channel                        who listens                    what
<bus>{c<p>}:ch:<conv>          gateways with a member here    events; typing and receipts
<bus>{u<q>}:ch:<user>          gateways with a session        direct events; joins, kicks, receipts of own devices
<bus>{u<q>}:pr:<user>          gateways with a watcher        presence may have changed
<bus>{c<p>}:echo:<node>        one gateway                    is this subscription alive?

A server has one set of channels for all its databases, so each channel name begins with `<bus>`: the id of the
deployment and its database, `<id>.<database>:`. Deployments made by an earlier release have no `<bus>` until they are
moved (`Channels`).
"""

from __future__ import annotations

import re
from secrets import token_urlsafe
from typing import Final
from zlib import crc32

import msgspec

PARTITIONS: Final = 256
PLAIN: Final = "1"  # formats of a deployment: channels without `<bus>`, as earlier releases have them,
MOVING: Final = "1-2"  # events published with it and received on both,
OWN: Final = "2"  # or only with it; earlier releases refuse to start on the last two
IDEMPOTENCY_S: Final = 86_400
GATEWAYS: Final = "linnet:gateways"
DEPLOYMENT: Final = "linnet:deployment"
TICK: Final = "linnet:tick"
PROBES: Final = ("{c0}:probe", "{u0}:probe", "linnet:probe")  # scratch keys, one of each family

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


def folded(name: str) -> str:
    """The form that names have in common if they differ in case alone."""
    return name.lower()


def names(name: str) -> str:
    return f"{_u(folded(name))}:name:{folded(name)}"


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


class Channels(msgspec.Struct, frozen=True):
    """The channel names of one deployment: each begins with `bus`.

    `also`: what the same channels begin with for nodes that publish in the other format while the deployment is moved;
    None if there are no such nodes. A node subscribes to both and publishes to the first.
    """

    bus: str = ""
    also: str | None = None

    def conversation(self, conv: str) -> str:
        return f"{self.bus}{_c(conv)}:ch:{conv}"

    def user(self, name: str) -> str:
        return f"{self.bus}{_u(name)}:ch:{name}"

    def presence(self, name: str) -> str:
        return f"{self.bus}{_u(name)}:pr:{name}"

    def probes(self) -> tuple[str, str]:
        """Channels without meaning, one of each family: whether they may be used is what a starting process asks."""
        return f"{self.bus}{{c0}}:probe", f"{self.bus}{{u0}}:probe"

    def echo(self, node: str) -> str:
        return f"{self.bus}{_c(node)}:echo:{node}"


def channels(form: str, bus: str) -> Channels:
    """The channel names of a deployment of this format."""
    return {PLAIN: Channels("", bus), MOVING: Channels(bus, "")}.get(form, Channels(bus))


def renamed(channel: bytes, bus: bytes) -> bytes:
    """The same channel with `bus` as the beginning of its name."""
    return bus + channel[channel.index(b"{") :]
