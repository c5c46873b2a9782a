"""router/contract/words.py: the same words for everything that people take for the same."""

from __future__ import annotations

import itertools
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.contract.words import MAX_WORD, Word, plain, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Crème BRÛLÉE, don't!", "creme brulee don t"),
        ("Straße İstanbul ΣΊΣΥΦΟΣ ёлка", "strasse istanbul σισυφοσ елка"),
        ("東京タワー tower", "東 京 タ ワ ー tower"),
        ("ｆｕｌｌ ﾊﾝ ①", "full ハ ン 1"),
        ("สวัสดี", "ส ว ั ส ด ี"),
        ("한국어", "한국어"),
        ("नमस्ते दुनिया", "नमस्ते दुनिया"),
        ("שָׁלוֹם مَرْحَبًا", "שלום مرحبا"),
        ("well done 🎉👍🏽👨‍👩‍👧", "well done 🎉 👍 👨 👩 👧"),
        ("a_b-c.d/e\u00a0f", "a b c d e f"),
        ("\u0301 \u200d", ""),
    ],
)
def test_words_of_a_text(text: str, expected: str) -> None:
    assert plain(words(text)) == expected


def test_word_stands_where_the_text_has_it() -> None:
    """A mark that is left out belongs to its word."""
    assert words("un e\u0301te\u0301 \u6771 fin") == [
        Word("un", 0, 2), Word("ete", 3, 8), Word("\u6771", 9, 10), Word("fin", 11, 14)
    ]  # fmt: skip


def test_long_word_is_found_by_its_beginning() -> None:
    assert [word.text for word in words("ü" * 500)] == ["u" * MAX_WORD]
    assert words("x" * 500) == [Word("x" * MAX_WORD, 0, 500)]


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60)


@given(TEXTS)
def test_composed_and_decomposed_texts_have_the_same_words(text: str) -> None:
    assert plain(words(normalize("NFC", text))) == plain(words(normalize("NFD", text)))


@given(TEXTS)
def test_case_does_not_matter(text: str) -> None:
    assert plain(words(text.casefold())) == plain(words(text))


@given(TEXTS, TEXTS)
def test_words_do_not_depend_on_what_stands_beside_them(one: str, other: str) -> None:
    assert plain(words(f"{one}\n{other}")).split() == plain(words(one)).split() + plain(words(other)).split()


@given(TEXTS)
def test_words_stand_in_order_and_contain_no_space_or_quote(text: str) -> None:
    found = words(text)
    assert all(word.start < word.end <= len(text) for word in found)
    assert all(a.end <= b.start or a.start == b.start for a, b in itertools.pairwise(found))
    assert not any(set(word.text) & set(' "*()') or word.text == "" for word in found)
