"""Authorization: every HTTP call and every WebSocket command, role by role, with exactly the documented code.

There are two tables, with a row per call or command and per target, and a column per role. If a call of the API's own
table or a command of the gateway's own table has no row here, or a row names a call that no longer exists, a test
fails.

The users and conversations of each cell in which something is changed are new, so no cell affects another. All cells in
which a call is refused or only reads share theirs, because neither changes anything: if one did, another would differ.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, get_args

import httpx
import jwt
import msgspec
from websockets.exceptions import ConnectionClosed

from router.api.table import endpoints
from router.contract import wire
from router.contract.settings import Settings
from tests.flow.client import ChatClient, token
from tests.flow.conftest import System
from tests.support import JWT_SECRET, SERVER_KEY

MEMBERS: Final = ("owner", "admin", "member", "reader", "left")
USERS: Final = (*MEMBERS, "stranger")
PASSWORD: Final = "correct horse battery"
PICTURE: Final = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
SETTINGS: Final = Settings(jwt_secret=JWT_SECRET, media_url="file:///everything", search_url="file:///index")
AT_ONCE: Final = 8
EVERYTHING: Final = "<stranger> <friend> <newcomer> <own> <direct>"
NOWHERE: Final = "g:" + "A" * 22

_serial = itertools.count(1)


class Cast(msgspec.Struct, frozen=True):
    """The users of a cell, their group, and a direct conversation of others; `role` is the acting user's.

    `owned` has a message of each role that may act. `things` are files, if the call is about files (`Backend.files`).
    """

    role: str
    names: dict[str, str]
    group: str
    direct: str
    seq: int
    owned: dict[str, int]
    things: dict[str, str] = {}

    @property
    def me(self) -> str:
        return self.names.get(self.role, self.names["stranger"])

    def fill(self, template: Any) -> Any:
        """Return the template with the names of this cell."""
        given = {**self.names, "me": self.me, "group": self.group, "direct": self.direct, "password": PASSWORD}
        given |= self.things
        own = self.owned.get(self.role, self.owned.get("owner", 0))
        text = json.dumps(template)
        for name, value in given.items():
            text = text.replace(f"<{name}>", value)
        return json.loads(text.replace('"<seq>"', str(self.seq)).replace('"<own>"', str(own)))


class Backend:
    """The HTTP API, for the preparation with the server key and for the calls of the cells."""

    def __init__(self, chat: System) -> None:
        assert chat.router is not None
        self.http = httpx.AsyncClient(base_url=chat.router.url, trust_env=False, timeout=60)
        self._shared: dict[tuple[str, bool], asyncio.Task[Cast]] = {}

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        answer = await self.http.request(method, path, json=body, headers={"Authorization": f"Bearer {SERVER_KEY}"})
        assert answer.is_success, (path, answer.text)
        return answer.json() if answer.content else None

    async def sent(self, author: str, to: str) -> Any:
        return await self.ok("POST", "/v1/messages", {"from": author, "to": to, "body": "hi"})

    async def by(self, user: str, method: str, path: str, content: bytes = b"", **headers: str) -> httpx.Response:
        """A call of a user that must succeed."""
        given = {"Authorization": f"Bearer {token(user)}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        answer = await self.http.request(method, path, content=content, headers=given)
        assert answer.is_success, (path, answer.text)
        return answer

    async def files(self, victim: str, me: str, group: str) -> dict[str, str]:
        """The victim's file, sent to the group, with a link to it; their avatar; resumable uploads of both users."""
        file = (await self.by(victim, "POST", "/v1/uploads", f"file of {victim}".encode())).json()["sha256"]
        face = (await self.by(victim, "POST", "/v1/uploads", PICTURE, Content_Type="image/png")).json()["sha256"]
        await self.by(victim, "PATCH", "/v1/me", json.dumps({"avatar": face}).encode())
        message = {"from": victim, "to": group, "body": "see", "files": [file]}
        await self.ok("POST", "/v1/messages", message)
        asked = json.dumps({"files": [file]}).encode()
        links = (await self.by(victim, "POST", "/v1/uploads/links", asked)).json()["links"]
        begun = [
            await self.by(user, "POST", "/v1/uploads/tus", Tus_Resumable="1.0.0", Upload_Length="3")
            for user in (victim, me)
        ]
        theirs, mine = [answer.headers["location"] for answer in begun]
        return {"file": file, "face": face, "link": links[file]["url"], "their upload": theirs, "my upload": mine}

    async def cast(self, acting: Iterable[str], uses: str, kind: str = "group", files: bool = False) -> Cast:
        """Create a conversation with users of all roles; `victim` has written into it, and directly to `friend`.

        `acting`: the roles that act. The first is the cast's. `uses`: a text with the names that the calls use; what
        only others would need is left out.
        """
        role, *_ = acting = list(acting)
        number = next(_serial)
        everybody = (*USERS, "victim", "admin2", "friend", "newcomer")
        names = {name: f"{name}-a{number}" for name in everybody}
        uses += "<friend>" if "<direct>" in uses else ""
        me = role if role in USERS else "stranger"
        for name in ("stranger", "friend", "newcomer"):
            if f"<{name}>" in uses or name == me:
                await self.ok("POST", "/v1/tokens", {"user": names[name]})
        roles = {names[name]: "member" for name in (*MEMBERS, "victim")}
        roles |= {names["owner"]: "owner", names["admin"]: "admin", names["admin2"]: "admin"}
        made = await self.ok("POST", "/v1/conversations", {"kind": kind, "title": "t", "members": roles})
        group = made["conversation"]
        authors = ({*acting} & {*MEMBERS}) | {"owner"} if "<own>" in uses else ()
        owned = {one: (await self.sent(names[one], group))["seq"] for one in sorted(authors)}
        seq = (await self.sent(names["victim"], group))["seq"]
        things = await self.files(names["victim"], names[me], group) if files else {}
        if "reader" in acting:
            await self.ok("PUT", f"/v1/conversations/{group}/members/{names['reader']}", {"role": "reader"})
        if "left" in acting:
            await self.ok("DELETE", f"/v1/conversations/{group}/members/{names['left']}")
        direct = NOWHERE
        if "<direct>" in uses:
            direct = (await self.sent(names["victim"], f"@{names['friend']}"))["conversation"]
        return Cast(role, names, group, direct, seq, owned, things)

    async def shared(self, role: str, kind: str = "group", files: bool = False) -> Cast:
        """The cast that all cells share that change nothing."""
        task = self._shared.get((kind, files))
        if task is None:
            task = asyncio.ensure_future(self.cast(USERS, EVERYTHING, kind, files))
            self._shared[kind, files] = task
        return msgspec.structs.replace(await task, role=role)


