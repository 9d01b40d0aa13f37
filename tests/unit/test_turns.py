"""Turns in the spellings of many tools become messages; what is wrong is said with its field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from retone.conversation import Message
from retone.data.fields import DEEPEST
from retone.data.turns import ROLE_OF
from row_reading import HI, TOOL, WRAPPED_TOOL, Row, one, problem

CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
CALLED = {"type": "function", "function": CALL}


@pytest.mark.parametrize("spelling", ROLE_OF)
@pytest.mark.parametrize("dressed", [str, str.upper, lambda text: text.replace("_", "-")])
def test_every_spelling_of_a_role(spelling: str, dressed: Any) -> None:
    content: Any = json.dumps(CALL) if ROLE_OF[spelling] == "call" else "x"
    row = {"messages": [*HI[:1], {"role": dressed(spelling), "content": content}]}
    role = {"call": "assistant"}.get(ROLE_OF[spelling], ROLE_OF[spelling])
    assert one(row).messages[1].role == role


def test_tool_calls_of_openai() -> None:
    call = {"id": "c1", "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}  # fmt: skip
    messages = [
        {"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "wet"},
        {"role": "assistant", "content": "Yes."},
    ]
    found = one({"messages": messages, "tools": [WRAPPED_TOOL], "parallel_tool_calls": False})
    assert found.messages[1] == Message("assistant", "", tool_calls=({"id": "c1", **CALLED},))
    assert found.messages[2] == Message("tool", "wet", name="weather")
    assert found.tools == (WRAPPED_TOOL,)
    assert found.extra == {"parallel_tool_calls": False}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), json.dumps(WRAPPED_TOOL)])
def test_tools_in_any_spelling(tools: Any) -> None:
    assert one({"messages": HI, "tools": tools}).tools == (WRAPPED_TOOL,)
    assert one({"messages": HI, "functions": tools}).tools == (WRAPPED_TOOL,)


@pytest.mark.parametrize("tools", [None, "", "[]", []])
def test_no_tools(tools: Any) -> None:
    assert one({"messages": HI, "tools": tools}).tools == ()


def test_tool_calls_of_sharegpt() -> None:
    turns = [
        {"from": "human", "value": "Rain, here and there?"},
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "function_call", "value": {"name": "clock", "arguments": ""}},
        {"from": "observation", "value": {"sky": "grey"}},
        {"from": "observation", "value": "noon"},
        {"from": "gpt", "value": "Yes."},
    ]
    found = one({"conversations": turns, "tools": json.dumps([TOOL])})
    clock = {"type": "function", "function": {"name": "clock", "arguments": {}}}
    assert found.messages[1] == Message("assistant", "I look.", tool_calls=(CALLED, clock))
    assert found.messages[2] == Message("tool", '{"sky": "grey"}', name="weather")
    assert found.messages[3] == Message("tool", "noon", name="clock")
    assert len(found.messages) == 5


def test_xlam_calls_are_the_answer() -> None:
    row = {"id": 0, "query": "Rain?", "answers": json.dumps([CALL]), "tools": json.dumps([TOOL])}
    found = one(row)
    assert found.messages == (
        Message("user", "Rain?"), Message("assistant", "", tool_calls=(CALLED,)),
    )  # fmt: skip
    assert found.tools == (WRAPPED_TOOL,)


@pytest.mark.parametrize(
    ("key", "value", "weight"),
    [("weight", 0, 0.0), ("loss_weight", 0.5, 0.5), ("train", False, 0.0), ("training", True, 1.0)],
)
def test_weights_of_turns(key: str, value: Any, weight: float) -> None:
    found = one({"messages": [HI[0], {**HI[1], key: value}]})
    assert found.messages[1].loss_weight == weight


def test_weights_of_parts() -> None:
    parts = [
        {"type": "text", "text": "Good "},
        {"type": "text", "text": "day!", "loss_weight": 0.5},
    ]
    found = one({"messages": [HI[0], {"role": "assistant", "content": parts}]})
    assert found.messages[1].content == "Good day!"
    assert found.messages[1].spans == (("Good ", 1.0), ("day!", 0.5))
    assert one({"messages": [{"role": "user", "content": parts[:1]}]}).messages[0].spans == ()


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_thinking(key: str) -> None:
    found = one({"messages": [HI[0], {**HI[1], key: "Greet back."}]})
    assert (found.messages[1].thinking, found.answer) == ("Greet back.", "Good day!")
    parts = [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]
    found = one({"messages": [HI[0], {"role": "assistant", "content": parts}]})
    assert (found.messages[1].thinking, found.answer) == ("Hm.", "Yes.")


def turn(**fields: Any) -> Row:
    return {"messages": [HI[0], {"role": "assistant", **fields}]}


BAD_ROWS: dict[str, tuple[Row, str]] = {
    "a number as text": (
        {"prompt": "Hi", "completion": 3}, "completion: text is expected, found 3",
    ),
    "empty": ({"prompt": "Hi", "completion": " \n"}, "completion: empty"),
    "no turns": ({"messages": []}, "messages: a list of turns is expected, found an empty list"),
    "no list": ({"messages": {"a": 1}}, "messages: a list of turns is expected, found an object"),
    "a turn that is none": ({"messages": [HI[0], 5]}, "messages[1]: an object with role and"),
    "a turn without a role": (
        {"messages": [HI[0], {"rol": "user", "content": "x"}]},
        "messages[1]: an object with role and content is expected, found keys rol, content",
    ),
    "an unknown role": (
        {"messages": [{"role": "asistant", "content": "x"}]},
        "messages[0].role: found 'asistant' (did you mean \"assistant\"?), known: system",
    ),
    "no content": (turn(), "messages[1].content: text is expected, found nothing"),
    "empty content": (turn(content=""), "messages[1].content: empty"),
    "empty parts": (turn(content=[{"type": "text", "text": ""}]), "messages[1].content: empty"),
    "an image": (
        turn(content=[{"type": "image_url", "image_url": {"url": "a.png"}}]),
        "messages[1].content[0]: a part of type 'image_url', only text is trained",
    ),
    "an image beside the turns": (
        {"messages": HI, "images": ["a.png"]},
        "images: only text is trained, found a list of 1",
    ),
    "a weight that is text": (
        turn(content="x", weight="1"),
        "messages[1].weight: a number of at least 0 is expected, found '1'",
    ),
    "a weight below 0": (
        turn(content="x", weight=-1),
        "messages[1].weight: a number of at least 0 is expected, found -1",
    ),
    "train that is no yes": (
        turn(content="x", train=1), "messages[1].train: true or false expected, found 1",
    ),
    "offsets": (
        turn(content="x", train_detail=[{"begin_offset": 0}]),
        "messages[1].train_detail: parts of a turn get their weights as content",
    ),
    "calls that are no JSON": (
        turn(tool_calls="weather(Oslo)"),
        "messages[1].tool_calls: JSON is expected, found 'weather(Oslo)'",
    ),
    "a call without a name": (
        turn(tool_calls=[{"arguments": {}}]),
        "messages[1].tool_calls[0]: a tool call with name and arguments is expected",
    ),
    "arguments that are a list": (
        turn(tool_calls=[{"name": "f", "arguments": "[1]"}]),
        "messages[1].tool_calls[0].arguments: an object is expected, found '[1]'",
    ),
    "tools without names": (
        {"messages": HI, "tools": ["weather"]},
        "tools[0]: a tool with a name is expected, found 'weather'",
    ),
    "tools that are no JSON": (
        {"messages": HI, "tools": "{"}, "tools: JSON is expected, found '{'",
    ),
    "thinking that is a list": (
        turn(content="x", thinking=["a"]), "messages[1].thinking: text is expected, found a list",
    ),
    "two of one speaker": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "human", "value": "Hey?"}]},
        "conversations: two turns of the user follow each other, 'Hi' and 'Hey?'",
    ),
    "bare texts with a gap": (
        {"conversations": ["Hi", ""]}, "conversations[1]: empty",
    ),
    "a half exchange": (
        {"conversation": [{"human": "Hi", "assistant": None}]},
        "conversation[0].assistant: text is expected, found nothing",
    ),
    "a system column that is no text": (
        {"messages": HI, "system": 1}, "system: text is expected, found 1",
    ),
    "history that is none": (
        {"query": "a", "response": "b", "history": "earlier"},
        "history: a list of exchanges is expected, found 'earlier'",
    ),
    "history of three": (
        {"query": "a", "response": "b", "history": [["x", "y", "z"]]},
        "history[0]: a question and an answer are expected, found a list of 3",
    ),
    "an instance that is none": (
        {"instruction": "a", "instances": [{"input": "", "output": "x"}, "y"]},
        "instances[1]: an object is expected, found 'y'",
    ),
    "no instances": (
        {"instruction": "a", "instances": []}, "instances: a list is expected, found an empty list",
    ),
    "no answers": (
        {"question": "a", "answers": {"text": [], "answer_start": []}},
        "answers.text: an empty list",
    ),
    "an answer that is a number": (
        {"question": "a", "answer": ["x", 4]}, "answer[1]: text is expected, found 4",
    ),
    "no keywords": ({"question": "a", "answer_keywords": " ; "}, "answer_keywords: an empty list"),
    "too deep": (
        turn(tool_calls=[{"name": "f", "arguments": json.loads("[" * 70 + "]" * 70)}]),
        f"messages: nested deeper than {DEEPEST} levels",
    ),
    "too deep in JSON text": (
        {"messages": HI, "tools": "[" * 70 + "]" * 70}, f"tools: nested deeper than {DEEPEST}",
    ),
    "much too deep in JSON text": (
        {"messages": HI, "tools": "[" * 99_999}, "tools: JSON is expected, found '[[[",
    ),
    "half a character": (
        {"messages": '[{"role": "user", "content": "\\ud83d"}]'},
        "messages[0].content: half of a surrogate pair, '\\ud83d'",
    ),
    "text of numbers": ({"text": 7}, "text: text is expected, found 7"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_name_their_field(name: str) -> None:
    row, expected = BAD_ROWS[name]
    assert f"rows.jsonl, line 1: field {expected}" in problem(row)


def test_openai_turns_may_repeat_a_speaker() -> None:
    assert len(one({"messages": [HI[0], *HI]}).messages) == 3
