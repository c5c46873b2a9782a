"""The plan of `make up`, before a process is started."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.plan import LocalError, claim_folder, demo, own_secret, services, shared_environ, welcome
from gateway.admission import Admission
from router.contract.settings import load


def test_gateways_take_the_ports_after_the_routers(tmp_path: Path) -> None:
    """Each child has its own two addresses and otherwise the same environment."""
    shared = shared_environ({"LINNET_LISTEN": "0.0.0.0:7000", "LINNET_ADMIN_LISTEN": "[::1]:7100", "A": "b"}, tmp_path)
    router, first, second = services(shared, load(shared))
    assert [one.module for one in (router, first, second)] == ["router", "gateway", "gateway"]
    assert second.environ["LINNET_LISTEN"] == "0.0.0.0:7002"
    assert second.environ["LINNET_ADMIN_LISTEN"] == "[::1]:7102"
    assert load(second.environ).listen == "0.0.0.0:7002"
    own = {"LINNET_LISTEN", "LINNET_ADMIN_LISTEN"}
    assert {k: v for k, v in first.environ.items() if k not in own} == {
        k: v for k, v in router.environ.items() if k not in own
    }


@pytest.mark.parametrize("listen", ["127.0.0.1:7000", "0.0.0.0:7000", "[::]:7000"])
def test_pages_of_the_api_may_connect_to_the_gateways(tmp_path: Path, listen: str) -> None:
    """The gateways have other ports, so the API's origin is foreign to them; given origins stay unchanged."""
    shared = shared_environ({"LINNET_LISTEN": listen}, tmp_path)
    for gateway in services(shared, load(shared))[1:]:
        door = Admission(load(gateway.environ))
        for origin in ("http://127.0.0.1:7000", "http://localhost:7000", "http://[::1]:7000"):
            assert door.origin_allowed([origin], "127.0.0.1:7001")
        assert not door.origin_allowed(["http://127.0.0.1:7001"], "127.0.0.1:7001")
    shared = shared_environ({"LINNET_LISTEN": listen, "LINNET_ORIGINS": "https://app.example"}, tmp_path)
    assert services(shared, load(shared))[1].environ["LINNET_ORIGINS"] == "https://app.example"


def test_ports_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """There is no port above 65535."""
    shared = shared_environ({"LINNET_LISTEN": "127.0.0.1:65534"}, tmp_path)
    with pytest.raises(LocalError, match="no room"):
        services(shared, load(shared))


def test_identity_provider_gets_no_second_signing_key(tmp_path: Path) -> None:
    """With a JWKS no HS256 secret is made, because tokens signed with it would be accepted too."""
    shared = shared_environ({"LINNET_JWKS_URL": "https://id.example/jwks", "LINNET_ACCOUNTS": "false"}, tmp_path)
    assert not [name for name in shared if "JWT_SECRET" in name]
    assert load(shared).server_key


def test_people_of_the_demo_are_there_only_if_asked_for_and_know_no_secret(tmp_path: Path) -> None:
    """Their password is printed, so whoever starts a deployment without them must not get them."""
    for asked, count in ({}, 0), ({"DEMO": "1"}, 1), ({"DEMO": ""}, 0), ({"DEMO": "1", "LINNET_ACCOUNTS": "false"}, 0):
        shared = shared_environ(asked, tmp_path)
        settings = load(shared)
        plan = services(shared, settings)
        made = demo(shared, settings, plan[0], tmp_path)
        assert len(made) == count, asked
        assert [name for one in made for name in one.environ if name.startswith("LINNET_")] == []
        assert ("mia" in welcome(plan, settings, tmp_path, with_demo=bool(made))) is bool(count)


def test_secret_is_never_half_written(tmp_path: Path) -> None:
    """A draft that a crash left behind is made again, and only a complete file gets the name."""
    (tmp_path / "key.new").write_text("half")
    made = own_secret(tmp_path / "key").read_text()
    assert len(made.strip()) == 64
    assert own_secret(tmp_path / "key").read_text() == made


def test_lock_ends_with_its_descriptor(tmp_path: Path) -> None:
    """One runner at a time; the folder of an ended runner is free."""
    lock = claim_folder(tmp_path / "own")
    with pytest.raises(LocalError, match=f"pid {os.getpid()}"):
        claim_folder(tmp_path / "own")
    os.close(lock)
    os.close(claim_folder(tmp_path / "own"))


@pytest.mark.processes
def test_lines_to_try_are_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed lines can be pasted: three lines that the shell parses, with addresses that can be dialed, in any
    folder."""
    monkeypatch.setattr(sys, "executable", "/a folder/python")
    folder = tmp_path / "two words"
    folder.mkdir()
    shared = shared_environ({"LINNET_LISTEN": "0.0.0.0:7000"}, folder)
    settings = load(shared)
    text = welcome(services(shared, settings), settings, folder, cluster=range(7001, 7007))
    (tool,) = re.findall(r"127.0.0.1:7001 to 7006  \((.*)\)", text)
    subprocess.run(["sh", "-n", "-c", tool], check=True)
    assert shlex.split(tool)[1] == os.path.relpath(sys.executable)
    assert shlex.split(tool)[0] == f"LINNET_REDIS_URL_FILE={folder}/cluster/url"
    lines = [line.strip() for line in text.splitlines() if "curl" in line]
    (admin,) = (line for line in lines if "/v1/roles/NAME" in line)
    assert "http://127.0.0.1:9000/admin" in text
    assert str(folder / "server-key") in admin
    lines.remove(admin)
    assert len(lines) == 3
    for line in lines:
        subprocess.run(["sh", "-n", "-c", line], check=True)
        assert "127.0.0.1:7000" in line
    assert "0.0.0.0" not in text
    for line in lines[1:]:
        assert os.path.relpath(sys.executable) in shlex.split(line)