# -- HTTP

COLUMNS: Final = (*USERS, "nobody", "forged", "server")


class Row(msgspec.Struct, frozen=True):
    """One call on one kind of thing; `codes` stand under COLUMNS."""

    call: str
    codes: str
    path: str
    body: Any = None
    kind: str = "group"
    headers: dict[str, str] = {}

    @property
    def files(self) -> bool:
        """Whether the call is about files."""
        return any(name in repr((self.path, self.body)) for name in ("<file>", "<face>", "<link>", " upload>"))

    def changes(self, code: str) -> bool:
        """Whether a cell has a cast of its own: it changes something, is about a file of the acting user, or guesses,
        and guesses are limited."""
        if any(name in repr((self.path, self.body)) for name in ("<my upload>", "password")):
            return True
        return int(code) < 400 and self.call.split(" ")[0] not in ("GET", "HEAD", "OPTIONS")


ROOM: Final = "/v1/conversations/<group>"
PEOPLE: Final = f"{ROOM}/members"
OTHERS: Final = "/v1/conversations/<direct>"
ACCOUNT: Final = "DELETE /v1/accounts/{user}"
THEIRS: Final = "/v1/accounts/<victim>"
MINE: Final = "/v1/accounts/<me>"
SUSPENSION: Final = "/v1/accounts/{user}/suspension"
KICK: Final = "DELETE /v1/sessions/{user}"
CONVERSATION: Final = "/v1/conversations/{conversation}"
MEMBER: Final = CONVERSATION + "/members/{user}"
BAN: Final = CONVERSATION + "/bans/{user}"
JOIN: Final = f"POST {CONVERSATION}/join"
HI: Final = {"to": "<group>", "body": "hi"}
PRESENCE: Final = "GET /v1/presence"
STATE: Final = "/v1/state/{key}"
FILE: Final = "/v1/uploads/{sha256}"
TUS: Final = "/v1/uploads/tus"
RESUMABLE: Final = {"Tus-Resumable": "1.0.0"}
CREATED: Final = RESUMABLE | {"Upload-Length": "3"}
CONTINUED: Final = RESUMABLE | {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}

