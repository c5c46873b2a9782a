"""router/process/admin.py: the endpoints for orchestrators and Prometheus."""

import re

import httpx
from prometheus_client import Gauge

from router.process.admin import Readiness, create_admin

SEEN = Gauge("linnet_test_seen", "Set at scrape time, by this test")


def client(readiness: Readiness) -> httpx.AsyncClient:
    app = create_admin(lambda: readiness, lambda: SEEN.set(7))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://admin")


async def test_liveness_checks_only_the_loop() -> None:
    """A process that is not ready is alive."""
    async with client(Readiness(False, "waiting for Redis")) as admin:
        assert (await admin.get("/livez")).status_code == 200


async def test_readiness_gives_its_reason() -> None:
    """503 with the reason, or 200 with the work's text."""
    async with client(Readiness(False, "waiting for Redis")) as admin:
        answer = await admin.get("/readyz")
        assert (answer.status_code, answer.text) == (503, "waiting for Redis\n")
    async with client(Readiness(True, "ok")) as admin:
        answer = await admin.get("/readyz")
        assert (answer.status_code, answer.text) == (200, "ok\n")


async def test_ready_process_may_have_to_wait_before_it_joins() -> None:
    """Orchestrators pace a rollout by /joinz; /readyz, by which balancers choose, does not wait."""
    async with client(Readiness(True, "ok, but another gateway is draining", joins=False)) as admin:
        assert (await admin.get("/readyz")).status_code == 200
        answer = await admin.get("/joinz")
        assert (answer.status_code, answer.text) == (503, "ok, but another gateway is draining\n")
    for readiness, status in ((Readiness(True, "ok"), 200), (Readiness(False, "no lease yet"), 503)):
        async with client(readiness) as admin:
            assert (await admin.get("/joinz")).status_code == status


async def test_metrics_are_current_and_in_the_requested_format() -> None:
    """The scrape itself updates the gauges; the format is OpenMetrics if the scraper requests it."""
    async with client(Readiness(True, "ok")) as admin:
        plain = await admin.get("/metrics", headers={"accept": "text/plain"})
        assert plain.headers["content-type"].startswith("text/plain")
        assert "\nlinnet_test_seen 7.0\n" in plain.text
        openmetrics = await admin.get("/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
        assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
        assert openmetrics.text.endswith("# EOF\n")


async def test_process_shows_only_its_own_metrics() -> None:
    """A router has no metrics of connections, a gateway none of webhooks; both have the common ones."""
    shown = {}
    for name in ("gateway", "router"):
        app = create_admin(lambda: Readiness(True, "ok"), lambda: None, name)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://admin") as admin:
            lines = (await admin.get("/metrics")).text.splitlines()
        shown[name] = {re.split(r"[ {]", line)[0] for line in lines if not line.startswith("#")}
    assert {"linnet_gateway_connections", "linnet_gateways_alive", "linnet_redis_up"} <= shown["gateway"]
    assert {"linnet_router_dirty_conversations", "linnet_gateways_alive", "linnet_redis_up"} <= shown["router"]
    assert not [name for name in shown["router"] if name.startswith("linnet_gateway_")]
    assert not [name for name in shown["gateway"] if name.startswith("linnet_router_")]


async def test_other_paths_and_methods_are_refused() -> None:
    """Only the four paths and GET are served."""
    async with client(Readiness(True, "ok")) as admin:
        assert (await admin.get("/")).status_code == 404
        assert (await admin.post("/metrics")).status_code == 405
