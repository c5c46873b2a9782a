"""Rules, runbooks and routes agree: every alert has a test, a severity with a receiver, and a runbook section."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import yaml

from deploy import manifests
from deploy.alerts import serve_alerts
from tests import support
from tests.support import ROOT

PROMETHEUS = ROOT / "deploy/prometheus"
RUNBOOKS = (ROOT / "deploy/RUNBOOKS.md").read_text()


def rules() -> list[dict[str, Any]]:
    groups = [group for path in PROMETHEUS.glob("rules-*.yaml") for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def test_every_alert_has_its_runbook() -> None:
    """`runbook_url` names the alert's own section, which has what users notice, how to confirm, and what to do."""
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", RUNBOOKS, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(ALERTS)
    for name, alert in ALERTS.items():
        assert alert["annotations"]["runbook_url"] == f"deploy/RUNBOOKS.md#{name.lower()}"
        for question in ("**Users notice**", "**Confirm**", "**Do**"):
            assert question in sections[name], (name, question)


def test_rules_are_those_of_prometheus() -> None:
    """The operator's copy equals the tested files; `make k8s` generates it."""
    assert manifests.RULES.read_text() == manifests.prometheus_rules()


def test_every_alert_has_its_test() -> None:
    """promtool shows each alert quiet and firing (`make deploy-check`)."""
    tested = {test["name"].split()[0] for test in yaml.safe_load((PROMETHEUS / "rules-tests.yml").read_text())["tests"]}
    assert set(ALERTS) <= tested


def test_every_severity_has_a_receiver() -> None:
    """Alertmanager has a receiver for each severity, and its inhibitions name existing alerts."""
    config = yaml.safe_load((ROOT / "deploy/alertmanager/alertmanager.yml").read_text())
    receivers = {receiver["name"] for receiver in config["receivers"]}
    assert {alert["labels"]["severity"] for alert in ALERTS.values()} == receivers
    named = re.findall(r"Linnet\w+", json.dumps(config["inhibit_rules"]))
    assert [name for name in named if name not in ALERTS and not any(one.startswith(name) for one in ALERTS)] == []


def test_rules_ask_for_metrics_that_exist() -> None:
    """Every metric of Linnet that a rule or a panel names is declared."""
    declared = " ".join((ROOT / path).read_text() for path in ("router/contract/metrics.py", "loadtest/canary.py"))
    names = set(re.findall(r'"(linnet_\w+)"', declared))
    asked = "".join(rule["expr"] for rule in rules()) + (ROOT / "deploy/grafana/dashboards.yaml").read_text()
    for name in re.findall(r"\blinnet_\w+", asked):
        assert {name, re.sub(r"_(total|bucket|count|sum)$", "", name)} & names, name


async def test_alerts_are_printed() -> None:
    """The stack prints each alert in one line; a body that is no notification is refused and does no harm."""
    (port,) = support.free_ports(1)
    said: list[str] = []
    server = await serve_alerts("127.0.0.1", port, said.append)
    alert = {"status": "firing", "labels": {"alertname": "A"}, "annotations": {"summary": "s", "runbook_url": "r"}}

    async def post(body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = await reader.read()
        writer.close()
        return answer

    async with server:
        assert b"200" in await post(json.dumps({"receiver": "page", "alerts": [alert]}).encode())
        assert b"400" in await post(b"[]")
    assert said == ["alert     | page: A firing: s (see r)"]
