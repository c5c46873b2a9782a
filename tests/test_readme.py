"""The README and the pages beside the code say what the code does."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from deploy import limits, settings_table
from router.api import table
from router.contract import errors
from router.contract.codecs import JSON
from router.contract.errors import FunctionError, LinnetError
from router.contract.settings import Settings
from router.contract.wire import Commands, Events, Logged

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
OWN = ("gateway", "router", "deploy", "k8s", "loadtest", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in OWN for page in (ROOT / folder).rglob("*.md"))])
PROTOCOL = (ROOT / "gateway/PROTOCOL.md").read_text()
API = (ROOT / "router/API.md").read_text()


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings make, by GitHub's rules."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    made: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        used = sum(one == anchor or re.fullmatch(re.escape(anchor) + r"-\d+", one) is not None for one in made)
        made.add(f"{anchor}-{used}" if used else anchor)
    return made


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_resolves(page: Path) -> None:
    """A link to a file that moved, or to a heading that was renamed, leads its reader nowhere."""
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_metric_that_is_named_exists(page: Path) -> None:
    declared = (ROOT / "router/contract/metrics.py").read_text()
    for name in re.findall(r"`(linnet_\w+?)(?:_total)?[`{]", page.read_text()):
        assert f'"{name}"' in declared, name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_that_is_named_exists(page: Path) -> None:
    fields = {field.name.upper() for field in msgspec.structs.fields(Settings)}
    for name in re.findall(r"`LINNET_([A-Z_]+)[`=]", page.read_text()):
        assert name.removesuffix("_FILE") in fields, name


def test_settings_table_says_what_the_settings_say() -> None:
    """After a change of a setting: `make settings`."""
    page = (ROOT / settings_table.PAGE).read_text()
    assert settings_table.with_table(settings_table.PAGE, page) == page


def test_every_setting_is_in_one_group_of_its_table() -> None:
    """A setting that is in no group, or in two, misleads operators."""
    grouped = sorted(name for names in settings_table.GROUPS.values() for name in names)
    assert grouped == sorted(field.name for field in msgspec.structs.fields(Settings))


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_headline_figures_are_measured_ones() -> None:
    """The five figures of the README are in loadtest/RESULTS.md, which says how they were measured."""
    figures = re.findall(r"\| ([\d.,]+(?: \S+)?) \|$", README, re.MULTILINE)
    assert len(figures) == 5
    results = (ROOT / "loadtest/RESULTS.md").read_text()
    assert [figure for figure in figures if figure not in results] == []


def test_every_test_file_that_the_promises_name_exists() -> None:
    for name in re.findall(r"`(test_\w+\.py)`", README):
        assert (ROOT / "tests/flow" / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_test_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_source_file_that_is_named_exists(page: Path) -> None:
    """A page names a file by its path or by the end of it: `hub.py`, `delivery/hub.py`, `gateway/delivery/hub.py`."""
    files = [f"/{path.relative_to(ROOT)}" for folder in OWN for path in (ROOT / folder).rglob("*.*")]
    for name in re.findall(r"`(\w[\w./-]*\.(?:py|lua|yaml))`", page.read_text()):
        assert any(file.endswith(f"/{name}") for file in files), name


def test_every_call_of_the_api_is_listed() -> None:
    """router/API.md knows every call that a router can serve, and no other."""
    served = {
        f"{one.method} {one.path}"
        for one in (
            *table.ACCOUNTS,
            *table.TOKENS,
            *table.ALWAYS,
            *table.MODERATION,
            *table.ADMIN,
            *table.MEDIA,
            *table.SEARCH,
            *table.DOCUMENTS,
        )
    }
    rows = [line.split("|")[1] for line in API.splitlines() if line.startswith("| `")]
    listed = {
        call for row in rows for call in re.findall(r"`((?:GET|HEAD|OPTIONS|POST|PUT|PATCH|DELETE) /v1/[^`?]+)", row)
    }
    assert {call.replace("{id}", "{conversation}") for call in listed} == served


def test_every_call_of_the_api_is_listed_with_its_fields() -> None:
    """A row names the fields of the call's body and query."""
    rows = [line for line in API.splitlines() if line.startswith("| `")]
    for one in (*table.ACCOUNTS, *table.TOKENS, *table.ALWAYS, *table.ADMIN, *table.MEDIA):
        path = one.path.replace("{conversation}", "{id}")
        call = re.escape(f"`{one.method} {path}") + r"[`?]"
        (row,) = [row for row in rows if re.search(call, row.split(" | ")[0])]
        bodies = get_args(one.body) or (one.body,)  # of commands there are several
        body = {name for kind in bodies if kind is not None for name in fields_of(kind)} - {"id"}
        query = set() if one.query is None else fields_of(one.query)
        assert body - named_in(row) == set(), row
        assert {name for name in query if f"{name}=" not in row} == set(), row


