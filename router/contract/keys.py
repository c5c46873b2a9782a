"""Every Redis key and channel, spelled once.

Conversations are divided into `PARTITIONS` by the crc32 of their id, users likewise, and files by the first byte of
their hash. Each partition has a cluster hash tag (`{c<p>}`, `{u<q>}` and `{f<r>}` below, see `tags.py`), and all keys
of one function call have the same tag. Only `idem` has a TTL (IDEMPOTENCY_S). The kind of a conversation is the first
letter of its id, so neither process reads it from Redis.

The tags are those of the process's deployment. A process belongs to one deployment, so they are chosen once, before it
makes the first key (`use_tags`). Until then they are those of a new deployment.

key                            type    content                                              written by / read by
{c<p>}:conv:<conv>             hash    `m` packed meta, kind, title, ver, routed, floor,    functions / both
                                       made, size, owners, gone; `u:<user>` role joined
                                       left, `d:<user>/<device>` dedup rows, `w:<user>`
                                       its devices with a row, `e:<seq>` edits of a message,
                                       `a:<user>` seq at which a channel's member was added,
                                       `h:<user>` earlier times in a group, packed, `deleted`,
                                       `r:<seq>` reactions to a message, `noted` (all
                                       reactions have an `r:` field), `reacting`, `f:<hash>`
                                       seqs of the messages with a file, `freed` files that
                                       lost their last one; of a direct one `pair`, also
                                       before `m`: contacts and blocks                     pair / create, append's roles
                                       `lagging`, `rows`, `o:<user>` last own message,      append / the rows' readers
                                       while rows lag (functions/prelude_user_lagging.lua)
                                       `rules`, `mutes`, `x:<user>` mute, `b:<user>` ban, `s:<user>`
                                       last message in slow mode, `acts` not in the audit
                                       yet (functions/prelude_rules.lua)
{c<p>}:log:<conv>              stream  ids <seq>-0; `e` the event's bytes, `f` author of a  append, mark_routed / range
                                       message
{c<p>}:audit, {u<q>}:audit     stream  acts of people who run groups or the deployment;      move_acts, suspend,
                                       `e` an entry                                         set_roles / audit
{c<p>}:report, {u<q>}:report   hash    name -> packed report of a message, of a user         report, decide_report /
                                                                                            reports
{…}:reports, :open, :resolved, zset    name -> when it was made (µs)                        report, decide_report /
:dismissed                                                                                  reports
{…}:closed                     zset    name -> when it was closed (ms), while the copy of   decide_report /
                                       the message is there                                erase_reports
{c<p>}:dirty                   zset    conv -> due ms; `~conv` due to be trimmed by age;    append, mark_user / claim,
                                       sentinel `!` at +inf; `=conv` copies of a pair's     mark_routed; pair / claim,
                                       record are out of date; `@user` a profile changed;   mark_pair_copied
                                       on a cluster `!<replid>` of the server -> since when
                                       it has the partition, in µs
{u<q>}:user:<user>             hash    created, name, pw, deleted, rates, known; `gen`,     accounts, sync / both
                                       `raised`, `spared`, `out`: tokens that were ended;
                                       `reset` the token that resets the password; profile
                                       and privacy where they differ from the default; `hides`;
                                       `roles` in the deployment, `suspended` until when (ms);
                                       `avatar`, `freed` former avatars, until their files know
{u<q>}:name:<name>             string  user and ms: the one user whose name in lower case   claim_name / claim_name
                                       is <name>
{u<q>}:convs:<user>            hash    conv -> packed row (kind, mark, head, count, ...);   deliver, join, read / sync
                                       `~state` version of the state, `~tokens` when tokens
                                       were ended
{u<q>}:recent:<user>           zset    the same names -> time of the last change, in us     deliver, join, read / sync
{u<q>}:lagging:<user>          hash    direct conversation whose row lags -> its keys       append / the rows' readers
{u<q>}:groups:<user>           zset    group or channel -> joined seq                       join / sync
{u<q>}:dev:<user>              hash    device -> session row; `*` the kick mark of all      sync, leave, kick / both
{u<q>}:people:<user>           hash    other user -> packed row (contact, request, block);  set_relation / both
                                       `#<kind>` counts
{u<q>}:ends:<user>             zset    other user -> when the row is over, in ms            set_relation /
                                                                                            count_relations
{u<q>}:copied                  zset    conv -> when a router compares the copies in        set_relation / claim
                                       `people` with the pair's record, in ms
{u<q>}:cursor:<user>:<device>  hash    conv -> acked seq                                    ack, sync / sync, pushes
{u<q>}:push                    zset    user -> due ms; sentinel `!`                         schedule_push / claims
{u<q>}:pushes:<user>           hash    conv -> waiting seq and due ms; attempts             schedule_push / router
{u<q>}:state:<user>            hash    key -> version, the server's change, value;          write_state / state_after
                                       `*` the user's version and other numbers
{u<q>}:versions:<user>         zset    key of the state -> version                          write_state / state_after
{u<q>}:removed:<user>          zset    removed key -> version of its removal                write_state
{u<q>}:idem:<user>:<key>       string  the result stored for an Idempotency-Key; expires    router / router
{u<q>}:uploads:<user>          hash    hash -> row of a file that the user uploaded;        upload_own / both
                                       `bytes` their sum
{u<q>}:opened:<user>:<name>    string  the conversation in which the user opened a file;   router / both
                                       expires
{u<q>}:uploading:<user>        zset    upload -> end of its lease, in ms                    upload_begin / router
{u<q>}:unfinished:<user>       hash    resumable upload -> when it counts no more, its      upload_begin / router
                                       length: they count against the quota
{f<r>}:file:<name>             hash    `m` packed record, `c:<conv>` what may refer to it,  file_* / both
                                       `u:<user>` its uploaders (functions/prelude_file.lua)
{f<r>}:tus:<id>                hash    a resumable upload: user, length, offset, parts,     tus_* / router
                                       lock, result
{f<r>}:due                     zset    files and objects -> due ms                          file_* / file_claim
{f<r>}:held                    hash    the server that claimed last, and until when         file_claim / file_claim
                                       nothing is claimed
{c<p>}:moved                   zset    conv -> when a router finished it last, in ms; of    mark_routed,
                                       a day, and only where search is on                  forget_conversation / moved
{c<p>}:tick {u<q>}:tick        string  empty; on a cluster, at durability replicated       write_tick
linnet:gateways                hash    node -> lease row; on a cluster also two copies      gateways / both
linnet:routers                 hash    node -> lease row                                    routers / routers
linnet:searchers               hash    node -> lease row: which routers keep the index      routers / routers
linnet:deployment              hash    partitions, format, id, fingerprint (store/            first start / every start
                                       deployment.py)

channel                        subscribers                    content
<bus>{c<p>}:ch:<conv>          gateways with a live member    events; typing and receipts
<bus>{u<q>}:ch:<user>          gateways with a session        direct events; joins, kicks, receipts of own devices
<bus>{u<q>}:pr:<user>          gateways with a watcher        presence may have changed
<bus>{c<p>}:echo:<node>        one gateway                    its own numbers: the subscription is alive; on a
                                                              cluster one for each server

A server has one set of channels for all its databases, so each channel name begins with `<bus>`: the id of the
deployment and its database, `<id>.<database>:`. Deployments made by an earlier release have no `<bus>` until they are
moved (`Channels`).
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from functools import lru_cache
from secrets import token_urlsafe
from typing import Final
from zlib import crc32

import msgspec

from router.contract.tags import COUNT, SPREAD, TAGS

PARTITIONS: Final = COUNT
_TAGS: Final = {family: list(tags) for family, tags in TAGS[SPREAD].items()}  # by partition; `use_tags` replaces them
_CONVERSATION_TAGS: Final = _TAGS["c"]
_USER_TAGS: Final = _TAGS["u"]
_FILE_TAGS: Final = _TAGS["f"]
# Formats of a deployment. Earlier releases refuse to start on those behind the first one.
PLAIN: Final = "1"  # channel names without `<bus>`, as in earlier releases
MOVING: Final = "1-2"  # events are published on names with `<bus>` and received on both
OWN: Final = "2"  # only names with `<bus>`
READING: Final = "2-3"  # as 2, and every process that starts can read users' rows of format 2
ROWS: Final = "3"  # users' rows are written in format 2
NEWEST: Final = ROWS
ROWS_1: Final = 1
ROWS_2: Final = 2
IDEMPOTENCY_S: Final = 86_400
GATEWAYS: Final = "linnet:gateways"
# On a cluster the leases and the deployment's hash have copies, so that no single server is needed. The numbers spread
# the three slots evenly.
GATEWAYS_COPIES: Final = (GATEWAYS, "linnet:gateways:280", "linnet:gateways:3")
DEPLOYMENT_COPIES: Final = ("linnet:deployment", "linnet:deployment:62", "linnet:deployment:269")
ROUTERS: Final = "linnet:routers"
SEARCHERS: Final = "linnet:searchers"
DEPLOYMENT: Final = "linnet:deployment"
TICK: Final = "linnet:tick"
PROBES: Final = ("{c0}:probe", "{u0}:probe", "{f0}:probe", "linnet:{probe}")  # scratch keys, one of each family

DIRECT: Final = "d"
GROUP: Final = "g"
CHANNEL: Final = "c"
STATE: Final = "~state"  # among a user's conversations: the version of their state
KIND_NAMES: Final = {DIRECT: "direct", GROUP: "group", CHANNEL: "channel"}

_CONVERSATION: Final = re.compile(r"(?:d:[A-Za-z0-9._-]{1,64}:[A-Za-z0-9._-]{1,64}|[gc]:[A-Za-z0-9_-]{22})\Z")


def is_conversation(conv: str) -> bool:
    """Whether the string has the form of a conversation id; only such strings become part of a key."""
    return _CONVERSATION.match(conv) is not None


def new_conversation(kind: str) -> str:
    """A fresh id for a group (`g`) or channel (`c`)."""
    return f"{kind}:{token_urlsafe(16)}"


def direct(user: str, other: str) -> str:
    """The id of the one direct conversation of two users; both may be the same user."""
    return f"d:{user}:{other}" if user <= other else f"d:{other}:{user}"


def parties(conv: str) -> tuple[str, str]:
    """The two users of a direct conversation."""
    _, user, other = conv.split(":")
    return user, other


def other_party(conv: str, user: str) -> str:
    """The other user of a direct conversation; `user` must be one of its two users."""
    first, second = parties(conv)
    return second if user == first else first


def use_tags(partitions: str) -> None:
    """Make all keys and channels from now on with the tags of a deployment whose field `partitions` this is."""
    for family, tags in TAGS[partitions].items():
        _TAGS[family][:] = tags
    of_conversation.cache_clear()


def used_tags() -> str:
    """The field `partitions` of a deployment that has the tags in use."""
    return next(partitions for partitions, tags in TAGS.items() if tuple(_CONVERSATION_TAGS) == tags["c"])


def partition(name: str) -> int:
    return crc32(name.encode()) % PARTITIONS


def _c(conv: str) -> str:
    return _CONVERSATION_TAGS[crc32(conv.encode()) % PARTITIONS]


def _u(user: str) -> str:
    return _USER_TAGS[crc32(user.encode()) % PARTITIONS]


def conversation(conv: str) -> str:
    return f"{_c(conv)}:conv:{conv}"


EVERY_CONVERSATION: Final = "{c*}:conv:*"  # for a scan; never on the hot path


def conversation_of(key: bytes) -> str:
    """The conversation whose hash this key is; for a key that is none of ours, a name that no conversation has."""
    return key.partition(b":conv:")[2].decode(errors="replace")


def log(conv: str) -> str:
    return f"{_c(conv)}:log:{conv}"


def dirty(part: int) -> str:
    return f"{_CONVERSATION_TAGS[part]}:dirty"


@lru_cache(maxsize=1 << 14)
def of_conversation(conv: str) -> tuple[str, str, str]:
    """The keys of a conversation: its hash, its log, and the dirty set of its partition."""
    return conversation(conv), log(conv), dirty(partition(conv))


def moved(part: int) -> str:
    return f"{_CONVERSATION_TAGS[part]}:moved"


def audit_of_conversations(part: int) -> str:
    return f"{_CONVERSATION_TAGS[part]}:audit"


def audit_of_users(part: int) -> str:
    return f"{_USER_TAGS[part]}:audit"


def reports(family: str, part: int) -> tuple[str, ...]:
    """The keys of the reports in a partition: rows, all by time, by state, closed ones, audit."""
    names = "report", "reports", "open", "resolved", "dismissed", "closed", "audit"
    return tuple(f"{_TAGS[family][part]}:{name}" for name in names)


EVERY_USER: Final = "{u*}:user:*"  # for a scan; never on the hot path


def user_of(key: bytes) -> str:
    return key.partition(b":user:")[2].decode(errors="replace")


def user(name: str) -> str:
    return f"{_u(name)}:user:{name}"


def folded(name: str) -> str:
    """The name in lower case: the same for all names that differ only in case."""
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


def people(name: str) -> str:
    return f"{_u(name)}:people:{name}"


def ends(name: str) -> str:
    return f"{_u(name)}:ends:{name}"


def copied(part: int) -> str:
    return f"{_USER_TAGS[part]}:copied"


def cursor(name: str, device: str) -> str:
    return f"{_u(name)}:cursor:{name}:{device}"


def push(part: int) -> str:
    return f"{_USER_TAGS[part]}:push"


def pushes(name: str) -> str:
    return f"{_u(name)}:pushes:{name}"


def state(name: str) -> str:
    return f"{_u(name)}:state:{name}"


EVERY_STATE: Final = "{u*}:state:*"  # for a scan; never on the hot path


def user_of_state(key: bytes) -> str:
    return key.partition(b":state:")[2].decode(errors="replace")


def versions(name: str) -> str:
    return f"{_u(name)}:versions:{name}"


def removed(name: str) -> str:
    return f"{_u(name)}:removed:{name}"


def idempotency(name: str, key_hash: str) -> str:
    return f"{_u(name)}:idem:{name}:{key_hash}"


def uploads(name: str) -> str:
    return f"{_u(name)}:uploads:{name}"


def opened(name: str, sha256: str) -> str:
    return f"{_u(name)}:opened:{name}:{file_name(sha256)}"


def uploading(name: str) -> str:
    return f"{_u(name)}:uploading:{name}"


def unfinished(name: str) -> str:
    return f"{_u(name)}:unfinished:{name}"


_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")
_TUS: Final = re.compile(r"[0-9a-f]{32}\Z")


def is_sha256(text: str) -> bool:
    """Whether the string has the form of a file's hash; only such strings become part of a key."""
    return _SHA256.match(text) is not None


