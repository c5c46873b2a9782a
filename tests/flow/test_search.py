"""Search over all messages of a system: what is found, what is not, and what happens when an index is lost."""

from __future__ import annotations

import asyncio
import shutil
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from tests.flow.client import ChatClient, token
from tests.flow.conftest import Names, Start, System
from tests.support import SERVER_KEY, Process, eventually

EVERY_S = 0.3  # between two questions: a user may ask five in a second


async def search(system: System, user: str, q: str, router: Process | None = None, **asked: Any) -> dict[str, Any]:
    """The answer of a router; a user who asks too often asks again."""
    at = router or system.router
    assert at is not None
    query = "&".join(f"{name.strip('_')}={quote(str(value))}" for name, value in {"q": q, **asked}.items())
    headers = {"Authorization": f"Bearer {token(user)}"}
    async with httpx.AsyncClient(base_url=at.url, headers=headers, trust_env=False, timeout=60) as http:
        answer = await http.get(f"/v1/search?{query}")
        while answer.status_code in (429, 503):
            await asyncio.sleep(float(answer.headers["retry-after"]))
            answer = await http.get(f"/v1/search?{query}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def seqs(system: System, user: str, q: str, **asked: Any) -> list[int]:
    return [hit["seq"] for hit in (await search(system, user, q, **asked))["hits"]]


async def finds(system: System, user: str, q: str, wanted: list[int], router: Process | None = None) -> None:
    """Wait until the user finds just these messages, and the answer is complete."""

    async def found() -> bool:
        answer = await search(system, user, q, router)
        assert ([hit["seq"] for hit in answer["hits"]], answer["incomplete"]) == (wanted, False)
        return True

    await eventually(found, every_s=EVERY_S)


async def person(system: System, name: str, gateway: int = 0) -> ChatClient:
    client = ChatClient(name)
    await client.connect(system.urls[gateway])
    return client


async def test_messages_are_found_by_who_may_see_them_as_they_are_now(chat: System, names: Names) -> None:
    system = chat
    ann_, bob_, eve_ = names("ann", "bob", "eve")
    ann, bob, _ = [await person(system, name) for name in (ann_, bob_, eve_)]
    sent = await ann.sent(f"@{bob_}", {"text": "The Überraschung at https://linnet.example is a wren"})
    await finds(system, bob_, "uberrasch", [sent["seq"]])
    (hit,) = (await search(system, ann_, "uberrasch"))["hits"]
    first, last = hit["marks"][0]
    assert (hit["conversation"], hit["from"], hit["at"]) == (sent["conversation"], ann_, sent["at"])
    assert hit["snippet"][first:last] == "Überraschung"
    assert await seqs(system, ann_, '"is a" wren') == [sent["seq"]]
    assert await seqs(system, ann_, '"a is"') == []
    assert await seqs(system, ann_, "wren", has="link", from_=ann_, in_=sent["conversation"]) == [sent["seq"]]
    assert await seqs(system, ann_, "wren", from_=bob_) == []
    for bound in ("before", "after"):
        assert await seqs(system, ann_, "wren", **{bound: sent["at"]}) == []
    assert await seqs(system, eve_, "wren") == []

    # A member sees what was said while they were there, and an edit only if it is of that time, too.
    group = await system.group(ann_, bob_)
    before = await ann.sent(group, "robin one")
    await system.api("PUT", f"/v1/conversations/{group}/members/{eve_}", {"role": "member"}, user=ann_)
    during = [await ann.sent(group, f"robin {word}") for word in ("two", "three", "four")]
    await ann.ask("edit", conversation=group, seq=during[1]["seq"], body="wagtail", n=ann.next_n())
    await system.api("DELETE", f"/v1/conversations/{group}/members/{eve_}", user=ann_)
    await ann.ask("edit", conversation=group, seq=during[2]["seq"], body="siskin", n=ann.next_n())
    after = await ann.sent(group, "robin five")
    await finds(system, bob_, "robin", [one["seq"] for one in (after, during[0], before)])
    await finds(system, bob_, "siskin", [during[2]["seq"]])
    await finds(system, eve_, "robin", [during[0]["seq"]])
    await finds(system, eve_, "wagtail", [during[1]["seq"]])
    await finds(system, eve_, "siskin", [])

    # A block hides no hit; a deleted message is not found from the ack on.
    await system.api("PUT", f"/v1/blocks/{ann_}", user=bob_)
    assert await seqs(system, bob_, "wren") == [sent["seq"]]
    await ann.ask("delete", conversation=sent["conversation"], seq=sent["seq"], n=ann.next_n())
    assert await seqs(system, bob_, "wren") == []

    # Pages leave nothing out.
    await asyncio.gather(*(bob.sent(group, f"crane {number}") for number in range(23)))
    await eventually(lambda: _count(system, ann_, "crane", 23), every_s=EVERY_S)
    pages, cursor = [], ""
    while True:
        page = await search(system, ann_, "crane", limit=10, cursor=cursor)
        pages.append([hit["seq"] for hit in page["hits"]])
        cursor = page["cursor"]
        if not page["more"]:
            break
    assert [len(page) for page in pages] == [10, 10, 3]
    assert list(chain(*pages)) == sorted(chain(*pages), reverse=True)
    for wrong in ({"cursor": "x"}, {"limit": 0}, {"has": "love"}):
        assert await _status(system, ann_, "crane", **wrong) == 422


async def _count(system: System, user: str, q: str, wanted: int) -> bool:
    return len(await seqs(system, user, q, limit=100)) == wanted


async def _status(system: System, user: str, q: str, **asked: Any) -> int:
    assert system.router is not None
    headers = {"Authorization": f"Bearer {token(user)}"}
    async with httpx.AsyncClient(base_url=system.router.url, headers=headers, trust_env=False) as http:
        return (await http.get("/v1/search", params={"q": q, **asked})).status_code


async def test_routers_share_the_index_and_build_again_what_is_lost(start: Start, tmp_path: Path, names: Names) -> None:
    """One of two is killed, then the other with its files gone."""
    system = await start(gateways=1, LINNET_SEARCH_URL=(tmp_path / "index-0").as_uri())
    first = system.router
    assert first is not None
    second = system.start("router", LINNET_SEARCH_URL=(tmp_path / "index-1").as_uri())
    await second.ready()
    (ann_,) = names("ann")
    ann = await person(system, ann_)
    wanted: list[tuple[str, int]] = []
    for number in range(8):
        group = await system.group(ann_)
        wanted += [(group, (await ann.sent(group, f"wren {number} {word}"))["seq"]) for word in ("one", "two")]

    async def all_found(router: Process) -> bool:
        answer = await search(system, ann_, "wren", router, limit=100)
        assert not answer["incomplete"]
        assert sorted((hit["conversation"], hit["seq"]) for hit in answer["hits"]) == sorted(wanted)
        return True

    for router in (first, second):
        await eventually(partial(all_found, router), every_s=EVERY_S)
    kept = [await system.metric("linnet_router_search_partitions", router) for router in (first, second)]
    assert sum(kept) == 256
    assert min(kept) > 64
    for path in (tmp_path / "index-0").glob("*.db"):
        path.write_bytes(b"damaged" * 4096)
    await eventually(partial(all_found, first), every_s=EVERY_S)
    second.kill()
    await eventually(partial(all_found, first), every_s=EVERY_S)
    first.kill()
    shutil.rmtree(tmp_path / "index-0")
    system.router = system.start("router", LINNET_SEARCH_URL=(tmp_path / "index-0").as_uri())
    await system.router.ready()
    await eventually(partial(all_found, system.router), every_s=EVERY_S)


async def test_only_routers_are_answered_on_the_private_port(chat: System) -> None:
    assert chat.router is not None
    url = f"http://127.0.0.1:{chat.router.admin_port}/search"
    async with httpx.AsyncClient(trust_env=False) as http:
        for key in (SERVER_KEY, "x"):
            assert (
                await http.post(url, headers={"Authorization": f"Bearer {key}"}, content=b"\x80")
            ).status_code == 401


async def test_answer_says_nothing_of_messages_that_the_user_may_not_see(chat: System, names: Names) -> None:
    """Not even that there are some, nor when: a member who was removed, one who came later, and a stranger."""
    ann_, bob_, eve_ = names("ann", "bob", "eve")
    ann = await person(chat, ann_)
    await person(chat, bob_)
    await person(chat, eve_)
    group = await chat.group(ann_, bob_)
    early = await ann.sent(group, "bittern early")
    await chat.api("DELETE", f"/v1/conversations/{group}/members/{bob_}", user=ann_)
    for number in range(12):
        await ann.sent(group, f"bittern {number}")
    await chat.api("PUT", f"/v1/conversations/{group}/members/{eve_}", {"role": "member"}, user=ann_)
    await eventually(lambda: _count(chat, ann_, "bittern", 13), every_s=EVERY_S)
    nothing = {"hits": [], "more": False, "cursor": "", "incomplete": False}
    for where in ({}, {"in_": group}):
        asked: dict[str, Any] = {"limit": 1, **where}
        assert await search(chat, eve_, "bittern", **asked) == nothing
        found = await search(chat, bob_, "bittern", **asked)
        assert ([hit["seq"] for hit in found["hits"]], found["more"], found["cursor"]) == ([early["seq"]], False, "")
    (stranger,) = names("stranger")
    await person(chat, stranger)
    assert await _status(chat, stranger, "bittern", **{"in": group, "limit": 1}) == 404
