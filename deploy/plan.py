"""The plan of `make up`, made before a process is started: its processes, their environments, and the printed text.

It makes the environment of each child, the secrets and their folder, and the checks that are possible beforehand. It
starts no process.

Invariants:
- `LINNET_*` variables given to the runner override its own. `LINNET_LISTEN` and `LINNET_ADMIN_LISTEN` are the router's;
  the gateways use the next ports;
- secrets that are not given are made once and kept in the folder, readable by the owner alone. Children receive them as
  `…_FILE`, so that no process list or environment shows them;
- one runner per folder: the lock is held while its descriptor is open, so a killed runner leaves no lock.
"""

import fcntl
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.contract.settings import Settings, host_port

GATEWAYS = 2
BOT = "linnet"  # the user whom newcomers find in their list
LOBBY = "lobby"
ROOT = Path(__file__).parent.parent

# Short drains after a Ctrl-C: there is no load balancer to wait for, and no other node for the reconnects.
LOCAL_DEFAULTS = {"LINNET_DRAIN_ACCEPT_S": "0", "LINNET_DRAIN_WINDOW_S": "2"}
PER_PROCESS = ("LISTEN", "ADMIN_LISTEN")


class LocalError(Exception):
    """`make up` cannot start; the text is one line for the terminal."""


@dataclass(frozen=True)
class Service:
    """One child: its name, its program and its environment."""

    name: str
    module: str  # a Python module of Linnet; services of one module start and stop together
    listen: tuple[str, int]
    admin: tuple[str, int] | None  # None: it has no ports, and nothing waits for it
    environ: Mapping[str, str]
    program: tuple[str, ...] = ()  # the command line of a program of another project, instead of the module
    ready_path: str = "/readyz"

    @property
    def command(self) -> tuple[str, ...]:
        return self.program or (sys.executable, "-m", self.module)


def given(environ: Mapping[str, str], name: str) -> bool:
    return f"LINNET_{name}" in environ or f"LINNET_{name}_FILE" in environ


