"""Commands that append an event: logged once, in order, delivered to all, and answered, whatever fails in between."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from typing import Any

import pytest
from msgspec.structs import replace

from deploy.embedded import EmbeddedValkey
from gateway.commands import sending
from router.contract import codecs, keys
from router.contract.errors import NotFound, Unavailable
from router.contract.files import FileInfo
from router.contract.packing import MAX_INTEGER
from router.store.answers import reply_of
from router.store.appends import Append
from router.store.redis.client import Client as StoreClient
from tests import support
from tests.gateway.world import Client, world


async def sent(client: Client, to: str, n: int, **fields: Any) -> dict[str, Any]:
    client.say("send", to=to, n=n, **({"body": n} | fields))
    return await client.event("ack", n=n)


async def test_send_is_acked_delivered_and_marked_read(valkey: EmbeddedValkey) -> None:
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob", codec=codecs.MSGPACK).connected()
        ack = await sent(ann, group, 7, body={"$b64": "AAE="}, media="x", reply_to=0)
        assert (ack["conversation"], ack["duplicate"]) == (group, False)
        mine, his = await ann.event("message"), await bob.event("message")
        assert his["body"] == b"\0\1"
        assert mine["body"] == {"$b64": "AAE="}
        assert {name: value for name, value in mine.items() if name not in ("body", "prev", "at")} == {
            "type": "message", "conversation": group, "seq": ack["seq"], "count": 1, "from": "ann", "device": "phone",
            "n": 7, "media": "x", "reply_to": 0,
        }  # fmt: skip
        assert ann.session.reads == {group: (ack["seq"], 1)}
        again = await ann.ask("send", "ack", to=group, n=7, body={"$b64": "AAE="}, media="x", reply_to=0)
        assert (again["seq"], again["duplicate"]) == (ack["seq"], True)
        conflict = await ann.ask("send", "error", to=group, n=7, body="other")
        assert (conflict["code"], conflict["reason"]) == ("conflict", "content")
        assert "next" not in conflict


async def test_n_that_is_too_old_is_a_conflict_with_the_next_usable_n(valkey: EmbeddedValkey) -> None:
    """A device whose clock was ahead can send at once, not only when that time has come."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        for n in range(1000, 1032):
            await sent(ann, group, n)
        old = await ann.ask("send", "error", to=group, n=10, body="late")
        assert (old["code"], old["n"], old["reason"], old["next"]) == ("conflict", 10, "old", 1032)
        await sent(ann, group, old["next"], done=1031)
        answered = await ann.ask("send", "error", to=group, n=1031, body="again")
        assert (answered["reason"], answered["next"]) == ("answered", 1033)


@pytest.mark.parametrize(
    ("command", "fingerprint"),
    [
        ({"type": "send", "body": {"text": "hi", "raw": {"$b64": "AAE="}}, "reply_to": 2}, "79caa52678c94e3a"),
        ({"type": "send", "body": "hi", "done": 3, "id": 9}, "cde7f861b37a3a97"),
        ({"type": "edit", "seq": 4, "body": "hi"}, "e2e2a0d4962328dd"),
        ({"type": "delete", "seq": 4}, "90fa57cf920472d1"),
        ({"type": "react", "seq": 4, "emoji": "+"}, "7b3bc64546d4d3f0"),
    ],
)
async def test_resend_is_a_duplicate_in_any_codec_version_and_name(
    valkey: EmbeddedValkey, command: dict[str, Any], fingerprint: str
) -> None:
    """Golden values: the fingerprint covers the client's content, and nothing whose encoding may change."""
    async with world(valkey) as of:
        conv = await of.direct("ann", "bob")
        appends: list[Append] = []
        of.node.conversations.append = lambda a, reply: appends.append(a)  # type: ignore[method-assign]
        named = {"to": conv} if command["type"] == "send" else {"conversation": conv}
        for codec in (codecs.JSON, codecs.MSGPACK):
            ann = await of.client("ann", codec.subprotocol[-4:], codec).connected()
            value = {"n": 5, **named, **command}
            if command["type"] == "send":
                ann.say(**value | {"kind": value.pop("type"), "to": "@bob"})
                value["type"] = "send"
            ann.say(value.pop("type"), **value)
        assert {append.fingerprint.hex() for append in appends} == {fingerprint}
        tails = {append.tail.rest.replace(append.device.encode(), b"") for append in appends}
        assert len(tails) == 1