def file_partition(sha256: str) -> int:
    return int(sha256[:2], 16)


def file_name(sha256: str) -> str:
    """The hash as keys and due lists have it: 43 characters of URL-safe base64."""
    return urlsafe_b64encode(bytes.fromhex(sha256)).rstrip(b"=").decode()


def sha256_of(name: str) -> str:
    """The hash of a `file_name`."""
    return urlsafe_b64decode(name + "=").hex()


def file(sha256: str) -> str:
    return f"{_FILE_TAGS[file_partition(sha256)]}:file:{file_name(sha256)}"


def is_tus(text: str) -> bool:
    """Whether the string has the form of a resumable upload's name."""
    return _TUS.match(text) is not None


def tus(upload: str) -> str:
    return f"{_FILE_TAGS[file_partition(upload)]}:tus:{upload}"


def file_due(part: int) -> str:
    return f"{_FILE_TAGS[part]}:due"


def file_held(part: int) -> str:
    return f"{_FILE_TAGS[part]}:held"


class Channels(msgspec.Struct, frozen=True):
    """The channel names of one deployment: each begins with `bus`.

    `also` is the prefix that nodes of the other format use while the deployment is moved to a new format, None if there
    are no such nodes. A node subscribes to the names with either prefix and publishes to the one with `bus`.
    """

    bus: str = ""
    also: str | None = None

    @property
    def moved(self) -> bool:
        """Whether the deployment has format `OWN` or a later one: no node of an earlier format runs beside this one."""
        return self.bus != "" and self.also is None

    def conversation(self, conv: str) -> str:
        return f"{self.bus}{_c(conv)}:ch:{conv}"

    def user(self, name: str) -> str:
        return f"{self.bus}{_u(name)}:ch:{name}"

    def presence(self, name: str) -> str:
        return f"{self.bus}{_u(name)}:pr:{name}"

    def probes(self) -> tuple[str, str]:
        """Unused channels, one of each family, with which a starting process tests its rights."""
        return f"{self.bus}{{c0}}:probe", f"{self.bus}{{u0}}:probe"

    def echo(self, node: str) -> str:
        return self.echo_at(_c(node), node)

    def echo_at(self, tag: str, node: str) -> str:
        """A node's own channel with this hash tag: on a cluster it has one at each server."""
        return f"{self.bus}{tag}:echo:{node}"


def channels(layout: str, bus: str) -> Channels:
    """The channel names of a deployment of this format."""
    return {PLAIN: Channels("", bus), MOVING: Channels(bus, "")}.get(layout, Channels(bus))


def row_format(layout: str) -> int:
    """The format of users' rows that processes of a deployment of this format write."""
    return ROWS_2 if layout == ROWS else ROWS_1


def tags(family: str) -> Iterator[str]:
    """The hash tags of all partitions of conversations (`c`), users (`u`) or files (`f`)."""
    return iter(_TAGS[family])


def tick_beside(key: str) -> str:
    """The key that `write_tick` writes in the slot of this key."""
    return f"{key[: key.index('}') + 1]}:tick"


def renamed(channel: bytes, bus: bytes) -> bytes:
    """The channel's name with `bus` as its prefix."""
    return bus + channel[channel.index(b"{") :]
