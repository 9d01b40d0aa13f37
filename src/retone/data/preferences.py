"""Rows that say which answer is better, or whether an answer is good -> Preference."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from retone.conversation import Conversation, Message, Preference
from retone.data.fields import (
    SYSTEM_COLUMNS,
    Reading,
    RowProblem,
    as_text,
    brief,
    optional_text,
    text,
)
from retone.data.instructions import (
    find_alpaca,
    find_pair,
    instruction_turn,
    read_history,
    read_prompt,
)
from retone.data.sources import Row
from retone.data.turns import (
    CHAT_COLUMNS,
    CONTEXT_COLUMNS,
    find_messages,
    find_sharegpt,
    read_tools,
    read_turn,
    read_turns,
    turn_style,
    with_system,
)

# Columns of the better and the worse answer.
ANSWER_PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("preferred_output", "non_preferred_output"),
)
WORSE_COLUMNS = ("rejected_response", "rejected")  # beside a row that holds the better answer
PROMPT_COLUMNS = ("prompt", "question", "query", "input")
VERDICT_COLUMNS = ("label", "kto_tag")
VERDICTS = {"true": True, "1": True, "false": False, "0": False}
TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")  # turns in Anthropic's HH-RLHF


def find_preference(row: Row) -> Reading | None:
    """Two answers to one prompt (TRL, LlamaFactory, OpenAI ...), or one answer and a verdict."""
    for better, worse in ANSWER_PAIRS:
        if better in row and worse in row:
            return _paired(row, better, worse)
    if "instruction" in row and _two_texts(row.get("output")):
        return _ranked_outputs()
    for worse in WORSE_COLUMNS:
        if worse in row:
            return _answered_and(worse, row)
    for verdict in VERDICT_COLUMNS:
        if _verdict(row.get(verdict)) is not None:
            return _judged(verdict, row)
    return None


def _paired(row: Row, better: str, worse: str) -> Reading:
    """Columns of both answers; the prompt has its own columns or stands in both answers."""
    context = _context_columns(row)

    def read(row: Row) -> list[Preference]:
        prompt = [*read_history(row), *_read_context(row, context)]
        if not prompt and isinstance(row.get(better), str):
            sides = _split_texts(text(row, better), text(row, worse), better)
        else:
            sides = _read_side(row, better), _read_side(row, worse)
        return [_preference(row, prompt, dict(zip((better, worse), sides, strict=True)))]

    present = [column for column in (*context, better) if column in row]
    shown = f"{', '.join(present)} and {worse}"
    columns = (*context, better, worse, "history", *CONTEXT_COLUMNS)
    return Reading(f"columns {shown}", columns, read)


def _ranked_outputs() -> Reading:
    """An Alpaca row whose output lists the better answer and the worse one."""

    def read(row: Row) -> list[Preference]:
        outputs = row.get("output")
        if not isinstance(outputs, list) or len(outputs) != 2:
            raise RowProblem("output", f"two answers are expected, found {brief(outputs)}")
        prompt = [*read_history(row), instruction_turn(row)]
        sides = {
            place: [Message("assistant", as_text(answer, place))]
            for answer, place in zip(outputs, ("output[0]", "output[1]"), strict=True)
        }
        return [_preference(row, prompt, sides)]

    columns = ("instruction", "input", "context", "output", "history", *CONTEXT_COLUMNS)
    return Reading("column instruction, and two answers in output", columns, read)


def _answered_and(worse: str, row: Row) -> Reading | None:
    """A row with an answer, and a worse one beside it (ms-swift)."""
    base = _find_answered({key: value for key, value in row.items() if key != worse})
    if base is None:
        return None

    def read(row: Row) -> list[Preference]:
        prompt, chosen = _split_answer(base, row)
        sides = {base.columns[0]: [chosen], worse: _read_side(row, worse)}
        return [_preference(row, prompt, sides)]

    return Reading(f"{base.evidence}, and {worse}", (*base.columns, worse), read)


def _judged(verdict: str, row: Row) -> Reading | None:
    """A row with an answer, and whether it is good (KTO)."""
    base = _find_answered({key: value for key, value in row.items() if key != verdict})
    if base is None:
        return None

    def read(row: Row) -> list[Preference]:
        good = _verdict(row.get(verdict))
        if good is None:
            raise RowProblem(verdict, f"true or false expected, found {brief(row.get(verdict))}")
        prompt, answer = _split_answer(base, row)
        chosen, rejected = (answer, None) if good else (None, answer)
        return [Preference(tuple(prompt), chosen, rejected, tools=read_tools(row))]

    return Reading(f"{base.evidence}, and {verdict} true or false", (*base.columns, verdict), read)


def _find_answered(row: Row) -> Reading | None:
    """How a row with one answer is read."""
    for find in (find_messages, find_sharegpt, find_alpaca, find_pair):
        if reading := find(row):
            return reading
    return None


def _split_answer(reading: Reading, row: Row) -> tuple[list[Message], Message]:
    """The turns before the last one of a conversation, and that one, the assistant's."""
    (read,) = reading.read(row)
    assert isinstance(read, Conversation)
    *prompt, answer = read.messages
    if answer.role != "assistant" or not prompt:
        column = reading.columns[0]
        raise RowProblem(column, f"an answer is expected last, found a turn of the {answer.role}")
    return prompt, answer


