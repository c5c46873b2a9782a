"""Checks load balancers, alerts, dashboards and the compose file with the programs that read them; no daemon.

There is one check per file format in deploy/, in the manner of check.py, and none that runs for longer than parsing
takes. tests/deploy/test_balancers.py and test_stack.py run the real programs.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from deploy.check import Failed, report, tool
from deploy.dashboards import dashboards
from deploy.manifests import ROOT
from deploy.prepare import own_certificate

DEPLOY = ROOT / "deploy"
RULES = sorted((DEPLOY / "prometheus").glob("rules-*.yaml"))

# Run by the check's own Python: it reads a JSON list of expressions and prints the parser's errors.
PARSE = """
import json, sys, promql_parser
bad = []
for expression in json.load(sys.stdin):
    try:
        promql_parser.parse(expression)
    except ValueError as error:
        bad.append(f"{expression}: {error}")
sys.exit("\\n".join(bad) or 0)
"""


def check_rules() -> str:
    tool("promtool", "check", "rules", *RULES)
    tool("promtool", "test", "rules", "rules-tests.yml", cwd=DEPLOY / "prometheus")
    return f"{', '.join(path.name for path in RULES)}, and each alert in its unit test"


def check_prometheus() -> str:
    tool("promtool", "check", "config", DEPLOY / "prometheus/prometheus.yml")
    return "promtool reads prometheus.yml"


def check_alertmanager() -> str:
    tool("amtool", "check-config", DEPLOY / "alertmanager/alertmanager.yml")
    return "amtool reads alertmanager.yml"


def expressions() -> Iterator[str]:
    """Return every expression of rules and dashboards."""
    for dashboard in dashboards():
        for panels in dashboard.rows.values():
            for panel in panels:
                yield from (one.replace("$__rate_interval", "1m") for one in panel.asks.values())
    for path in RULES:
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from (rule["expr"] for rule in group["rules"])


def check_expressions() -> str:
    found = list(expressions())
    tool("python", "-c", PARSE, stdin=json.dumps(found))
    return f"{len(found)} of rules and panels"


def check_haproxy() -> str:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LINNET_TLS"] = str(own_certificate(Path(folder) / "linnet.pem"))
        tool("haproxy", "-c", "-f", DEPLOY / "haproxy/haproxy.cfg")
    return "haproxy reads haproxy.cfg"


def check_nginx() -> str:
    """Check the file with names that every machine resolves, because names are resolved while it is read."""
    with tempfile.TemporaryDirectory() as folder:
        certificate = own_certificate(Path(folder) / "linnet.pem")
        text = (DEPLOY / "nginx/nginx.conf").read_text().replace("/etc/nginx/tls/linnet.pem", str(certificate))
        for name in ("gateway", "router"):
            text = text.replace(f"server {name}:8000 max", "server localhost:8000 max")
        config = Path(folder) / "nginx.conf"
        config.write_text(text)
        tool("nginx", "-t", "-q", "-c", config)
    return "nginx reads nginx.conf"


def check_envoy() -> str:
    with tempfile.TemporaryDirectory() as folder:
        certificate = own_certificate(Path(folder) / "linnet.pem")
        text = (DEPLOY / "envoy/envoy.yaml").read_text().replace("/etc/envoy/tls/linnet.pem", str(certificate))
        config = Path(folder) / "envoy.yaml"
        config.write_text(text)
        tool("envoy", "--mode", "validate", "--log-level", "error", "-c", config)
    return "envoy reads envoy.yaml"


def check_compose() -> str:
    """Check that compose reads the file. Whether the images start is not checked, because that takes Docker."""
    made = json.loads(tool("docker-compose", "-f", DEPLOY / "compose.yaml", "config", "--format", "json"))
    mounted = [one for service in made["services"].values() for one in service.get("volumes", ())]
    if missing := [one["source"] for one in mounted if one["type"] == "bind" and not Path(one["source"]).exists()]:
        raise Failed(f"mounts what is not there: {', '.join(missing)}")
    return f"docker-compose reads {len(made['services'])} services (no Docker: they are not started)"


CHECKS: dict[str, Callable[[], str]] = {
    "rules": check_rules,
    "prometheus": check_prometheus,
    "alerting": check_alertmanager,
    "expressions": check_expressions,
    "haproxy": check_haproxy,
    "nginx": check_nginx,
    "envoy": check_envoy,
    "compose": check_compose,
}

if __name__ == "__main__":
    os.environ["PATH"] += ":/usr/sbin"  # Debian's folder of daemons
    sys.exit(report(CHECKS, sys.argv[1:]))
