"""Rows whose columns hold a question and its answer: pairs, Alpaca, QA, seed tasks, prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from retone.conversation import Conversation, Message
from retone.data.fields import (
    Reading,
    RowProblem,
    as_list,
    as_text,
    brief,
    optional_text,
    text,
)
from retone.data.sources import Row
from retone.data.turns import (
    CONTEXT_COLUMNS,
    conversation,
    read_calls,
    read_tools,
    read_turn,
    read_turns,
    turn_style,
)

# Pairs of column names that stand for prompt and completion when a recipe names none.
PAIR_COLUMNS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("prompt", "output"),
    ("prompt", "answer"),
    ("question", "answer"),
    ("question", "response"),
    ("query", "response"),
    ("query", "answer"),
    ("query", "answers"),
    ("instruction", "response"),
    ("instruction", "completion"),
    ("instruction", "answer"),
    ("input", "output"),
    ("input", "target"),
    ("input", "response"),
    ("input_text", "target_text"),
    ("human", "assistant"),
    ("user", "assistant"),
    ("source", "target"),
    ("problem", "solution"),
    ("text", "target"),
    ("text", "summary"),
    ("text", "label"),
    ("document", "summary"),
    ("article", "highlights"),
    ("dialogue", "summary"),
    ("sentence", "translation"),
    ("original", "rewritten"),
    ("plain", "styled"),
)
INPUT_COLUMNS = ("input", "context")
OUTPUT_COLUMNS = ("output", "response", "answer")
NO_INPUT = "<noinput>"  # what self-instruct writes where an instruction needs no input
QUESTION_COLUMNS = ("question", "query")
ANSWER_COLUMNS = ("answer", "answers", "answer_keywords")
PASSAGE_COLUMNS = ("context", "passage")
PROMPT_COLUMNS = ("prompt", "instruction", "question", "query")
KEYWORDS_END = re.compile(r"[;\n]|,(?!\d)")  # a comma inside a number ends no keyword


def find_pair(row: Row) -> Reading | None:
    """One column that is asked and one that answers; each may hold turns instead of a text."""
    pair = next((pair for pair in PAIR_COLUMNS if set(pair) <= row.keys()), None)
    if pair is None:
        return None
    prompt, completion = pair

    def read(row: Row) -> list[Conversation]:
        turns = [*read_history(row), *read_prompt(row, prompt), *_read_answer(row, completion)]
        return [conversation(row, turns)]

    columns = (prompt, completion, "history", *CONTEXT_COLUMNS)
    return Reading(f"columns {prompt} and {completion}", columns, read)


def find_alpaca(row: Row) -> Reading | None:
    """An instruction, often an input to it, and an output (Stanford Alpaca, Dolly)."""
    output = next((column for column in OUTPUT_COLUMNS if column in row), None)
    with_input = any(column in row for column in INPUT_COLUMNS)
    if "instruction" not in row or output is None or (output != "output" and not with_input):
        return None

    def read(row: Row) -> list[Conversation]:
        answer = Message("assistant", text(row, output))
        return [conversation(row, [*read_history(row), instruction_turn(row), answer])]

    present = [column for column in ("instruction", *INPUT_COLUMNS, output) if column in row]
    columns = ("instruction", *INPUT_COLUMNS, output, "history", *CONTEXT_COLUMNS)
    return Reading(f"columns {', '.join(present)}", columns, read)


def find_qa(row: Row) -> Reading | None:
    """A question and short answers: a text, a list of which the first is trained, or keywords."""
    question = next((column for column in QUESTION_COLUMNS if column in row), None)
    answer = next((column for column in ANSWER_COLUMNS if column in row), None)
    if question is None or answer is None or "tools" in row:
        return None

    def read(row: Row) -> list[Conversation]:
        asked = [optional_text(row, *PASSAGE_COLUMNS), text(row, question)]
        said, extra = _read_short_answer(row, answer)
        turns = [Message("user", _joined(asked)), Message("assistant", said)]
        return [conversation(row, turns, **extra)]

    present = [column for column in (*PASSAGE_COLUMNS, question, answer) if column in row]
    columns = (*PASSAGE_COLUMNS, question, answer, "answer_keywords", *CONTEXT_COLUMNS)
    return Reading(f"columns {', '.join(present)}", columns, read)


def find_seed(row: Row) -> Reading | None:
    """A seed task of self-instruct: one instruction with several inputs and outputs."""
    if "instruction" not in row or not isinstance(row.get("instances"), list):
        return None

    def read(row: Row) -> list[Conversation]:
        instances = row.get("instances")
        if not isinstance(instances, list) or not instances:
            raise RowProblem("instances", f"a list is expected, found {brief(instances)}")
        found = []
        for index, instance in enumerate(instances):
            place = f"instances[{index}]"
            if not isinstance(instance, dict):
                raise RowProblem(place, f"an object is expected, found {brief(instance)}")
            given = optional_text(instance, "input", place=f"{place}.")
            asked = Message("user", _joined([text(row, "instruction"), given]))
            answer = Message("assistant", text(instance, "output", f"{place}."))
            found.append(conversation(row, [asked, answer]))
        return found

    columns = ("instruction", "instances", *CONTEXT_COLUMNS)
    return Reading("columns instruction and instances", columns, read)


def find_prompts(row: Row) -> Reading | None:
    """Prompts without answers: they can be asked, not trained on.

    A column of text is taken only where no other column could be its answer.
    """
    questions = as_list(row.get("turns"))
    if questions and isinstance(questions[0], str):

        def read_first(row: Row) -> list[Conversation]:
            turns = as_list(row.get("turns")) or [None]
            asked = [as_text(turn, f"turns[{index}]") for index, turn in enumerate(turns)]
            return [conversation(row, [Message("user", asked[0])], turns=asked)]

        return Reading("column turns of questions", ("turns", *CONTEXT_COLUMNS), read_first)
    texts = [column for column, value in row.items() if isinstance(value, str)]
    for column in PROMPT_COLUMNS:
        alone = set(texts) <= {column, *CONTEXT_COLUMNS}
        if column in row and (alone or turn_style(row[column]) in ("role", "from")):
            return prompts_reading(column)
    return None


def prompts_reading(column: str) -> Reading:
    """Rows of which only the prompt is read."""

    def read(row: Row) -> list[Conversation]:
        return [conversation(row, [*read_history(row), *read_prompt(row, column)])]

    return Reading(f"column {column} alone", (column, "history", *CONTEXT_COLUMNS), read)


def read_prompt(row: Row, column: str) -> list[Message]:
    """The turns before the answer: a text, or turns of which the assistant's are not trained."""
    value = row.get(column)
    if not isinstance(value, list):
        return [Message("user", text(row, column))]
    return [
        replace(message, loss_weight=0.0)
        if message.role == "assistant" and message.loss_weight is None
        else message
        for message in read_turns(value, column)
    ]


