"""Passwords: right and wrong, nobody's, and what a flood gets."""

import asyncio
import threading

import pytest

from router import passwords
from router.contract.errors import Unavailable
from router.passwords import Passwords


async def test_only_the_password_matches_its_hash() -> None:
    """A hash is argon2id, salted, and accepts its own password alone."""
    service = Passwords()
    stored = await service.hash("päss wörd")
    assert stored.startswith(b"$argon2id$")
    assert stored != await service.hash("päss wörd")
    assert await service.verify(stored, "päss wörd")
    assert not await service.verify(stored, "pass word")
    assert not await service.verify(b"not a hash", "päss wörd")
    service.close()


async def test_nobodys_password_costs_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown user's password is hashed too, with the parameters of all others, and never matches."""
    checked: list[str] = []
    matches = passwords._matches

    def noted(stored: str, password: str) -> bool:
        checked.append(stored)
        return matches(stored, password)

    monkeypatch.setattr(passwords, "_matches", noted)
    service = Passwords()
    stored = await service.hash("a")
    assert not await service.verify(None, "a")
    assert not await service.verify(None, "nobody's")
    parameters = stored.decode().rsplit("$", 2)[0]
    assert [one.rsplit("$", 2)[0] for one in checked] == [parameters] * 2
    service.close()


async def test_a_flood_is_refused_and_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What exceeds the bound is told to come again at once; abandoned work counts until done; then all is free."""
    monkeypatch.setattr(passwords, "WAITING", 2)
    service = Passwords()
    hasher, free = passwords._hasher, threading.Event()

    class Held:
        def hash(self, password: str) -> str:
            free.wait(20)
            return hasher.hash(password)

    monkeypatch.setattr(passwords, "_hasher", Held())
    accepted = [asyncio.ensure_future(service.hash("a")) for _ in range(passwords.THREADS + 2)]
    await asyncio.gather(*(asyncio.sleep(0) for _ in accepted))
    accepted[0].cancel()
    with pytest.raises(Unavailable) as refusal:
        await service.hash("a")
    assert refusal.value.retry_after
    free.set()
    done = await asyncio.gather(*accepted, return_exceptions=True)
    assert sum(isinstance(one, bytes) for one in done) == len(accepted) - 1
    assert await service.hash("a")
    service.close()
