"""The embedded server: the writes it keeps, the starts it refuses, and its end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import embedded
from deploy.embedded import EmbeddedValkey, ValkeyError
from tests.support import ROOT, eventually, free_ports


def test_acknowledged_write_survives_a_kill(own_valkey: EmbeddedValkey) -> None:
    """After a kill and a start, the server has every acknowledged write, at the same port."""
    with own_valkey.client() as client:
        client.set("key", "kept")
    url = own_valkey.url
    own_valkey.kill()
    own_valkey.start()
    assert own_valkey.url == url
    with own_valkey.client() as client:
        assert client.get("key") == b"kept"


def test_restart_is_a_new_process_over_the_same_data(own_valkey: EmbeddedValkey) -> None:
    """A restart stops cleanly (exit code 0) and keeps the data."""
    with own_valkey.client() as client:
        client.set("key", "kept")
    first = own_valkey.pid
    own_valkey.stop()
    assert own_valkey.returncode == 0
    own_valkey.restart()
    assert own_valkey.pid != first
    with own_valkey.client() as client:
        assert client.get("key") == b"kept"


def test_it_is_configured_to_keep_and_never_to_evict(valkey: EmbeddedValkey) -> None:
    """Append-only file with an fsync per write, no eviction, no snapshots, loopback only."""
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "save": "",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
    }
    with valkey.client() as client:
        assert {name: client.config_get(name)[name] for name in wanted} == wanted


@pytest.mark.processes
def test_without_a_port_only_its_owner_reaches_it(tmp_path: Path) -> None:
    """The default is a Unix socket that only its owner may open, and no port."""
    server = EmbeddedValkey(tmp_path / "a folder")
    server.start()
    try:
        with server.client() as client:
            assert client.ping()
            assert client.config_get("port") == {"port": "0"}
        assert (server.folder / "valkey.sock").stat().st_mode & 0o077 == 0
        assert server.folder.stat().st_mode & 0o077 == 0
    finally:
        server.kill()


def test_path_too_long_for_a_socket_is_one_clear_line(tmp_path: Path) -> None:
    """The error names the kernel's limit; no server is started that cannot bind."""
    with pytest.raises(ValkeyError, match="too long for a unix socket"):
        EmbeddedValkey(tmp_path / ("x" * 100))


def test_taken_port_is_one_clear_line(own_valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """A second server on the same port fails; the first one is not mistaken for it."""
    second = EmbeddedValkey(tmp_path / "second", int(own_valkey.url.split(":")[2].split("/")[0]))
    with pytest.raises(ValkeyError, match=r"(?i)address already in use") as caught:
        second.start()
    assert "\n" not in str(caught.value)


def test_damaged_append_only_file_is_one_clear_line(own_valkey: EmbeddedValkey) -> None:
    """Garbage in the middle of the file is refused with the server's own words."""
    with own_valkey.client() as client:
        client.set("key", "value")
        client.set("key", "other")
    own_valkey.stop()
    (file,) = (own_valkey.folder / "appendonlydir").glob("*.incr.aof")
    file.write_bytes(b"garbage" + file.read_bytes())
    with pytest.raises(ValkeyError, match=r"(?i)bad file format") as caught:
        own_valkey.start()
    assert "\n" not in str(caught.value)


def test_running_server_is_not_started_twice(own_valkey: EmbeddedValkey) -> None:
    """A second start is an error and leaves the server running."""
    with pytest.raises(ValkeyError, match="already runs"):
        own_valkey.start()
    assert own_valkey.returncode is None


def test_stalled_server_is_killed_in_the_end(own_valkey: EmbeddedValkey) -> None:
    """A stop has a deadline; a stopped (SIGSTOP) server is continued first and ends cleanly."""
    os.kill(own_valkey.pid, signal.SIGSTOP)
    own_valkey.stop()
    assert own_valkey.returncode == 0


@pytest.mark.processes
async def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    """If the parent is killed, no server remains."""
    code = (
        "import sys, pathlib; from deploy.embedded import EmbeddedValkey\n"
        "server = EmbeddedValkey(pathlib.Path(sys.argv[1]), int(sys.argv[2])); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "valkey", str(free_ports(1)[0])],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    await eventually(lambda: _gone(child))


def _gone(pid: int) -> bool:
    """Return whether the process has ended (it may wait for its new parent to collect it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_log_outlives_a_crash_and_is_rotated(own_valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the restart the crash report is in the log; a large log is moved aside, and the one before it is
    removed."""
    os.kill(own_valkey.pid, signal.SIGSEGV)
    own_valkey.wait()
    assert "crashed by signal: 11" in own_valkey.log_path.read_text(errors="replace")
    own_valkey.start()
    assert "crashed by signal: 11" in own_valkey.log_path.read_text(errors="replace")
    monkeypatch.setattr(embedded, "LOG_BYTES", 100)
    own_valkey.restart()
    assert "crashed by signal: 11" in own_valkey.log_path.with_suffix(".log.1").read_text(errors="replace")
    assert "crashed by signal: 11" not in own_valkey.log_path.read_text(errors="replace")


def test_reason_of_a_failed_start_is_from_this_start(own_valkey: EmbeddedValkey, tmp_path: Path) -> None:
    """Lines that an earlier run wrote into the same log are not quoted."""
    second = EmbeddedValkey(tmp_path / "second", int(own_valkey.url.rsplit(":", 1)[1].split("/")[0]))
    second.folder.mkdir()
    second.log_path.write_text("".join(f"1:M 01 Jan 2026 00:00:00.000 # an old reason {i}\n" for i in range(3)))
    with pytest.raises(ValkeyError, match="in use") as failed:
        second.start()
    assert "an old reason" not in str(failed.value)