def instruction_turn(row: Row) -> Message:
    """The user's turn of an Alpaca row: the instruction, an empty line, the input."""
    given = optional_text(row, *INPUT_COLUMNS)
    return Message("user", _joined([text(row, "instruction"), "" if given == NO_INPUT else given]))


def read_history(row: Row) -> list[Message]:
    """Earlier exchanges: [[question, answer], ...], or turns in any spelling."""
    value = row.get("history")
    history = [] if value is None or value == "" else as_list(value)
    if history is None:
        raise RowProblem("history", f"a list of exchanges is expected, found {brief(value)}")
    if not history:
        return []
    if not isinstance(history[0], list):
        return read_turns(history, "history")
    turns = []
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RowProblem(
                f"history[{index}]", f"a question and an answer are expected, found {brief(pair)}"
            )
        turns.append(Message("user", as_text(pair[0], f"history[{index}][0]")))
        turns.append(Message("assistant", as_text(pair[1], f"history[{index}][1]")))
    return turns


def _read_answer(row: Row, column: str) -> list[Message]:
    """The answer: a text, one turn, a list of turns, or tool calls where the row has tools."""
    value = row.get(column)
    if isinstance(value, dict):
        return [read_turn(value, column)]
    if isinstance(value, list) and turn_style(value) in ("role", "from"):
        return read_turns(value, column)
    calls = as_list(value)
    if calls and all(map(_is_call, calls)) and read_tools(row):
        return [Message("assistant", "", tool_calls=read_calls(calls, column))]
    return [Message("assistant", text(row, column))]


def _is_call(value: Any) -> bool:
    return isinstance(value, dict) and {"name", "arguments"} <= value.keys()


def _read_short_answer(row: Row, column: str) -> tuple[str, dict[str, Any]]:
    """(what is trained, what is kept for scoring) of the answer of a QA row."""
    if column == "answer_keywords":
        keywords = _keywords(row.get(column))
        return ", ".join(keywords), {column: keywords}
    extra: dict[str, Any] = {}
    if row.get("answer_keywords") is not None:
        extra["answer_keywords"] = _keywords(row["answer_keywords"])
    value, place = row.get(column), column
    if isinstance(value, dict) and "text" in value:  # SQuAD: {text: [...], answer_start: [...]}
        value, place = value["text"], f"{column}.text"
    answers = as_list(value) if column == "answers" or isinstance(value, list) else None
    if answers is None:
        return as_text(value, place), extra
    extra["answers"] = _texts(answers, place)
    return extra["answers"][0], extra


def _keywords(value: Any) -> list[str]:
    """Keywords as a list, also from one text with commas or semicolons between them."""
    listed = as_list(value)
    if listed is not None:
        return _texts(listed, "answer_keywords")
    parts = KEYWORDS_END.split(as_text(value, "answer_keywords"))
    return _texts([part.strip() for part in parts if part.strip()], "answer_keywords")


def _texts(values: Sequence[Any], place: str) -> list[str]:
    if not values:
        raise RowProblem(place, "an empty list")
    return [as_text(value, f"{place}[{index}]") for index, value in enumerate(values)]


def _joined(parts: Sequence[str]) -> str:
    """The parts that have text, with an empty line between them."""
    return "\n\n".join(part for part in parts if part)