# fmt: off
ROWS: Final = (
    # call                                     own adm mem rea lef str nob for server
    Row("POST /v1/accounts",                  "201 201 201 201 201 201 201 201 201", "/v1/accounts",
        {"user": "<me>-new", "password": "<password>"}),
    Row("POST /v1/login",                     "401 401 401 401 401 401 401 401 401", "/v1/login",
        {"user": "<victim>", "password": "<password>"}),
    Row("POST /v1/tokens",                    "403 403 403 403 403 403 401 403 200", "/v1/tokens",
        {"user": "<victim>"}),
    # the tokens of these users come from no login
    Row("POST /v1/tokens/renew",              "403 403 403 403 403 403 401 401 403", "/v1/tokens/renew"),
    # none of these users has a password
    Row("PUT /v1/password",                   "403 403 403 403 403 403 401 401 422", "/v1/password",
        {"old": "<password>", "new": "<password>-2"}),
    Row("POST /v1/password/resets",           "403 403 403 403 403 403 401 401 404", "/v1/password/resets",
        {"user": "<victim>"}),
    Row("POST /v1/password/reset",            "401 401 401 401 401 401 401 401 401", "/v1/password/reset",
        {"token": "<victim>.guessed", "new": "<password>-2"}),
    # suspending takes a role in the deployment, which none of these users has
    Row(f"PUT {SUSPENSION}",                  "403 403 403 403 403 403 401 401 204", f"{THEIRS}/suspension",
        {}),
    Row(f"PUT {SUSPENSION}",                  "403 403 403 403 403 403 401 401 204", f"{MINE}/suspension", {}),
    Row(f"DELETE {SUSPENSION}",               "403 403 403 403 403 403 401 401 204", f"{THEIRS}/suspension"),
    Row("GET /v1/roles/{user}",               "403 403 403 403 403 403 401 403 200", "/v1/roles/<victim>"),
    Row("PUT /v1/roles/{user}",               "403 403 403 403 403 403 401 403 200", "/v1/roles/<me>",
        {"roles": ["moderator"]}),
    # reporting a message, one that is not visible, a user; reading and closing takes a role in the deployment
    Row("POST /v1/reports",                   "201 201 201 201 201 404 401 401 422", "/v1/reports",
        {"conversation": "<group>", "seq": "<seq>", "reason": "spam"}),
    Row("POST /v1/reports",                   "404 404 404 404 404 404 401 401 422", "/v1/reports",
        {"conversation": "<direct>", "seq": "<seq>", "reason": "spam"}),
    Row("POST /v1/reports",                   "201 201 201 201 201 201 401 401 422", "/v1/reports",
        {"user": "<victim>", "reason": "spam"}),
    Row("GET /v1/reports",                    "403 403 403 403 403 403 401 401 200", "/v1/reports"),
    Row("PATCH /v1/reports/{report}",         "403 403 403 403 403 403 401 401 404", "/v1/reports/1.2.x",
        {"state": "resolved"}),
    Row("GET /v1/audit",                      "403 403 403 403 403 403 401 401 200", "/v1/audit"),
    Row("GET /v1/sessions",                   "200 200 200 200 200 200 401 401 422", "/v1/sessions"),
    Row("POST /v1/logout",                    "204 204 204 204 204 204 401 401 422", "/v1/logout", {}),
    Row("POST /v1/logout",                    "204 204 204 204 204 204 401 401 422", "/v1/logout",
        {"everywhere": True}),
    Row("POST /v1/logout",                    "404 404 404 404 404 404 401 401 422", "/v1/logout",
        {"device": "phone"}),
    Row(ACCOUNT,                              "403 403 403 403 403 403 401 401 204", "/v1/accounts/<victim>"),
    Row(ACCOUNT,                              "204 204 204 204 204 204 401 401 204", "/v1/accounts/<me>"),
    Row(KICK,                                 "403 403 403 403 403 403 401 401 204", "/v1/sessions/<victim>"),
    Row(KICK,                                 "204 204 204 204 204 204 401 401 204", "/v1/sessions/<me>"),
    Row(KICK + "/{device}",                   "403 403 403 403 403 403 401 401 204", "/v1/sessions/<victim>/phone"),
    Row(KICK + "/{device}",                   "204 204 204 204 204 204 401 401 204", "/v1/sessions/<me>/phone"),
    Row(PRESENCE,                             "200 200 200 200 200 200 401 401 200", "/v1/presence?users=<victim>"),
    Row("GET /v1/me",                         "200 200 200 200 200 200 401 401 422", "/v1/me"),
    Row("PATCH /v1/me",                       "200 200 200 200 200 200 401 401 422", "/v1/me", {"name": "x"}),
    Row("GET /v1/users",                      "200 200 200 200 200 200 401 401 200", "/v1/users?users=<victim>"),
    Row("GET /v1/users",                      "200 200 200 200 200 200 401 401 422", "/v1/users?prefix=x"),
    Row("GET /v1/users/{user}",               "200 200 200 200 200 200 401 401 200", "/v1/users/<victim>"),
    Row("GET /v1/contacts",                   "200 200 200 200 200 200 401 401 422", "/v1/contacts"),
    Row("GET /v1/contacts/{user}",            "404 404 404 404 404 404 401 401 422", "/v1/contacts/<victim>"),
    Row("PUT /v1/contacts/{user}",            "200 200 200 200 200 200 401 401 422", "/v1/contacts/<victim>", {}),
    Row("POST /v1/contacts/{user}/accept",    "404 404 404 404 404 404 401 401 422", "/v1/contacts/<victim>/accept"),
    Row("DELETE /v1/contacts/{user}",         "204 204 204 204 204 204 401 401 422", "/v1/contacts/<victim>"),
    Row("GET /v1/blocks",                     "200 200 200 200 200 200 401 401 422", "/v1/blocks"),
    Row("PUT /v1/blocks/{user}",              "204 204 204 204 204 204 401 401 422", "/v1/blocks/<victim>"),
    Row("DELETE /v1/blocks/{user}",           "204 204 204 204 204 204 401 401 422", "/v1/blocks/<victim>"),
    Row("POST /v1/conversations",             "201 201 201 201 201 201 401 401 201", "/v1/conversations",
        {"kind": "group", "members": ["<victim>"]}),
    Row("GET /v1/conversations",              "200 200 200 200 200 200 401 401 422", "/v1/conversations"),
    Row(f"GET {CONVERSATION}",                "200 200 200 200 404 404 401 401 200", ROOM),
    Row(f"GET {CONVERSATION}",                "404 404 404 404 404 404 401 401 200", OTHERS),
    Row(f"PATCH {CONVERSATION}",              "200 200 403 403 404 404 401 401 200", ROOM, {"title": "mine"}),
    Row(f"PATCH {CONVERSATION}",              "404 404 404 404 404 404 401 401 403", OTHERS, {"title": "mine"}),
    Row(f"PATCH {CONVERSATION}",              "200 200 403 403 404 404 401 401 200", ROOM, {"reacting": "members"}),
    Row(f"PATCH {CONVERSATION}",              "200 200 403 403 404 404 401 401 200", ROOM, {"posting": "admins"}),
    # muting and banning: a member, an admin, the owner, a stranger, oneself, in others' conversation
    Row(f"PUT {MEMBER}/mute",                 "204 204 403 403 404 404 401 401 204", f"{PEOPLE}/<victim>/mute", {}),
    Row(f"PUT {MEMBER}/mute",                 "204 403 403 403 404 404 401 401 204", f"{PEOPLE}/<admin2>/mute", {}),
    Row(f"PUT {MEMBER}/mute",                 "403 403 403 403 404 404 401 401 204", f"{PEOPLE}/<owner>/mute", {}),
    Row(f"PUT {MEMBER}/mute",                 "204 204 403 403 404 404 401 401 204", f"{PEOPLE}/<friend>/mute", {}),
    Row(f"PUT {MEMBER}/mute",                 "403 403 403 403 404 404 401 401 204", f"{PEOPLE}/<me>/mute", {}),
    Row(f"PUT {MEMBER}/mute",                 "404 404 404 404 404 404 401 401 403", f"{OTHERS}/members/<victim>/mute",
        {}),
    Row(f"DELETE {MEMBER}/mute",              "204 204 403 403 404 404 401 401 204", f"{PEOPLE}/<victim>/mute"),
    Row(f"DELETE {MEMBER}/mute",              "404 404 404 404 404 404 401 401 403", f"{OTHERS}/members/<victim>/mute"),
    Row(f"PUT {BAN}",                         "204 204 403 403 404 404 401 401 204", f"{ROOM}/bans/<victim>", {}),
    Row(f"PUT {BAN}",                         "204 403 403 403 404 404 401 401 204", f"{ROOM}/bans/<admin2>", {}),
    Row(f"PUT {BAN}",                         "204 204 403 403 404 404 401 401 204", f"{ROOM}/bans/<newcomer>", {}),
    Row(f"PUT {BAN}",                         "403 403 403 403 404 404 401 401 204", f"{ROOM}/bans/<me>", {}),
    Row(f"PUT {BAN}",                         "404 404 404 404 404 404 401 401 403", f"{OTHERS}/bans/<victim>", {}),
    Row(f"DELETE {BAN}",                      "204 204 403 403 404 404 401 401 204", f"{ROOM}/bans/<victim>"),
    Row(f"DELETE {BAN}",                      "404 404 404 404 404 404 401 401 403", f"{OTHERS}/bans/<victim>"),
    Row(f"GET {CONVERSATION}/bans",           "200 200 403 403 404 404 401 401 200", f"{ROOM}/bans"),
    Row(f"GET {CONVERSATION}/bans",           "404 404 404 404 404 404 401 401 200", f"{OTHERS}/bans"),
    Row(f"DELETE {CONVERSATION}",             "204 403 403 403 404 404 401 401 204", ROOM),
    Row(f"DELETE {CONVERSATION}",             "404 404 404 404 404 404 401 401 204", OTHERS),
    Row(f"GET {CONVERSATION}/members",        "200 200 200 200 404 404 401 401 200", f"{ROOM}/members"),
    Row(f"GET {CONVERSATION}/members",        "404 404 404 404 404 404 401 401 200", f"{OTHERS}/members"),
    # a member's role, a promotion to admin, an admin's role, a new member, oneself to owner, into others' conversation
    Row(f"PUT {MEMBER}",                      "200 200 403 403 404 404 401 401 200", f"{ROOM}/members/<victim>",
        {"role": "reader"}),
    Row(f"PUT {MEMBER}",                      "200 403 403 403 404 404 401 401 200", f"{ROOM}/members/<victim>",
        {"role": "admin"}),
    Row(f"PUT {MEMBER}",                      "200 403 403 403 404 404 401 401 200", f"{ROOM}/members/<admin2>",
        {"role": "reader"}),
    Row(f"PUT {MEMBER}",                      "200 200 403 403 404 404 401 401 200", f"{ROOM}/members/<newcomer>",
        {"role": "member"}),
    Row(f"PUT {MEMBER}",                      "200 403 403 403 404 404 401 401 200", f"{ROOM}/members/<me>",
        {"role": "owner"}),
    # oneself to a lower role; no role: an admin keeps it
    Row(f"PUT {MEMBER}",                      "409 200 200 403 404 404 401 401 200", f"{ROOM}/members/<me>",
        {"role": "reader"}),
    Row(f"PUT {MEMBER}",                      "200 200 403 403 404 404 401 401 200", f"{ROOM}/members/<admin2>", {}),
    Row(f"PUT {MEMBER}",                      "404 404 404 404 404 404 401 401 403", f"{OTHERS}/members/<me>",
        {"role": "member"}),
    # removing a member, an admin, the owner; leaving
    Row(f"DELETE {MEMBER}",                   "204 204 403 403 404 404 401 401 204", f"{ROOM}/members/<victim>"),
    Row(f"DELETE {MEMBER}",                   "204 403 403 403 404 404 401 401 204", f"{ROOM}/members/<admin2>"),
    Row(f"DELETE {MEMBER}",                   "409 403 403 403 404 404 401 401 204", f"{ROOM}/members/<owner>"),
    Row(f"DELETE {MEMBER}",                   "409 204 204 204 404 404 401 401 404", f"{ROOM}/members/<me>"),
    Row(f"DELETE {MEMBER}",                   "404 404 404 404 404 404 401 401 403", f"{OTHERS}/members/<victim>"),
    # a user cannot join a group, but any channel
    Row(JOIN,                                 "404 404 404 404 404 404 401 401 422", f"{ROOM}/join"),
    Row(JOIN,                                 "200 200 200 200 200 200 401 401 422", f"{ROOM}/join", kind="channel"),
    Row(JOIN,                                 "404 404 404 404 404 404 401 401 422", f"{OTHERS}/join"),
    # a former member can read the events up to the removal
    Row(f"GET {CONVERSATION}/events",         "200 200 200 200 200 404 401 401 200", f"{ROOM}/events"),
    Row(f"GET {CONVERSATION}/events",         "404 404 404 404 404 404 401 401 200", f"{OTHERS}/events"),
    Row(f"GET {CONVERSATION}/reads",          "200 200 200 200 404 404 401 401 200", f"{ROOM}/reads"),
    Row(f"GET {CONVERSATION}/reads",          "404 404 404 404 404 404 401 401 200", f"{OTHERS}/reads"),
    # the state is the caller's own
    Row("GET /v1/state",                      "200 200 200 200 200 200 401 401 422", "/v1/state"),
    Row(f"GET {STATE}",                       "404 404 404 404 404 404 401 401 422", "/v1/state/draft/a"),
    Row(f"PUT {STATE}",                       "200 200 200 200 200 200 401 401 422", "/v1/state/draft/a",
        {"value": 1}),
    Row(f"PUT {STATE}",                       "403 403 403 403 403 403 401 401 403", "/v1/state/contact/<victim>",
        {"value": 1}),
    Row(f"DELETE {STATE}",                    "204 204 204 204 204 204 401 401 422", "/v1/state/draft/a"),
    Row(f"DELETE {STATE}",                    "403 403 403 403 403 403 401 401 403", "/v1/state/me"),
    Row("GET /v1/gateways",                   "200 200 200 200 200 200 401 401 200", "/v1/gateways"),
    # deleting: another's message, one's own, one in others' conversation
    Row("POST /v1/commands",                  "200 200 403 403 404 404 401 401 200", "/v1/commands",
        {"type": "delete", "conversation": "<group>", "seq": "<seq>", "n": 1}),
    Row("POST /v1/commands",                  "200 200 200 200 404 404 401 401 200", "/v1/commands",
        {"type": "delete", "conversation": "<group>", "seq": "<own>", "n": 1}),
    Row("POST /v1/commands",                  "404 404 404 404 404 404 401 401 404", "/v1/commands",
        {"type": "delete", "conversation": "<direct>", "seq": "<seq>", "n": 1}),
    # the caller's own state; keys that only the server writes
    Row("POST /v1/commands",                  "200 200 200 200 200 200 401 401 422", "/v1/commands",
        {"type": "state", "key": "draft/a", "value": 1}),
    Row("POST /v1/commands",                  "403 403 403 403 403 403 401 401 403", "/v1/commands",
        {"type": "state", "key": "contact/<victim>", "value": 1}),
    Row("POST /v1/messages",                  "200 200 200 403 404 404 401 401 422", "/v1/messages", HI),
    Row("POST /v1/messages",                  "403 403 403 403 403 403 401 401 200", "/v1/messages",
        {**HI, "from": "<victim>"}),
    # not even a backend can write for a user who is no party
    Row("POST /v1/messages",                  "404 404 404 404 404 404 401 401 404", "/v1/messages",
        {"to": "<direct>", "body": "hi", "from": "<me>"}),
    # what a user may not see is left out of the links
    Row("POST /v1/uploads",                   "201 201 201 201 201 201 401 401 422", "/v1/uploads", {"a": "file"}),
    Row("POST /v1/uploads/links",             "200 200 200 200 200 200 401 401 200", "/v1/uploads/links",
        {"in": "<group>", "files": ["<file>"]}),
    # a member's file in a conversation; another's upload that is not in that place; an avatar
    Row(f"GET {FILE}",                        "200 200 200 200 404 404 401 401 200", "/v1/uploads/<file>?in=<group>"),
    Row(f"GET {FILE}",                        "404 404 404 404 404 404 401 401 404", "/v1/uploads/<file>?in=<direct>"),
    Row(f"GET {FILE}",                        "404 404 404 404 404 404 401 401 422", "/v1/uploads/<file>"),
    Row(f"GET {FILE}",                        "404 404 404 404 404 404 401 401 404", "/v1/uploads/<file>?in=@<victim>"),
    Row(f"GET {FILE}",                        "200 200 200 200 200 200 401 401 200", "/v1/uploads/<face>?in=@<victim>"),
    Row("PATCH /v1/me",                       "404 404 404 404 404 404 401 401 422", "/v1/me", {"avatar": "<file>"}),
    Row("PATCH /v1/me",                       "404 404 404 404 404 404 401 401 422", "/v1/me", {"avatar": "<face>"}),
    Row(f"PATCH {CONVERSATION}",              "404 404 404 404 404 404 401 401 422", ROOM, {"avatar": "<face>"}),
    Row(f"DELETE {FILE}",                     "403 403 403 403 403 403 401 403 204", "/v1/uploads/<file>"),
    # a link needs no token
    Row("GET /v1/files/{sha256}",             "200 200 200 200 200 200 200 200 200", "<link>"),
    Row("GET /v1/files/{sha256}",             "404 404 404 404 404 404 404 404 404", "<link>A"),
    # a resumable upload is its owner's
    Row(f"OPTIONS {TUS}",                     "204 204 204 204 204 204 204 204 204", TUS),
    Row(f"POST {TUS}",                        "201 201 201 201 201 201 401 401 422", TUS, headers=CREATED),
    Row(f"HEAD {TUS}/{{upload}}",             "200 200 200 200 200 200 401 401 422", "<my upload>", headers=RESUMABLE),
    Row(f"HEAD {TUS}/{{upload}}",             "404 404 404 404 404 404 401 401 422", "<their upload>",
        headers=RESUMABLE),
    Row(f"PATCH {TUS}/{{upload}}",            "204 204 204 204 204 204 401 401 422", "<my upload>", "x",
        headers=CONTINUED),
    Row(f"PATCH {TUS}/{{upload}}",            "404 404 404 404 404 404 401 401 422", "<their upload>", "x",
        headers=CONTINUED),
    Row(f"DELETE {TUS}/{{upload}}",           "204 204 204 204 204 204 401 401 422", "<my upload>", headers=RESUMABLE),
    Row(f"DELETE {TUS}/{{upload}}",           "404 404 404 404 404 404 401 401 422", "<their upload>",
        headers=RESUMABLE),
    # what a user may not see is no hit, and is not found as `in`
    Row("GET /v1/search",                     "200 200 200 200 200 200 401 401 422", "/v1/search?q=hi"),
    Row("GET /v1/search",                     "404 404 404 404 404 404 401 401 422", "/v1/search?q=hi&in=<direct>"),
    Row("GET /v1/search",                     "200 200 200 200 200 404 401 401 422", "/v1/search?q=hi&in=<group>"),
    Row("GET /v1/openapi.json",               "200 200 200 200 200 200 200 200 200", "/v1/openapi.json"),
    Row("GET /v1/schema.json",                "200 200 200 200 200 200 200 200 200", "/v1/schema.json"),
)
# fmt: on