def shared_environ(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the environment of all children: that of the runner, with the missing variables added."""
    shared = {"PYTHONUNBUFFERED": "1", **LOCAL_DEFAULTS, **environ}
    # With an outside identity provider no secret is made, as it would be a second key that signs tokens.
    if not given(environ, "MEDIA_URL"):
        shared["LINNET_MEDIA_URL"] = (folder / "media").resolve().as_uri()
    if not given(environ, "SEARCH_URL"):
        shared["LINNET_SEARCH_URL"] = (folder / "search").resolve().as_uri()
    for name in ("SERVER_KEY",) if given(environ, "JWKS_URL") else ("SERVER_KEY", "JWT_SECRET"):
        if not given(environ, name):
            shared[f"LINNET_{name}_FILE"] = str(own_secret(folder / name.lower().replace("_", "-")))
    return shared


def services(shared: Mapping[str, str], settings: Settings) -> list[Service]:
    """Return the router, on the given ports, and the gateways, on the following ports."""
    bare = {
        name: value
        for name, value in shared.items()
        if name.removeprefix("LINNET_").removesuffix("_FILE") not in PER_PROCESS
    }
    (host, port), (admin_host, admin_port) = host_port(settings.listen), host_port(settings.admin_listen)
    if not given(shared, "ORIGINS"):
        bare["LINNET_ORIGINS"] = api_origins(host, port, tls=bool(settings.tls_cert))
    if with_bot(shared, settings):
        bare["LINNET_WEB_BOT"] = BOT
    if max(port, admin_port) + GATEWAYS > 65_535:
        raise LocalError(f"no room for {GATEWAYS} gateways above the ports {port} and {admin_port}")
    found = []
    for number in range(GATEWAYS + 1):
        listen = {
            "LINNET_LISTEN": address(host, port + number),
            "LINNET_ADMIN_LISTEN": address(admin_host, admin_port + number),
        }
        found.append(
            Service(
                name=f"gateway-{number}" if number else "router",
                module="gateway" if number else "router",
                listen=(host, port + number),
                admin=(admin_host, admin_port + number),
                environ={**bare, **listen},
            )
        )
    return found


def with_bot(shared: Mapping[str, str], settings: Settings) -> bool:
    """Whether a bot is started, for newcomers of the page: unless another one is named, or none by an empty name."""
    return settings.web and settings.accounts and not given(shared, "WEB_BOT")


def bot(shared: Mapping[str, str], settings: Settings, router: Service, folder: Path) -> list[Service]:
    """Return the bot: the example of the Python SDK, a client like any other, with its own account and store."""
    if not with_bot(shared, settings):
        return []
    program = (
        sys.executable, str(ROOT / "router/sdk/examples/bot.py"), "--api", api_url(router, settings),
        "--user", BOT, "--password-file", str(own_secret(folder / "bot-password")),
        "--store", str(folder.resolve() / "bot.db"), "--lobby", LOBBY,
    )  # fmt: skip
    return [Service("bot", "bot", router.listen, None, environ_of_client(shared), program)]


def demo(shared: Mapping[str, str], settings: Settings, router: Service, folder: Path) -> list[Service]:
    """Return the five people of `make up DEMO=1`, another example of the Python SDK."""
    if not shared.get("DEMO") or not settings.accounts:
        return []
    program = (
        sys.executable, str(ROOT / "router/sdk/examples/demo.py"), "--api", api_url(router, settings),
        "--store", str(folder.resolve() / "demo"), "--picture", str(ROOT / "router/web/pictures/phone.png"),
        *(("--bot", BOT) if with_bot(shared, settings) else ()),
    )  # fmt: skip
    return [Service("demo", "demo", router.listen, None, environ_of_client(shared), program)]


def environ_of_client(shared: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program that knows no more of Linnet than a stranger: none of its settings."""
    kept = {name: value for name, value in shared.items() if not name.startswith("LINNET_")}
    return {**kept, "PYTHONPATH": str(ROOT / "router/sdk/python")}


def api_url(router: Service, settings: Settings) -> str:
    return f"http{'s' * bool(settings.tls_cert)}://{reachable(router.listen)}"


def api_origins(host: str, port: int, *, tls: bool) -> str:
    """Return the origins of pages that the router serves: they are foreign to the gateways, which have other ports."""
    near = host in ("localhost", "0.0.0.0", "::") or host.startswith("127.") or host == "::1"  # noqa: S104
    hosts = ["localhost", "127.0.0.1", "::1"] if near else []
    hosts += [socket.gethostname()] if host in ("0.0.0.0", "::") else [host]  # noqa: S104  # compared, not bound
    return ",".join(f"http{'s' * tls}://{address(name, port)}" for name in dict.fromkeys(hosts))


def address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def own_secret(path: Path) -> Path:
    """Return a secret that is made once; its file is complete or absent, even after a power cut."""
    if not path.exists():
        draft = path.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(48) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    return path.resolve()


def claim_folder(folder: Path) -> int:
    """Lock the folder until the returned descriptor is closed; a second runner in it would share its data."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.read(lock, 32).decode().strip()
        os.close(lock)
        raise LocalError(f"Linnet already runs from {folder.resolve()} (pid {pid})") from None
    os.ftruncate(lock, 0)
    os.write(lock, str(os.getpid()).encode())
    return lock


def check_port(name: str, where: tuple[str, int], remedy: str) -> None:
    """Check that the ports are free, before a process is started."""
    host, port = where
    try:
        (family, kind, _, _, found), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found)
    except OSError as error:
        reason = error.strerror or str(error)
        raise LocalError(f"{name} cannot listen on {address(host, port)}: {reason} ({remedy})") from None


def welcome(
    plan: list[Service], settings: Settings, folder: Path, *, with_demo: bool = False, cluster: Sequence[int] = ()
) -> str:
    """Return the printed text: all addresses, and three lines to paste into another terminal."""
    router, *gateways = plan
    api = api_url(router, settings)
    page = (
        f"  page       {api}/  (open it in a browser; kill a gateway while you talk, and watch)\n"
        if settings.web
        else ""
    )
    people = "  people     mia, noah, lena, omar, yuki: write to them, or log in as one (password correct-horse)\n"
    sockets = [f"ws{'s' * bool(settings.tls_cert)}://{reachable(one.listen)}/ws" for one in gateways]
    admins = "  ".join(f"{one.name} http://{reachable(one.admin)}" for one in plan if one.admin)
    home = folder.resolve()
    url = shlex.quote(str(home / "cluster/url"))
    # The password is in no command line, which every user of the machine can read.
    tool = f"LINNET_REDIS_URL_FILE={url} {shlex.quote(os.path.relpath(sys.executable))} -m deploy.slots check"
    servers = f"  cluster    127.0.0.1:{cluster[0]} to {cluster[-1]}  ({tool})\n" if cluster else ""
    post = f"curl -sS -H 'Content-Type: application/json' {api}/v1"
    return f"""linnet: ready

{page}{people if with_demo else ""}  HTTP API   {api}/v1  (OpenAPI: {api}/v1/openapi.json)
  gateways   {"  ".join(sockets)}
  admin      {admins}  (/livez /readyz /metrics)
{admin_lines(router, settings, folder, api)}{servers}  kept in    {home}  (messages, secrets, the server's log)

Try it: two accounts; bob, who listens; ann, who writes to him (one more terminal each, Ctrl-D leaves):

  for u in ann bob; do {post}/accounts -d '{{"user":"'$u'","password":"correct-horse","name":"'$u'"}}'; echo; done
  {chat(post, sockets[0], "bob", "")}
  {chat(post, sockets[-1], "ann", HELLO_BOB)}
"""


def admin_lines(router: Service, settings: Settings, folder: Path, api: str) -> str:
    """Return where the admin view is, and how to make the first admin: with the server key, which no browser has."""
    if not (settings.web and settings.accounts and router.admin):
        return ""
    key = folder.resolve() / "server-key"
    shown = f"$(cat {shlex.quote(str(key))})" if key.exists() else "$LINNET_SERVER_KEY"
    put = f"""curl -sS -X PUT {api}/v1/roles/NAME -H "Authorization: Bearer {shown}" """
    role = """-H 'Content-Type: application/json' -d '{"roles":["admin"]}'"""
    return f"""  admins     http://{reachable(router.admin)}/admin  (make an account, then give it the role:)
             {put}{role}
"""


# A fresh client begins `n` at the Unix time in µs.
HELLO_BOB = r"""printf '{"type":"send","to":"@bob","n":%s,"body":"hello bob"}\n' $(date +%s%6N); """


def chat(post: str, url: str, user: str, first: str) -> str:
    """A shell line that logs in, says hello with the answer (unknown fields are ignored), then sends what is typed."""
    login = f"""{post}/login -d '{{"user":"{user}","password":"correct-horse","device":"terminal"}}'"""
    hello = f"""echo "$({login} | sed 's/^{{/{{"type":"hello","device":"terminal",/')"; """
    return f"({hello}{first}cat) | {shlex.quote(os.path.relpath(sys.executable))} -m websockets {url}"


def reachable(where: tuple[str, int]) -> str:
    """Return an address to connect to, for an address to listen on."""
    host, port = where
    return address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)  # noqa: S104  # replaced, not bound