def _context_columns(row: Row) -> tuple[str, ...]:
    """The columns that hold the prompt of two answers; none where the answers hold it."""
    if "instruction" in row:
        return ("instruction", "input", "context")
    for column in (*PROMPT_COLUMNS, *CHAT_COLUMNS):
        if column in row:
            return (column,)
    return ()


def _read_context(row: Row, columns: Sequence[str]) -> list[Message]:
    if not columns:
        return []
    if columns[0] == "instruction":
        return [instruction_turn(row)]
    value = row.get(columns[0])
    if isinstance(value, dict) and "messages" in value:  # OpenAI: {messages: [...], tools: [...]}
        return read_turns(value["messages"], f"{columns[0]}.messages")
    if columns[0] in CHAT_COLUMNS:
        return read_turns(value, columns[0])
    return read_prompt(row, columns[0])


def _read_side(row: Row, column: str) -> list[Message]:
    """The turns of one answer: a text, one turn, or a list that may begin with the prompt."""
    value = row.get(column)
    if isinstance(value, dict):
        return [read_turn(value, column)]
    if turn_style(value) in ("role", "from"):
        return read_turns(value, column)
    return [Message("assistant", text(row, column))]


def _split_texts(chosen: str, rejected: str, place: str) -> tuple[list[Message], list[Message]]:
    """Two texts that begin with the prompt: transcripts, or whatever words they share (TRL)."""
    if TRANSCRIPT.match(chosen) and TRANSCRIPT.match(rejected):
        return _read_transcript(chosen, place), _read_transcript(rejected, place)
    pairs = enumerate(zip(chosen, rejected, strict=False))
    parted = next((at for at, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    shared = max(chosen.rfind(mark, 0, parted) for mark in " \n")
    if shared <= 0:
        raise RowProblem(place, "no column holds the prompt, and the answers share no beginning")
    prompt = Message("user", as_text(chosen[:shared], place))
    answers = (Message("assistant", as_text(side[shared:], place)) for side in (chosen, rejected))
    first, second = ([prompt, answer] for answer in answers)
    return first, second


def _read_transcript(said: str, place: str) -> list[Message]:
    """`Human: ... Assistant: ...`, with empty lines between the turns."""
    _, *parts = TRANSCRIPT.split(said)
    return [
        Message("user" if speaker == "Human" else "assistant", as_text(turn.strip(), place))
        for speaker, turn in zip(parts[::2], parts[1::2], strict=True)
    ]


def _preference(
    row: Row, context: Sequence[Message], sides: dict[str, list[Message]]
) -> Preference:
    """The prompt that both sides share, and one answer for each.

    A side with a user turn holds the whole conversation; any other continues `context`.
    """
    whole = []
    for place, turns in sides.items():
        if not any(message.role == "user" for message in turns):
            turns = [*context, *turns]
        elif context and context[-1].content not in {message.content for message in turns}:
            raise RowProblem(place, "this conversation does not hold the prompt of the row")
        whole.append(turns)
    shared = 0
    while shared < min(map(len, whole)) - 1 and whole[0][shared] == whole[1][shared]:
        shared += 1
    for place, turns in zip(sides, whole, strict=True):
        if not shared or len(turns) != shared + 1 or turns[-1].role != "assistant":
            found = ", ".join(message.role for message in turns[shared:])
            raise RowProblem(
                place, f"one answer after a shared prompt is expected, found turns of {found}"
            )
    prompt = with_system(whole[0][:shared], optional_text(row, *SYSTEM_COLUMNS))
    given = row.get("input")
    tools = read_tools(row) or (read_tools(given) if isinstance(given, dict) else ())
    return Preference(prompt, whole[0][-1], whole[1][-1], tools=tools)


def _two_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _verdict(value: Any) -> bool | None:
    """True or False, also as 1 or 0 and as the words of a CSV file; None for anything else."""
    return VERDICTS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