def bearer(acting: Cast) -> dict[str, str]:
    """Return the header that authenticates the acting user."""
    if acting.role == "nobody":
        return {}
    if acting.role == "server":
        return {"Authorization": f"Bearer {SERVER_KEY}"}
    if acting.role == "forged":
        claims = {"sub": acting.names["owner"], "exp": time.time() + 60}
        return {"Authorization": "Bearer " + jwt.encode(claims, JWT_SECRET[::-1], algorithm="HS256")}
    return {"Authorization": f"Bearer {token(acting.me)}"}


Of = TypeVar("Of", "Row", "Command")


async def differing(
    table: Iterable[Of], columns: tuple[str, ...], found: Callable[[Of, str, str], Awaitable[str]]
) -> str:
    """Every cell of a table, AT_ONCE at a time; those in which something else is found, a line each."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def cell(row: Of, role: str, code: str) -> str | None:
        async with gate:
            said = await found(row, role, code)
        return None if said == code else f"{role}: {row} is {said}, not {code}"

    cells = [cell(row, *column) for row in table for column in zip(columns, row.codes.split(), strict=True)]
    return "\n".join(filter(None, await asyncio.gather(*cells)))


async def status(backend: Backend, row: Row, role: str, code: str) -> str:
    if row.changes(code):
        acting = await backend.cast([role], repr((row.path, row.body)), row.kind, row.files)
    else:
        acting = await backend.shared(role, row.kind, row.files)
    answer = await backend.http.request(
        row.call.split(" ")[0], acting.fill(row.path), json=acting.fill(row.body), headers=bearer(acting) | row.headers
    )
    if answer.status_code >= 400 and role != "server":
        known = {*acting.names.values(), acting.group, acting.direct, SERVER_KEY} - {acting.me}
        assert not [secret for secret in known if secret in answer.text], (row, role, answer.text)
    return str(answer.status_code)


def test_table_has_rows_for_every_call() -> None:
    """The API's table and this one name the same calls."""
    served = {f"{endpoint.method} {endpoint.path}" for endpoint in endpoints(SETTINGS)}
    assert {row.call for row in ROWS} == served
    assert all(len(row.codes.split()) == len(COLUMNS) for row in ROWS)


