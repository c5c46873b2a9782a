"""The source of the function library, and its functions on a server."""

from pathlib import Path

import pytest
import redis

from deploy.embedded import EmbeddedValkey
from router.store.redis import functions as library
from router.store.redis.functions import build


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.lua").write_text(text)
    return folder


PRELUDE = "local function twice(value) return value .. value end"
ECHO = "local shared = 'echo'\nregister('echo', function(keys, args) return twice(args[1]) .. shared end)"
READ = "local shared = 'read'\nregister('read', function(keys) return redis.call('GET', keys[1]) end, {'no-writes'})"


def test_functions_are_named_after_the_hash_of_the_sources(tmp_path: Path, valkey: EmbeddedValkey) -> None:
    """All files see the preludes' locals, no file sees another's, and flags are registered."""
    more = "local function more(value) return twice(value) end"
    made = build(write(tmp_path / "a", echo=ECHO.replace("twice", "more"), prelude=PRELUDE, prelude_b=more, read=READ))
    assert len(made.version) == 8
    with valkey.client() as client:
        assert client.function_load(made.source.decode()) == f"linnet_{made.version}".encode()
        assert client.fcall(made.named("echo"), 0, "x") == b"xxecho"
        client.set("k", "v")
        assert client.fcall_ro(made.named("read"), 1, "k") == b"v"


def test_any_change_makes_another_version(tmp_path: Path) -> None:
    """A change of a text, of a file's name, or of the boundary between two files; no other change does."""
    sources: list[dict[str, str]] = [
        {"prelude": PRELUDE, "echo": ECHO},
        {"prelude": PRELUDE, "echo": ECHO + " "},
        {"prelude": PRELUDE, "echoes": ECHO},
        {"prelude": PRELUDE, "echo": ECHO, "read": ""},
    ]
    versions = [build(write(tmp_path / str(number), **files)).version for number, files in enumerate(sources)]
    assert len(set(versions)) == len(versions)
    assert build(tmp_path / "0") == build(write(tmp_path / "again", **sources[0]))


def test_two_versions_serve_side_by_side(tmp_path: Path, valkey: EmbeddedValkey) -> None:
    """During a rolling deploy the newer version leaves the functions of the older one in place."""
    old = build(write(tmp_path / "old", prelude=PRELUDE, echo=ECHO))
    new = build(write(tmp_path / "new", prelude=PRELUDE, echo=ECHO.replace("'echo'\n", "'new'\n")))
    with valkey.client() as client:
        client.function_load(old.source.decode())
        client.function_load(new.source.decode())
        with pytest.raises(redis.ResponseError, match="already exists"):
            client.function_load(old.source.decode())
        assert client.fcall(old.named("echo"), 0, "x") == b"xxecho"
        assert client.fcall(new.named("echo"), 0, "x") == b"xxnew"


def test_functions_of_the_project_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, valkey: EmbeddedValkey) -> None:
    """From any working directory; each file registers the function of its name."""
    monkeypatch.chdir(tmp_path)
    made = build()
    names = {file.stem for file in library.FOLDER.glob("*.lua") if not file.stem.startswith("prelude")}
    with valkey.client() as client:
        client.function_load(made.source.decode())
        stored = repr(client.function_list())
    assert not [name for name in names if f"b'{made.named(name)}'" not in stored]
