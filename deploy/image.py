"""`python -m deploy.image`: builds the image on a machine without a registry, as `make deploy-check IMAGE=1` does.

It makes a base from Debian's packages (or takes BASE=name@digest), puts the wheels beside it, and builds without a
network. tests/deploy/test_image.py tests the image.

Invariants: the machine's own configuration is not changed (settings go by CONTAINERS_CONF); if a tool is missing, the
build is skipped and names it. Root is needed, because a base has device nodes and owners.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from deploy.manifests import ROOT
from router.contract.settings import VERSION

IMAGE = "localhost/linnet:check"
BASE = "localhost/linnet-base"
SUITE, PYTHON = "trixie", "3.13"
FOLDER = ROOT / ".linnet/image"
NEEDED = ("buildah", "podman", "runc", "mmdebstrap")

# cgroupfs, because there may be no systemd. The limits, because podman's defaults may be above the allowed ones here.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""


def missing() -> list[str]:
    return [tool for tool in NEEDED if shutil.which(tool) is None] + (["root"] if os.geteuid() else [])


def environ() -> dict[str, str]:
    """Return the environment for podman and buildah."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    conf = FOLDER / "containers.conf"
    conf.write_text(CONTAINERS_CONF)
    return {**os.environ, "CONTAINERS_CONF": str(conf)}


def run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], env=environ(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def base() -> str:
    """A slim base with Python and venv, named by its digest."""
    if given := os.environ.get("BASE"):
        return given
    name = f"{BASE}:{SUITE}"
    if subprocess.run(["podman", "image", "exists", name], env=environ(), check=False).returncode:
        root = FOLDER / "base.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-venv,ca-certificates", SUITE, root)
        run("podman", "import", "--quiet", root, name)
        root.unlink()
    return f"{BASE}@{run('podman', 'image', 'inspect', '--format', '{{.Digest}}', name)}"


def wheels() -> Path:
    """Every wheel of the image's locks, for the Python of the base."""
    folder = FOLDER / "wheels"
    shutil.rmtree(folder, ignore_errors=True)
    only = ("--only-binary", ":all:", "--require-hashes", "--python-version", PYTHON)
    for lock in ("image", "sbom"):
        requirements = f"deploy/requirements-{lock}.txt"
        run(sys.executable, "-m", "pip", "download", "--quiet", *only, "--dest", folder, "--requirement", requirements)
    return folder


def build() -> str:
    given = {
        "BASE": base(),
        "VERSION": VERSION,
        "REVISION": run("git", "describe", "--always", "--dirty", "--abbrev=40"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/given",
    }
    arguments = [argument for name, value in given.items() for argument in ("--build-arg", f"{name}={value}")]
    options = ("--runtime", shutil.which("runc"), "--network", "none", "--volume", f"{wheels()}:/given:ro")
    run("buildah", "bud", "--quiet", *options, *arguments, "--file", "deploy/Dockerfile", "--tag", IMAGE, ".")
    return run("podman", "image", "inspect", "--format", "{{.Digest}} {{.Size}} bytes", IMAGE)


def main() -> int:
    if lacking := missing():
        print(f"image       skipped  not installed here: {', '.join(lacking)}")
        return 0
    print(f"image       ok       {IMAGE} {build()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