async def test_every_call_is_allowed_exactly_to_the_roles_of_the_table(chat: System) -> None:
    """Each cell of the table; a refusal contains nothing more about other users."""
    backend = Backend(chat)
    async with backend.http:
        wrong = await differing(ROWS, COLUMNS, partial(status, backend))
    assert not wrong, wrong


# -- WebSocket


class Command(msgspec.Struct, frozen=True):
    """One command on one kind of thing; `codes` stand under USERS: the answer's type, or the error's code, or none."""

    type: str
    codes: str
    fields: dict[str, Any]


ON: Final = {"conversation": "<group>"}
ELSEWHERE: Final = {"conversation": "<direct>"}
NO: Final = " ".join(["not_found"] * 6)
SILENT: Final = " ".join(["none"] * 6)

# fmt: off
COMMANDS: Final = (
    #                    owner     admin     member    reader    left      stranger
    Command("send",     "ack       ack       ack       read_only not_found not_found", {"to": "<group>", "body": "x"}),
    Command("send",     NO, {"to": "<direct>", "body": "x"}),
    # her own message, another's, and one in others' conversation
    Command("edit",     "ack       ack       ack       read_only not_found not_found",
            {**ON, "seq": "<own>", "body": 1}),
    Command("edit",     "read_only read_only read_only read_only not_found not_found",
            {**ON, "seq": "<seq>", "body": 1}),
    Command("edit",     NO, {**ELSEWHERE, "seq": "<seq>", "body": 1}),
    Command("delete",   "ack       ack       read_only read_only not_found not_found", {**ON, "seq": "<seq>"}),
    Command("delete",   "ack       ack       ack       ack       not_found not_found", {**ON, "seq": "<own>"}),
    Command("delete",   NO, {**ELSEWHERE, "seq": "<seq>"}),
    Command("react",    "ack       ack       ack       ack       not_found not_found",
            {**ON, "seq": "<seq>", "emoji": "+"}),
    Command("react",    NO, {**ELSEWHERE, "seq": "<seq>", "emoji": "+"}),
    Command("ack",      SILENT, {**ON, "seq": "<seq>"}),
    Command("ack",      SILENT, {**ELSEWHERE, "seq": "<seq>"}),
    Command("read",     "none      none      none      none      none      not_found", {**ON, "seq": "<seq>"}),
    Command("read",     NO, {**ELSEWHERE, "seq": "<seq>"}),
    Command("typing",   SILENT, {"to": "<group>"}),
    Command("typing",   NO, {"to": "<direct>"}),
    Command("history",  "history   history   history   history   history   not_found", ON),
    Command("history",  NO, ELSEWHERE),
    Command("presence", " ".join(["presence"] * 6), {"users": ["<victim>"]}),
    Command("state",    " ".join(["state"] * 6), {"key": "draft/<group>", "value": 1}),
    Command("state",    " ".join(["read_only"] * 6), {"key": "contact/<victim>", "value": 1}),
    Command("ping",     " ".join(["pong"] * 6), {}),
    Command("auth",     " ".join(["ok"] * 6), {"token": "<my token>"}),
    Command("auth",     " ".join(["unauthorized"] * 6), {"token": "<victim's token>"}),
    Command("auth",     " ".join(["unauthorized"] * 6), {"token": "<server key>"}),
    Command("hello",    " ".join(["bad_command"] * 6), {"token": "<my token>"}),
)
# fmt: on
NUMBERED: Final = ("send", "edit", "delete", "react")
UNANSWERED: Final = ("ack", "read", "typing")