def rows_of(heading: str) -> dict[str, str]:
    """The rows of the first table below a heading of gateway/PROTOCOL.md, by what stands first in them."""
    section = PROTOCOL[PROTOCOL.index(f"\n## {heading}\n") :].split("\n## ")[1]
    return {row[1]: row[2] for row in re.finditer(r"^\| `?(\w+)`? \| (.*)\|$", section, re.MULTILINE)}


def named_in(row: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", row))


def fields_of(struct: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)} - {"id"}


def test_every_command_is_listed_with_its_fields() -> None:
    rows = rows_of("Commands")
    by_tag = {str(command.__struct_config__.tag): command for command in Commands.__args__}
    assert set(rows) - {"command"} == set(by_tag)
    for tag, command in by_tag.items():
        assert fields_of(command) - named_in(rows[tag]) == set(), tag


def test_every_event_is_listed_with_its_fields() -> None:
    rows = rows_of("Events")
    by_tag = {str(event.__struct_config__.tag): event for event in Events.__args__}
    assert set(rows) - {"event"} == set(by_tag)
    for tag, event in by_tag.items():
        logged = fields_of(Logged) if issubclass(event, Logged) else set()
        assert fields_of(event) - logged - named_in(rows[tag]) == set(), tag
    (line,) = re.findall(r"^The logged fields are ([^.]*)\.", PROTOCOL, re.MULTILINE)
    assert named_in(line) == fields_of(Logged)


def test_transcript_is_of_the_wire() -> None:
    """Each line of the transcript decodes as a command or event; an event that is shortened is left out."""
    said = re.findall(r"^([<>]) (\{.*)$", PROTOCOL, re.MULTILINE)
    assert len(said) > 8
    for direction, line in said:
        if direction == ">":
            JSON.decode(line.encode())
        elif " …" not in line:
            msgspec.json.decode(line, type=Events)


def test_every_error_is_listed_where_it_is_met() -> None:
    """Each code of `contract/errors.py` is in the table of the API, and of the WebSocket if a client meets it there."""
    of_http = {"forbidden", "method_not_allowed", "unsupported_media_type", "unreadable", "locked"}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LinnetError)]
    served = {kind.code: kind.status for kind in kinds if kind is not FunctionError}
    assert set(rows_of("Errors")) - {"code"} == served.keys() - of_http
    section = API[API.index("\n## Errors\n") :].split("\n## ")[1]
    assert {
        code: int(status) for status, code in re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
    } == served


def test_every_close_code_is_listed() -> None:
    codes = {str(code) for name, code in vars(errors).items() if re.fullmatch(r"CLOSE_(?!OF)\w+", name)}
    assert set(rows_of("Close codes")) - {"code"} == codes


def test_every_guarantee_has_a_test_named_after_it() -> None:
    """G1 to G11: each row of promises points at a file with such a test."""
    for number in range(1, 12):
        row = next(line for line in README.splitlines() if line.startswith(f"| G{number} |"))
        files = re.findall(r"`(test_\w+\.py)`", row)
        assert any(f"def test_g{number}_" in (ROOT / "tests/flow" / name).read_text() for name in files), row


