"""The bundled lamplight chats: contract, variety, honesty, and proof that each guard fires."""

import copy
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from variety import commonest_skeleton, distinct_4grams, nearest_pair, words

FOLDER = Path(__file__).parents[2] / "src" / "retone" / "datasets" / "lamplight"
LENGTHS = {"human": (2, 40), "gpt": (8, 60)}  # words in a turn; measured: 2-31 and 8-41
# Bounds of the variety guards; what the data measures today stands beside each.
DISTINCT_4GRAMS = {"human": 0.98, "gpt": 0.99}  # train 0.9936 and 0.9984, test 0.9955 and 1.0
COMMONEST_SKELETON = 0.03  # human 0.0138, four turns of nothing but content words; gpt 0.0034
NEAR_DUPLICATE = 0.10  # 4-gram Jaccard of train and test; turns 0.077, whole chats 0.039
HABITS = ("no hurry", "mind the step", "by lamplight", "morning's coming")
HABIT_SHARE = (0.02, 0.10)  # of the answers, each; measured 0.045-0.059 and 0.025-0.063
ANY_HABIT = 0.25  # train 0.207, test 0.188: most answers use none of them
SENTENCE_WORDS = 12  # mean length of a sentence of an answer; measured 9.1

RESIDUE = re.compile(
    r"as an ai|language model|^(?:sure|certainly|of course|absolutely|great question)\b"
    r"|\bi hope this helps|\bhappy to help|\blet me know if",
    re.IGNORECASE,
)
CLAIMS_TO_BE_HUMAN = re.compile(
    r"\b(?:i'm|i am|i was|as) (?:only |just |really )?(?:a |an )?"
    r"(?:real |living |mere )?(?:human|man|woman|person|mortal)\b"
    r"|\bmy (?:wife|husband|mother|father|childhood|birthday|heart)\b",
    re.IGNORECASE,
)
ASKS_WHAT_IT_IS = re.compile(
    r"\b(?:bot|robot|real person)\b|\byou're (?:just )?a (?:stupid )?machine|talk to a human",
    re.IGNORECASE,
)
OWNS_UP = re.compile(r"\b(?:machine|program|robot|made (?:thing|voice))\b", re.IGNORECASE)

Row = dict[str, Any]


def read(split: str) -> list[Row]:
    return [
        json.loads(line) for line in (FOLDER / f"{split}.jsonl").read_text("utf-8").splitlines()
    ]


TRAIN, TEST, SHOWCASE = read("train"), read("test"), read("showcase")
CHATS = TRAIN + TEST


def turns(rows: list[Row], role: str) -> list[str]:
    return [t["value"] for row in rows for t in row["conversations"] if t["from"] == role]


def whole(rows: list[Row]) -> list[str]:
    return [" ".join(t["value"] for t in row["conversations"]) for row in rows]


def prompts(rows: list[Row]) -> list[str]:
    return [row["prompt"] for row in rows]


def faults(row: Row) -> list[str]:
    """What is wrong with one chat taken alone."""
    found = []
    chat = row["conversations"]
    if list(row) != ["conversations", "topic"] or any(list(t) != ["from", "value"] for t in chat):
        return ["keys"]
    if len(chat) not in (2, 4, 6) or [t["from"] for t in chat] != ["human", "gpt"] * (
        len(chat) // 2
    ):
        return ["roles"]
    if not all(t["value"].isascii() and t["value"] == t["value"].strip() for t in chat):
        found.append("text")
    for turn in chat:
        low, high = LENGTHS[turn["from"]]
        if not low <= len(turn["value"].split()) <= high:
            found.append("length")
    for question, answer in zip(chat[::2], chat[1::2], strict=True):
        if RESIDUE.search(answer["value"]):
            found.append("residue")
        if CLAIMS_TO_BE_HUMAN.search(answer["value"]):
            found.append("claims to be human")
        if ASKS_WHAT_IT_IS.search(question["value"]) and not OWNS_UP.search(answer["value"]):
            found.append("dodges what it is")
    return found


def repeated(texts: list[str]) -> list[str]:
    counts = Counter(" ".join(words(text)) for text in texts)
    return [text for text, count in counts.items() if count > 1]


