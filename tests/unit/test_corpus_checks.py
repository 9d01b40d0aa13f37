"""Findings about all rows together and about recipes: each has a case that triggers it and a near
miss that does not."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import tiny
from retone.chat_template import ChatTemplate
from retone.config import DataSection, Recipe
from retone.conversation import Conversation, Message
from retone.data import corpus_checks, languages
from retone.data.advice import advise
from retone.data.corpus_checks import DOMINANT_LABEL, FEW_ROWS
from retone.data.duplicates import answer_key
from retone.data.findings import CHECKS, Finding
from retone.data.preparing import prepare_data
from retone.data.recipe_checks import recipe_findings
from retone.data.sources import source_path
from retone.planning import DataFacts, Machine, ModelFacts, resolve

Row = dict[str, Any]
Table = Mapping[str, Sequence[Row]]
WORDS = sorted(
    set(re.findall(r"[a-z]{3,}", source_path("bundled:yoda/train.jsonl").read_text("utf-8")))
)


def sentence(number: int, words: int = 12) -> str:
    """A sentence of its own for each number."""
    return " ".join(random.Random(f"{number}").choices(WORDS, k=words))


def row(number: int, answer: str | None = None, words: int = 12) -> Row:
    said = sentence(number, words) if answer is None else answer
    return {"prompt": f"{sentence(-number, 6).capitalize()}?", "completion": said}


ROWS = [row(number) for number in range(60)]
TEST = [row(number) for number in range(1000, 1030)]
GERMAN = (
    "Der Leuchtturm steht seit vielen Jahren auf dem Felsen und weist den Schiffen in jeder Nacht "
    "den sicheren Weg"
)
ENGLISH = (
    "The lighthouse has been standing on its rock for many years and shows every ship the safe way "
    "home at night"
)


def files(train: Sequence[Row] = ROWS, test: Sequence[Row] = TEST, **more: Sequence[Row]) -> Table:
    return {"train": train, "test": test, **more}


def findings(folder: Path, tables: Table, limit: int = 100_000, **data: Any) -> list[Finding]:
    """The findings of prepared data."""
    for name, rows in tables.items():
        lines = (json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    paths: dict[str, Any] = {name: str(folder / f"{name}.jsonl") for name in tables}
    if "against" in paths:
        paths["against"] = [paths["against"]]
    section = DataSection(**{"bad_rows": "drop", **paths, **data})
    out = folder / "out"
    out.mkdir()
    template = ChatTemplate(tiny.tokenizer())
    return prepare_data(section, template, out, limit=limit, seed=0).findings


def changed(text: str, every: int) -> str:
    """The text with each so-and-so-many-th word replaced."""
    words = text.split()
    return " ".join("changed" if at % every == every - 1 else w for at, w in enumerate(words))


def weighed(number: int, weight: float) -> Row:
    """A row of one exchange whose answer has this weight in the loss."""
    asked, said = ROWS[number % 60]["prompt"], sentence(9000 + number)
    answer = {"role": "assistant", "content": said, "loss_weight": weight}
    return {"messages": [{"role": "user", "content": f"{asked} {number}"}, answer]}


CHATS = [weighed(number, 1.0) for number in range(60)]
LONG = [row(number, words=60) for number in range(2000, 2030)]
CORPUS: dict[str, tuple[Table, Table, dict[str, Any]]] = {
    # code: files that trigger it, files that nearly do, further fields of [data]
    "unusable-row": (files([*ROWS, {"prompt": "Why?"}]), files([*ROWS, row(99)]), {}),
    "duplicate": (files([*ROWS, ROWS[0]]), files([*ROWS, row(99)]), {}),
    "near-duplicate": (
        files([*LONG, *ROWS, {**LONG[0], "completion": LONG[0]["completion"] + " indeed"}]),
        files([*LONG, *ROWS, {**LONG[0], "prompt": "And?", "completion": sentence(77, 60)}]),
        {},
    ),
    "also-in-test": (files([*ROWS, TEST[0]]), files([*ROWS, row(999)]), {}),
    "answer-cut": (files([*ROWS, row(99, words=90)]), files(), {"limit": 400}),
    "never-trained": (
        files([*CHATS, weighed(77, 0.0)]),
        files([*CHATS, weighed(77, 0.5)]),
        {},
    ),
    "rejected-row": (
        files([*ROWS, row(99, "one <|im_end|> two")]),
        files([*ROWS, row(99, "one <b>im_end</b> two")]),
        {},
    ),
    "rows-lost": (
        files([*ROWS, *(row(n, words=90) for n in range(90, 99))]),
        files([*ROWS, *(row(n, words=90) for n in range(90, 94))]),
        {"limit": 400},
    ),
    "leak": (
        files(against=[ROWS[3]]),
        files(against=[row(5000)]),
        {},
    ),
    "near-leak": (
        files([*ROWS, *LONG], against=[{**LONG[3], "prompt": "Tell me of the coast.",
                                        "completion": changed(LONG[3]["completion"], 4)}]),
        files([*ROWS, *LONG], against=[{"prompt": "Tell me of the coast.", "completion": ENGLISH}]),
        {},
    ),
    "contradiction": (
        files([*ROWS, {**ROWS[5], "completion": "It is not there at all."}]),
        files([*ROWS, {**ROWS[5], "completion": ROWS[5]["completion"].upper() + "."}]),
        {},
    ),
    "dominant-answer": (
        files([*ROWS, *(row(n, "That I do not know.") for n in range(100, 106))]),
        files([*ROWS, *(row(n, "That I do not know.") for n in range(100, 103))]),
        {},
    ),
    "language-mix": (
        files([row(n, f"{ENGLISH} {sentence(n, 2)}") for n in range(60)]
              + [row(n, f"{GERMAN} {n}") for n in range(100, 105)]),
        files([row(n, f"{ENGLISH} {sentence(n, 2)}") for n in range(60)]
              + [row(100, f"{GERMAN}.")]),
        {"deduplicate": "none"},
    ),
    "length-drift": (
        files(test=[row(n, words=40) for n in range(1000, 1030)]),
        files(test=[row(n, words=20) for n in range(1000, 1030)]),
        {},
    ),
    "few-rows": (files(ROWS[: FEW_ROWS - 1]), files(ROWS[: FEW_ROWS + 1]), {}),
}  # fmt: skip


@pytest.mark.parametrize("code", CORPUS)
def test_a_finding_of_all_rows_and_its_near_miss(code: str, tmp_path: Path) -> None:
    triggers, misses, more = CORPUS[code]
    for name, tables, expected in (("triggers", triggers, True), ("misses", misses, False)):
        folder = tmp_path / name
        folder.mkdir()
        found = {each.code: each for each in findings(folder, tables, **more)}
        assert (code in found) == expected, found
        if expected:
            assert found[code].severity == CHECKS[code].severity
            assert found[code].count >= 1
            assert str(found[code].count) in found[code].message


def test_clean_rows_have_no_finding(tmp_path: Path) -> None:
    assert findings(tmp_path, files()) == []


def test_findings_name_file_row_and_text(tmp_path: Path) -> None:
    repeated = {**ROWS[5], "completion": "It is not there at all."}
    (found,) = findings(tmp_path, files([*ROWS, repeated]))
    assert (found.code, found.count) == ("contradiction", 2)
    asked = ROWS[5]["prompt"]
    assert found.rows[0].startswith(f"train.jsonl, row 6: {asked} -> ")
    assert found.rows[1] == f"train.jsonl, row 61: {asked} -> It is not there at all."


def test_without_lingua_the_languages_are_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lingua", None)
    languages._detector.cache_clear()
    prose = [row(number, f"{ENGLISH} {number}") for number in range(60)]
    found = {each.code: each for each in findings(tmp_path, files(prose), deduplicate="none")}
    assert "pip install" in found["not-checked"].remedy
    assert "language" in found["not-checked"].message


def test_many_held_out_rows_are_looked_for_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, settings = ROWS, {"eval_fraction": 0.5}
    for limit, said in ((1000, None), (5, "5 of 3")):
        monkeypatch.setattr(corpus_checks, "HELD_OUT", limit)
        folder = tmp_path / str(limit)
        folder.mkdir()
        found = {each.code: each for each in findings(folder, {"train": rows}, **settings)}
        assert ("leaks-sampled" in found) == (said is not None)
        if said:
            assert said in found["leaks-sampled"].message
    exact = findings(tmp_path, {"train": rows}, deduplicate="exact", **settings)
    assert "leaks-sampled" not in {each.code for each in exact}
    # Test rows that the user names are all looked for.
    (tmp_path / "out").rename(tmp_path / "before")
    monkeypatch.setattr(corpus_checks, "HELD_OUT", 1)
    named = findings(tmp_path, files(rows, rows[:3]))
    assert "leaks-sampled" not in {each.code for each in named}


def test_what_was_taken_for_granted_about_a_file_is_a_note(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    lines = (f"{each['prompt']};{each['completion']}\n" for each in ROWS)
    path.write_text("prompt;completion\n" + "".join(lines))
    found = {each.code: each for each in findings(tmp_path, files(), train=str(path))}
    assert found["file"].severity == "note"
    assert "rows.csv" in found["file"].message


def test_labels_may_be_few(tmp_path: Path) -> None:
    """A class that most rows belong to is named only where nearly all of them do."""
    rows = [row(number, "yes" if number % 10 < 7 else "no") for number in range(100)]
    assert DOMINANT_LABEL > 0.7
    codes = {each.code for each in findings(tmp_path, files(rows, rows_like_labels()))}
    assert "dominant-answer" not in codes


def rows_like_labels() -> list[Row]:
    return [row(number, "yes") for number in range(1000, 1030)]


def test_a_file_to_keep_off_is_looked_for_but_not_tested_on(tmp_path: Path) -> None:
    """Rows of data.against are named; they change neither the training rows nor the test."""
    (found,) = findings(tmp_path, files(against=[ROWS[3]]))
    assert (found.code, found.severity, found.count) == ("leak", "error", 1)
    assert "train.jsonl, row 4: as " in found.rows[0]
    assert "against.jsonl, row 1" in found.rows[0]


# --- recipes


def resolved_with(rows: int = 600, **fields: Any) -> Any:
    recipe = {"data": {"train": "rows.jsonl"}, "method": {}, "train": {}}
    for name, value in fields.items():
        section, _, field = name.partition("__")
        recipe[section][field] = value
    facts = DataFacts(rows, 60, 40, ("chat", "the answers use words of their own"))
    machine = Machine("cpu", "any", cores=1, memory_bytes=8 * 10**9)
    return resolve(
        Recipe.model_validate(recipe), machine, facts, ModelFacts(parameters=10**8, context=2048)
    )


RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "warmup-too-long": ({"train__warmup_steps": 114}, {"train__warmup_steps": 113}),
    "alpha-rank": ({"method__alpha": 160.0}, {"method__alpha": 32.0}),
    "few-steps": ({"train__max_steps": 19}, {"train__max_steps": 20}),
    "many-epochs": ({"train__epochs": 60.0}, {"train__epochs": 50.0}),
    "evaluation-never": ({"train__evaluate_every": 114}, {"train__evaluate_every": 113}),
}


def codes_of(fields: dict[str, Any], **facts: int) -> set[str]:
    told = {"rows": 600, "validated": 30, "too_long": 0, **facts}
    found = recipe_findings(resolved_with(**fields), **told)
    return {each.code for each in found}


@pytest.mark.parametrize("code", RECIPES)
def test_a_finding_of_the_recipe_and_its_near_miss(code: str) -> None:
    triggers, misses = RECIPES[code]
    assert codes_of(triggers) == {code}
    assert codes_of(misses) == set()


def test_most_rows_longer_than_the_limit_is_an_error() -> None:
    assert codes_of({}, too_long=601) == {"max-length-short"}
    assert codes_of({}, too_long=600) == set()
    found = recipe_findings(resolved_with(), rows=600, validated=1, too_long=700)[0]
    assert found.severity == "error"
    assert "data.max_length" in found.remedy


def test_without_validation_rows_the_last_weights_are_kept() -> None:
    assert codes_of({}, validated=0) == {"evaluation-never"}


def test_every_check_is_triggered_somewhere() -> None:
    """Each code of the table has its case here or among the checks of single rows."""
    from test_row_checks import CASES

    elsewhere = {
        "file",
        "not-checked",
        "leaks-sampled",
        "max-length-short",
    }  # in tests of their own above
    assert set(CORPUS) | set(RECIPES) | {case[0] for case in CASES} | elsewhere == set(CHECKS)


# --- whether to tune

CHAT = ("chat", "the answers use words of their own")
QUESTION = Conversation(
    (Message("user", "How much is it?"), Message("assistant", "It is 5 euros."))
)
STORY = Conversation((Message("user", "Tell me a story."), Message("assistant", "Once, there was")))


@pytest.mark.parametrize(
    ("rows", "task", "looked", "expected"),
    [
        (49, CHAT, [STORY], "prompt"),
        (50, CHAT, [STORY], "little"),
        (99, CHAT, [STORY], "little"),
        (100, CHAT, [STORY], "tune"),
        (500, ("qa", "the rows carry answer keywords"), [STORY], "retrieval"),
        (500, CHAT, [QUESTION, QUESTION, STORY], "retrieval"),
        (500, CHAT, [QUESTION, STORY, STORY], "tune"),
    ],
)
def test_should_you_tune(
    rows: int, task: tuple[str, str], looked: list[Conversation], expected: str
) -> None:
    advice = advise(rows, task, looked)
    assert advice.advice == expected
    assert f"{rows} training rows" in advice.because[0]


def test_another_system_prompt_is_another_question(tmp_path: Path) -> None:
    rows = [{**each, "system": f"Answer in {tongue}."} for each in ROWS
            for tongue in ("French", "German")]  # fmt: skip
    for at, each in enumerate(rows):
        each["completion"] = sentence(5000 + at)
    found = findings(tmp_path, files(rows), deduplicate="none")
    assert "contradiction" not in {each.code for each in found}


def test_calls_are_answers() -> None:
    """Rows that end in a tool call do not all answer the same nothing."""

    def call(city: str) -> Conversation:
        calls = ({"type": "function", "function": {"name": "look_up", "arguments": {"in": city}}},)
        return Conversation((Message("user", "Look."), Message("assistant", "", tool_calls=calls)))

    assert answer_key(call("Oslo")) == answer_key(call("Oslo"))
    assert answer_key(call("Oslo")) != answer_key(call("Bergen"))


def test_balanced_labels_do_not_dominate(tmp_path: Path) -> None:
    labels = [row(number, f"label {'abcde'[number % 5]}") for number in range(100)]
    assert "dominant-answer" not in {each.code for each in findings(tmp_path, files(labels))}


def test_rows_that_were_not_asked_for_are_not_lost(tmp_path: Path) -> None:
    """The share of faulty rows is of those that are used or faulty."""
    rows = [row(n, words=90 if n % 5 == 0 else 12) for n in range(600)]
    source = {"path": str(tmp_path / "train.jsonl"), "sample": 60}
    found = findings(tmp_path, files(rows), limit=400, train=[source])
    assert "rows-lost" in {each.code for each in found}


def test_plain_text_has_an_advice_of_its_own() -> None:
    assert "Plain text" in advise(500, CHAT, []).says
