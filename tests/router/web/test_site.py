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
from router.web.joined import imports_of
from router.web.site import PAGE, Site

LANGUAGES = ("en", "de", "zh")
PRELOADED = re.compile(r'<link rel="modulepreload" href="([^"]+)">')

packages = pytest.mark.skipif(not web.MODULES.exists(), reason="`make test` installs npm packages into .venv/web")


def told(made: Site) -> list[str]:
    """The modules that the page names, so that a browser asks for them at once."""
    return [name.removeprefix(f"/web/{made.digest}/") for name in PRELOADED.findall(made.index.body.decode())]


def loaded_with(made: Site, *names: str) -> set[str]:
    """The files that a browser loads for these modules, each by its imports and the import map."""
    found: set[str] = set()
    waiting = [*names]
    for name in waiting:
        if name not in found:
            found.add(name)
            code = made.files[name].body.decode()
            waiting += [made.moved.get(one, one) for one in imports_of(name, code)]
    return found


def test_list_needs_at_most_fifteen_modules_and_the_browser_is_told_of_each() -> None:
    """A module that the browser finds late costs a round trip. One that is not needed yet delays the others."""
    made = Site.load({})
    assert set(told(made)) == loaded_with(made, "main.js", "session.js", "shell.js")
    assert len(told(made)) == len(set(told(made)))
    assert len(told(made)) + len({"lang/de.js"}) <= 15, told(made)
    assert not {"chat.js", "composer.js", "message.js", "files.js"} & set(told(made))


def test_first_screen_waits_for_no_part_of_a_session() -> None:
    assert not {"session.js", "shell.js", "sdk/index.js"} & loaded_with(Site.load({}), "main.js")


def test_every_import_leads_to_one_file_that_is_served() -> None:
    made = Site.load({})
    assert not made.moved.keys() & made.files.keys()
    for name, file in made.files.items():
        if name.endswith(".js") and not name.startswith("vendor/"):
            imports = {*imports_of(name, file.body.decode()), *asked_late(name, file.body.decode())}
            assert {made.moved.get(one, one) for one in imports} <= made.files.keys() | site.NOT_SERVED, name


def asked_late(name: str, code: str) -> set[str]:
    """Return the modules that a module imports only when it needs them, without the types that comments name."""
    code = re.sub(r"/\*.*?\*/", "", code, flags=re.DOTALL)
    folder = Path(name).parent
    return {(folder / one).as_posix() for one in re.findall(r"""\bimport\("\./([^"]+)"\)""", code)}


@pytest.mark.processes
def test_joined_file_exports_what_its_modules_export(tmp_path: Path) -> None:
    """Tested with the SDK, because its modules can be loaded without a browser."""
    made = Site.load({})
    (tmp_path / "joined.mjs").write_bytes(made.files["sdk/index.js"].body)
    names = sorted(name for name, file in made.moved.items() if file == "sdk/index.js")
    paths = [tmp_path / "joined.mjs", site.SDK / "index.js", *(site.SDK / name.removeprefix("sdk/") for name in names)]
    script = """const all = await Promise.all(process.argv.slice(1).map((path) => import(path)));
        console.log(JSON.stringify(all.map((module) => Object.keys(module))))"""
    done = subprocess.run(
        [sdk.NODE, "--input-type=module", "-e", script, *map(str, paths)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    joined, *apart = json.loads(done.stdout)
    assert len(apart) > 20
    assert set(joined) == {name for names in apart for name in names}


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
