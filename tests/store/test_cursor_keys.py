"""Functions that use the cursors of all devices: a device that registers between the caller's two steps."""

from typing import Any

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import keys
from router.contract.errors import Unavailable
from router.store.accounts import Accounts
from router.store.cursor_keys import TRIES, naming_devices
from router.store.pushes import Pushes
from router.store.redis.client import Client
from router.store.sync import Sync
from router.store.users import Users
from tests.store.calling import called
from tests.store.user_slot import connected


async def register(client: Client, device: str) -> None:
    who = Sync(user="ann", device=device, session=device, node="node-1", started=1, register=True)
    await called(Users(client).sync, who)
    await called(Users(client).ack, "ann", device, device, {"d:ann:bob": 1})


@pytest.mark.parametrize("call", ["delete_account", "waiting_pushes"])
async def test_device_that_registers_meanwhile_is_included(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Its cursor is deleted with the account, and counts for the push."""
    async with connected(valkey) as client:
        await Accounts(client).ensure("ann")
        await Pushes(client).schedule("ann", "d:ann:bob", 1, 1)
        fcall, tried = client.fcall, []

        async def late(function: str, where: Any, args: Any) -> Any:
            if function == call:
                tried.append(len(where))
            if function == call and len(tried) == 1:
                await register(client, "phone")
            return await fcall(function, where, args)

        monkeypatch.setattr(client, "fcall", late)
        if call == "delete_account":
            await Accounts(client).delete("ann")
            assert not await client.fetch("EXISTS", keys.cursor("ann", "phone"))
        else:
            assert (await Pushes(client).waiting("ann")).cursors == {"d:ann:bob": 1}
        assert tried == [tried[0], tried[0] + 1]


async def test_call_ends_although_devices_change_all_the_time(valkey: EmbeddedValkey) -> None:
    async with connected(valkey) as client:
        asked = []

        async def never(devices: list[str], cursors: list[str]) -> Any:
            asked.append((devices, cursors))

        with pytest.raises(Unavailable):
            await naming_devices(client, "ann", never)
        assert len(asked) == TRIES