async def test_append_contains_the_received_position_as_seen(valkey: EmbeddedValkey) -> None:
    """So a server that lost the end of the log uses no seq a second time."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        ack = await sent(ann, group, 1)
        await ann.event("message")
        appends: list[Append] = []
        of.node.conversations.append = lambda a, reply: appends.append(a)  # type: ignore[method-assign]
        ann.say("send", to=group, n=2, body=1)
        assert [append.seen for append in appends] == [ack["seq"]]


async def test_first_message_creates_the_conversation_and_pipelined_sends_keep_their_order(
    valkey: EmbeddedValkey,
) -> None:
    """Sends that come during the creation, before and after the first refusals, are logged in the order of n."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for n in range(1, 11):
            ann.say("send", to="@bob", n=n, body=n)
        await asyncio.sleep(0)
        for n in range(11, 21):
            ann.say("send", to=keys.direct("ann", "bob"), n=n, body=n)
            await asyncio.sleep(0)
        await ann.event("ack", n=20)
        await bob.event("message", n=20)
        assert bob.bodies(keys.direct("ann", "bob")) == list(range(1, 21))
        assert [event["n"] for event in ann.of("ack")] == list(range(1, 21))
        assert (of.node.sends.in_flight, of.node.sends._opening) == (0, {})


async def test_send_that_overtakes_the_refusal_of_an_earlier_one_is_logged_after_it(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits with the others while the refusal of an earlier send is still to come."""
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann = await of.client("ann").connected()
        append, held = of.node.conversations.append, []
        monkeypatch.setattr(of.node.conversations, "append", lambda a, reply: held.append(reply))
        ann.say("send", to="@bob", n=1, body=1)
        ann.say("send", to="@bob", n=2, body=2)
        monkeypatch.setattr(of.node.conversations, "append", append)
        held[0](NotFound())
        ann.say("send", to="@bob", n=3, body=3)
        held[1](NotFound())
        await ann.until(lambda: len(ann.of("message")) == 3)
        assert ann.bodies(keys.direct("ann", "bob")) == [1, 2, 3]


async def test_sends_that_wait_for_their_conversation_are_bounded(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both those that the log refused before and those that come during the creation."""
    monkeypatch.setattr(sending, "MAX_WAITING", 3)
    async with world(valkey) as of:
        await of.people("ann", "bob")
        ann = await of.client("ann").connected()
        held: list[Any] = []
        read = of.node.profiles.messages_from
        monkeypatch.setattr(of.node.profiles, "messages_from", lambda *args: held.append(args))
        for n in range(1, 6):
            ann.say("send", to="@bob", n=n, body=n)
        await ann.until(lambda: len(ann.of("error")) == 2)
        for n in range(6, 10):
            ann.say("send", to="@bob", n=n, body=n)
        await ann.until(lambda: len(ann.of("error")) == 6)
        assert {event["code"] for event in ann.of("error")} == {"rate_limited"}
        monkeypatch.setattr(of.node.profiles, "messages_from", read)
        read(*held[0])
        await ann.until(lambda: len(ann.of("ack")) == 3)
        assert of.node.sends.in_flight == 0


@pytest.mark.parametrize(
    "to",
    [
        "@nobody",
        "@",
        "@a b",
        "@" + "x" * 65,
        "nonsense",
        "g:0123456789012345678901",
        "d:bob:cid",
        "d:bob:ann",
        "{c1}:x",
    ],
)
async def test_target_that_the_user_may_not_see_is_not_found(valkey: EmbeddedValkey, to: str) -> None:
    """An unknown user, another user's conversation, an invalid id: the same answer, and nothing is created."""
    async with world(valkey) as of:
        await of.direct("bob", "cid")
        ann = await of.client("ann").connected()
        assert (await ann.ask("send", "error", to=to, n=1, body=1))["code"] == "not_found"
        conv = to if to[0] != "@" else keys.direct("ann", "zed")
        assert (await ann.ask("history", "error", conversation=conv))["code"] == "not_found"
        assert (await ann.ask("read", "error", conversation=conv, seq=1))["code"] == "not_found"
        ann.say("typing", to=to)
        await of.settled()
        for other in ("nobody", "bob", "cid"):
            assert await of.redis.fetch("EXISTS", keys.conversation(keys.direct("ann", other))) == 0
        assert await of.redis.fetch("EXISTS", keys.user("nobody")) == 0


async def test_full_store_refuses_sends(valkey: EmbeddedValkey) -> None:
    """`unavailable` with a wait; reading commands still work."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        of.node.lease.full = True
        for kind, fields in (
            ("send", {"to": group, "n": 1, "body": 1}),
            ("react", {"conversation": group, "seq": 1, "n": 2, "emoji": "+"}),
        ):
            error = await ann.ask(kind, "error", **fields)
            assert (error["code"], error["retry_after"]) == ("unavailable", 10)
        await ann.ask("history", "history", conversation=group)
        of.node.lease.full = False
        await sent(ann, group, 3)


async def test_edit_delete_and_reaction_are_logged(valkey: EmbeddedValkey) -> None:
    async with world(valkey, keys.Channels("x.0:")) as of:
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        seq = (await sent(ann, group, 1))["seq"]
        await ann.ask("edit", "ack", conversation=group, seq=seq, n=2, body="x")
        first = await bob.ask("react", "ack", conversation=group, seq=seq, n=1, emoji="+")
        second = await bob.ask("react", "ack", conversation=group, seq=seq, n=2, emoji="+")
        assert (second["seq"], second["at"], second["duplicate"]) == (first["seq"], first["at"], False)
        await bob.ask("react", "ack", conversation=group, seq=seq, n=3, emoji="+", remove=True)
        assert (await bob.ask("edit", "error", conversation=group, seq=seq, n=4, body="x"))["code"] == "read_only"
        refused = await bob.ask("send", "error", to=group, n=5, body="x", reply_to=seq + 100)
        assert (refused["code"], refused["message"]) == ("not_found", "reply_to names no event that you see")
        await ann.ask("delete", "ack", conversation=group, seq=seq, n=3)
        await bob.event("edit", target=seq, body="x")
        await bob.event("react", target=seq, emoji="+", remove=True, **{"from": "bob"})
        await bob.event("delete", target=seq)
        assert len(bob.of("react")) == 2


async def test_answer_after_the_sessions_end_is_ignored(valkey: EmbeddedValkey) -> None:
    """The event is logged, and no command counts as in flight."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        ann.say("send", to=group, n=1, body=1)
        ann.say("send", to="@bob", n=2, body=2)
        ann.end()
        await support.eventually(lambda: of.node.sends.in_flight == 0)
        page = await reply_of(of.node.conversations.range, group, None, 0, MAX_INTEGER, 10)
        assert len(page.events) == 1


async def test_gateway_delivers_if_slots_are_on_several_servers(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`append` then changes only its own slot; the event reaches both users by `deliver`, once and unchanged."""
    monkeypatch.setattr(StoreClient, "one_server", property(lambda _: False))
    async with world(valkey) as of:
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        for n in (1, 2):
            await ann.ask("send", "ack", to="@bob", n=n, body=n)
        conversation = keys.direct("ann", "bob")
        await bob.until(lambda: len(bob.bodies(conversation)) == 2)
        await ann.until(lambda: len(ann.bodies(conversation)) == 2)
        assert ann.bodies(conversation) == bob.bodies(conversation) == [1, 2]
        assert of.calls("deliver") == 4


async def test_send_to_an_unfit_store_is_refused_and_appended_once_it_is_fit(valkey: EmbeddedValkey) -> None:
    """A refused send is not in the log, because no member may receive an event whose sender got an error."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob").connected()
        of.fitness.fault = "it would evict data"
        refused = await ann.ask("send", "error", to=group, n=7, body="x")
        assert (refused["code"], refused["n"]) == ("unavailable", 7)
        assert refused["retry_after"] > 0
        of.fitness.fault = ""
        await sent(ann, group, 7, body="x")
        await bob.event("message")
        assert bob.bodies(group) == ["x"]


async def test_send_whose_callback_raises_is_answered_once(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is in the log, so the resend is acked as its duplicate."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()

        def broken(*_: object) -> None:
            raise RuntimeError("broken")

        with monkeypatch.context() as patch:
            patch.setattr(of.node.marks, "read", broken)
            error = await ann.ask("send", "error", to=group, n=1, body="x")
        assert (error["code"], of.node.sends.in_flight) == ("internal", 0)
        ack = await ann.ask("send", "ack", to=group, n=1, body="x")
        assert (ack["duplicate"], of.node.sends.in_flight) == (True, 0)
        assert (len(ann.of("error")), len(ann.of("ack"))) == (1, 1)


# -- files


async def uploads(of: Any, user: str, *names: str) -> list[str]:
    """Files that this user has uploaded, as a router would have recorded them."""
    found = []
    for name in names:
        info = FileInfo(sha256=sha256(name.encode()).hexdigest(), type="text/plain", kind="file", size=3, name=name)
        record = await of.node.files.intent(info.sha256, "AAAAAAAA")
        await of.node.files.stored(info.sha256, replace(record, size=3), user)
        await of.node.files.own(user, info, 1000)
        found.append(info.sha256)
    return found


async def test_message_carries_its_files_as_the_server_knows_them(valkey: EmbeddedValkey) -> None:
    """In both codecs; a list without files is none, and a resend is acked after its upload is gone."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann, bob = await of.client("ann").connected(), await of.client("bob", codec=codecs.MSGPACK).connected()
        first, second = await uploads(of, "ann", "a", "b")
        ack = await sent(ann, group, 1, files=[first, {"sha256": second}])
        shown = [{"sha256": sha, "type": "text/plain", "kind": "file", "size": 3, "name": name}
                 for sha, name in ((first, "a"), (second, "b"))]  # fmt: skip
        assert (await ann.event("message"))["files"] == (await bob.event("message"))["files"] == shown
        for sha in (first, second):
            await of.node.files.forget_uploads(sha, -1)
        again = await ann.ask("send", "ack", to=group, n=1, body=1, files=[{"sha256": first}, second])
        assert (again["seq"], again["duplicate"]) == (ack["seq"], True)
        conflict = await ann.ask("send", "error", to=group, n=1, body=1, files=[first])
        assert conflict["reason"] == "content"
        await sent(ann, group, 2, files=[])
        assert "files" not in (await ann.event("message", n=2))
        again = await ann.ask("send", "ack", to=group, n=2, body=2)
        assert again["duplicate"] is True


async def test_file_that_the_author_may_not_use_is_not_found(valkey: EmbeddedValkey) -> None:
    """In any conversation; a first direct message with it does not create the conversation."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        (his,) = await uploads(of, "bob", "a")
        for n, to in enumerate((group, "@bob"), 1):
            error = await ann.ask("send", "error", to=to, n=n, body=n, files=[his])
            assert (error["code"], error["n"]) == ("not_found", n)
        assert await reply_of(of.node.conversations.heads, [keys.direct("ann", "bob")]) == [None]
        assert of.node.sends.in_flight == 0


async def test_commands_behind_a_message_with_files_wait_for_it(valkey: EmbeddedValkey) -> None:
    """In their order, in a conversation that the first of them creates; those of other conversations do not wait."""
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        (mine,) = await uploads(of, "ann", "a")
        held: list[Any] = []
        attach = of.node.files.attach
        of.node.files.attach = lambda *args: held.append(args)  # type: ignore[method-assign]
        ann.say("send", to="@bob", n=1, body=1)
        ann.say("send", to="@bob", n=2, body=2, files=[mine])
        ann.say("send", to="@bob", n=3, body=3)
        ann.say("send", to="@bob", n=4, body=4, files=[mine])
        ann.say("send", to="@bob", n=5, body=5, files=["0" * 64])
        ann.say("send", to="@bob", n=6, body=6)
        await sent(ann, group, 7)
        await ann.event("ack", n=1)
        assert {event["n"] for event in ann.of("ack")} == {1, 7}
        of.node.files.attach = attach  # type: ignore[method-assign]
        attach(*held[0])
        await ann.until(lambda: len(ann.of("ack")) == 6)
        await ann.until(lambda: len(ann.of("message")) == 6)
        assert (await ann.event("error"))["n"] == 5
        assert ann.bodies(keys.direct("ann", "bob")) == [1, 2, 3, 4, 6]
        assert (of.node.sends.in_flight, of.node.sends._looking) == (0, {})


async def test_commands_that_wait_for_files_are_bounded(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those beyond are refused; if the lookup fails, only its own message fails."""
    monkeypatch.setattr(sending, "MAX_WAITING", 3)
    async with world(valkey) as of:
        group = await of.group("ann", "bob")
        ann = await of.client("ann").connected()
        held: list[Any] = []
        monkeypatch.setattr(of.node.files, "attach", lambda *args: held.append(args))
        for n in range(1, 6):
            ann.say("send", to=group, n=n, body=n, **({"files": ["0" * 64]} if n == 1 else {}))
        await ann.until(lambda: len(ann.of("error")) == 2)
        assert {event["code"] for event in ann.of("error")} == {"rate_limited"}
        held[0][-1](Unavailable("later", 1.0))
        await ann.until(lambda: len(ann.of("ack")) == 2)
        assert (await ann.event("error", n=1))["code"] == "unavailable"
        assert of.node.sends.in_flight == 0
