"""What a blocked user sees of the one who blocks them is what a stranger sees of a user who is there for contacts only.

Each call and command is made about both users, and the answers are compared field by field, after the names and the
times are made the same. Instead of the time that a call takes, which a busy machine hides, its calls of Redis are
counted: one more, a tenth of a millisecond, is less than the noise of any network.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from tests import support
from tests.gateway.world import Client, World, world
from tests.router.api.serving import SERVER, Api, by, serve

VIEWER: Final = "eve"
BLOCKER, SELECTIVE = "tim", "tom"  # the names are equally long, and in the same place of every order
EVE: Final = by(VIEWER)


@asynccontextmanager
async def scene(valkey: EmbeddedValkey) -> AsyncIterator[tuple[Api, World, str]]:
    """Tim blocks Eve; Tom is there for contacts only. Both are online, with a name. The group is Eve's."""
    async with serve(valkey) as api, world(valkey) as of:
        for user in (VIEWER, BLOCKER, SELECTIVE):
            await api.ok("POST", "/v1/tokens", SERVER, {"user": user})
        for user in (BLOCKER, SELECTIVE):
            await api.ok("PATCH", "/v1/me", by(user), {"name": "T", "about": "hello"})
        only = dict.fromkeys(("messages", "groups", "presence"), "contacts")
        await api.ok("PATCH", "/v1/me", by(SELECTIVE), {"privacy": only})
        await api.ok("PUT", f"/v1/blocks/{VIEWER}", by(BLOCKER))
        group = await api.ok("POST", "/v1/conversations", EVE, {"kind": "group", "title": "g", "members": []})
        for user in (BLOCKER, SELECTIVE):
            await of.client(user).connected()
        yield api, of, group["conversation"]


def same(answer: Any, user: str) -> Any:
    """The answer without what must differ: the user's name, ids, and times."""
    text = json.dumps(answer, sort_keys=True).replace(user, "target")
    text = re.sub(r'"(at|until|made|version|cursor|head|seq|retry_after)": (\d+|"[^"]*")', r'"\1": 0', text)
    return json.loads(re.sub(r"[gc]:[0-9A-Za-z_-]{22}", "<id>", text))


CALLS: Final = (
    ("GET", "/v1/users/{}", None),
    ("GET", "/v1/users?users={}", None),
    ("GET", "/v1/users?prefix={}", None),
    ("GET", "/v1/presence?users={}", None),
    ("GET", "/v1/contacts/{}", None),
    ("POST", "/v1/messages", {"to": "@{}", "body": "hello"}),
    ("POST", "/v1/messages", {"to": "@{}", "body": "hello again"}),
    ("PUT", "/v1/contacts/{}", {"message": "let me in"}),
    ("GET", "/v1/contacts/{}", None),
    ("POST", "/v1/messages", {"to": "@{}", "body": "and now"}),
    ("GET", "/v1/conversations/{direct}", None),
    ("GET", "/v1/conversations/{direct}/reads", None),
    ("POST", "/v1/conversations", {"kind": "group", "title": "t", "members": ["{}"]}),
    ("PUT", "/v1/conversations/{group}/members/{}", {"role": "member"}),
    ("POST", "/v1/contacts/{}/accept", None),
    ("GET", "/v1/state/contact/{}", None),
    ("GET", "/v1/state/block/{}", None),
    ("DELETE", "/v1/contacts/{}", None),
    ("GET", "/v1/contacts/{}", None),
)


async def test_calls_have_the_same_answers_and_cost(valkey: EmbeddedValkey) -> None:
    async with scene(valkey) as (api, _, group):
        for method, path, body in CALLS:
            seen: list[tuple[int, Any]] = []
            cost: list[int] = []
            for user in (BLOCKER, SELECTIVE):
                where = path.replace("{direct}", keys.direct(VIEWER, user)).replace("{group}", group)
                where = where.replace("{}", user)
                given = json.loads(json.dumps(body).replace("{}", user))
                before = api.store.statistics().hot.calls
                answer = await api.request(method, where, headers=EVE, **({} if given is None else {"json": given}))
                cost.append(api.store.statistics().hot.calls - before)
                shown = answer.json() if answer.content else None
                seen.append((answer.status_code, same(shown, user)))
            assert seen[0] == seen[1], (method, path)
            assert abs(cost[0] - cost[1]) <= 1, (method, path, cost)


async def test_commands_have_the_same_answers(valkey: EmbeddedValkey) -> None:
    """Presence, a message, typing, and what comes by itself when the two come and go."""
    async with scene(valkey) as (_, of, _group):
        eve = await of.client(VIEWER).connected()
        presence = await eve.ask("presence", "presence", users=[BLOCKER, SELECTIVE], watch=True)
        assert presence["users"][BLOCKER] == presence["users"][SELECTIVE]
        assert presence["users"][BLOCKER] == {"online": False, "last_seen": None}
        for number, user in enumerate((BLOCKER, SELECTIVE)):
            eve.say("typing", to=f"@{user}", id=100 + number)
            eve.say("send", to=f"@{user}", n=1, body="hello", id=200 + number)
        answers = [same(await eve.event("error", id=200 + number), user) | {"id": 0}
                   for number, user in enumerate((BLOCKER, SELECTIVE))]  # fmt: skip
        assert answers[0] == answers[1]
        assert answers[0]["code"] == "blocked"
        await of.settled()
        here = len(eve.events)
        for client in await tablets(of):
            client.end()
        await of.settled()
        await support.eventually(lambda: eve.session.backlog is None)
        assert [event for event in eve.events[here:] if event["type"] in ("presence", "profile", "typing")] == []


async def tablets(of: World) -> list[Client]:
    """A second device of each of the two."""
    return [await of.client(user, "tablet").connected() for user in (BLOCKER, SELECTIVE)]
