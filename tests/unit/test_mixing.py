"""Duplicates, samples, proportions and splits: decided by content and seed, never by order."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retone.conversation import Conversation, Document, Message
from retone.data.duplicates import (
    COMMON_QUESTION,
    Repeats,
    content_key,
    find_repeats,
    question_key,
    word_grams,
)
from retone.data.mixing import balanced, held_out, ranks, sampled, touching
from retone.data.spool import Trainable

PROSE = [Path(__file__).parents[2] / "src/retone/datasets/handbook/handbook.md"]


def chat(question: str, answer: str, system: str = "") -> Conversation:
    messages = (Message("user", question), Message("assistant", answer))
    return Conversation((Message("system", system), *messages) if system else messages)


def repeats(samples: list[Trainable], *, fixed: Iterable[int] = (), near: bool = True) -> Repeats:
    keys = np.array([content_key(sample) for sample in samples], dtype=np.uint64)
    questions = np.array([question_key(sample) for sample in samples], dtype=np.uint64)
    held = np.zeros(len(samples), dtype=np.bool_)
    held[list(fixed)] = True

    def read(rows: Iterable[int]) -> Iterator[Trainable]:
        return (samples[row] for row in rows)

    order = np.lexsort((keys, ~held))
    return find_repeats(keys, questions, order, held, read, near=near)


def prose(count: int, seed: int) -> str:
    words = " ".join(file.read_text() for file in PROSE).split()
    return " ".join(random.Random(seed).choices(words, k=count))


def together(found: Repeats, one: int, other: int) -> bool:
    return bool(found.groups[one] == found.groups[other])


def test_one_changed_word_in_a_long_row_repeats_it() -> None:
    question, answer = prose(80, 1), prose(120, 2)
    other = answer.replace(answer.split()[60], "elsewhere", 1)
    found = repeats([chat(question, answer), chat(question, other), chat(prose(80, 3), answer)])
    assert found.dropped[:2].sum() == found.near[:2].sum() == 1
    assert not found.dropped[2]
    assert together(found, 0, 1)


@pytest.mark.parametrize("near", [True, False])
def test_equal_rows_are_dropped_but_one(near: bool) -> None:
    rows = [chat("Hi", "Hello"), chat("Hi", "Hello"), chat("Hi", "Hello!"), chat("Hi", "Hello")]
    found = repeats(rows, near=near)
    assert found.dropped.sum() == 2
    assert not found.near.any()
    assert not found.dropped[2]
    assert together(found, 0, 3)


def test_answers_to_one_question_that_differ_are_kept_on_one_side() -> None:
    question = prose(300, 5)  # nearly all of the text is the same
    rows = [chat(question, "Yes, of course."), chat(question, "No, never."), chat("Hi", "Yo.")]
    rows += [chat("hi ", "Hello."), chat("What now?", "Yo.")]
    found = repeats(rows)
    assert not found.dropped.any()
    assert together(found, 0, 1)
    assert together(found, 2, 3)
    assert not together(found, 2, 4)


def test_paraphrases_are_kept() -> None:
    rows = [
        chat("When does the repair shop open on Saturdays, please?", "At nine in the morning."),
        chat("When does the repair shop open on Saturday, please?", "At nine in the morning."),
        chat("What time do you open on Saturdays?", "At nine in the morning."),
        chat("WHEN DOES THE REPAIR SHOP OPEN ON SATURDAYS, PLEASE?", "AT NINE IN THE MORNING."),
    ]
    assert not repeats(rows).dropped.any()


def test_another_persona_is_another_row() -> None:
    long = prose(100, 6)
    rows = [chat(long, "Arr.", "Be a pirate."), chat(long + " Now.", "Arr.", "Be a butler.")]
    assert not repeats(rows).dropped.any()
    assert repeats([rows[0], chat(long + " Now.", "Arr.", "Be a pirate.")]).dropped.sum() == 1


def test_an_instruction_that_many_rows_share_joins_none_of_them() -> None:
    """Long instruction, short input, the same few answers: a classifier's data."""
    instruction = prose(200, 7)
    rows: list[Trainable] = [
        chat(f"{instruction}\n\nInput: {prose(4, 100 + at)}", ("good", "bad")[at % 2])
        for at in range(60)
    ]
    found = repeats(rows)
    assert not found.dropped.any()
    assert len(set(found.groups.tolist())) == 60
    same = [chat("Write a line in my style.", prose(8, at)) for at in range(COMMON_QUESTION + 1)]
    assert len(set(repeats(same).groups.tolist())) == len(same)
    assert len(set(repeats(same[1:]).groups.tolist())) == 1


def test_fixed_rows_are_never_dropped_and_are_preferred() -> None:
    long = prose(100, 8)
    rows: list[Trainable] = [chat(long, "Yes."), chat(long, "Yes."), chat(long + " Now.", "Yes.")]
    found = repeats(rows, fixed=[1, 2])
    assert found.dropped.tolist() == [True, False, False]
    assert len(set(found.groups.tolist())) == 1