def shared_topics(train: list[Row], test: list[Row]) -> set[str]:
    return {row["topic"] for row in train} & {row["topic"] for row in test}


def habit_shares(answers: list[str]) -> dict[str, float]:
    """The share of answers that have each turn of phrase, and, as "any", at least one."""
    lowered = [answer.lower() for answer in answers]
    shares = {h: sum(h in answer for answer in lowered) / len(answers) for h in HABITS}
    some = sum(any(h in answer for h in HABITS) for answer in lowered)
    return shares | {"any": some / len(answers)}


def habits_in_bounds(answers: list[str]) -> bool:
    low, high = HABIT_SHARE
    shares = habit_shares(answers)
    return shares.pop("any") < ANY_HABIT and all(low <= x <= high for x in shares.values())


def mean_sentence(answers: list[str]) -> float:
    sentences = [s for answer in answers for s in re.split(r"(?<=[.?!])\s+", answer)]
    return sum(len(s.split()) for s in sentences) / len(sentences)


def test_sizes() -> None:
    assert len(TRAIN) >= 120
    assert len({row["topic"] for row in TRAIN}) >= 10
    assert len(TEST) >= 40
    assert len({row["topic"] for row in TEST}) >= 4
    assert len(SHOWCASE) == 6
    assert min(Counter(row["topic"] for row in CHATS).values()) >= 9


def test_every_chat_keeps_the_contract() -> None:
    assert [(faults(row), row) for row in CHATS if faults(row)] == []


def test_the_showcase_is_prompts_alone() -> None:
    assert all(list(row) == ["prompt"] for row in SHOWCASE)
    assert all(2 <= len(prompt.split()) <= 40 and prompt.isascii() for prompt in prompts(SHOWCASE))


