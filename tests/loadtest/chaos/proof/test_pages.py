"""The judgement of web pages against forged evidence: a correct page passes, and each broken promise is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from loadtest.chaos.proof import checker
from loadtest.chaos.proof.evidence import Conversation, Evidence, Run, contents_of
from loadtest.chaos.proof.history import Entry, digest
from loadtest.chaos.proof.page_history import Asked, PageRows, Raised, ShownMessage, Shows

TALK = "g-talk"
LOG = [
    {"seq": 1, "type": "message", "from": "ann", "body": "one"},
    {"seq": 2, "type": "message", "from": "bob", "body": "two"},
    {"seq": 4, "type": "edit", "from": "ann", "target": 1, "body": "one, better"},
    {"seq": 5, "type": "react", "from": "bob", "target": 1, "emoji": "👍", "remove": False},
    {"seq": 6, "type": "delete", "from": "ann", "target": 3},
    {"seq": 7, "type": "message", "from": "ann", "body": "", "files": [{}], "reply_to": 2},
]
ONE, TWO, VOICE, GONE = (digest(text) for text in ("one", "two", "", "three"))
BETTER = digest("one, better")


def shows(*messages: ShownMessage) -> Shows:
    return Shows(0, TALK, list(messages))


def message(seq: int, mine: bool, body: str, **more: object) -> ShownMessage:
    return replace(ShownMessage(seq, mine, body, state="Read" if mine else ""), **more)


ENDED = [
    message(1, True, BETTER, edited=True, reactions={"👍": 1}),
    message(2, False, TWO),
    message(3, True, "", deleted=True),
    message(7, True, VOICE, files=1, answers=True),
]


class Forged:
    """The page of ann; each test spoils one thing."""

    def __init__(self) -> None:
        self.asked: list[PageRows] = [
            Asked(0, "message", TALK, ONE),
            Asked(0, "edit", TALK, BETTER, 1),
            Asked(0, "message", TALK, GONE),
            Asked(0, "delete", TALK, "", 3),
            Asked(0, "message", TALK, VOICE),
        ]
        self.states: list[PageRows] = [
            shows(message(0, True, ONE, state="Waiting to be sent")),
            shows(message(1, True, ONE), message(2, False, TWO), message(3, True, GONE)),
            shows(message(1, True, BETTER, edited=True), message(2, False, TWO), message(3, True, "", deleted=True)),
        ]
        self.end: list[ShownMessage] = list(ENDED)
        self.bob: list[PageRows] = [
            Asked(0, "message", TALK, TWO),
            Asked(0, "react", TALK, "👍", 1),
            shows(*(replace(one, mine=not one.mine, state="" if one.mine else "Read") for one in ENDED)),
        ]

    def broken(self) -> list[str]:
        entries = [
            Entry(one["seq"], 0, 0, 0, one["type"], one["from"], "web", one["seq"], one.get("target", 0), "x")  # type: ignore[arg-type]
            for one in LOG
            if one["type"] == "delete"
        ]
        talk = Conversation(TALK, 7, 0, {"ann": (0, 0), "bob": (0, 0)}, entries)
        made = Evidence(
            Run(1, 60, "fsync", 5, 100 << 20),
            {TALK: talk},
            {},
            pages={"ann": [*self.asked, *self.states, shows(*self.end)], "bob": self.bob},
            contents=contents_of(TALK, LOG),
        )
        return [one.promise for one in checker.check(made).violations]


def test_correct_page_passes() -> None:
    assert Forged().broken() == []


def test_own_message_may_be_acked_before_what_comes_before_it_is_received() -> None:
    forged = Forged()
    forged.states.insert(2, shows(message(1, True, ONE), message(7, True, VOICE, files=1, answers=True)))
    assert forged.broken() == []


def drop_a_message(forged: Forged) -> None:
    forged.bob.insert(0, shows(message(1, False, ONE), message(7, False, VOICE)))


def swap_two(forged: Forged) -> None:
    forged.states[1] = shows(message(2, False, TWO), message(1, True, ONE))


def show_an_earlier_text(forged: Forged) -> None:
    forged.states.append(forged.states[1])


def show_a_deleted_message_again(forged: Forged) -> None:
    forged.states.append(shows(message(3, True, GONE)))


def show_another_text(forged: Forged) -> None:
    forged.states[1] = shows(message(1, True, TWO))


def show_anothers_message_as_own(forged: Forged) -> None:
    forged.states[1] = shows(message(2, True, TWO))


def show_what_the_log_has_not(forged: Forged) -> None:
    forged.states.append(shows(message(8, False, TWO)))


def differ_in_a_deleted_text(forged: Forged) -> None:
    forged.bob.insert(0, shows(message(3, False, TWO)))


def show_a_message_as_not_sent(forged: Forged) -> None:
    forged.states.append(shows(message(0, True, ONE, state="Not sent")))


def end_without_the_last_message(forged: Forged) -> None:
    forged.end.pop()


def end_without_a_reaction(forged: Forged) -> None:
    forged.end[0] = replace(forged.end[0], reactions={})


def end_without_the_file(forged: Forged) -> None:
    forged.end[-1] = replace(forged.end[-1], files=0)


def end_without_the_edit(forged: Forged) -> None:
    forged.states.pop()
    forged.end[0] = replace(forged.end[0], body=ONE, edited=False)


def end_without_the_deletion(forged: Forged) -> None:
    forged.states.pop()
    forged.end[2] = message(3, True, GONE)


def end_with_a_message_on_its_way(forged: Forged) -> None:
    forged.end.append(message(0, True, ONE))


def end_unread(forged: Forged) -> None:
    forged.end[-1] = replace(forged.end[-1], state="Stored by the server")


def lose_what_was_written(forged: Forged) -> None:
    forged.asked.append(Asked(0, "message", TALK, digest("lost")))


def lose_a_reaction(forged: Forged) -> None:
    forged.asked.append(Asked(0, "react", TALK, "🎉", 2))


def lose_a_deletion(forged: Forged) -> None:
    forged.asked.append(Asked(0, "delete", TALK, "", 2))


def have_what_nobody_wrote(forged: Forged) -> None:
    forged.bob.pop(0)


def raise_an_error(forged: Forged) -> None:
    forged.states.append(Raised(0, "raised TypeError"))


@pytest.mark.parametrize(
    ("spoil", "promise"),
    [
        (drop_a_message, "G4"),
        (swap_two, "G2"),
        (show_an_earlier_text, "G2"),
        (show_a_deleted_message_again, "G2"),
        (show_another_text, "G2"),
        (show_anothers_message_as_own, "G2"),
        (show_what_the_log_has_not, "G2"),
        (differ_in_a_deleted_text, "G2"),
        (show_a_message_as_not_sent, "G1"),
        (end_without_the_last_message, "G1"),
        (end_without_a_reaction, "G1"),
        (end_without_the_file, "G1"),
        (end_without_the_edit, "G1"),
        (end_without_the_deletion, "G1"),
        (end_with_a_message_on_its_way, "G1"),
        (end_unread, "G9"),
        (lose_what_was_written, "G1"),
        (lose_a_reaction, "G1"),
        (lose_a_deletion, "G1"),
        (have_what_nobody_wrote, "G3"),
        (raise_an_error, "G6"),
    ],
)
def test_broken_promise_is_found(spoil: Callable[[Forged], None], promise: str) -> None:
    forged = Forged()
    spoil(forged)
    assert promise in forged.broken()