def test_documents_and_text_without_spaces() -> None:
    text = "".join(chr(0x4E00 + number) for number in range(300))
    rows: list[Trainable] = [Document(text), Document(text[:150] + "你" + text[151:])]
    rows += [Document(text[::-1]), chat("", "")]
    found = repeats(rows)
    assert found.dropped[:2].sum() == 1
    assert not found.dropped[2:].any()


def test_the_order_of_rows_decides_nothing() -> None:
    rows: list[Trainable] = []
    for at in range(40):
        text = prose(90, at)
        rows += [chat(text, "Yes."), chat(text + " Now.", "Yes."), chat(text, "No.")]
    first = repeats(rows)
    shuffled = random.Random(0).sample(rows, len(rows))
    kept = {content_key(row) for row, out in zip(rows, first.dropped, strict=True) if not out}
    again = repeats(shuffled)
    assert kept == {
        content_key(r) for r, out in zip(shuffled, again.dropped, strict=True) if not out
    }
    assert len(kept) == 80


def test_nothing_that_is_near_is_missed() -> None:
    """Recall over 200 planted pairs at a similarity of 0.70 to 0.95 as a whole."""
    rows: list[Trainable] = []
    for at in range(200):
        words = prose(200, at).split()
        changed = list(words)
        for place in range(at % 10):  # each changes three 3-grams of the 201
            changed[place * 20 + 5] = f"changed{place}"
        rows += [Document(" ".join(words)), Document(" ".join([*changed, "end"]))]
    found = repeats(rows)
    joined = sum(together(found, at, at + 1) for at in range(0, 400, 2))
    assert joined >= 198
    assert len(set(found.groups.tolist())) == 400 - joined


def test_word_grams_do_not_cross_turns() -> None:
    grams, starts = word_grams(["one two three", "", "four", "one two three"])
    assert starts.tolist() == [0, 3, 3, 4, 7]
    assert grams[:3].tolist() == grams[4:].tolist()
    assert len(set(grams.tolist())) == 4
    assert word_grams([])[0].tolist() == word_grams([" "])[0].tolist() == []


@given(st.lists(st.integers(0, 2**64 - 1), max_size=60), st.integers(0, 5))
def test_ranks_follow_content_and_seed(keys: list[int], seed: int) -> None:
    found = ranks(np.array(keys, dtype=np.uint64), seed)
    assert found.tolist() == [int(ranks(np.array([k], dtype=np.uint64), seed)[0]) for k in keys]
    assert len(set(found.tolist())) == len(set(keys))


def rank(count: int, seed: int = 0) -> np.ndarray:
    return ranks(np.arange(count, dtype=np.uint64), seed)


def test_sampled() -> None:
    assert sampled(rank(100), None).all()
    assert sampled(rank(100), 30).sum() == 30
    assert sampled(rank(100), 0.25).sum() == 25
    assert sampled(rank(3), 0.01).sum() == 1
    assert sampled(rank(10), 50).all()
    few, many = sampled(rank(100), 10), sampled(rank(100), 20)
    assert (few <= many).all()  # a larger sample holds the smaller one
    assert (sampled(rank(100, seed=1), 10) != few).any()


def test_balanced_keeps_as_many_rows_as_the_proportions_allow() -> None:
    sources = np.repeat([0, 1, 2, 3], [100, 50, 10, 7])
    kept = balanced(rank(167), sources, {0: 1, 1: 3, 2: 1}, [1, 1, 1, 1])
    assert np.bincount(sources[kept]).tolist() == [10, 30, 10, 7]
    kept = balanced(rank(167), sources, {0: 1, 1: 1}, [1, 4, 1, 1])
    assert np.bincount(sources[kept]).tolist() == [100, 25, 10, 7]  # 25 rows, each four times
    assert balanced(rank(167), sources, {}, [1] * 4).all()
    empty = balanced(rank(4), np.array([0, 0, 0, 0]), {0: 1, 1: 5}, [1, 1])
    assert empty.all()  # a source of which nothing is left says nothing about the others


def test_held_out_takes_whole_groups() -> None:
    groups = np.repeat(np.arange(50), 4)
    held = held_out(rank(200), groups, 0.1)
    assert held.sum() == 20
    assert all(held[groups == group].all() or not held[groups == group].any() for group in groups)
    assert not held_out(rank(200), groups, 0).any()
    assert not held_out(rank(9), np.zeros(9), 0.5).any()  # one group alone stays
    assert held_out(rank(2), np.arange(2), 0.01).sum() == 1
    uneven = np.array([0] * 90 + [1] * 10)
    assert held_out(rank(100), uneven, 0.02).tolist() == (uneven == 1).tolist()
    assert not held_out(rank(0), np.arange(0), 0.1).any()


def test_held_out_does_not_depend_on_order() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 300)
    order = np.random.default_rng(1).permutation(300)
    held = held_out(rank(300), groups, 0.2)
    assert (held_out(rank(300)[order], groups[order], 0.2) == held[order]).all()


def test_touching() -> None:
    held = np.array([False, True, False, False])
    assert touching(np.array([5, 5, 6, 5]), held).tolist() == [True, False, False, True]
