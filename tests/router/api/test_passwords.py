"""Passwords: right ones, wrong ones, those of unknown users, and floods of them."""

import asyncio
import threading

import pytest

from router.api import passwords
from router.api.passwords import Passwords
from router.contract.errors import BadCommand, Unavailable


async def test_only_the_password_matches_its_hash() -> None:
    """A hash is argon2id, salted, and accepts only its own password."""
    service = Passwords(8)
    stored = await service.hash("päss wörd", "ada")
    assert stored.startswith(b"$argon2id$")
    assert stored != await service.hash("päss wörd", "ada")
    assert await service.verify(stored, "päss wörd")
    assert not await service.verify(stored, "pass word")
    assert not await service.verify(b"not a hash", "päss wörd")
    service.close()


async def test_password_of_an_unknown_user_costs_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is hashed too, with the parameters of all others, and never matches."""
    checked: list[str] = []
    matches = passwords._matches

    def noted(stored: str, password: str) -> bool:
        checked.append(stored)
        return matches(stored, password)

    monkeypatch.setattr(passwords, "_matches", noted)
    service = Passwords(8)
    stored = await service.hash("long enough", "ada")
    assert not await service.verify(None, "long enough")
    assert not await service.verify(None, "nobody's")
    parameters = stored.decode().rsplit("$", 2)[0]
    assert [one.rsplit("$", 2)[0] for one in checked] == [parameters] * 2
    service.close()


async def test_flood_is_refused_until_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls beyond the bound are refused at once; the work of cancelled callers counts until it is done."""
    monkeypatch.setattr(passwords, "WAITING", 2)
    service = Passwords(8)
    hasher, free = passwords._hasher, threading.Event()

    class Held:
        def hash(self, password: str) -> str:
            free.wait(20)
            return hasher.hash(password)

    monkeypatch.setattr(passwords, "_hasher", Held())
    accepted = [asyncio.ensure_future(service.hash("long enough", "ada")) for _ in range(passwords.THREADS + 2)]
    await asyncio.gather(*(asyncio.sleep(0) for _ in accepted))
    accepted[0].cancel()
    with pytest.raises(Unavailable) as refusal:
        await service.hash("long enough", "ada")
    assert refusal.value.retry_after
    free.set()
    done = await asyncio.gather(*accepted, return_exceptions=True)
    assert sum(isinstance(one, bytes) for one in done) == len(accepted) - 1
    assert await service.hash("long enough", "ada")
    service.close()


async def test_password_matches_in_any_composition_of_its_characters() -> None:
    """Composed, decomposed, and with another kind of space; a different character that looks alike does not match."""
    service = Passwords(8)
    stored = await service.hash("caf\u00e9 au lait", "ada")
    for typed in ("caf\u00e9 au lait", "cafe\u0301 au lait", "caf\u00e9\u3000au\u00a0lait"):
        assert await service.verify(stored, typed)
    for typed in ("cafe au lait", "caf\u00e9 au l\u0430it", "Caf\u00e9 au lait", "caf\u00e9\u200b au lait"):
        assert not await service.verify(stored, typed)
    service.close()


@pytest.mark.parametrize("typed", ["cafe\u0301 au lait", "tab\tand null\0", "a", "ada"])
async def test_hashes_of_passwords_as_typed_still_match(typed: str) -> None:
    """They were made before passwords had a form and rules."""
    service = Passwords(8)
    assert await service.verify(passwords._hasher.hash(typed).encode(), typed)
    service.close()


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("seven c", "at least 8"),
        ("e\u0301" * 7, "at least 8"),
        ("ADA.Lovelace", "name"),
        ("tab\tis a control", "control"),
        ("zero\u200bwidth", "invisible"),
        ("\u202eoverride", "invisible"),
        ("\ud800 is no character", "unassigned"),
    ],
)
async def test_new_password_that_breaks_a_rule_is_refused(password: str, why: str) -> None:
    """Too short in its composed form, the user's own name, characters that the form does not allow."""
    service = Passwords(8)
    with pytest.raises(BadCommand, match=why):
        await service.hash(password, "ada.lovelace")
    service.close()
