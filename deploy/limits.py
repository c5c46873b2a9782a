"""`make limits`: the tables of limits, made from the constants that enforce them.

A limit is a bound that a client, a backend or an operator can reach. Each group of limits is on the page of its
readers: PAGES. Adding a limit: a row in LIMITS whose value is the constant itself, then `make limits`.
tests/test_readme.py compares the tables, and requires a row or a reason for each constant whose name says that it is a
limit. Settings have a table of their own (`settings_table.py`).
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

from deploy.tables import ROOT, replace, write
from gateway.commands import dispatch as commands
from gateway.commands import ephemeral, history, sending
from gateway.delivery import backlog, deadlines, heartbeats, repair, session, subscriptions
from gateway.presence import watches
from gateway.websocket import connection
from router.__main__ import CONNECTIONS
from router.api import call as api_call
from router.api import contacts, passwords, profiles, steps
from router.api import messages as api_messages
from router.api import rate_limits as rates
from router.api import search as api_search
from router.api import tus as api_tus
from router.api import uploads as api_uploads
from router.api.types import uploads as uploads_types
from router.api.types.accounts import NewAccount
from router.api.types.common import PageLimit, Password
from router.api.types.contacts import RequestText
from router.api.types.conversations import MAX_SLOW_S, Title
from router.api.types.moderation import Reason
from router.api.types.profiles import About, DisplayName, StatusText
from router.api.types.state import StateQuery
from router.contract import files, keys, packing, settings, signals, state, tokens, verifier, wire, words
from router.jobs import finisher, janitor, webhooks
from router.jobs.rounds import CHUNK
from router.media import places, prepare, turns, workers
from router.media.worker import __main__ as worker
from router.media.worker import header
from router.process import bounded, breaker, hooked, http_client, jwks, poster, send_hook, spans
from router.search import query
from router.store import accounts, attaching, conversations, durability, presence, reports, resumable, users
from router.store import files as store_files
from router.store import profiles as user_profiles
from router.store import state as user_state
from router.store.redis import pipeline as hot
from router.store.redis import routing

MADE_BY: Final = "limits"


class Limit(Struct, frozen=True):
    of: str
    value: str
    beyond: str


def lua(function: str, name: str) -> int:
    """Return the whole number in a constant of a function's source, after the terms that are names."""
    text = (ROOT / f"router/store/functions/{function}.lua").read_text()
    found = re.search(rf"^ *local {name} = (?:.*\+ )?(\d+)\b", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"{function}.lua has no {name}")
    return int(found[1])


def longest(annotated: Any) -> int:
    """Return the greatest length or number that a type of the wire or the API accepts."""
    info = inspect.type_info(annotated)
    if isinstance(info, inspect.Metadata):
        info = info.type
    for one in info.types if isinstance(info, inspect.UnionType) else (info,):
        for name in ("max_length", "le"):
            if (bound := getattr(one, name, None)) is not None:
                return int(bound)
    raise LookupError(f"{annotated} has no bound")


def field(struct: type[Struct], name: str) -> int:
    """Return the greatest length or number that the field of a struct accepts."""
    return longest(next(one.type for one in msgspec.structs.fields(struct) if one.name == name))


def count(number: float) -> str:
    return f"{number:,g}" if number < 1e6 else f"{int(number):,}"


def size(number: int) -> str:
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:g} {unit}"
    return f"{number} bytes"


def time(seconds: float) -> str:
    for unit, factor in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= factor and seconds % factor == 0:
            return f"{seconds / factor:g} {unit if seconds > factor else unit.rstrip('s')}"
    return f"{seconds:g} s"


def rate(cost_s: float, burst: float) -> str:
    return f"{count(burst)} at once, then one every {time(cost_s)}"


