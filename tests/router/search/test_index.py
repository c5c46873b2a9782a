"""router/search/index.py: against a scan of all texts, over changes of all kinds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from router.contract.packing import MAX_INTEGER
from router.search.documents import File, Indexed, by, edited, has, searched
from router.search.index import MAX_ORDER, Events, Index, Known, Question, order_of
from router.search.query import found, phrases_of

NOW_MS = 1_795_000_000_000
BOTH = {"c": MAX_INTEGER, "d": MAX_INTEGER}
SCRIPTS = (
    "the quick brown fox jumps over a lazy dog don't café",
    "der schnelle Fuchs springt über Straße groß",
    "съешь ещё этих мягких французских булок",
    "東京 大阪 今日 は 良い 天気 タワー 明日",
    "你好 世界 今天 天气 很好 我们 去 北京",
    "สวัสดี ครับ วันนี้ อากาศ ดี มาก",
    "한국어 오늘 날씨 좋다 우리 서울",
    "مرحبا بالعالم اليوم الطقس جميل",
    "नमस्ते दुनिया आज मौसम अच्छा है",
)


def message(seq: int, body: object, at: int = NOW_MS, user: str = "ann", files: list[File] | None = None) -> Indexed:
    return Indexed(seq, at, "message", user, body, files or [])


def asked(query: str, *conversations: str, tags: tuple[str, ...] = (), below: int = MAX_ORDER) -> Question:
    return Question(phrases_of(query), dict.fromkeys(conversations, MAX_INTEGER), tags, below, 0, 100)


def seqs(index: Index, query: str, *conversations: str, tags: tuple[str, ...] = ()) -> list[int]:
    return [one.seq for one in index.candidates(asked(query, *(conversations or ("c",)), tags=tags))]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index(tmp_path / "000.db")


def test_recall_is_that_of_a_scan_over_texts_of_nine_scripts(index: Index) -> None:
    """Each query of one or two words that stand in a text, written without the spaces where the script has none."""
    choice = random.Random(7)
    texts: dict[str, dict[int, str]] = {name: {} for name in ("a", "b", "c")}
    for seq in range(1, 400):
        line = choice.choice(SCRIPTS).split()
        text = choice.choice(("", " ")).join(choice.choices(line, k=choice.randint(1, 8)))
        conversation = choice.choice(list(texts))
        texts[conversation][seq] = text
        index.add([Events(conversation, [message(seq, text, NOW_MS + seq)], seq)])
    for _ in range(600):
        words = choice.choice(SCRIPTS).split()
        at = choice.randrange(len(words))
        query = choice.choice((words[at], " ".join(words[at : at + 2]), f'"{" ".join(words[at : at + 2])}"',
                               words[at][: choice.randint(1, 3)], "".join(words[at : at + 2])))  # fmt: skip
        where = choice.sample(list(texts), k=choice.randint(1, 3))
        expected = sorted(
            (seq for name in where for seq, text in texts[name].items() if found(phrases_of(query), text)), reverse=True
        )
        assert seqs(index, query, *where)[:100] == expected[:100], query


def test_edit_takes_the_place_of_the_text_and_delete_takes_it_out(index: Index) -> None:
    first = message(1, {"text": "a wren"}, files=[File("image", "nest.png")])
    index.add([Events("c", [first, message(2, "a robin")], 2)])
    edit = edited(first, Indexed(3, NOW_MS + 9, "edit", "ann", {"text": "an owl"}, target=1))
    index.add([Events("c", [edit], 3)])
    assert (seqs(index, "wren"), seqs(index, "owl"), seqs(index, "nest")) == ([], [1], [1])
    (candidate,) = index.candidates(asked("owl", "c"))
    assert (candidate.edit, candidate.order >> 20) == (3, NOW_MS)
    index.add([Events("c", [Indexed(4, NOW_MS, "delete", "ann", target=1)], 4)])
    assert (seqs(index, "owl"), seqs(index, "robin")) == ([], [2])


def test_events_that_come_again_change_nothing(index: Index) -> None:
    events = [message(1, "a wren"), message(2, "a robin"), Indexed(3, NOW_MS, "delete", "ann", target=1)]
    index.add([Events("c", events, 3)])
    index.add([Events("c", events, 3)])
    index.add([Events("c", events[:1], 1)])
    assert (seqs(index, "wren"), seqs(index, "robin"), index.known(["c", "d"])) == ([], [2], [Known(3, 0), Known()])


def test_what_retention_took_and_removed_conversations_are_forgotten(index: Index) -> None:
    index.add([Events("c", [message(seq, "wren") for seq in range(1, 6)], 5), Events("d", [message(1, "wren")], 1)])
    index.add([Events("c", (), 5, floor=3)])
    assert sorted(seqs(index, "wren", "c", "d")) == [1, 4, 5]
    index.add([Events("c", (), 5, gone=True)])
    assert (seqs(index, "wren", "c", "d"), index.known(["c"])) == ([1], [Known()])


def test_tags_narrow_down_to_an_author_and_to_what_a_message_has(index: Index) -> None:
    index.add([Events("c", [
        message(1, "see https://linnet.example"), message(2, "see this", user="bob", files=[File("voice", "see.ogg")]),
    ], 2)])  # fmt: skip
    assert seqs(index, "see", tags=(by("bob"),)) == [2]
    assert seqs(index, "see", tags=(has("voice"),)) == [2]
    assert seqs(index, "see", tags=(has("link"), by("ann"))) == [1]
    assert seqs(index, "see", tags=(has("image"),)) == []


def test_conversation_is_searched_up_to_a_seq(index: Index) -> None:
    index.add([Events(name, [message(seq, "wren") for seq in range(1, 6)], 5) for name in "cd"])
    question = Question(phrases_of("wren"), {"c": 2, "d": MAX_INTEGER}, (), MAX_ORDER, 0, 100)
    found_there = sorted((one.conversation, one.seq) for one in index.candidates(question))
    assert found_there == [("c", 1), ("c", 2), *(("d", seq) for seq in range(1, 6))]


def test_newest_come_first_and_pages_leave_nothing_out(index: Index) -> None:
    """Also messages of one millisecond."""
    index.add([Events(name, [message(seq, "wren", NOW_MS + seq // 7) for seq in range(1, 50)], 49) for name in "cd"])
    orders: list[int] = []
    below = MAX_ORDER
    while page := index.candidates(Question(phrases_of("wren"), BOTH, (), below, 0, 9)):
        orders += [one.order for one in page]
        below = orders[-1]
    assert len(orders) == 98
    assert orders == sorted(set(orders), reverse=True)
    between = Question(phrases_of("wren"), {"c": MAX_INTEGER}, (), order_of(NOW_MS + 3), order_of(NOW_MS + 2) - 1, 99)
    assert sorted(one.seq for one in index.candidates(between)) == list(range(14, 21))


def test_deleted_words_leave_the_file(tmp_path: Path) -> None:
    """The ends of words: the index keeps a word's beginning with its neighbour's."""
    index = Index(tmp_path / "0.db")
    index.add([Events("c", [message(1, "sekretwort geheimzahl"), message(2, "sekretariat")], 2)])
    assert b"twort" in contents(tmp_path)
    index.add([Events("c", [Indexed(3, NOW_MS, "delete", "ann", target=1)], 3)])
    assert index.deleted_since() is not None
    index.erase()
    assert b"twort" not in contents(tmp_path)
    assert b"heimzahl" not in contents(tmp_path)
    assert index.deleted_since() is None
    assert seqs(index, "sekretariat") == [2]


def contents(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def test_file_that_is_damaged_or_of_other_rules_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "0.db"
    index = Index(path)
    index.add([Events("c", [message(1, "wren")], 1)], [("fact", 7)])
    index.close()
    again = Index(path)
    assert (seqs(again, "wren"), again.fact("fact")) == ([1], 7)
    again.close()
    path.write_bytes(b"no database" * 1000)
    assert Index(path).known(["c"]) == [Known()]


def test_hostile_words_are_words(index: Index) -> None:
    """What means something to the engine is never passed on."""
    for seq, text in enumerate(('NEAR(a b) OR "x" NOT', "tags:c1 * ^ {words}", "a\x00b", "' ; DROP"), 1):
        index.add([Events("c", [message(seq, text)], seq)])
        assert seq in seqs(index, text.replace('"', "")), text
    assert searched(message(1, {"text": 5})) == ""
