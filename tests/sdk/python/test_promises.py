"""The client against real gateways and routers: its process is killed, the server is killed, and nothing is lost."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

import pytest
from linnet_client import (
    Client,
    Event,
    Gone,
    Joined,
    Login,
    Message,
    Online,
    Presence,
    Refused,
    Status,
    Typing,
    media,
    uploading,
)

from tests.cutting import ANSWER, Cutting
from tests.flow.client import token
from tests.flow.conftest import Names, Start, System
from tests.sdk.python.test_cli import linnet, logged_in
from tests.support import ROOT, eventually

PASSWORD = "correct horse battery"


def client(system: System, user: str, store: Path | None = None) -> Client:
    assert system.router is not None
    return Client(system.router.url, user, token(user), store=store)


class Listener:
    """What an application was given, in its order."""

    def __init__(self, of: Client) -> None:
        self.events: list[Event] = []
        self.task = asyncio.create_task(of.listen(self._handle))

    async def _handle(self, event: Event) -> None:
        self.events.append(event)

    @property
    def bodies(self) -> list[object]:
        return [event.body for event in self.events if isinstance(event, Message)]

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


@asynccontextmanager
async def listening(to: Client) -> AsyncIterator[Listener]:
    """Open the client, unless it is open, and consume its events."""
    async with AsyncExitStack() as stack:
        if to.status is Status.IDLE:
            await stack.enter_async_context(to)
        listener = Listener(to)
        stack.push_async_callback(listener.end)
        yield listener


async def killed_sender(
    system: System, user: str, store: Path, to: str, lines: int, gateway: str = "-", count: str = "-", run: str = ""
) -> list[str]:
    """Start a sender, and kill it with SIGKILL once it has stored so many messages; what it has said to be stored."""
    assert system.router is not None
    path = f"{ROOT}{os.pathsep}{ROOT / 'router/sdk/python'}"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.sdk.python.sender", system.router.url, user, str(store), gateway, to, count, run,
        env={**os.environ, "PYTHONPATH": path}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    stored = [(await process.stdout.readline()).decode().strip() for _ in range(lines)]
    process.kill()
    stored += (await process.stdout.read()).decode().split()
    await process.wait()
    return stored


async def test_message_stored_before_the_process_was_killed_is_sent_by_the_next(
    chat: System, names: Names, tmp_path: Path
) -> None:
    """kill -9 between `stored` and the first write: the next process on the store sends it, once."""
    ann, bob = names("ann", "bob")
    await chat.api("POST", "/v1/tokens", {"user": bob})
    stored = await killed_sender(chat, ann, tmp_path / "s", f"@{bob}", 3, "ws://127.0.0.1:9/ws", "3")
    assert len(stored) == 3
    async with listening(client(chat, bob)) as listener, client(chat, ann, tmp_path / "s") as again:
        await asyncio.gather(*(handle.settled() for handle in again.outbox))
        await eventually(lambda: listener.bodies == stored)


async def test_process_killed_while_sending_loses_and_doubles_nothing(
    chat: System, names: Names, tmp_path: Path
) -> None:
    """Three lives, each killed while messages are stored, written and acked: all that was stored arrives once."""
    ann, bob = names("ann", "bob")
    await chat.api("POST", "/v1/tokens", {"user": bob})
    stored: list[str] = []
    async with listening(client(chat, bob)) as listener:
        for life in range(3):
            stored += await killed_sender(chat, ann, tmp_path / "s", f"@{bob}", 40, run=str(life))
        async with client(chat, ann, tmp_path / "s") as last:
            await asyncio.gather(*(handle.settled() for handle in last.outbox))
            await last.conversation(f"@{bob}").send("the end").acked
            await eventually(lambda: "the end" in listener.bodies)
            assert {handle.state for handle in last.outbox} <= {"failed"}
        assert len(listener.bodies) == len(set(listener.bodies))
        # A message may be stored, and the process killed before it said so.
        assert [body for body in listener.bodies if body in set(stored)] == stored


async def test_killed_gateway_loses_and_doubles_nothing(start: Start, names: Names, tmp_path: Path) -> None:
    """The gateway of both clients dies under load; they go on at another one, in order."""
    system = await start()
    ann, bob = names("ann", "bob")
    await system.api("POST", "/v1/tokens", {"user": bob})
    async with listening(client(system, bob)) as listener, client(system, ann, tmp_path / "s") as sender:
        await sender.until(Status.LIVE)
        conversation = sender.conversation(f"@{bob}")
        handles = [conversation.send(i) for i in range(60)]
        await handles[10].acked
        system.gateways[0].kill()
        handles += [conversation.send(i) for i in range(60, 120)]
        system.gateways.append(system.gateway())
        await asyncio.gather(*(handle.settled() for handle in handles))
        assert {handle.state for handle in handles} == {"acked"}
        await eventually(lambda: listener.bodies == list(range(120)))
        assert list(conversation.view.entries) == sorted(conversation.view.entries)


async def test_device_that_was_away_gets_what_it_missed_once(chat: System, names: Names, tmp_path: Path) -> None:
    """Two lives on one store, 250 messages between them: each comes once, over both."""
    ann, bob = names("ann", "bob")
    await chat.api("POST", "/v1/tokens", {"user": bob})
    async with client(chat, ann) as sender:
        async with listening(client(chat, bob, tmp_path / "s")) as first:
            await sender.conversation(f"@{bob}").send("first").acked
            await eventually(lambda: first.bodies == ["first"])
        sent = [sender.conversation(f"@{bob}").send(i) for i in range(250)]
        await asyncio.gather(*(handle.settled() for handle in sent))
        async with listening(client(chat, bob, tmp_path / "s")) as second:
            await eventually(lambda: len(second.bodies) >= 250)
            await sender.conversation(f"@{bob}").send("last").acked
            await eventually(lambda: second.bodies[-1:] == ["last"])
            assert second.bodies in ([*range(250), "last"], ["first", *range(250), "last"])


async def test_model_shows_edits_reactions_deletes_and_unread(chat: System, names: Names) -> None:
    """The model of a device that comes later shows what the live one shows, but for deleted messages."""
    ann, bob = names("ann", "bob")
    await chat.api("POST", "/v1/tokens", {"user": bob})
    async with client(chat, ann) as sender, listening(client(chat, bob)) as listener:
        conversation = sender.conversation(f"@{bob}")
        seqs = [(await conversation.send(body).acked).seq for body in ("one", "two", "three")]
        await conversation.edit(seqs[0], "ONE").acked
        await conversation.delete(seqs[1]).acked
        await conversation.react(seqs[2], "+").acked
        end = (await conversation.send("end").acked).seq
        await eventually(lambda: "end" in listener.bodies)
        async with client(chat, bob) as other:
            await other.until(Status.LIVE)
            loaded = other.conversation(f"@{ann}")
            while await loaded.load_older():
                pass
            await eventually(
                lambda: (
                    [
                        (seq, entry.body, entry.edited, entry.reactions)
                        for seq, entry in loaded.view.entries.items()
                        if not entry.deleted
                    ]
                    == [(seqs[0], "ONE", True, {}), (seqs[2], "three", False, {"+": {ann}}), (end, "end", False, {})]
                )
            )
            assert conversation.view.entries[seqs[1]].deleted
            await eventually(lambda: loaded.view.unread == 3)
            loaded.mark_read()
            assert loaded.view.unread == 0
            await eventually(lambda: conversation.view.reads.get(bob) == end)
            assert (await conversation.load_reads())[bob] == end


async def test_presence_and_typing_reach_the_application(chat: System, names: Names) -> None:
    ann, bob = names("ann", "bob")
    for user in (ann, bob):
        await chat.api("POST", "/v1/tokens", {"user": user})
    async with client(chat, ann) as watcher, listening(watcher) as listener:
        await watcher.until(Status.LIVE)
        assert await watcher.presence([bob]) == {bob: Online(False, None)}
        watcher.watch([bob])
        async with client(chat, bob) as other:
            await other.until(Status.LIVE)
            await eventually(
                lambda: any(isinstance(event, Presence) and event.users[bob].online for event in listener.events)
            )
            conversation = other.conversation(f"@{ann}")
            await conversation.send("hi").acked
            await eventually(lambda: "hi" in listener.bodies)
            conversation.typing()
            await eventually(lambda: Typing(conversation=conversation.id, sender=bob) in listener.events)
            watcher.conversation(conversation.id).mark_read()
            await eventually(lambda: conversation.view.reads.get(ann) == conversation.view.head)


async def test_group_that_the_user_joins_and_leaves_is_handed_over(chat: System, names: Names) -> None:
    ann, bob = names("ann", "bob")
    await chat.api("POST", "/v1/tokens", {"user": bob})
    async with client(chat, bob) as member, listening(member) as listener:
        await member.until(Status.LIVE)
        group = await chat.group(ann, bob, title="garden")
        await eventually(lambda: Joined(conversation=group) in listener.events)
        model = member.conversation(group).view
        assert (model.title, model.role, model.kind) == ("garden", "member", "group")
        await chat.api("DELETE", f"/v1/conversations/{group}/members/{bob}")
        await eventually(lambda: Gone(conversation=group, reason="removed") in listener.events)
        assert model.gone == "removed"


async def test_login_renews_its_token_before_it_expires(start: Start, names: Names) -> None:
    """A token of six seconds: the connection lives on with later ones, of the same login, and is never closed."""
    system = await start(LINNET_TOKEN_TTL_S="6")
    assert system.router is not None
    (ann,) = names("ann")
    await system.api("POST", "/v1/accounts", {"user": ann, "password": PASSWORD, "name": ann})
    kept: list[str] = []
    login = Login(system.router.url, ann, PASSWORD, save=kept.append)
    async with Client(system.router.url, ann, login) as client:
        await client.until(Status.LIVE)
        assert client._connection is not None
        first, socket = client._connection.expires_at, client._connection._socket
        await eventually(lambda: len(set(kept)) >= 3, 60)
        await eventually(lambda: client._connection is not None and client._connection.expires_at > first + 3000)
        assert client._connection._socket is socket


async def test_file_is_uploaded_sent_shown_and_fetched(start: Start, names: Names, tmp_path: Path) -> None:
    """By the client, with progress, and by the command line; what the server knows of it is in the message."""
    system = await start(LINNET_MEDIA_URL=f"file://{tmp_path / 'objects'}")
    ann, bob = names("ann", "bob")
    await system.api("POST", "/v1/tokens", {"user": bob})
    data, told = b"bytes of a file\n" * 10_000, list[tuple[int, int]]()
    async with client(system, bob) as reader, listening(reader) as listener, client(system, ann) as sender:
        made = await sender.media.upload(
            data, name="a ä.txt", mime="text/plain", progress=lambda *now: told.append(now)
        )
        assert (made["size"], made["name"], made["kind"], made["type"]) == (
            len(data),
            "a ä.txt",
            "file",
            "application/octet-stream",
        )
        await eventually(lambda: told[-1:] == [(len(data), len(data))])
        conversation = sender.conversation(f"@{bob}")
        await conversation.send("look", files=[made["sha256"]]).acked
        await eventually(lambda: listener.bodies == ["look"])
        (got,) = reader.conversation(conversation.id).messages()
        assert [file["name"] for file in got.files] == ["a ä.txt"]
        links = await reader.media.links([made["sha256"]], conversation.id)
        assert list(links) == [made["sha256"]]
        assert await reader.media.bytes(made["sha256"], conversation.id) == data
        with pytest.raises(Refused) as refused:
            await reader.media.bytes(made["sha256"])
        assert refused.value.code == "not_found"
        (tmp_path / "b.txt").write_bytes(data)
        home = await logged_in(system, tmp_path / "home", f"{ann}-cli")
        command = ("upload", tmp_path / "b.txt", "--to", f"@{bob}", "--text", "from the terminal")
        status, out, _ = await linnet(home, *command)
        assert (status, out.split()[0]) == (0, made["sha256"])
        await eventually(lambda: listener.bodies == ["look", "from the terminal"])


@asynccontextmanager
async def scanner(wait: Callable[[], Awaitable[None]]) -> AsyncIterator[str]:
    """A service that accepts every file, after it has waited."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.partition("content-length:")[2].split()[0]))
            await wait()
            verdict = b'{"verdict":"accept"}'
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(verdict)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + verdict)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/scan"


