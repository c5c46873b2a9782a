"""The files of the web page: what is served, what of it is others' work, and its languages."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from shutil import copytree

import pytest

from deploy import sdk, web
from router.web import site
from router.web.site import PAGE, Site

LANGUAGES = ("en", "de", "zh")
PRELOADED = re.compile(r'<link rel="modulepreload" href="([^"]+)">')

packages = pytest.mark.skipif(not web.MODULES.exists(), reason="`make test` installs npm packages into .venv/web")


def imports_of(name: str) -> set[str]:
    """The modules that a module imports at its top, by the names under which they are served."""
    path = PAGE / name if not name.startswith("sdk/") else site.SDK / name.removeprefix("sdk/")
    code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    found = re.findall(r"""^(?:import|export)[^;]*?from\s*"([^"]+)";""", code, re.MULTILINE)
    folder = Path(name).parent
    return {"vendor/preact.js" if one == "preact" else (folder / one).as_posix().removeprefix("./") for one in found}


def before_first_screen(name: str, known: set[str]) -> set[str]:
    if name not in known:
        known.add(name)
        for other in imports_of(name):
            before_first_screen(other, known)
    return known


def test_first_screen_needs_at_most_fifteen_modules() -> None:
    """What main.js imports, what it asks for at once where nobody is logged in, and a language."""
    found = before_first_screen("main.js", set())
    found |= before_first_screen("login.js", set()) | {"lang/de.js"}
    assert len(found) <= 15, sorted(found)


def test_browser_is_told_of_every_module_of_the_list_and_of_no_other() -> None:
    """A module that is found late costs a round trip, and one that is not needed yet the place of another."""
    made = Site.load({})
    told = [name.removeprefix(f"/web/{made.digest}/") for name in PRELOADED.findall(made.index.body.decode())]
    first = before_first_screen("main.js", set()) | before_first_screen("login.js", set())
    assert set(told[: len(first)]) == first
    rest = before_first_screen("session.js", set()) | before_first_screen("shell.js", set())
    assert set(told) == first | rest | {"sdk/store_indexeddb.js"}
    assert len(told) == len(set(told)) <= 42
    assert not {"chat.js", "composer.js", "message.js", "files.js"} & set(told)


def test_every_import_names_a_file_that_is_served() -> None:
    files = Site.load({}).files
    for name in files:
        if name.endswith(".js") and not name.startswith(("vendor/", "sdk/")):
            assert imports_of(name) <= files.keys(), name


def test_digest_changes_with_any_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = Site.load({}).digest
    copytree(PAGE, tmp_path / "page")
    monkeypatch.setattr(site, "PAGE", tmp_path / "page")
    assert Site.load({}).digest == before
    (tmp_path / "page/lang/de.js").write_text("export default {};")
    assert Site.load({}).digest != before


def test_page_names_the_digest_of_its_files() -> None:
    made = Site.load({"bot": '"><script>'})
    assert f"/web/{made.digest}/main.js".encode() in made.index.body
    assert b"%" not in made.index.body.replace(b"%22%3E%3Cscript%3E", b"")
    assert f"linnet-{made.digest}".encode() in made.worker.body
    assert json.loads(made.manifest.body)["icons"]


@packages
def test_others_work_is_as_npm_has_it() -> None:
    """Byte for byte; the lock has the hashes of the packages. After an update: `make web`."""
    for name, body in web.files().items():
        assert (PAGE / name).read_bytes() == body, name


def texts(language: str) -> dict[str, str]:
    script = "import(process.argv[1]).then((m) => console.log(JSON.stringify(m.default)))"
    done = subprocess.run(
        [sdk.NODE, "--input-type=module", "-e", script, str(PAGE / f"lang/{language}.js")],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.processes
def test_every_language_has_the_same_texts_with_the_same_values() -> None:
    english = texts("en")
    for language in LANGUAGES[1:]:
        other = texts(language)
        assert other.keys() == english.keys(), language
        for key, text in english.items():
            assert set(re.findall(r"\{\w+\}", other[key])) == set(re.findall(r"\{\w+\}", text)), (language, key)
            assert other[key].strip(), (language, key)


@pytest.mark.processes
def test_every_text_that_the_page_asks_for_exists() -> None:
    """And none is there that it never asks for. Keys that are put together begin as one of `families`."""
    english = texts("en")
    code = "".join(path.read_text() for path in PAGE.glob("*.js"))
    asked = set(re.findall(r"""\bt\(\s*"(\w+)\"""", code)) | set(re.findall(r'"([a-z]+(?:_[a-z]+)*)"', code))
    families = set(re.findall(r"\bt\(`(\w+_)\$\{", code))
    known = {re.sub(r"_(one|other)$", "", key) for key in english}
    for key in re.findall(r"""\bt\(\s*"(\w+)\"""", code):
        assert key in known, key
    for key in known:
        assert key in asked or any(key.startswith(family) for family in families), key
