"""The image, run as a cluster runs it: read-only, without capabilities, shell or root, with little memory.

Skipped unless LINNET_IMAGE names an image that podman has: `make deploy-check IMAGE=1` builds one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from deploy.embedded import EmbeddedValkey, tied
from deploy.image import environ
from router.contract.settings import VERSION
from tests.conftest import StartProcess
from tests.flow.client import ChatClient
from tests.support import JWT_SECRET, SERVER_KEY, eventually, free_ports, http_get

IMAGE = os.environ.get("LINNET_IMAGE", "")
PYTHON = "/opt/linnet/bin/python"
MEMORY = 192 * 1024 * 1024
SHELLS = ("/usr/bin/sh", "/usr/bin/bash", "/usr/bin/dash")

LOCKED = (
    *("--network", "host", "--read-only", "--read-only-tmpfs=false", "--cap-drop", "all"),
    *("--security-opt", "no-new-privileges", "--memory", str(MEMORY), "--pids-limit", "64"),
    *(part for shell in SHELLS for part in ("--volume", f"/dev/null:{shell}:ro")),
)


def podman(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["podman", *arguments], env=environ(), capture_output=True, text=True, check=False)


def here() -> bool:
    return bool(IMAGE) and shutil.which("podman") is not None and podman("image", "exists", IMAGE).returncode == 0


pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not here(), reason="no image to test: make deploy-check IMAGE=1 builds one"),
]


def in_image(code: str) -> Any:
    """Return what Python in a container of the image prints, as JSON."""
    done = podman("run", "--rm", *LOCKED, "--entrypoint", PYTHON, IMAGE, "-c", code)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Container:
    """One process of Linnet in a container of its own."""

    def __init__(self, folder: Path, env: dict[str, str], module: str, *arguments: str) -> None:
        self.port, self.admin_port = free_ports(2)
        self.name = f"linnet-test-{module}-{self.port}"
        self.url = f"ws://127.0.0.1:{self.port}/ws"
        (folder / "jwt-secret").write_text(JWT_SECRET)
        (folder / "server-key").write_text(SERVER_KEY)
        own = {
            "LINNET_LISTEN": f"127.0.0.1:{self.port}",
            "LINNET_ADMIN_LISTEN": f"127.0.0.1:{self.admin_port}",
            "LINNET_JWT_SECRET_FILE": "/run/secrets/linnet/jwt-secret",
            "LINNET_SERVER_KEY_FILE": "/run/secrets/linnet/server-key",
            "LINNET_DRAIN_ACCEPT_S": "1",
            "LINNET_DRAIN_WINDOW_S": "1",
            **env,
        }
        listen = ("--listen", own["LINNET_ADMIN_LISTEN"]) if arguments else ()
        variables = [part for name, value in own.items() for part in ("--env", f"{name}={value}")]
        options = ("--name", self.name, "--volume", f"{folder}:/run/secrets/linnet:ro", *variables)
        self.log_path = folder / f"{self.name}.log"
        with self.log_path.open("wb") as log:
            self.popen = subprocess.Popen(
                tied(
                    shutil.which("podman") or "", "run", "--rm", *LOCKED, *options, IMAGE, module, *arguments, *listen
                ),
                env=environ(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def ready(self) -> None:
        async def answered() -> bool:
            assert self.popen.poll() is None, self.log_path.read_text()
            return (await http_get(self.admin_port, "/readyz"))[0] == 200

        await eventually(answered, every_s=0.1)

    def terminate(self) -> None:
        assert podman("kill", "--signal", "TERM", self.name).returncode == 0

    async def ended(self) -> int:
        await eventually(lambda: self.popen.poll() is not None)
        return self.popen.returncode

    def remove(self) -> None:
        podman("rm", "--force", "--time", "0", "--ignore", self.name)
        self.popen.wait()


class Start(Protocol):
    def __call__(self, module: str, *arguments: str, **env: str) -> Container: ...


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start("gateway", LINNET_REDIS_URL=…)`; all containers are removed after the test."""
    folder = tmp_path / "secrets"
    folder.mkdir()
    for path in (folder, *tmp_path.parents):
        if path.owner() == "root" and "pytest" in path.name:
            path.chmod(0o755)  # 65532 must get to the secrets
    started: list[Container] = []

    def make(module: str, *arguments: str, **env: str) -> Container:
        started.append(Container(folder, env, module, *arguments))
        return started[-1]

    yield make
    for container in started:
        container.remove()


def test_it_says_what_it_is() -> None:
    (image,) = json.loads(podman("image", "inspect", IMAGE).stdout)
    config = image["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == [PYTHON, "-m"]
    assert config["Cmd"] == ["gateway"]
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in config["Labels"].items()}
    assert (labels["title"], labels["version"], labels["licenses"]) == ("linnet", VERSION, "Apache-2.0")
    assert "@sha256:" in labels["base.name"]
    assert labels["revision"] != "unknown"


