"""router/search/query.py: what a query asks for, and where a text has it."""

from __future__ import annotations

import pytest

from router.contract.errors import BadCommand
from router.search.query import MAX_MARKS, SNIPPET, Phrase, found, phrases_of


@pytest.mark.parametrize(
    ("query", "phrases"),
    [
        ("hello wor", (Phrase(("hello",)), Phrase(("wor",), begins=True))),
        ('"hello world"', (Phrase(("hello", "world")),)),
        ('"open quote', (Phrase(("open", "quote")),)),
        ("ann@mail.example x", (Phrase(("ann", "mail", "example")), Phrase(("x",), begins=True))),
        ("東京", (Phrase(("東", "京"), begins=True),)),
        ('say "ça va" ...', (Phrase(("say",)), Phrase(("ca", "va")))),
        ("again again", (Phrase(("again",)), Phrase(("again",), begins=True))),
    ],
)
def test_query_is_words_phrases_and_the_beginning_of_the_last_word(query: str, phrases: tuple[Phrase, ...]) -> None:
    assert phrases_of(query) == phrases


@pytest.mark.parametrize("query", ["", "  ", '""', "...!", "a " * 33, "a" * 257])
def test_query_without_words_or_with_too_many_is_refused(query: str) -> None:
    with pytest.raises(BadCommand):
        phrases_of(query)


def marked(query: str, text: str) -> list[str] | None:
    snippet = found(phrases_of(query), text)
    return None if snippet is None else [snippet.text[start:end] for start, end in snippet.marks]


def test_text_is_found_by_all_words_in_any_order_and_by_phrases_in_theirs() -> None:
    text = "The quick brown fox"
    assert marked("fox quick", text) == ["quick", "fox"]
    assert marked('"quick brown"', text) == ["quick brown"]
    assert marked('"brown quick"', text) is None
    assert marked("qui", text) == ["quick"]
    assert marked("qui fox", text) is None
    assert marked("quick cat", text) is None


def test_marks_are_code_points_of_the_snippet() -> None:
    assert marked("wren", "🎉 Ein WREN, un wre\u0301n") == ["WREN", "wre\u0301n"]
    long = "🎉 " * 300 + "the wren sings " + "x " * 300
    snippet = found(phrases_of("wren"), long)
    assert snippet is not None
    assert len(snippet.text) == SNIPPET
    assert [snippet.text[start:end] for start, end in snippet.marks] == ["wren"]


def test_marks_do_not_overlap_and_are_bounded() -> None:
    assert marked('"a a" a', "a a a b") == ["a a a"]
    snippet = found(phrases_of("a"), "a " * 500)
    assert snippet is not None
    assert len(snippet.marks) == MAX_MARKS