LIMITS: Final[dict[str, list[Limit]]] = {
    "The WebSocket": [
        Limit("time until `hello`", time(deadlines.HELLO_S), "close 4001"),
        Limit("a frame or message of a client", size(wire.MAX_FRAME_BYTES), "close 1009"),
        Limit("command `id`, characters (or an integer)", count(wire.MAX_ID), "`bad_command`"),
        Limit("integers: `n`, `seq`, `done`", f"2^{packing.MAX_INTEGER.bit_length()} − 1", "`bad_command`"),
        Limit("nesting of a command or body", count(packing.MAX_DEPTH), "`bad_command`"),
        Limit("names of users and devices, characters of `A-Z a-z 0-9 . _ -`", "1 to 64", "`bad_command`"),
        Limit("conversation ids and `to`, characters", count(longest(wire.Target)), "`bad_command`"),
        Limit("`emoji` and `media`, characters", count(longest(wire.Short)), "`bad_command`"),
        Limit("`instance`, characters", count(longest(wire.Instance)), "`bad_command`"),
        Limit("a token, characters", count(tokens.MAX_TOKEN), "`unauthorized`"),
        Limit("`cursors` of a `hello`, conversations", count(field(wire.Hello, "cursors")), "`bad_command`"),
        Limit("`cursors` of an `ack`, conversations", count(field(wire.Ack, "cursors")), "`bad_command`"),
        Limit("conversations in one `welcome`", count(wire.WELCOME_LIMIT), "`conversations` events follow"),
        Limit("events in one `history` page", f"{count(wire.HISTORY_LIMIT)}, {size(conversations.PAGE_BYTES)}",
              "`bad_command`; a shorter page"),
        Limit("`history` commands of a connection that wait for their answer", count(history.MAX_PAGES),
              "`rate_limited`"),
        Limit("users in one `presence` command", count(wire.PRESENCE_LIMIT), "`bad_command`"),
        Limit("users that a connection watches", count(watches.MAX_WATCHES), "`too_large`"),
        Limit("`typing` forwarded per session and conversation", f"one every {time(ephemeral.TYPING_EVERY_S)}",
              "dropped"),
        Limit("members with sessions on one gateway, of a group or channel in which a user with a block types",
              count(subscriptions.DISCREET_VIEWERS), "`typing` is dropped there"),
        Limit("cost of a command other than `send`, `edit`, `delete`, `react`, `history`, `presence`, `state`",
              f"{commands.LIGHT:g} of a send", "`rate_limited` by `LINNET_SENDS_PER_S`"),
        Limit("commands sent in spite of `rate_limited`", time(commands.FLOOD_S) + " ahead of the rate", "close 4008"),
        Limit("pings and pongs of a client", rate(connection.CONTROL_EVERY_S,
              connection.CONTROL_BURST_S / connection.CONTROL_EVERY_S), "close 1008"),
        Limit("silence of a client", f"{heartbeats.LOST_AFTER_HEARTBEATS:g} × `LINNET_HEARTBEAT_S`", "close 4002"),
        Limit("bytes written to a client that does not read", size(connection.HIGH_MARK),
              "the session is fed from the log once the client reads again"),
        Limit("connects of one user", rate(users.CONNECT_COST_US / 1e6,
              users.CONNECT_BURST_US / users.CONNECT_COST_US), "close 4008 with `retry_after`"),
    ],
    "Users, conversations, messages": [
        Limit("devices of a user", count(lua("sync", "DEVICES")), "replaces one that has ended, else the first (4409)"),
        Limit("a message's body", size(packing.MAX_BODY_BYTES), "`too_large`"),
        Limit("reactions to one message that are remembered", count(lua("prelude_sending", "REACTIONS")),
              "a repeated reaction that is not remembered is another event"),
        Limit("edits of one message", count(lua("prelude_sending", "EDITS")), "`conflict`"),
        Limit("deletions of a conversation that `unread` takes into account",
              f"the last {count(lua('append', 'DELETIONS'))}", "messages that were deleted earlier count as unread"),
        Limit("a device's sends in one conversation whose `n` is remembered",
              f"the last {count(lua('prelude_sending', 'ACCEPTED_FULL'))} above `done`",
              "`conflict` for a resend of an older one"),
        Limit("device names of a user that sent in one conversation", count(lua("append", "DEVICES")),
              "the one that sent least recently is forgotten: its resends are new messages"),
        Limit("sends of a session that wait until a direct conversation is created, or behind files that are looked up",
              count(sending.MAX_WAITING),
              "`rate_limited`"),
        Limit("`files` of one message", count(files.MAX_FILES), "`bad_command`"),
        Limit("messages of a conversation with the same file", count(lua("prelude_sending", "REFERENCES")),
              "`conflict`"),
        Limit("age of an upload that is sent", time(attaching.SENDABLE_MS / 1000), "`not_found`"),
        Limit("direct conversations that a user opens", rate(users.OPEN_COST_US / 1e6,
              users.OPEN_BURST_US / users.OPEN_COST_US), "`rate_limited`"),
        Limit("`name`, `about`, `status.text` of a profile, characters", ", ".join(
              count(longest(one)) for one in (DisplayName, About, StatusText)), "422"),
        Limit("`extra` of a profile", size(profiles.MAX_EXTRA_BYTES), "`too_large`"),
        Limit("changes of `privacy.messages`", rate(user_profiles.MESSAGES_COST_US / 1e6,
              user_profiles.MESSAGES_BURST_US / user_profiles.MESSAGES_COST_US), "`rate_limited`"),
        Limit("searches for users", rate(users.SEARCH_COST_US / 1e6, users.SEARCH_BURST_US / users.SEARCH_COST_US),
              "`rate_limited`"),
        Limit("users found by a search", count(profiles.MAX_FOUND), "`more`"),
        Limit("groups, and members of each, that a search looks at",
              f"the {count(profiles.SEARCHED_GROUPS)} last active, {count(profiles.SEARCHED_MEMBERS)}", "not found"),
        Limit("contacts of a user", count(contacts.MAX_CONTACTS), "`quota`"),
        Limit("requests of a user that are open", f"{count(contacts.MAX_OUTGOING)}, "
              + time(lua("pair", "LASTS_DAYS") * 86_400), "`quota`; it counts as absent"),
        Limit("contact requests of a user", rate(users.ASK_COST_US / 1e6, users.ASK_BURST_US / users.ASK_COST_US),
              "`rate_limited`"),
        Limit("requests that a user sees", count(lua("set_relation", "INCOMING")),
              "others look pending to their askers"),
        Limit("requests to a user and blocks of that user that are noted, with those of the last hour that are over",
              count(lua("set_relation", "ROWS")),
              "requests are not shown; the user's presence is not hidden from the blocker"),
        Limit("a declined request is not shown again for", time(lua("pair", "QUIET_MS") / 1e3),
              "asking changes nothing"),
        Limit("message of a contact request, characters", count(longest(RequestText)), "422"),
        Limit("users that a user blocks", count(contacts.MAX_BLOCKS), "`quota`"),
        Limit("a key of a user's state, characters", count(state.MAX_KEY), "`bad_command`"),
        Limit("a value of a user's state", size(state.MAX_VALUE_BYTES), "`too_large`"),
        Limit("keys and values of a user's state that clients write",
              f"{count(lua('write_state', 'KEYS_OF_CLIENTS'))} keys, {size(lua('write_state', 'BYTES_OF_CLIENTS'))}",
              "`quota`"),
        Limit("changes of a user's state by clients", "`LINNET_SENDS_PER_S`, `LINNET_SEND_BURST`", "`rate_limited`"),
        Limit("removed keys of a user's state that are kept", f"{count(lua('write_state', 'REMOVED'))}, "
              + time(lua("write_state", "REMOVED_US") / 1e6), "a device that missed a removal reads everything anew"),
        Limit("members of a conversation", count(conversations.MAX_MEMBERS), "`conflict` (409)"),
        Limit("earlier memberships of a user in a group whose events stay readable", count(lua("member", "RANGES")),
              "events of the earliest ones are not readable"),
        Limit("members named when a conversation is created", count(conversations.CREATE_LIMIT), "422"),
        Limit("`slow_s` of a conversation", time(MAX_SLOW_S), "422"),
        Limit("`reason` of a mute, ban, suspension or report, characters", count(longest(Reason)), "422"),
        Limit("reports of a user", rate(users.REPORT_COST_US / 1e6, users.REPORT_BURST_US / users.REPORT_COST_US),
              "`rate_limited`"),
        Limit("mutes, bans, suspensions, decisions on reports, and deletes as a moderator, of one user",
              rate(users.ACT_COST_US / 1e6, users.ACT_BURST_US / users.ACT_COST_US), "`rate_limited`"),
        Limit("title of a conversation, characters", count(longest(Title)), "422"),
        Limit("members up to which a conversation has `receipt` events", count(signals.RECEIPT_MEMBERS),
              "no `receipt`"),
        Limit("members up to which all members of a group get pushes", count(finisher.PUSH_MEMBERS),
              "only members named in `mentions` get pushes"),
        Limit("names read from `mentions` of a message", count(finisher.MAX_MENTIONS), "the others get no push"),
        Limit("time for which `last_seen` after a killed gateway is exact", time(janitor.KEEP_S),
              "the time at which the session began"),
    ],
    "The HTTP API": [
        Limit("a request's body", size(steps.MAX_BODY_BYTES), "413"),
        Limit("head of a request", f"{size(bounded.HEAD_BYTES)}, {time(bounded.HEAD_S)}", "431, closed"),
        Limit("time for a request's body", time(steps.BODY_S), "400"),
        Limit("time within which the client must read an answer", time(bounded.ANSWER_S), "closed"),
        Limit("pipelined requests of a connection", count(bounded.PIPELINED), "400, closed"),
        Limit("requests and connections of one router", count(CONNECTIONS), "503"),
        Limit("entries of a page", f"{count(longest(PageLimit))}; of the state "
              + f"{count(field(StateQuery, 'limit'))}, {size(user_state.PAGE_BYTES)}", "422; a shorter page"),
        Limit("password, characters", count(longest(Password)), "422"),
        Limit("`name` of an account, characters", count(field(NewAccount, "name")), "422"),
        Limit("guesses at the password of a user", rate(accounts.GUESS_COST_US / 1e6,
              accounts.GUESS_BURST_US / accounts.GUESS_COST_US), "429"),
        Limit("time for which a password reset token counts", time(accounts.RESET_S), "401"),
        Limit("tokens of a user that were logged out and have not expired", count(lua("end_tokens", "OUT")),
              "all tokens of the user end"),
        Limit("devices and addresses of a user whose guesses are counted separately", count(lua("prelude_user",
              "KNOWN_PLACES")),
              "replaces the one used longest ago"),
        Limit("account and login requests of one address, per router",
              rate(api_call.ADDRESS_EVERY_S, api_call.ADDRESS_BURST), "429"),
        Limit("addresses whose rate a router remembers", count(rates.SIZE), "replaces the one seen longest ago"),
        Limit("passwords that wait for a check, per router", count(passwords.WAITING), "503"),
        Limit("bytes of a picture", f"`LINNET_MEDIA_IMAGE_MB`, at most {count(worker.PICTURE_BYTES / 1e6)} MB", "413"),
        Limit("a JPEG", f"{count(header.MAX_PIXELS['image/jpeg'] / header.MEGAPIXEL)} megapixels", "413"),
        Limit("a PNG, WebP or GIF", f"{count(header.MAX_PIXELS['image/png'] / header.MEGAPIXEL)} megapixels", "413"),
        Limit("an animation", f"{count(header.MAX_FRAMES)} frames, all together"
              f" {count(header.MAX_ANIMATION_PIXELS / header.MEGAPIXEL)} megapixels", "413"),
        Limit("memory and CPU time to read a picture or recording",
              f"{size(workers.Bounds().memory_bytes)}, {time(workers.Bounds().cpu_s)}", "413"),
        Limit("files of a user that reach that bound, per router",
              f"{count(prepare.KILLS)} within {time(prepare.KILLS_S)}", "429"),
        Limit("uploads that wait for a worker, and for the scanner, per router", count(turns.WAITING), "503"),
        Limit("`Idempotency-Key`, characters", count(api_messages.KEY_CHARACTERS), "422"),
        Limit("a file's name, bytes", count(files.MAX_NAME_BYTES), "422"),
        Limit("levels of a `waveform`", count(files.MAX_WAVEFORM), "422"),
        Limit("time without a byte of an upload", time(api_uploads.IDLE_S), "400, closed"),
        Limit("resumable uploads of a user that are not finished", count(store_files.UNFINISHED), "`quota`"),
        Limit("uploads at once, per router", count(places.UPLOADS), "503"),
        Limit("`Upload-Metadata`, characters", count(api_tus.MAX_META), "422"),
        Limit("parts of a resumable upload: each `PATCH`, or its pieces of " + size(api_tus.PART_BYTES),
              count(api_tus.PARTS), "413"),
        Limit("life of a resumable upload after its last byte", time(resumable.KEEP_S), "404"),
        Limit("files in one call for links", count(uploads_types.FILES_AT_ONCE), "422"),
        Limit("`q` of a search", f"{count(query.MAX_QUERY)} characters, {count(query.MAX_QUERY_WORDS)} words", "422"),
        Limit("searches of a user", rate(users.QUERY_COST_US / 1e6, users.QUERY_BURST_US / users.QUERY_COST_US), "429"),
        Limit("letters of a word that a search compares", count(words.MAX_WORD), "found by its beginning"),
        Limit("conversations of a user that are searched", count(api_search.MAX_CONVERSATIONS),
              "those that moved last; `incomplete`"),
        Limit("messages about which a search asks the log", count(api_search.MAX_CANDIDATES),
              "`incomplete`: ask for an earlier time (`before`)"),
        Limit("marks of a hit", count(query.MAX_MARKS), "the first ones"),
        Limit("life of a link", "30 min to 1 h", "404"),
        Limit("time for which an `Idempotency-Key` is remembered", time(keys.IDEMPOTENCY_S), "it is a new message"),
    ],
    "The webhook": [
        Limit("time for an answer", time(webhooks.TIMEOUT_S), "repeated"),
        Limit("bytes of an answer that are read", size(poster.MAX_ANSWER_BYTES), "the connection is closed"),
        Limit("attempts", count(webhooks.MAX_ATTEMPTS), "dropped"),
        Limit("time between attempts", f"{time(webhooks.BACKOFF_S[0])} to {time(webhooks.BACKOFF_S[1])}", "–"),
        Limit("`Retry-After` of an answer", time(http_client.MAX_RETRY_AFTER_S), "taken as this"),
        Limit("posts at once, per router", count(CHUNK * webhooks.LIMIT), "they wait for a free place"),
        Limit("conversations in one post", count(webhooks.CONVERSATIONS), "another post"),
        Limit("conversations in which a user waits for a push", count(lua("schedule_push", "WAITS")),
              "no push for the others"),
    ],
    "The pre-send hook": [
        Limit("bytes of an answer that are read", size(poster.MAX_ANSWER_BYTES), "no verdict"),
        Limit("`reason` of a verdict, characters", count(send_hook.REASON_CHARACTERS), "no verdict"),
        Limit("questions at once, per gateway and router", count(send_hook.AT_ONCE),
              f"up to {count(send_hook.MAX_WAITING)} wait for a free place, as long as `LINNET_SEND_HOOK_TIMEOUT_MS`"),
        Limit("questions about one user at once (of new accounts: one address), per gateway and router",
              count(send_hook.OF_ONE_USER), "`rate_limited`"),
        Limit("events of a device that wait for a verdict in one conversation", count(hooked.MAX_WAITING),
              "`rate_limited`"),
        Limit("bytes of the events that wait, per gateway and router", size(hooked.MAX_BYTES), "`unavailable`"),
        Limit("users whose answers are missing before a process asks only one question in "
              + time(breaker.PROBE_S), count(breaker.USERS), "counted as failures"),
    ],
    "Inside, for operators": [
        Limit("acts of moderation in a conversation that wait for a router", size(lua("prelude_rules", "MOST_ACTS")),
              "mutes, bans and deletes of others' messages there are `unavailable`"),
        Limit("acts in the audit, and reports, of each of the 256 partitions of conversations and of users",
              f"{count(lua('prelude_rules', 'AUDIT_KEPT'))}; {count(lua('report', 'MOST'))}",
              "the oldest are removed; if all reports are open, further ones are refused (`quota`)"),
        Limit("time for which the copy of a message stays in a closed report", time(reports.ERASE_MS / 1000),
              "it is erased"),
        Limit("secrets and keys of the settings, bytes", f"≥ {settings.MIN_SECRET_BYTES}",
              "the process does not start"),
        Limit("an identity provider's key set", f"{count(tokens.MAX_KEYS)} keys, {size(jwks.MAX_BYTES)}", "ignored"),
        Limit("keys of that set, RSA bits", f"≥ {count(tokens.MIN_RSA_BITS)}", "ignored"),
        Limit("age of that key set", time(verifier.MAX_AGE_S), "fetched again"),
        Limit("tokens with unknown keys that a process remembers", count(verifier.MAX_PENDING), "`unavailable` again"),
        Limit("conversations that one router finishes at once", count(CHUNK * finisher.LIMIT),
              "they wait for a free place"),
        Limit("calls of a process to Redis without an answer", f"{count(hot.MAX_CALLS)}, {size(hot.MAX_BYTES)}",
              "`unavailable`"),
        Limit("the same on a cluster, for each of its primaries more", count(routing.MAX_CALLS_PER_SERVER), "the same"),
        Limit("time for Redis to answer", time(hot.TIMEOUT_S), "`unavailable`, a new connection"),
        Limit("time for which a call waits for its slot on a cluster", time(routing.HOLD_S), "`unavailable`"),
        Limit("sends that wait for `fsync` or replicas, per gateway", count(durability.MAX_WAITING), "`unavailable`"),
        Limit("time for which a gateway's lease is valid", time(presence.LEASE_S), "its users are offline"),
        Limit("direct conversations with new events that a slow session notes", count(session.MAX_DIRECT),
              "read from the log"),
        Limit("conversations with new events while a device catches up", count(backlog.MAX_MOVED),
              "the catch-up begins again"),
        Limit("events read at once to fill a hole in live delivery", count(repair.REPAIR_EVENTS),
              "sessions read the log"),
        Limit("spans that wait for the collector of traces", count(spans.MAX_WAITING), "dropped and counted"),
    ],
}  # fmt: skip


PAGES: Final = {
    "gateway/PROTOCOL.md": ("The WebSocket", "Users, conversations, messages"),
    "router/API.md": ("The HTTP API", "The webhook", "The pre-send hook"),
    "deploy/README.md": ("Inside, for operators",),
}


def table(headings: tuple[str, ...]) -> str:
    lines = ["| limit | value | beyond it |", "|---|---|---|"]
    for heading in headings:
        if len(headings) > 1:
            lines.append(f"| **{heading}** | | |")
        lines += [f"| {one.of} | {one.value} | {one.beyond} |" for one in LIMITS[heading]]
    return "\n".join(lines) + "\n"


def with_table(page: str, text: str) -> str:
    """Return the page's text with its table as the constants have it now."""
    return replace(text, MADE_BY, table(PAGES[page]))


if __name__ == "__main__":
    for page in PAGES:
        write(page, with_table)