async def outcome(client: ChatClient, acting: Cast, command: Command) -> str:
    """Return a command's answer, or "none" if the answer to a later command has come without it."""
    fields = acting.fill(command.fields)
    tokens = {"<my token>": acting.me, "<victim's token>": acting.names["victim"]}
    if "token" in fields:
        fields["token"] = token(tokens[fields["token"]]) if fields["token"] in tokens else SERVER_KEY
    if command.type in NUMBERED:
        fields["n"] = client.next_n()
    await client.say(command.type, id="asked", **fields)
    if command.type in UNANSWERED:
        with suppress(ConnectionClosed):
            await client.ask("history", conversation=NOWHERE)  # takes the same way, after the other command
    else:
        await client.until(lambda: any(event.get("id") == "asked" for event in client.events))
    found = next((event for event in client.events if event.get("id") == "asked"), None)
    return str(found.get("code", found["type"])) if found else "none"


def test_table_has_rows_for_every_command() -> None:
    """The wire and this table name the same commands; the gateway's table has a row for each (`test_dispatch.py`)."""
    served = {kind.__struct_config__.tag for kind in get_args(wire.Commands)}
    assert {command.type for command in COMMANDS} == served
    assert all(len(command.codes.split()) == len(USERS) for command in COMMANDS)


async def test_every_command_is_allowed_exactly_to_the_roles_of_the_table(chat: System) -> None:
    """Each cell of the table, on sockets of both gateways."""
    backend = Backend(chat)
    async with backend.http:

        async def found(command: Command, role: str, _: str) -> str:
            acting = await backend.cast([role], repr(command.fields))
            client = ChatClient(acting.me)
            await client.connect(chat.urls[len(role) % 2])
            answer = await outcome(client, acting, command)
            await client.disconnect()
            return answer

        wrong = await differing(COMMANDS, USERS, found)
    assert not wrong, wrong


async def test_command_before_hello_is_refused(chat: System) -> None:
    """There is no user before `hello`: every other command is refused, and the connection is closed (4503)."""
    async with (backend := Backend(chat)).http:
        acting = await backend.cast(["owner"], EVERYTHING)
    for command in {command.type: command for command in COMMANDS if command.type != "hello"}.values():
        client = ChatClient(acting.me)
        await client.open(chat.urls[0])
        assert await outcome(client, acting, command) == "bad_command"
        assert (await client.gone())[0] == 4503