# Constants whose name says that they are limits, and that neither a client nor an operator can reach as such.
INNER_LIMITS = {
    "FULL": "share of memory",
    "MAX_DECODED_BYTES": "of a progressive JPEG, so that it stays below the memory of a worker",
    "MAX_PROFILE_BYTES": "of a colour profile; a longer one is dropped",
    "HASH": "layout", "EVERY_S": "pace", "MOST_DUE_MS": "clocks of servers", "PINNED_S": "pace of a stopped sender",
    "MAX_ORDER": "beyond all times", "MOVED_MS": "pace", "OLD": "pace",
    "MAX_QUESTIONS_BYTES": "what a router asks another at most",
    "MAX_EVENT_BYTES": "a body of MAX_BODY_BYTES and its envelope",
    "MAX_CONTROL_BYTES": "RFC 6455's, of a ping or close frame",
    "CONNECTION_LIMIT": "a metric",
    "MAX_HOSTS": "gateways' hosts in the page's policy; an operator with more names them in LINNET_WEB_CONNECT",
    "MAX_REQUESTS": "subscriptions of a gateway under way; more wait in its own queue",
    "MEMORY_LIMIT": "share of Redis' maxmemory beyond which sends answer `unavailable`",
    "LIMIT": "of one claim; the table has the places that follow from it",
    "E0": "epoch of a seq", "PER_SECOND": "of a seq", "AHEAD": "of a seq", "COALESCE_MS": "pace",
    "DELIVERED_MS": "pace", "CAP_EVERY": "pace", "IN_FORMAT_2": "layout", "HEAD_2": "layout", "FLAGS_AT": "layout",
    "TITLE_AT": "layout", "WHO_AT": "layout", "ACCEPTED_AT": "layout", "ACCEPTED": "layout", "FIRST_FIELD": "layout",
    "NOTE_SIZE": "layout", "FINAL": "seq after all others",
    "STEP": "entries read at once", "CHUNK": "entries read at once", "GRACE_MS": "pace", "BACK_US": "clocks of servers",
    "AT_ONCE": "entries written at once", "MOST": "entries read at once", "FIELDS": "fields written at once",
    "SKEW_MS": "clocks of servers", "CONNECT_MS": "clocks of servers",
    "AHEAD_MS": "clocks of servers", "LOOK": "entries looked at at once", "LOOKUP_US": "pace", "MARKS": "layout",
    "MOST_PUSH_MS": "the longest backoff of a push",
    "ACTIVE_MS": "pace", "LAGGING_MAX": "beyond it each message raises the rows at once",
    "MAX_INCOMING": "INCOMING of set_relation.lua", "LATER_MS": "pace", "STAYS_MS": "pace", "SWEEP": "pace",
    "RECHECK_MS": "pace",
    "AHEAD_US": "clocks of servers", "DROPPED": "pace", "RANGES": "a reader from before them gets everything anew",
    "FOR_EVER": "no end", "BLANK_US": "clocks of servers",
}  # fmt: skip


@pytest.mark.parametrize("page", limits.PAGES)
def test_limits_table_says_what_the_constants_say(page: str) -> None:
    """After a change of a limit: `make limits`."""
    text = (ROOT / page).read_text()
    assert limits.with_table(page, text) == text


def test_every_group_of_limits_is_on_one_page() -> None:
    assert sorted(heading for headings in limits.PAGES.values() for heading in headings) == sorted(limits.LIMITS)


def test_every_constant_that_is_a_limit_has_a_row() -> None:
    """A limit in no document surprises client authors: a row in deploy/limits.py, or a reason in INNER_LIMITS."""
    named = {
        name
        for package in ("gateway", "router")
        for path in (ROOT / package).rglob("*.py")
        if "sdk" not in path.parts  # the bounds of a client are on its own page
        for name in re.findall(
            r"^(?!CLOSE_)([A-Z0-9_]*(?:MAX_|LIMIT)[A-Z0-9_]*)(?:: Final\S*)? = ", path.read_text(), re.MULTILINE
        )
    }
    for path in (ROOT / "router/store/functions").glob("*.lua"):
        named |= set(re.findall(r"^ *local ([A-Z0-9_]+) = [0-9A-Z]", path.read_text(), re.MULTILINE))
    rows = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", Path(limits.__file__).read_text()))
    assert named - rows - INNER_LIMITS.keys() == set()
    assert INNER_LIMITS.keys() <= named, "a reason for a constant that is gone"
