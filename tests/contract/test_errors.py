"""The table from errors to the codes that a client receives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.contract import errors
from router.contract.errors import FunctionError, Internal, LinnetError, Unavailable, from_function

PUBLIC = {
    "bad_frame", "bad_command", "unauthorized", "token_expired", "not_found", "read_only", "blocked", "quota",
    "too_large", "rate_limited", "unavailable", "conflict", "internal",
}  # fmt: skip
HTTP_ONLY = {"forbidden", "method_not_allowed", "unsupported_media_type", "unreadable", "rejected", "locked"}
CLOSES = {
    1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 4000, 4001, 4002, 4003, 4008, 4409, 4500, 4501, 4502, 4503,
    4504,
}  # fmt: skip
FUNCTIONS = Path(errors.__file__).parent.parent / "store/functions"


def refusals(base: type[LinnetError] = LinnetError) -> Iterator[type[LinnetError]]:
    """The classes of the contract; other modules may derive from them and keep their code."""
    for kind in base.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield kind
        yield from refusals(kind)


def test_every_public_code_has_one_class() -> None:
    """Only the store raises `FunctionError`; if one leaves the store, it becomes `internal`."""
    codes = [kind.code for kind in refusals() if kind is not FunctionError]
    assert sorted(codes) == sorted(PUBLIC | HTTP_ONLY)
    assert FunctionError("X").code == "internal"


@pytest.mark.parametrize(
    ("code", "status"),
    {"bad_frame": 400, "bad_command": 422, "unauthorized": 401, "token_expired": 401, "forbidden": 403,
     "not_found": 404, "read_only": 403, "blocked": 403, "quota": 403, "method_not_allowed": 405,
     "unsupported_media_type": 415, "too_large": 413, "rate_limited": 429, "unavailable": 503, "conflict": 409,
     "internal": 500, "unreadable": 422, "locked": 423, "rejected": 422}.items(),
)  # fmt: skip
def test_every_code_has_its_status(code: str, status: int) -> None:
    """The HTTP API promises these statuses."""
    assert [kind.status for kind in refusals() if kind.code == code and kind is not FunctionError] == [status]


def test_error_without_a_message_names_its_code() -> None:
    """The text contains only the code."""
    assert (str(errors.NotFound()), errors.NotFound().message) == ("not_found", "not found")
    error = errors.RateLimited("slower", 1.5)
    assert (str(error), error.message, error.retry_after) == ("slower", "slower", 1.5)
    assert errors.Conflict("x").retry_after is None


@pytest.mark.parametrize(
    ("reply", "detail", "code"),
    [("RATE", "1500000", "rate_limited"), ("NOTFOUND", "", "not_found"), ("READONLY_", "", "read_only"),
     ("CONFLICT", "why", "conflict"), ("BLOCKED", "", "blocked"), ("BADCOMMAND", "why", "bad_command"),
     ("ERR", "user_script:12: secret", "internal")],
)  # fmt: skip
def test_reply_of_a_function_becomes_the_clients_error(reply: str, detail: str, code: str) -> None:
    """The function's own words are not shown to the client."""
    error = from_function(FunctionError(reply, detail))
    assert error.code == code
    assert "secret" not in error.message
    assert error.retry_after == (1.5 if reply == "RATE" else None)


def test_error_that_is_no_functions_reply_stays_or_becomes_internal() -> None:
    unavailable = Unavailable("later", 1.0)
    assert from_function(unavailable) is unavailable
    assert isinstance(from_function(ValueError("secret")), Internal)


def test_every_code_of_the_lua_functions_is_mapped() -> None:
    """A new code in Lua needs its row in `from_function`. OOM is Redis's own and means a retry later (pipeline.py)."""
    said = {code for path in FUNCTIONS.glob("*.lua") for code in re.findall(r"fail\('(\w+)'", path.read_text())}
    unknown = {code for code in said - {"OOM"} if isinstance(from_function(FunctionError(code, "1")), Internal)}
    assert said
    assert unknown == set()


def test_close_codes_are_the_published_ones() -> None:
    """Clients decide by them whether to reconnect, so none may be added, changed or removed by accident."""
    assert {value for name, value in vars(errors).items() if name.startswith("CLOSE_") and name != "CLOSE_OF"} == CLOSES


def test_refused_hello_closes_with_the_code_of_its_error() -> None:
    """4000 to 4008: reconnect. 44xx and 45xx: not with this token. Every other error is a bug: 1011."""
    assert errors.CLOSE_OF.keys() <= PUBLIC
    assert {code for code in errors.CLOSE_OF if 4000 <= errors.CLOSE_OF[code] < 4100} == {"unavailable", "rate_limited"}
    final = {"unauthorized": 4500, "token_expired": 4501, "blocked": 4502, "conflict": 4409, "bad_command": 4503}
    assert {code: errors.CLOSE_OF[code] for code in final} == final
    assert errors.CLOSE_OF["internal"] == 1011


@pytest.mark.parametrize(("seconds", "reason"), [(0.1, "0.1"), (1.23456, "1.23"), (10.0, "10"), (120.0, "120")])
def test_close_reason_says_when_to_reconnect(seconds: float, reason: str) -> None:
    """A close reason has 123 bytes at most."""
    assert errors.retry_reason(seconds) == f"retry_after={reason}"
