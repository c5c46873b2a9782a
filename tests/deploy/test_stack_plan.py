"""The plan of `make stack`, without a start: names, addresses, and other projects' configurations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deploy import stack
from deploy.plan import LocalError
from deploy.prepare import main as prepare
from deploy.prepare import own_certificate
from deploy.stack import HOSTS, Stack, alertmanager_config, prometheus_config
from router.contract.settings import Settings, host_port
from tests.support import ROOT

TABLE = {name: [f"127.0.9.{host}" for host in hosts] for name, hosts in HOSTS.items()}


def test_it_has_what_compose_has() -> None:
    """Every service of compose.yaml that makes sense here is a part of the stack, in the same number."""
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    for name in services.keys() - {"prepare", "valkey", "grafana", "objects"}:
        assert len(HOSTS[name]) == services[name].get("deploy", {}).get("replicas", 1), name


def test_compose_stops_no_gateway_before_it_has_drained() -> None:
    """The grace period is longer than the time to accept and the drain window together."""
    services = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
    settings = Settings()
    assert not any("DRAIN" in name for name in services["gateway"]["environment"])
    grace = int(services["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace >= settings.drain_accept_s + settings.drain_window_s + 10


def test_prometheus_scrapes_addresses_instead_of_names() -> None:
    """Every job of prometheus.yml is there, and none has a name that only a container's DNS knows."""
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in prometheus_config(TABLE)["scrape_configs"]}
    assert jobs["gateway"] == ["127.0.9.11:9000", "127.0.9.12:9000", "127.0.9.13:9000"]
    assert jobs["haproxy"] == ["127.0.9.10:8404"]
    original = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert list(jobs) == [job["job_name"] for job in original]
    assert all(host_port(one)[0].startswith("127.0.9.") for targets in jobs.values() for one in targets)


def test_every_receiver_also_prints_at_the_terminal() -> None:
    """In addition to its own notifications."""
    receivers = alertmanager_config("127.0.9.54:8080")["receivers"]
    assert all({"url": "http://127.0.9.54:8080/"} in one["webhook_configs"] for one in receivers)


def test_settings_that_the_stack_sets_itself_are_refused(tmp_path: Path) -> None:
    """A setting that it would have to ignore is refused."""
    with pytest.raises(LocalError, match="LINNET_LISTEN"):
        Stack(tmp_path, {"LINNET_LISTEN": "127.0.0.1:1"})


def test_page_and_clients_reach_gateways_through_the_load_balancer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack, "PROGRAMS", {})
    monkeypatch.setattr(stack, "_surroundings", lambda *_: [])
    found = [one for one in Stack(tmp_path, {}, "127.0.9").services if one.module == "gateway"]
    assert {one.environ["LINNET_GATEWAY_URL"] for one in found} == {"wss://127.0.9.10:8443/ws"}
    assert {one.environ["LINNET_ORIGINS"] for one in found} == {"https://127.0.9.10:8443,http://127.0.9.10:8000"}
    given = Stack(tmp_path, {"LINNET_ORIGINS": "*", "LINNET_GATEWAY_URL": "wss://chat.example/ws"}, "127.0.9").services
    found = [one for one in given if one.module == "gateway"]
    assert {one.environ["LINNET_GATEWAY_URL"] for one in found} == {"wss://chat.example/ws"}
    assert {one.environ["LINNET_ORIGINS"] for one in found} == {"*"}


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for all of them."""
    monkeypatch.setattr(stack, "PROGRAMS", {"no-such-program": "no-such-package", "nor-this": "nor-that"})
    with pytest.raises(LocalError, match="apt-get install no-such-package nor-that"):
        stack.programs()


def test_certificate_is_made_once(tmp_path: Path) -> None:
    """Only its owner can read the key, and it is the same at the next start."""
    path = own_certificate(tmp_path / "linnet.pem", "127.0.9.10", "chat.example")
    made = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert own_certificate(path, "127.0.9.10").read_bytes() == made


def test_files_that_compose_needs_are_made_once(tmp_path: Path) -> None:
    """Secrets and a certificate; a second start changes none."""
    prepare(tmp_path / "made")
    files = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    assert sorted(files) == ["jwt-secret", "linnet.pem", "server-key"]
    prepare(tmp_path / "made")
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}


@pytest.mark.processes
def test_wrong_arguments_are_one_line() -> None:
    """There is no trace."""
    done = subprocess.run(
        [sys.executable, "-m", "deploy.stack", "x"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("usage:")