def test_its_user_cannot_write_and_is_not_root() -> None:
    """Its user owns no file and cannot write anywhere, not even into folders that are open to all users."""
    code = """
import json, os
found = [folder for folder in ("/", "/tmp", "/opt/linnet", "/opt/linnet/app", "/home") if os.access(folder, os.W_OK)]
tried = []
for folder in ("/tmp", "/opt/linnet/app"):
    try:
        open(f"{folder}/x", "w")
        tried.append(folder)
    except OSError:
        pass
print(json.dumps([os.getuid(), os.getgid(), found, tried]))
"""
    uid, gid, writable, written = in_image(code)
    assert (uid, gid, writable, written) == (65532, 65532, [], [])


def test_bill_of_materials_names_every_package() -> None:
    """It lists exactly the installed packages, and no installer is among them."""
    code = """
import json, importlib.metadata as m
sbom = json.load(open("/opt/linnet/sbom.cdx.json"))
norm = lambda name: name.lower().replace("_", "-").replace(".", "-")
listed = {(norm(c["name"]), c["version"]) for c in sbom["components"]}
installed = {(norm(d.name), d.version) for d in m.distributions()}
print(json.dumps([sbom["bomFormat"], sorted(listed), sorted(installed)]))
"""
    form, listed, installed = in_image(code)
    assert form == "CycloneDX"
    assert listed == installed
    assert not {"pip", "cyclonedx-bom"} & {name for name, _ in installed}


@pytest.mark.parametrize("module", ["gateway", "router"])
def test_process_without_settings_says_what_is_missing(module: str) -> None:
    done = podman("run", "--rm", *LOCKED, IMAGE, module)
    assert done.returncode == 1
    assert "LINNET_JWT_SECRET" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_load_test_runs_from_it(own_valkey: EmbeddedValkey, process: StartProcess) -> None:
    """Its processes write no file; the exit code is the verdict."""
    router, gateway = (process(each, LINNET_REDIS_URL=own_valkey.url) for each in ("router", "gateway"))
    await router.ready()
    await gateway.ready()
    load = ("--users", "40", "--rate", "100", "--seconds", "1", "--rounds", "1", "--workers", "2")
    target = ("--target", gateway.url, "--api", router.url)
    key = ("--env", f"LINNET_SERVER_KEY={SERVER_KEY}")
    done = podman("run", "--rm", *LOCKED, *key, IMAGE, "loadtest", "mixed", *load, *target)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_canary_runs_in_it(own_valkey: EmbeddedValkey, process: StartProcess, start: Start) -> None:
    """The canary reads its key from a file and exports its findings on its admin port."""
    router, gateway = (process(each, LINNET_REDIS_URL=own_valkey.url) for each in ("router", "gateway"))
    await router.ready()
    await gateway.ready()
    canary = start("loadtest", "canary", "--target", gateway.url, "--api", router.url, "--every", "0.1")
    await canary.ready()

    async def received() -> bool:
        _, text = await http_get(canary.admin_port, "/metrics")
        counts = dict(line.split() for line in text.splitlines() if line.startswith("linnet_canary_"))
        assert float(counts["linnet_canary_lost_total"]) == 0
        return float(counts["linnet_canary_received_total"]) > 0

    await eventually(received, every_s=0.1)
    canary.terminate()
    assert await canary.ended() == 0


async def test_chat_works_through_it_and_sigterm_drains_it(own_valkey: EmbeddedValkey, start: Start) -> None:
    """Two gateways and a router in containers: messages are delivered, a drained gateway moves its client, all exit
    0."""
    router, first, second = (start(each, LINNET_REDIS_URL=own_valkey.url) for each in ("router", "gateway", "gateway"))
    for container in (router, first, second):
        await container.ready()
    alice, bob = ChatClient("alice"), ChatClient("bob", codec="msgpack")
    await alice.connect(first.url)
    await bob.connect(second.url)
    ack = await alice.sent("@bob", "hello")
    conversation = ack["conversation"]
    assert await bob.has(conversation, 1) == ["hello"]

    first.terminate()
    await alice.event("drain")
    code, _ = await alice.gone()
    assert code == 1012
    await bob.sent("@alice", "while you were gone")
    await alice.connect(second.url)
    assert await alice.has(conversation, 2) == ["hello", "while you were gone"]
    assert alice.whole(conversation)
    assert await first.ended() == 0

    await alice.disconnect()
    await bob.disconnect()
    second.terminate()
    router.terminate()
    assert [await second.ended(), await router.ended()] == [0, 0]