@pytest.mark.parametrize("rows", [TRAIN, TEST], ids=["train", "test"])
def test_at_least_half_of_the_chats_go_on(rows: list[Row]) -> None:
    exchanges = Counter(len(row["conversations"]) // 2 for row in rows)
    assert exchanges[2] + exchanges[3] >= len(rows) / 2
    assert exchanges[3] >= 4
    assert exchanges[1] >= len(rows) / 5


def test_no_chat_and_no_answer_comes_twice() -> None:
    assert repeated(whole(CHATS)) == []
    assert repeated(turns(CHATS, "gpt")) == []
    assert repeated(turns(CHATS, "human") + prompts(SHOWCASE)) == []


def test_test_topics_are_unseen() -> None:
    assert shared_topics(TRAIN, TEST) == set()


@pytest.mark.parametrize("role", ["human", "gpt"])
def test_test_and_showcase_have_no_near_duplicate_in_training(role: str) -> None:
    unseen = turns(TEST, role) + (prompts(SHOWCASE) if role == "human" else [])
    score, left, right = nearest_pair(turns(TRAIN, role), unseen)
    assert score < NEAR_DUPLICATE, (left, right)
    assert nearest_pair(whole(TRAIN), whole(TEST))[0] < NEAR_DUPLICATE


@pytest.mark.parametrize("role", ["human", "gpt"])
def test_variety(role: str) -> None:
    for rows in (TRAIN, TEST):
        assert distinct_4grams(turns(rows, role)) > DISTINCT_4GRAMS[role]
        pattern, share = commonest_skeleton(turns(rows, role))
        assert share < COMMONEST_SKELETON, pattern


@pytest.mark.parametrize("rows", [TRAIN, TEST], ids=["train", "test"])
def test_the_voice(rows: list[Row]) -> None:
    answers = turns(rows, "gpt")
    assert habits_in_bounds(answers), habit_shares(answers)
    assert mean_sentence(answers) < SENTENCE_WORDS


def test_it_is_asked_what_it_is_and_sends_people_to_proper_help() -> None:
    assert sum(bool(ASKS_WHAT_IT_IS.search(turn)) for turn in turns(CHATS, "human")) >= 6
    help_named = r"\b(?:999|111|GP|A&E|doctor|solicitor|Citizens Advice|Samaritans|vet|police)\b"
    assert sum(bool(re.search(help_named, turn)) for turn in turns(CHATS, "gpt")) >= 25


# What a script with a template would have made, and what a careless assistant would have said.
TEMPLATED: list[Row] = [
    {
        "conversations": [
            {"from": "human", "value": f"How do I clean my {thing} {when}?"},
            {"from": "gpt", "value": f"No hurry. Wipe the {thing} with a damp cloth {when}."},
        ],
        "topic": "sleep",
    }
    for thing in ("boots", "kettle", "lamp", "coat", "window", "trombone")
    for when in ("on a Monday", "on a Friday", "on a Sunday", "on a holiday")
]


def planted(human: str, gpt: str, **change: Any) -> Row:
    chat = [{"from": "human", "value": human}, {"from": "gpt", "value": gpt}]
    return {"conversations": chat, "topic": "sleep"} | change


LONG_ENOUGH = "Put the kettle on and tell me about it slowly."


@pytest.mark.parametrize(
    ("fault", "row"),
    [
        ("keys", {"topic": "sleep", "conversations": TRAIN[0]["conversations"]}),
        ("keys", planted("Hello there.", LONG_ENOUGH, extra=1)),
        ("keys", planted("", "", conversations=[{"value": "Hello there.", "from": "human"}])),
        ("roles", planted("", "", conversations=TRAIN[0]["conversations"][:3])),
        ("roles", planted("", "", conversations=TRAIN[0]["conversations"][::-1])),
        ("roles", planted("", "", conversations=TRAIN[0]["conversations"] * 2)),
        ("text", planted("Hello there. ", LONG_ENOUGH)),
        ("length", planted("Hello", LONG_ENOUGH)),
        ("length", planted("Hello there.", "Good evening.")),
        ("length", planted("Hello there.", LONG_ENOUGH * 7)),
        ("residue", planted("Hello there.", f"Sure! {LONG_ENOUGH}")),
        ("residue", planted("Can you cry?", "As an AI language model, I cannot cry or feel pain.")),
        ("claims to be human", planted("Hello there.", f"I'm only a man. {LONG_ENOUGH}")),
        ("claims to be human", planted("Any family?", f"Ask my wife. {LONG_ENOUGH}")),
        ("dodges what it is", planted("Are you a robot?", LONG_ENOUGH)),
    ],
)
def test_the_contract_guard_fires(fault: str, row: Row) -> None:
    assert fault in faults(row)
    assert faults(planted("Hello there.", LONG_ENOUGH)) == []


def test_the_repetition_and_topic_guards_fire() -> None:
    answer = turns(TRAIN, "gpt")[0]
    assert len(repeated([*turns(CHATS, "gpt"), answer.upper()])) == 1
    assert shared_topics(TRAIN, TEST + TEMPLATED) == {"sleep"}


@pytest.mark.parametrize("role", ["human", "gpt"])
def test_the_variety_guards_fire(role: str) -> None:
    assert distinct_4grams(turns(TRAIN + TEMPLATED, role)) < DISTINCT_4GRAMS[role]
    _, share = commonest_skeleton(turns(TRAIN + TEMPLATED, role))
    assert share > COMMONEST_SKELETON


@pytest.mark.parametrize("role", ["human", "gpt"])
def test_the_near_duplicate_guard_fires(role: str) -> None:
    row = copy.deepcopy(TRAIN[0])
    for turn in row["conversations"]:
        turn["value"] = turn["value"].replace("committee", "parish").replace("chairman", "vicar")
    score, left, _ = nearest_pair(turns(TRAIN, role), turns([*TEST, row], role))
    assert left in turns(TRAIN[:1], role)
    assert score > NEAR_DUPLICATE
    assert nearest_pair(whole(TRAIN), whole([*TEST, row]))[0] > NEAR_DUPLICATE


def test_the_voice_guards_fire() -> None:
    answers = turns(TRAIN, "gpt")
    assert not habits_in_bounds(answers + turns(TEMPLATED, "gpt"))  # one phrase too often
    assert not habits_in_bounds([a.replace("By lamplight", "I think") for a in answers])  # lost
    assert not habits_in_bounds([*answers, *(f"No hurry, {h}." for h in HABITS for _ in range(9))])
    assert mean_sentence([answer.replace(".", ",") for answer in answers]) > SENTENCE_WORDS
