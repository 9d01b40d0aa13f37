"""Training rows that repeat test rows: found however they are changed, and nothing else is."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from retone.conversation import Conversation, Document, Message
from retone.data.duplicates import COMMON_QUESTION
from retone.data.leakage import TOGETHER, LeakIndex, Match
from retone.data.spool import Trainable

SYLLABLES = [f"{first}{last}" for first in "bdfgklmnprst" for last in ("a", "i", "um", "ost")]
WORDS = [f"{first}{last}" for first in SYLLABLES for last in SYLLABLES]


def prose(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def changed(text: str, count: int, seed: int = 0) -> str:
    """The text with so many words replaced by others."""
    rng = random.Random(seed)
    words = text.split()
    for place in rng.sample(range(len(words)), count):
        words[place] = f"other{rng.randrange(1000)}"
    return " ".join(words)


def chat(question: str, answer: str, row: int = 1, system: str = "") -> Conversation:
    turns = (Message("user", question), Message("assistant", answer))
    return Conversation((*((Message("system", system),) if system else ()), *turns), "a.csv", row)


def found(tests: Iterable[Trainable], *training: Trainable) -> list[Match | None]:
    return list(LeakIndex(tests).search(training))


def codes(tests: Iterable[Trainable], *training: Trainable) -> list[str | None]:
    return [match and match.code for match in found(tests, *training)]


TESTS = [chat(prose(20, 2 * row), prose(60, 2 * row + 1), row) for row in range(1, 20)]
OTHERS = [chat(prose(20, seed), prose(60, -seed)) for seed in range(1000, 1100)]


def rewritten(row: int, count: int) -> Conversation:
    """Test row `row` with words replaced in its question and its answer."""
    question, answer = (message.content for message in TESTS[row - 1].messages)
    return chat(changed(question, (count + 3) // 4), changed(answer, count - (count + 3) // 4))


def test_a_row_of_words_replaced() -> None:
    """From one word to a fifth of them a repeat or nearly one, and other rows none."""
    copies = [rewritten(row, count) for row, count in ((3, 1), (5, 5), (7, 16), (9, 40))]
    matches = found(TESTS, *OTHERS, *copies)
    assert matches[: len(OTHERS)] == [None] * len(OTHERS)
    one, five, fifth, half = matches[len(OTHERS) :]
    assert one is not None
    assert five is not None
    assert fifth is not None
    assert half is not None
    assert (one.code, one.where) == (five.code, "a.csv, row 3") == ("leak", "a.csv, row 3")
    assert one.said.split()[:5] == TESTS[2].question.split()[:5]
    assert five.where == "a.csv, row 5"
    assert 0.9 < one.share < 1
    assert one.share > five.share > fifth.share > half.share
    assert fifth.where == "a.csv, row 7"
    assert (half.code, half.where) == ("near-leak", "a.csv, row 9")


def test_a_few_common_words_are_no_rewrite() -> None:
    """Two 3-grams of 80 in common are chance; so is a phrase that other rows have as well."""
    words = TESTS[0].answer.split()
    two = chat(prose(20, 500), f"{' '.join(words[:4])} {prose(50, 501)}")
    assert codes(TESTS, two) == [None]
    phrase = " ".join(words[:14])
    rows = [chat(prose(20, seed), f"{phrase} {prose(40, -seed)}") for seed in range(600, 620)]
    assert codes(TESTS, rows[0]) == ["near-leak"]
    assert codes(TESTS, *rows) == [None] * 20


def test_the_same_question_is_a_leak_whatever_is_answered() -> None:
    test = chat("Who keeps the keys of the boat house?", "Anna.", 4)
    asked = chat("who keeps the  keys of the boat house?", "Nobody knows any more.")
    near = chat("Who keeps the oars of the boat house?", "Nobody knows any more.")
    match, other = found([test], asked, near)
    assert match is not None
    assert (match.code, match.where) == ("leak", "a.csv, row 4")
    assert other is None or other.code == "near-leak"


def test_a_question_that_many_rows_ask_is_an_instruction() -> None:
    ask = "Write a line in my style."
    tests = [chat(ask, prose(12, 1), 1)]
    rows = [chat(ask, prose(12, seed)) for seed in range(10, 10 + COMMON_QUESTION)]
    assert codes(tests, *rows) == [None] * COMMON_QUESTION
    assert codes(tests, *rows[1:]) == ["leak"] * (COMMON_QUESTION - 1)
    # The answer tells the one that repeats.
    assert codes(tests, *rows, chat(ask, tests[0].answer)) == [None] * COMMON_QUESTION + ["leak"]


@pytest.mark.parametrize("tests", [3, 150], ids=["few-test-rows", "many-test-rows"])
def test_a_template_does_not_count(tests: int) -> None:
    """A long instruction before a short text, in all rows."""
    long = prose(200, 7)
    held = [chat(f"{long} {prose(10, at)}", prose(3, 500 + at), at) for at in range(1, tests + 1)]
    rows = [chat(f"{long} {prose(10, at)}", prose(3, 500 + at)) for at in range(1000, 1200)]
    assert set(codes(held, *rows)) == {None}
    copy = chat(f"{long} {changed(prose(10, 1), 1)}", prose(3, 501))
    assert codes(held, *rows, copy)[-1] in ("leak", "near-leak")


def test_a_system_prompt_does_not_count() -> None:
    long = prose(300, 8)
    test = chat(prose(20, 1), prose(20, 2), 1, long)
    assert codes([test], chat(prose(20, 3), prose(20, 4), 1, long)) == [None]
    assert codes([test], chat(prose(20, 1), prose(20, 2), 1, "Be brief.")) == ["leak"]


def test_a_row_copied_often_is_found_every_time() -> None:
    copies = [chat(*(changed(prose(60, s), 3, copy) for s in (1, 2))) for copy in range(30)]
    tests = [*TESTS, chat(prose(60, 1), prose(60, 2), 50)]
    matches = found(tests, *OTHERS, *copies)
    assert {match and (match.code, match.where) for match in matches[len(OTHERS) :]} == {
        ("leak", "a.csv, row 50")
    }


def test_a_row_inside_a_long_one_is_found() -> None:
    text = f"{prose(500, 90)} {TESTS[4].question} {TESTS[4].answer} {prose(500, 91)}"
    (match,) = found(TESTS, Document(text))
    assert match is not None
    assert (match.code, match.where) == ("leak", "a.csv, row 5")
    assert match.share > 0.85


def test_documents() -> None:
    tests = [Document(prose(100, 1), "book.txt", 1), Document(prose(5, 2), "book.txt", 2)]
    training = [Document(changed(prose(100, 1), 5)), Document(prose(5, 2)), Document(prose(100, 3))]
    one, short, other = found(tests, *training)
    assert one is not None
    assert short is not None
    assert (one.code, one.where) == ("leak", "book.txt, row 1")
    assert (short.code, short.where) == ("leak", "book.txt, row 2")
    assert other is None


def test_texts_without_spaces() -> None:
    """CJK characters are words."""
    rng = random.Random(0)
    one, other = ("".join(chr(rng.randrange(0x4E00, 0x9000)) for _ in range(60)) for _ in "ab")
    copy = f"{one[:30]}改{one[31:]}"
    assert codes([Document(one)], Document(copy), Document(other)) == ["leak", None]


def test_without_test_rows_nothing_is_found() -> None:
    assert len(LeakIndex([])) == 0
    assert found([], *OTHERS[:3]) == [None] * 3
    assert found(TESTS) == []
    assert found([Document(""), chat("", "")], Document("One."), OTHERS[0]) == [None, None]


def test_order_does_not_matter() -> None:
    def matched(tests: Sequence[Trainable], rows: Sequence[Trainable]) -> dict[int, Match | None]:
        return dict(zip(map(id, rows), LeakIndex(tests).search(rows), strict=True))

    copies = [rewritten(row, row) for row in range(1, 19)]
    rows = [*OTHERS, *copies]
    forward = matched(TESTS, rows)
    mixed = random.Random(1).sample(rows, len(rows))
    backward = matched(TESTS[::-1], mixed)
    assert sum(match is not None for match in forward.values()) == len(copies)
    for key, match in forward.items():
        other = backward[key]
        assert (match and match._replace(share=0)) == (other and other._replace(share=0))
        assert match is None or match.share == pytest.approx(other and other.share, rel=1e-5)


def test_many_rows_are_read_once_and_answered_in_order() -> None:
    count = 2 * TOGETHER + 10
    rows = iter([chat(f"Where is the house {at}?", f"It is {at}.") for at in range(count)])
    tests = (chat(f"Where is the house {at}?", "Unknown.", at) for at in range(0, count, 100))
    index = LeakIndex(tests)
    matches = list(index.search(rows))
    assert len(index) == 11
    assert {at: match.where for at, match in enumerate(matches) if match} == {
        at: f"a.csv, row {at}" for at in range(0, count, 100)
    }


def test_a_short_question_alone_is_no_leak() -> None:
    """People say it again and again; with its answer it is one."""
    index = LeakIndex([chat("Good morning to you!", "Good morning, what a day to go fishing.")])
    other = chat("Good morning to you!", "The library opens at nine and closes at six.")
    same = chat("Good morning to you!", "Good morning, what a day to go fishing.")
    found = [match.code if match else None for match in index.search([other, same])]
    assert found[0] != "leak"
    assert found[1] == "leak"
