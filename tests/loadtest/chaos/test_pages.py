"""What the people at the page make of what it shows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import pytest

from loadtest.chaos.pages import Visitor, body_of

GROUP = "g:tour"


def shown(seq: int, text: str, *, mine: bool, **more: Any) -> dict[str, Any]:
    state = "Read by bob" if mine else ""
    return {"seq": seq, "text": text, "mentions": [], "mine": mine, "deleted": False, "state": state, **more}


def visitor(name: str, *messages: dict[str, Any]) -> Visitor:
    one = Visitor(name, "other", cast("Any", None), Path(), random.Random(1))
    one.shown[GROUP] = list(messages)
    return one


def test_two_pages_agree_though_one_was_away_while_a_message_came_and_went() -> None:
    ann = visitor("ann", shown(1, "one", mine=True), shown(3, "three", mine=False))
    gone = shown(2, "Message deleted", mine=True, deleted=True)
    bob = visitor("bob", shown(1, "one", mine=False), gone, shown(3, "three", mine=True))
    assert ann.at_rest(GROUP) == bob.at_rest(GROUP) != []
    bob.shown[GROUP][0]["text"] = "another"
    assert ann.at_rest(GROUP) != bob.at_rest(GROUP)


def test_page_is_not_at_rest_before_all_its_messages_are_read() -> None:
    assert visitor("ann", shown(1, "one", mine=True, state="Stored by the server")).at_rest(GROUP) == []
    assert visitor("ann", shown(0, "one", mine=True, state="Waiting to be sent")).at_rest(GROUP) == []


@pytest.mark.parametrize(
    ("forwarded", "mentions", "body"),
    [
        ("", [], "a text"),
        ("bob", [], {"text": "a text", "forwarded": "bob"}),
        ("", ["bob"], {"text": "a text", "mentions": ["bob"]}),
    ],
)
def test_body_is_read_as_it_was_sent(forwarded: str, mentions: list[str], body: object) -> None:
    assert body_of({"text": "a text", "forwarded": forwarded, "mentions": mentions}) == body
