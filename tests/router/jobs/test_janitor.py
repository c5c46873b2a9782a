"""router/jobs/janitor.py: rows of gateways that died long ago are removed, those of live ones are kept."""

from functools import partial

import pytest

from deploy.embedded import EmbeddedValkey
from router.contract import metrics
from router.contract.settings import Settings
from router.jobs.janitor import KEEP_S, Janitor
from router.store.answers import reply_of
from router.store.deployment import restore
from router.store.presence import LEASE_S
from tests.router.world import world

SETTINGS = Settings(jwt_secret="a" * 32)
NOW_MS = 1_800_000_000_000
DAY_MS = KEEP_S * 1000


async def test_rows_of_gateways_long_dead_are_removed(valkey: EmbeddedValkey) -> None:
    """Of a live gateway, one dead for a while and one dead for more than a day, only the last one's row is removed."""
    async with world(valkey) as w:
        for node, at in (("alive", NOW_MS), ("dead", NOW_MS - DAY_MS), ("gone", NOW_MS - DAY_MS - LEASE_S * 1000 - 1)):
            await reply_of(w.presence.renew, node, "ws://x", 1, at, at)
        for _ in range(2):
            await Janitor(w.presence, partial(restore, w.client, SETTINGS), w.reports.erase).clean(NOW_MS)
            assert set(await w.presence.gateways()) == {"alive", "dead"}
        assert metrics.GATEWAYS_ALIVE._value.get() == 1


async def test_row_that_cannot_be_removed_keeps_no_other(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows behind it are removed."""
    async with world(valkey) as w:
        for node in ("one", "broken", "two"):
            await reply_of(w.presence.renew, node, "ws://x", 1, 0, NOW_MS - 2 * DAY_MS)
        remove = w.presence.remove

        async def removing(node: str) -> None:
            if node == "broken":
                raise RuntimeError("broken")
            await remove(node)

        monkeypatch.setattr(w.presence, "remove", removing)
        await Janitor(w.presence, partial(restore, w.client, SETTINGS), w.reports.erase).clean(NOW_MS)
        assert set(await w.presence.gateways()) == {"broken"}