async def test_upload_that_is_cut_goes_on_at_another_router(
    start: Start, names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times in the middle, and its last answer is lost: no byte is missing, and none is doubled. It may be
    stopped, and go on with another client. A scan may take longer than a transfer may be silent."""
    gate = asyncio.Event()
    gate.set()

    async def passed() -> None:
        await gate.wait()

    (ann,) = names("ann")
    path, cuts = tmp_path / "large.bin", [500_000, 1, 900_000, ANSWER]
    path.write_bytes(os.urandom(3_000_000))
    digest = sha256(path.read_bytes()).hexdigest()
    async with scanner(passed) as url:
        system = await start(LINNET_MEDIA_URL=f"file://{tmp_path / 'objects'}", LINNET_MEDIA_SCAN_URL=url)
        second = system.start("router")
        await second.ready()
        assert system.router is not None
        async with (
            Cutting([system.router.url, second.url], [*cuts]) as proxy,
            Client(proxy.url, ann, token(ann)) as one,
        ):
            made = await one.media.upload(path)
            assert (made["sha256"], made["size"], made["name"]) == (digest, 3_000_000, "large.bin")
            assert (proxy.done, len(set(proxy.ways))) == (cuts, 2)
            proxy.plan[:] = [100]  # a small file, in one request
            assert (await one.media.upload(b"small"))["size"] == 5
            gate.clear()
            proxy.requests.clear()
            monkeypatch.setattr(media, "TRANSFER_S", 0.5)
            monkeypatch.setattr(uploading, "TRANSFER_S", 0.5)
            scanned = asyncio.create_task(one.media.upload(b"slowly"))
            await eventually(lambda: [line for line in proxy.requests if line.startswith("HEAD ")], 60.0)
            gate.set()
            assert (await scanned)["size"] == 6
        monkeypatch.undo()
        upload: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        halfway = asyncio.Event()
        data = os.urandom(20_000_000)
        told: list[int] = []
        async with Client(system.router.url, ann, token(ann)) as one:
            uploading_ = asyncio.create_task(
                one.media.upload(
                    data,
                    begun=upload.set_result,
                    progress=lambda done, _: halfway.set() if done > 9_000_000 else None,
                )
            )
            await halfway.wait()
            uploading_.cancel()
            await asyncio.wait([uploading_])
        async with Client(second.url, ann, token(ann)) as other:
            again = await other.media.upload(data, upload=await upload, progress=lambda done, _: told.append(done))
            assert again["sha256"] == sha256(data).hexdigest()
            await eventually(lambda: told[-1:] == [20_000_000])
            assert told[0] > 8_000_000
            for ended in (await upload, f"/v1/uploads/tus/{'0' * 32}"):
                assert (await other.media.upload(path, upload=ended))["sha256"] == digest


async def test_state_and_people_agree_on_all_devices(chat: System, names: Names) -> None:
    """What one device writes the other has, live and after it was away; contacts and blocks are a part of it."""
    ann, bob = names("ann", "bob")
    await chat.api("POST", "/v1/tokens", {"user": bob})
    seen: list[tuple[str, object]] = []
    async with client(chat, ann) as phone, client(chat, ann) as laptop, client(chat, bob) as other:
        for one in (phone, laptop, other):
            await one.until(Status.LIVE)
        end = laptop.state.watch("draft/", lambda key, value: seen.append((key, value)))
        assert await laptop.state.entries() == {}
        await phone.state.set("draft/1", {"text": "hé", "data": b"\x00"})
        assert await phone.state.get("draft/1") == {"text": "hé", "data": b"\x00"}
        await phone.state.set("theme", "dark")
        await eventually(lambda: seen == [("draft/1", {"text": "hé", "data": b"\x00"})])
        version = await phone.state.version_of("draft/1")
        with pytest.raises(Refused) as refused:
            await laptop.state.set("draft/1", "late", expect=version + 1)
        assert refused.value.code == "conflict"
        await laptop.state.remove("draft/1", expect=version)
        await eventually(lambda: seen[-1:] == [("draft/1", None)])

        async def phone_has_it() -> bool:
            return await phone.state.entries() == {"theme": "dark"}

        await eventually(phone_has_it)
        end()
        await phone.people.request(bob, "hi")
        await eventually_contact(other, ann, "incoming")
        await other.people.accept(ann)
        await eventually_contact(laptop, bob, "contact")
        await laptop.people.block(bob)
        assert await laptop.people.blocked() == [bob]
        with pytest.raises(Refused) as refused:
            await other.conversation(f"@{ann}").send("no").acked
        assert refused.value.code == "blocked"
        await laptop.people.unblock(bob)
        await other.conversation(f"@{ann}").send("yes").acked
    async with client(chat, ann) as later:
        assert await later.state.get("theme") == "dark"


async def eventually_contact(of: Client, user: str, state: str) -> None:
    async def has() -> bool:
        return (await of.people.contacts()).get(user, {}).get("state") == state

    await eventually(has)


async def test_state_is_read_anew_after_a_failover_took_changes_back(chat: System, names: Names) -> None:
    """A version below the copy's, as a `welcome` or a lone event says it: everything is asked for, and replaced."""
    (ann,) = names("ann")
    async with client(chat, ann) as one:
        await one.until(Status.LIVE)
        await one.state.set("kept", 1)
        true = one.state.version
        one.state._apply([{"key": "lost", "value": 2, "version": true + 5}], true + 5)
        assert await one.state.get("lost") == 2
        one.state.told({"version": true})
        await eventually(lambda: one.state.version == true)
        assert await one.state.entries() == {"kept": 1}
